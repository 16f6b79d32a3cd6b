// Runs one proof: `bun run proof -- NAME [--cases N] [--minutes M] [--seed S] --json`.
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { readyShim } from "../../lib/cli/shim.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

const HELP = `Usage: bun run proof -- NAME [--cases N] [--minutes M] [--seed S] [--json]

Tries many random cases of one law and counts those that break it. NAME is one of: ${proofNames().join(", ")}.

  --cases N    how many cases (default 10000)
  --minutes M  stop after this time (default none)
  --seed S     seed of everything random (default 1)
  --json       print one JSON object on standard output

Exit status: 0 no failure, 1 failures were found, 2 the command line was wrong.`;

async function main(): Promise<number> {
  const { values, positionals } = parseCommandLine();
  const [name] = positionals;
  if (values["help"] === true) {
    process.stdout.write(`${HELP}\n`);
    return 0;
  }
  if (name === undefined || positionals.length > 1 || !proofNames().includes(name)) {
    process.stderr.write(
      `${name === undefined ? "Name a proof." : `There is no proof ${JSON.stringify(name)}.`}\n\n${HELP}\n`,
    );
    return 2;
  }
  // Proofs of real processes need the library, which a fresh clone does not have.
  await readyShim((line) => void process.stderr.write(`${line}\n`));
  const proof: { run(options: ProofOptions): Promise<ProofResult> | ProofResult } = await import(
    `./${name}.ts`
  );
  const result = await proof.run({
    cases: positive(values["cases"], "cases", 10_000),
    seed: positive(values["seed"], "seed", 1),
    minutes: positive(values["minutes"], "minutes", Infinity),
    progress: (line) => void process.stderr.write(`${line}\n`),
  });
  const text =
    values["json"] === true
      ? JSON.stringify(result, (_key, value: unknown) =>
          typeof value === "bigint" ? value.toString() : value,
        )
      : `${result.name}: ${result.cases} cases, ${result.failures} failures, seed ${result.seed}, ${result.seconds.toFixed(1)} s`;
  process.stdout.write(`${text}\n`);
  if (values["json"] !== true)
    for (const finding of result.findings) process.stdout.write(`${Bun.inspect(finding)}\n`);
  return result.failures === 0 && result.cases > 0 ? 0 : 1;
}

interface CommandLine {
  readonly values: Readonly<Record<string, string | boolean | undefined>>;
  readonly positionals: readonly string[];
}

function parseCommandLine(): CommandLine {
  try {
    return parseArgs({
      args: process.argv.slice(2),
      allowPositionals: true,
      options: {
        cases: { type: "string" },
        minutes: { type: "string" },
        seed: { type: "string" },
        json: { type: "boolean" },
        help: { type: "boolean" },
      },
    });
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n\n${HELP}\n`);
    process.exit(2);
  }
}

function positive(text: string | boolean | undefined, option: string, otherwise: number): number {
  if (text === undefined) return otherwise;
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0) return value;
  process.stderr.write(`--${option} takes a number, found ${JSON.stringify(text)}\n`);
  process.exit(2);
}

/** Modules beside this one that export `run`; the others are parts of them. */
function proofNames(): string[] {
  return readdirSync(import.meta.dirname)
    .filter((file) => file.endsWith(".ts") && file !== basename(import.meta.path))
    .filter((file) =>
      /^export (async )?(function|const) run\b/m.test(readFileSync(join(import.meta.dirname, file), "utf8")),
    )
    .map((file) => basename(file, ".ts"))
    .toSorted();
}

if (import.meta.main) process.exitCode = await main();
