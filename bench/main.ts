// Runs a suite: `bun run bench -- SUITE --json [--out FILE]`.
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";

import { installPackages, isClone, restart } from "../lib/cli/checkout.ts";
import { EXIT } from "../lib/cli/command.ts";
import { setupNixl } from "../lib/cli/nixl-setup.ts";
import { table } from "../lib/cli/output.ts";
import { readyShim } from "../lib/cli/shim.ts";
import { machineFacts, machineText } from "./machine.ts";
import { MITATA_FORMATS, printWithMitata } from "./mitata-output.ts";
import type { MitataFormat } from "./mitata-output.ts";
import type { Effort } from "./processes.ts";
import { resultRows } from "./result.ts";
import type { BenchReport, BenchResult } from "./result.ts";

/** What a suite's `run(options)` is given. */
export interface SuiteOptions extends Effort {
  /** Measure only rows whose id contains this; empty for all. */
  readonly only: string;
  /** Shows that the suite runs; its figures mean nothing. */
  readonly quick: boolean;
  /** Says what is being done, on standard error. */
  readonly progress: (line: string) => void;
}

/** A suite of bench/: what it measured, or a text of its own making (a page, a comparison). */
export interface Suite {
  run(options: SuiteOptions, operands: readonly string[]): Promise<readonly BenchResult[] | string>;
}

/** What an installed package can measure; the others are measured against C programs that only a clone can build. */
export const WITHOUT_CLONE: readonly string[] = ["calibrate", "report", "wire"];

/** What needs no NIXL: it is not fetched for them, which takes long where there is no network. */
const WITHOUT_NIXL: readonly string[] = [...WITHOUT_CLONE, "gpu", "host", "plan"];

const HELP = `Usage: bun run bench -- SUITE [options]

Measures kvferry against the machine's limits and against others, each contender in turn, in several processes.
SUITE is one of: ${suiteNames().join(", ")}.

  --json         print { suite, machine, results } on standard output
  --out FILE     write the same to a file
  --processes N  processes for each row (default 5)
  --samples N    samples for each process (default 20)
  --only TEXT    only rows whose id contains TEXT
  --quick        2 processes, 3 samples: shows that it runs
  --format F     print as mitata does: mitata, markdown or json (mitata's own JSON, with all samples)
  --list         print the names of the suites

Ratios are ours / other for rates and other / ours for times: 1 is equal, more is better.
Exit status: 0 measured, 2 the command line was wrong, 3 the suite needs a clone of the repository. A goal that is missed is said, and is no failure.`;

async function main(): Promise<number> {
  const { values, positionals } = parseCommandLine();
  const [name, ...operands] = positionals;
  if (values["help"] === true || values["list"] === true) {
    process.stdout.write(`${values["list"] === true ? suiteNames().join("\n") : HELP}\n`);
    return 0;
  }
  if (name !== undefined && allSuites().includes(name) && !suiteNames().includes(name)) {
    process.stderr.write(
      `The suite ${name} needs a clone of the repository: it measures against C programs that are built there. Here are: ${suiteNames().join(", ")}.\n`,
    );
    return EXIT.unavailable;
  }
  if (name === undefined || !suiteNames().includes(name)) {
    process.stderr.write(
      `${name === undefined ? "Name a suite." : `There is no suite ${JSON.stringify(name)}.`}\n\n${HELP}\n`,
    );
    return 2;
  }
  const format = MITATA_FORMATS.find((one) => one === values["format"]);
  if (values["format"] !== undefined && format === undefined) {
    process.stderr.write(`--format takes ${MITATA_FORMATS.join(", ")}\n`);
    return 2;
  }
  const progress = (line: string): void => void process.stderr.write(`${line}\n`);
  if (await installPackages(progress)) return await restart();
  await readyShim(progress);
  // Suites that need NIXL say so themselves where there is none.
  if (!WITHOUT_NIXL.includes(name))
    await setupNixl({ progress }).catch((error: unknown) =>
      progress(error instanceof Error ? error.message : String(error)),
    );

  const quick = values["quick"] === true;
  const suite: Suite = await import(`./${name}.ts`);
  const outcome = await suite.run(
    {
      processes: count(values["processes"], "processes", quick ? 2 : 5),
      samples: count(values["samples"], "samples", quick ? 3 : 20),
      only: typeof values["only"] === "string" ? values["only"] : "",
      quick,
      progress,
    },
    operands,
  );
  const out = typeof values["out"] === "string" ? values["out"] : undefined;
  if (typeof outcome === "string") await deliver(outcome, out, true);
  else {
    const value = { suite: name, machine: machineFacts(), results: outcome };
    await report(value, out, values["json"] === true, format);
  }
  return 0;
}

async function report(
  value: BenchReport,
  out: string | undefined,
  json: boolean,
  format: MitataFormat | undefined,
): Promise<void> {
  const text = `${JSON.stringify(value, null, 2)}\n`;
  if (out !== undefined) await deliver(text, out, false);
  if (json) {
    process.stdout.write(text);
    return;
  }
  if (format !== undefined)
    return await printWithMitata(value.results, format, (line) => void process.stdout.write(`${line}\n`));
  const { header, rows } = resultRows(value.results);
  process.stdout.write(`${[...machineText(value.machine), "", ...table(header, rows)].join("\n")}\n`);
}

async function deliver(text: string, out: string | undefined, print: boolean): Promise<void> {
  if (out !== undefined) {
    mkdirSync(dirname(out), { recursive: true });
    await Bun.write(out, text);
  } else if (print) process.stdout.write(text);
}

function parseCommandLine(): {
  readonly values: Readonly<Record<string, string | boolean | undefined>>;
  readonly positionals: readonly string[];
} {
  try {
    return parseArgs({
      args: process.argv.slice(2),
      allowPositionals: true,
      options: {
        json: { type: "boolean" },
        out: { type: "string" },
        processes: { type: "string" },
        samples: { type: "string" },
        only: { type: "string" },
        quick: { type: "boolean" },
        format: { type: "string" },
        list: { type: "boolean" },
        help: { type: "boolean" },
      },
    });
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n\n${HELP}\n`);
    process.exit(2);
  }
}

function count(text: string | boolean | undefined, option: string, otherwise: number): number {
  if (text === undefined) return otherwise;
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  process.stderr.write(`--${option} takes a number above 0, found ${JSON.stringify(text)}\n`);
  process.exit(2);
}

/** Suites that can run here. */
function suiteNames(): string[] {
  return allSuites().filter((name) => isClone() || WITHOUT_CLONE.includes(name));
}

/** Modules beside this one that export `run`; the others are parts of them. */
function allSuites(): string[] {
  return readdirSync(import.meta.dirname)
    .filter((file) => file.endsWith(".ts") && file !== basename(import.meta.path))
    .filter((file) =>
      /^export (async )?(function|const) run\b/m.test(readFileSync(join(import.meta.dirname, file), "utf8")),
    )
    .map((file) => basename(file, ".ts"))
    .toSorted();
}

if (import.meta.main) process.exitCode = await main();
