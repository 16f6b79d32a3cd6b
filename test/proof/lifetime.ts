// Transports, layouts and transfers that come and go at random, with a native library that checks every access
// (AddressSanitizer, UndefinedBehaviorSanitizer) and memory that is unmapped as soon as it may be: nothing is touched
// after it was freed, everything settles, and every quarantine ends by proof or at close.
import { join } from "node:path";

import { buildSanitized, sanitizerRuntime, underSanitizers } from "../sanitizer.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

/** Steps of one process; the next one has another seed. */
const STEPS = 2_000;
const MOST_DEAD = 3;

/**
 * Runs processes one after the other until all steps are done or the time is over.
 *
 * @param options - A case is a random step.
 */
export async function run(options: ProofOptions): Promise<ProofResult> {
  const started = performance.now();
  const limit = Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9) * 60_000;
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  let cases = 0;
  let failures = 0;
  let dead = 0;
  const runtime = sanitizerRuntime();
  if (runtime === null) tally["NOT CHECKED BY A SANITIZER: gcc with libasan is not there"] = 1;
  else await buildSanitized();
  // Minutes alone mean as many steps as they hold.
  const wanted = options.minutes !== undefined && limit < 1e9 ? Number.POSITIVE_INFINITY : options.cases;
  for (let child = 0; cases < wanted && performance.now() - started < limit; child++) {
    const steps = Math.min(STEPS, wanted - cases);
    const seed = options.seed + child;
    const minutes = Math.max(0.05, (limit - (performance.now() - started)) / 60_000);
    const report = await live(steps, seed, minutes, runtime);
    cases += report.steps;
    for (const [what, count] of Object.entries(report.tally)) tally[what] = (tally[what] ?? 0) + count;
    failures += report.findings.length;
    for (const finding of report.findings)
      if (findings.length < 20) findings.push(`seed ${seed}: ${finding}`.slice(0, 4_000));
    // One that died is a failure, and the next one goes on; several in a row will not do better.
    dead = report.steps === 0 ? dead + 1 : 0;
    if (dead === MOST_DEAD) break;
  }
  const seconds = (performance.now() - started) / 1_000;
  return { name: "lifetime", cases, failures, seed: options.seed, seconds, findings, tally };
}

interface Report {
  readonly steps: number;
  readonly findings: readonly string[];
  readonly tally: Readonly<Record<string, number>>;
}

async function live(steps: number, seed: number, minutes: number, runtime: string | null): Promise<Report> {
  const program = join(import.meta.dirname, "lifetime-child.ts");
  const words = [process.execPath, program, String(steps), String(seed), String(minutes)];
  const alone = async (environment: Readonly<Record<string, string>>): Promise<Report> => {
    const child = Bun.spawn(words, {
      env: { ...process.env, ...environment },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      timeout: Math.min(2 ** 31 - 1, Math.ceil((minutes + 3) * 60_000)),
      killSignal: "SIGKILL",
    });
    const [out, said] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ]);
    await child.exited;
    const line = out.split("\n").find((text) => text.startsWith('{"steps"'));
    if (line !== undefined) return JSON.parse(line) as Report;
    const how = `ended with ${child.exitCode ?? child.signalCode}: ${said.slice(-2_000)}`;
    return { steps: 0, findings: [how], tally: {} };
  };
  if (runtime === null) return await alone({});
  const { answer, reports } = await underSanitizers(runtime, alone);
  return { ...answer, findings: [...answer.findings, ...reports] };
}
