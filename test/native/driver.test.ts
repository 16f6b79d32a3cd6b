import { test } from "bun:test";
import type { BuildOptions } from "../../cshim/build.ts";
import { buildDriver, canSanitize, expectHeld, runProgram, SANITIZERS } from "./c-driver.ts";

// The library's own C driver, without JavaScript: contexts, the ring under many producers, copies against the
// definition of a hop, cancelling, closing while work runs. The sanitizers turn a silent mistake into a failure.

const PARTS = [
  "contexts and slots",
  "ring under many producers",
  "pool widths",
  "socket doorbell",
  "closing while jobs run",
  "memory",
  "memory in files",
  "blake3",
  "patterns",
  "pairs of block ids",
  "random hops",
  "split rows, many programs, many runs",
  "programs in order",
  "cursor",
  "bad hops",
  "cancelled copies",
];

async function runDriver(name: string, percent: number, options: BuildOptions): Promise<void> {
  // NIXL and CUDA have drivers of their own; left out, their functions must answer that they are not there.
  const program = await buildDriver("driver.c", name, { ...options, without: ["nixl", "cuda"] });
  expectHeld(await runProgram([program, String(percent)]), PARTS);
}

test("driver holds at full optimisation", () => runDriver("plain", 25, {}), 120_000);

for (const [kind, percent, risk] of [
  ["address", 10, "touches no byte that is not its own (address and undefined behaviour sanitizers)"],
  ["thread", 6, "has no data race (thread sanitizer)"],
] as const)
  if (canSanitize(kind))
    test(`driver ${risk}`, () => runDriver(kind, percent, { sanitize: SANITIZERS[kind] }), 240_000);
  else
    test.skip(`NOT RUN: no compiler with the ${kind} sanitizer here: install gcc or clang`, () => undefined);
