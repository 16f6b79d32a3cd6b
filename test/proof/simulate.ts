// Whole transports in a simulated world: random work, stops, deaths, restarts, refusals, and bytes that land late. No
// memory is freed or given to others while it may be touched, every transfer settles once and in time, quarantines end
// by proof or at close, and nothing waits for ever. A seed and a case number replay exactly.
import { loadExchange } from "../../lib/runtime/exchange.ts";
import { playCase, type SimOutcome } from "./sim-case.ts";
import type { ProofResult, RepeatableOptions } from "./proof.ts";

/** Plays random cases. */
export async function run(options: RepeatableOptions): Promise<ProofResult> {
  const started = performance.now();
  const until = started + Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9) * 60_000;
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  const first = options.first ?? 0;
  let cases = 0;
  let failures = 0;
  // Modules are not part of the simulation.
  await loadExchange();
  for (let index = first; index < first + options.cases && performance.now() < until; index++, cases++) {
    const outcome = playCase(options.seed, index);
    for (const [what, count] of Object.entries(outcome.tally)) tally[what] = (tally[what] ?? 0) + count;
    if (outcome.findings.length > 0) {
      failures++;
      if (findings.length < 20)
        findings.push(`seed ${options.seed} case ${index}: ${outcome.findings.join("; ")}`);
    }
    // Lets other work of the process run.
    if (index % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const seconds = (performance.now() - started) / 1000;
  return { name: "simulate", cases, failures, seed: options.seed, seconds, findings, tally };
}

/** One case with all that happened, for looking at a finding. */
export function describeCase(seed: number, index: number): SimOutcome {
  return playCase(seed, index, true);
}
