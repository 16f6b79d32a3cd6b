// Processes that are killed, stopped, or cut off in the middle of transfers over NIXL: what the survivor has under way
// settles in time, nothing hangs, nothing grows, others are not disturbed, and who comes back is imported and verified.
import { findNixl } from "../../lib/native/find-nixl.ts";
import type { KillReport } from "./kill-words.ts";

/** What the proof is asked to do. */
export interface KillProofOptions {
  /** Faults in all: a third of them kill, a third stop, a third take the link down; half over shared memory, half TCP. */
  readonly cases: number;
  readonly seed: number;
  readonly minutes?: number;
}

/** What the proof found. */
export interface KillProofResult {
  readonly name: string;
  readonly cases: number;
  readonly failures: number;
  readonly seed: number;
  readonly seconds: number;
  readonly findings: readonly string[];
  readonly tally: Readonly<Record<string, number>>;
}

/** From this case on, what a process holds must not grow any more. */
const WARM_CASES = 50;
/** Growth for each case that is noise. */
const NOISE = { descriptors: 0.05, threads: 0.05, rss: 128 * 1024 } as const;
const CASE_MILLIS = 40_000;

/** Runs survivors, one for each route. */
export async function run(options: KillProofOptions): Promise<KillProofResult> {
  const started = performance.now();
  const until = started + Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9) * 60_000;
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  let cases = 0;
  let failures = 0;
  const result = (): KillProofResult => ({
    name: "kill",
    cases,
    failures,
    seed: options.seed,
    seconds: (performance.now() - started) / 1_000,
    findings,
    tally,
  });
  const lacking = whatLacks();
  if (lacking !== null) return { ...result(), failures: 1, findings: [lacking] };
  for (const [index, route] of (["sm", "tcp"] as const).entries()) {
    const share = Math.floor((options.cases + 1 - index) / 2);
    const reports = await survive(route, share, options.seed, until);
    cases += reports.length;
    for (const { index: at, fault, problems, tally: seen } of reports) {
      for (const [what, count] of Object.entries(seen))
        tally[`${route} ${what}`] = (tally[`${route} ${what}`] ?? 0) + count;
      tally[`${route} ${fault}`] = (tally[`${route} ${fault}`] ?? 0) + 1;
      if (problems.length === 0) continue;
      failures++;
      if (findings.length < 20)
        findings.push(
          `seed ${options.seed} ${route} case ${at} (${fault}): ${problems.join("; ")}`.slice(0, 1_000),
        );
    }
    if (reports.length < share && performance.now() < until) {
      failures++;
      findings.push(`${route}: the survivor ended after ${reports.length} of ${share} cases`);
    }
    for (const what of growth(reports)) {
      failures++;
      findings.push(`${route}: ${what}`);
    }
  }
  return result();
}

function whatLacks(): string | null {
  if (findNixl() === null) return "NIXL was not found: run `bun run setup`";
  if (Bun.which("unshare") === null || Bun.which("ip") === null) return "unshare and ip are needed";
  if (Bun.spawnSync(["unshare", "-n", "true"]).exitCode !== 0)
    return "no network namespace can be made here: that needs root";
  return null;
}

async function survive(
  route: "sm" | "tcp",
  cases: number,
  seed: number,
  until: number,
): Promise<KillReport[]> {
  if (cases === 0) return [];
  const script = 'ip link set lo up && exec "$0" "$@"';
  const child = Bun.spawn(
    [
      "unshare",
      "-n",
      "sh",
      "-c",
      script,
      process.execPath,
      `${import.meta.dir}/kill-survivor.ts`,
      String(cases),
      String(seed),
      "0",
    ],
    {
      env: { ...process.env, ...(route === "tcp" ? { UCX_TLS: "tcp" } : undefined) },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
      detached: true,
    },
  );
  const end = (): void => {
    try {
      // The survivor and whoever it started.
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // All of them ended by themselves.
    }
  };
  process.once("exit", end);
  const reports: KillReport[] = [];
  let open = "";
  let timer = setTimeout(end, CASE_MILLIS);
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    const lines = (open + decoder.decode(chunk, { stream: true })).split("\n");
    open = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith('{"index"')) reports.push(JSON.parse(line) as KillReport);
    clearTimeout(timer);
    timer = setTimeout(end, Math.max(1, Math.min(CASE_MILLIS, until - performance.now())));
  }
  clearTimeout(timer);
  await child.exited;
  end();
  process.off("exit", end);
  return reports;
}

/** What rises from case to case once everything has been used for a while. */
function growth(reports: readonly KillReport[]): string[] {
  const warm = reports.filter(({ index }) => index >= WARM_CASES);
  if (warm.length < WARM_CASES) return [];
  return (["descriptors", "threads", "rss"] as const).flatMap((what) => {
    const slope = slopeOf(warm.map((report) => report[what]));
    return slope > NOISE[what] ? [`${what} grow by ${slope.toFixed(2)} a case`] : [];
  });
}

/** Slope of the line through values at equal distances, by least squares. */
function slopeOf(values: readonly number[]): number {
  const middle = (values.length - 1) / 2;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  let above = 0;
  let below = 0;
  for (const [index, value] of values.entries()) {
    above += (index - middle) * (value - mean);
    below += (index - middle) ** 2;
  }
  return above / below;
}
