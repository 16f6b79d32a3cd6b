#!/usr/bin/env bun
// Runs everything there is to run on a machine with a GPU and writes bench/results/gpu-<name>-<date>.json: the tests, the
// benches, and the native kernel tests under compute-sanitizer, with driver, clocks and versions.
//
//   bun test/gpu/run.ts [--skip tests,bench,sanitize] [--only TEXT] [--processes N] [--samples N] [--out FILE]
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { machineFacts } from "../../bench/machine.ts";

const ROOT = resolve(import.meta.dir, "..", "..");
const TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck", "address"] as const;

/** What one part gave. */
interface Part {
  readonly ok: boolean;
  readonly seconds: number;
  readonly [fact: string]: unknown;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      skip: { type: "string", default: "" },
      only: { type: "string", default: "" },
      processes: { type: "string", default: "5" },
      samples: { type: "string", default: "20" },
      out: { type: "string" },
    },
  });
  const skipped = new Set(values.skip.split(","));
  const gpu = query([
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "pcie.link.gen.max",
    "pcie.link.width.max",
  ]);
  if (gpu.length === 0) {
    say("NOT RUN: nvidia-smi names no GPU on this machine");
    return 2;
  }
  const parts: Record<string, Part> = {};
  if (!skipped.has("tests")) parts["tests"] = await tests();
  if (!skipped.has("sanitize")) parts["sanitize"] = await sanitize();
  if (!skipped.has("bench")) parts["bench"] = await bench(values.only, values.processes, values.samples);
  const name = (gpu[0]?.["name"] ?? "gpu").replaceAll(/[^A-Za-z0-9]+/g, "-").toLowerCase();
  const out =
    values.out ?? join(ROOT, "bench", "results", `gpu-${name}-${new Date().toISOString().slice(0, 10)}.json`);
  mkdirSync(dirname(out), { recursive: true });
  // The form of every bench report, with what else there was to say.
  const { results = [], ...measured }: Partial<Part> = parts["bench"] ?? {};
  const report = {
    suite: "gpu",
    machine: machineFacts(),
    results,
    gpu,
    clocksAfter: query(["clocks.sm", "clocks.mem"]),
    bench: measured,
    tests: parts["tests"] ?? null,
    sanitize: parts["sanitize"] ?? null,
  };
  await Bun.write(out, `${JSON.stringify(report, null, 2)}\n`);
  say(`wrote ${out}`);
  const failed = Object.entries(parts).filter(([, part]) => !part.ok);
  for (const [part] of failed) say(`FAILED: ${part}`);
  return failed.length === 0 ? 0 : 1;
}

async function tests(): Promise<Part> {
  const { code, said, seconds } = await execute([
    process.execPath,
    "test",
    "--timeout",
    "400000",
    "./test/gpu/gpu.test.ts",
  ]);
  say(said);
  const count = (word: string): number => Number(new RegExp(`^ *(\\d+) ${word}$`, "m").exec(said)?.[1] ?? 0);
  return {
    ok: code === 0,
    seconds,
    passed: count("pass"),
    failed: count("fail"),
    skipped: count("skip"),
    lines: said.split("\n").filter((line) => /^\((?:pass|fail|skip)\)|^queued in/.test(line.trim())),
  };
}

/** The native kernel tests under each of compute-sanitizer's tools, and under AddressSanitizer. */
async function sanitize(): Promise<Part> {
  if (Bun.which("compute-sanitizer") === null || Bun.which("gcc") === null)
    return { ok: true, seconds: 0, skipped: "there is no compute-sanitizer or no gcc on this machine" };
  const folder = mkdtempSync(join(tmpdir(), "kvferry-gpu-"));
  const { code, said, seconds } = await execute([
    "bash",
    "test/gpu/native_run.sh",
    folder,
    "tests",
    "sanitize",
  ]);
  say(said);
  const summaries = Object.fromEntries(
    TOOLS.map((tool) => {
      const text = read(join(folder, `sanitize-${tool}.txt`));
      return [tool, /(?:ERROR|RACECHECK) SUMMARY: .*/.exec(text)?.[0] ?? "no summary"];
    }),
  );
  rmSync(folder, { recursive: true, force: true });
  const clean = Object.values(summaries).every((line) => / 0 (?:errors|hazards)/.test(line));
  return { ok: code === 0 && clean, seconds, summaries, said: said.split("\n").slice(-40) };
}

async function bench(only: string, processes: string, samples: string): Promise<Part> {
  const folder = mkdtempSync(join(tmpdir(), "kvferry-gpu-"));
  const file = join(folder, "bench.json");
  const words = [
    process.execPath,
    "bench/main.ts",
    "gpu",
    "--json",
    "--out",
    file,
    "--processes",
    processes,
    "--samples",
    samples,
  ];
  const { code, said, seconds } = await execute(only === "" ? words : [...words, "--only", only]);
  say(said);
  const text = read(file);
  rmSync(folder, { recursive: true, force: true });
  if (code !== 0 || text === "") return { ok: false, seconds, said: said.split("\n").slice(-40) };
  const report = JSON.parse(text) as {
    readonly results: readonly { readonly id: string; readonly met?: boolean }[];
  };
  const missed = report.results.filter(({ met }) => met === false).map(({ id }) => id);
  return { ok: true, seconds, missed, results: report.results };
}

async function execute(
  words: readonly string[],
): Promise<{ readonly code: number; readonly said: string; readonly seconds: number }> {
  const begun = performance.now();
  const child = Bun.spawn([...words], {
    cwd: ROOT,
    env: process.env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, said, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return {
    code,
    said: `${said}${words[1] === "bench/main.ts" ? "" : out}`,
    seconds: (performance.now() - begun) / 1000,
  };
}

function query(fields: readonly string[]): Record<string, string>[] {
  if (Bun.which("nvidia-smi") === null) return [];
  const asked = Bun.spawnSync(["nvidia-smi", `--query-gpu=${fields.join(",")}`, "--format=csv,noheader"], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
  });
  if (asked.exitCode !== 0) return [];
  return asked.stdout
    .toString()
    .trim()
    .split("\n")
    .map((line) => Object.fromEntries(line.split(", ").map((value, index) => [fields[index] ?? "", value])));
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

process.exitCode = await main();
