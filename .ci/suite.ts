import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import { ERROR_CODES } from "../lib/core/errors.ts";
import { CODES_VARIABLE, codesMissing } from "../test/codes-seen.ts";

import { describe, execute, failed, passed, ROOT } from "./step.ts";
import type { CommandOptions, Ended, Outcome, Step } from "./step.ts";

const COVERAGE = join(ROOT, "coverage");
const CODES = join(COVERAGE, "error-codes.txt");

/** A step that runs the tests; each test counts. */
export function suite(name: string, flags: readonly string[], options: CommandOptions = {}): Step {
  return {
    name,
    run: async () => {
      // A test that waits for other processes may lose its turn on a busy machine: it gets one more, and is named.
      const words = [process.execPath, "test", "--timeout", "60000", "--retry", "1", ...flags];
      // A report of an earlier run must not vouch for one that breaks off.
      if (flags.includes("--coverage")) {
        rmSync(COVERAGE, { recursive: true, force: true });
        mkdirSync(COVERAGE);
      }
      const environment = flags.includes("--coverage") ? { [CODES_VARIABLE]: CODES } : {};
      return countTests(words, await execute(words, { ...options, environment }));
    },
  };
}

/** Holds where the library made an error of every code while the tests ran, each of which has a row in docs/errors.md. */
export function errorCodesStep(name: string): Step {
  return {
    name,
    run: async () => {
      if (!existsSync(CODES)) return failed("the tests left no list of error codes");
      const page = readFileSync(join(ROOT, "docs/errors.md"), "utf8");
      const listed = new Set([...page.matchAll(/^\| `(ERR_KVF_[A-Z_]+)` *\|/gm)].map((found) => found[1]));
      const all = ERROR_CODES.map((word) => `ERR_KVF_${word}`);
      const unseen = codesMissing(readFileSync(CODES, "utf8"));
      const unlisted = all.filter((code) => !listed.has(code));
      const words = [
        ...unseen.map((code) => `${code}: no test made the library refuse with it`),
        ...unlisted.map((code) => `${code}: not in docs/errors.md`),
      ];
      return words.length === 0 ? passed(`${all.length} codes`) : failed(words.join("\n"));
    },
  };
}

/** Reads the closing lines of `bun test`. A run that broke off, or failed without a failed test, counts as one failure more. */
export function countTests(words: readonly string[], ended: Ended): Outcome {
  const count = (word: string): number => {
    const found = [...ended.output.matchAll(new RegExp(`^ (\\d+) ${word}$`, "gm"))].at(-1);
    return Number(found?.[1] ?? 0);
  };
  const closed = /^Ran \d+ tests? across \d+ files?\./m.test(ended.output);
  const counts = { passed: count("pass"), failed: count("fail"), skipped: count("skip") + count("todo") };
  const broken = !closed || counts.passed === 0 || (ended.code !== 0 && counts.failed === 0);
  if (broken || counts.failed > 0)
    return { ...counts, failed: counts.failed + (broken ? 1 : 0), text: failures(words, ended) };
  const lines = ended.output.split("\n");
  const skips = lines.filter((line) => /^\s*\(?(skip|todo)\)?\s/.test(line));
  const loud = lines.filter((line) => /WITHOUT (NIXL|THE NATIVE)/.test(line));
  const again = lines
    .filter((line) => /^\(pass\) .* \(attempt \d+\)/.test(line))
    .map((line) => `AGAIN: needed more than one try: ${line}`);
  return {
    ...counts,
    text: [`${counts.passed} tests`, ...new Set([...loud, ...again, ...skips])].join("\n"),
  };
}

/** Holds where at least `least` of the lines in the folders were run by the tests, files that no test imports included. */
export function coverageStep(name: string, folders: readonly string[], least: number): Step {
  return {
    name,
    run: async () => {
      const report = join(COVERAGE, "lcov.info");
      if (!existsSync(report)) return failed("the tests left no coverage report");
      const files = parseLcov(readFileSync(report, "utf8"));
      const rows = folders
        .flatMap((folder) => sourcesIn(folder))
        .map((file) => [file, files.get(file) ?? unseen(file)] as const);
      const found = rows.reduce((sum, [, lines]) => sum + lines.found, 0);
      const hit = rows.reduce((sum, [, lines]) => sum + lines.hit, 0);
      const share = found === 0 ? 0 : hit / found;
      const worst = rows
        .filter(([, lines]) => lines.hit < lines.found * least)
        .map(([file, lines]) => `${file}: ${lines.hit} of ${lines.found} lines`);
      const text = `${(share * 100).toFixed(1)} % of ${found} lines in ${rows.length} files`;
      return share >= least ? passed(text) : failed([text, ...worst].join("\n"));
    },
  };
}

interface Lines {
  readonly found: number;
  readonly hit: number;
}

/** Lines found and hit of each file of an lcov report (geninfo's format: SF, LF, LH, end_of_record). */
function parseLcov(text: string): Map<string, Lines> {
  const files = new Map<string, Lines>();
  for (const record of text.split("end_of_record")) {
    const value = (key: string): string | undefined => new RegExp(`^${key}:(.*)$`, "m").exec(record)?.[1];
    const file = value("SF");
    if (file !== undefined)
      files.set(file.replace(`${ROOT}/`, ""), {
        found: Number(value("LF") ?? 0),
        hit: Number(value("LH") ?? 0),
      });
  }
  return files;
}

function sourcesIn(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => `${folder}/${file}`)
    .toSorted();
}

/** A file that no test imported: every line of it that is left without its types and comments counts as not run. */
function unseen(file: string): Lines {
  const code = new Bun.Transpiler({ loader: "ts" }).transformSync(readFileSync(join(ROOT, file), "utf8"));
  const lines = code
    .split("\n")
    .filter((line) => !/^\s*(export \{\s*\};?|import .*|export .* from .*)?\s*$/.test(line));
  return { found: lines.length, hit: 0 };
}

/** Lines that a failed test printed before it was named, at most. */
const SAID_LINES = 40;

function failures(words: readonly string[], ended: Ended): string {
  const lines = ended.output.split("\n");
  // Passing tests only hide what matters; what a failed one said stands before its name, wherever that is.
  const said: string[] = [];
  const named = new Set<string>();
  let since = 0;
  lines.forEach((line, index) => {
    if (line.startsWith("(fail)") && !named.has(line)) {
      named.add(line);
      said.push(...lines.slice(Math.max(since, index - SAID_LINES), index + 1));
    }
    if (/^\((pass|fail|skip)\)/.test(line)) since = index + 1;
  });
  const kept = lines.filter((line) => !line.startsWith("(pass)")).join("\n");
  return [...said, describe(words, { ...ended, output: kept })].join("\n");
}
