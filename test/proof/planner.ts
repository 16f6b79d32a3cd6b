// Random transfers: what the plan's programs do, run by an interpreter and by the native host executor, against a
// definition of every cell's address. Wrong bytes, touched neighbours, rows across regions, wrong refusals: all count.
import { ptr } from "bun:ffi";
import { encodeHop } from "../../lib/core/encode.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { randomOf } from "../random.ts";
import { makeCase, type PlannerCase } from "./planner-case.ts";
import { ARENA_BYTES, type HopRunner, makeBench, tryCase } from "./planner-check.ts";
import type { ProofResult, RepeatableOptions } from "./proof.ts";

/** Plans, runs and checks random transfers. */
export async function run(options: RepeatableOptions): Promise<ProofResult> {
  const started = performance.now();
  const until = started + (options.minutes ?? Number.POSITIVE_INFINITY) * 60_000;
  const memory = new Uint8Array(new ArrayBuffer(ARENA_BYTES));
  const bench = makeBench(memory, Number(ptr(memory)), [hostExecutor()]);
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  const first = options.first ?? 0;
  let cases = 0;
  let failures = 0;
  for (let index = first; index < first + options.cases; index++) {
    if (index % 256 === 0) {
      if (performance.now() > until) break;
      // Lets other work of the process run.
      await Promise.resolve();
    }
    cases++;
    const outcome = tryCase(bench, options.seed, index);
    tally[outcome.kind] = (tally[outcome.kind] ?? 0) + 1;
    if (outcome.problem === null) continue;
    failures++;
    if (findings.length < 20) findings.push(`seed ${options.seed} case ${index}: ${outcome.problem}`);
  }
  const seconds = (performance.now() - started) / 1000;
  return { name: "planner", cases, failures, seed: options.seed, seconds, findings, tally };
}

/** One case by its seed and index, for looking at a finding. */
export function describeCase(seed: number, index: number): PlannerCase {
  return makeCase(randomOf(seed, index), 4096);
}

/** The native host executor, on this thread. */
function hostExecutor(): HopRunner {
  const library = openLibrary();
  const out = new Float64Array(new ArrayBuffer(64));
  return {
    name: "host executor",
    run(hop, nontemporal): string | null {
      const block = encodeHop(hop.programs);
      const status = library.kvf_copy_run(block, block.length, nontemporal ? 1 : 0, out);
      if (status !== 0) return `kvf_copy_run answered ${status}`;
      return out[0] === hop.bytes ? null : `kvf_copy_run moved ${out[0]} bytes, the hop has ${hop.bytes}`;
    },
  };
}
