// Rows F13: from the first line of a program to its first finished transfer.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { LayoutSpec } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { BenchPeer } from "./nixl-peer.ts";
import { alternate } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";

const PROGRAM: string = join(import.meta.dirname, "first-transfer.ts");
const TARGET: LayoutSpec = {
  name: "target",
  config: { numBlocks: 1, numLayers: 1, outerDim: 1, pageSize: 16, innerDim: 2 ** 15 },
  memory: { kind: "system" },
};

/** Measures rows F13: every sample is a process of its own. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const results: BenchResult[] = [];
  if ("F13.start".includes(options.only)) {
    options.progress("F13.start");
    const sets = await setsOf(options, () => alternate({ ours: () => ours([]) }, options.samples, 2));
    results.push(
      summarize(
        {
          id: "F13.start",
          unit: "ms",
          direction: "time",
          goal: { figure: "ours", value: 30 },
          note: "no NIXL, no GPU: load, open, register twice, move a block of 16 KiB; every sample is a new process",
        },
        sets,
      ),
    );
  }
  if ("F13.start-nixl".includes(options.only)) {
    const row = await startWithNixl(options);
    if (row !== null) results.push(row);
  }
  return results;
}

async function startWithNixl(options: SuiteOptions): Promise<BenchResult | null> {
  const nixl = findNixl();
  if (nixl === null) {
    options.progress("F13.start-nixl needs NIXL: run `kvferry setup`");
    return null;
  }
  options.progress("F13.start-nixl");
  const anchor = await buildNative("nixl_anchor.c", "program", options.progress);
  const folder = mkdtempSync(join(tmpdir(), "kvferry-bench-"));
  try {
    const sets = await setsOf(options, async () => {
      await using peer = new BenchPeer();
      const file = join(folder, "package");
      await Bun.write(file, await peer.call<Uint8Array>({ do: "open", specs: [TARGET], alias: [] }));
      return await alternate(
        { ours: () => ours([file]), limit: () => secondsOf([anchor, nixl.library, "start"]) },
        options.samples,
        2,
      );
    });
    return summarize(
      {
        id: "F13.start-nixl",
        unit: "ms",
        direction: "time",
        goal: { figure: "ratioToLimit", value: 0.77 },
        note: "the peer is up; limit: a C program from main() to the same write of 1 MiB; every sample is a new process",
      },
      sets,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function setsOf(
  options: SuiteOptions,
  take: () => Promise<Record<string, number[]>>,
): Promise<SampleSets> {
  const sets: Record<string, number[]>[] = [];
  for (let count = 0; count < options.processes; count += 1) sets.push(await take());
  return sets;
}

async function ours(operands: readonly string[]): Promise<number> {
  const { milliseconds } = await answerOf<{ readonly milliseconds: number }>([
    process.execPath,
    PROGRAM,
    ...operands,
  ]);
  return milliseconds;
}

async function secondsOf(command: readonly string[]): Promise<number> {
  const { seconds } = await answerOf<{ readonly seconds: readonly number[] }>(command);
  return (seconds[0] ?? Number.NaN) * 1e3;
}

/** What a program prints: one line of JSON. */
async function answerOf<Value>(command: readonly string[]): Promise<Value> {
  const child = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  const [text, code] = await Promise.all([new Response(child.stdout).text(), child.exited]);
  if (code !== 0) throw new Error(`${command.slice(0, 2).join(" ")} ended with status ${code}`);
  return JSON.parse(text) as Value;
}
