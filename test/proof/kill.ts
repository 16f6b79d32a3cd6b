// Processes that are killed, stopped, or cut off in the middle of transfers over NIXL: what the survivor has under way
// settles in time, nothing hangs, nothing grows, others are not disturbed, and who comes back is imported and verified.
import { findNixl } from "../../lib/native/find-nixl.ts";
import type { KillReport } from "./kill-words.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

/** From this case on, what a process holds must not grow any more. */
const WARM_CASES = 50;
/** Looks that a slope needs at least. */
const FEWEST_LOOKS = 5;
/** Growth for each case that is noise. */
const NOISE = { descriptors: 0.05, threads: 0.05, rss: 128 * 1024 } as const;
const CASE_MILLIS = 40_000;

/**
 * Runs survivors, one for each route.
 *
 * @param options - A case is a fault: a third of them kill, a third stop, a third take the link down; half over shared
 *   memory, half TCP.
 */
export async function run(options: ProofOptions): Promise<ProofResult> {
  const started = performance.now();
  const until = started + Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9) * 60_000;
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  let cases = 0;
  let failures = 0;
  const result = (): ProofResult => ({
    name: "kill",
    cases,
    failures,
    seed: options.seed,
    seconds: (performance.now() - started) / 1_000,
    findings,
    tally,
  });
  const fail = (finding: string, group: Group, at: number): void => {
    failures++;
    if (findings.length >= 20) return;
    findings.push(`${finding.slice(0, 1_500)}\nagain: ${typed(commandOf(group, 1, at))}`);
  };
  const note = (group: Group, { index: at, fault, problems, tally: seen }: KillReport): void => {
    const { route, processes } = group;
    const count = (what: string, by: number): void => {
      tally[`${route} ${what}`] = (tally[`${route} ${what}`] ?? 0) + by;
    };
    for (const [what, by] of Object.entries(seen)) count(what, by);
    count(fault, 1);
    count(`with ${processes} processes`, 1);
    if (problems.length > 0)
      fail(`${nameOf(group)}, case ${at} (${fault}): ${problems.join("; ")}`, group, at);
  };
  const lacking = whatLacks();
  if (lacking !== null) return { ...result(), failures: 1, findings: [lacking] };
  // Two processes for a third of the cases, three for the others; the routes side by side: their processes mostly wait.
  const survivors = (["sm", "tcp"] as const).map(async (route, index) => {
    const share = Math.floor((options.cases + 1 - index) / 2);
    const alone = Math.floor(share / 3);
    for (const [processes, wanted] of [
      [2, alone],
      [3, share - alone],
    ] as const) {
      const group = { route, processes, seed: options.seed };
      // A survivor that crashed is a failure, and another one takes the cases after that.
      for (let first = 0; first < wanted && performance.now() < until;) {
        const { reports, how } = await survive(group, wanted - first, first, until);
        cases += reports.length;
        for (const report of reports) note(group, report);
        const next = first + reports.length;
        if (next < wanted && performance.now() < until)
          fail(`${nameOf(group)}, case ${next}: the survivor ended with ${how}`, group, next);
        for (const { what, slope, detail } of growth(reports)) {
          const key = `${route} ${processes} ${what} a case`;
          tally[key] = Math.max(tally[key] ?? -Infinity, Number(slope.toFixed(3)));
          // NaN, when nothing could be compared, is a failure too.
          if (!(slope <= NOISE[what]))
            fail(`${nameOf(group)}: ${what} grow by ${slope.toFixed(2)} a case${detail}`, group, first);
        }
        first = next + 1;
      }
    }
  });
  await Promise.all(survivors);
  return result();
}

function whatLacks(): string | null {
  if (findNixl() === null) return "NIXL was not found: run `bun run setup`";
  if (Bun.which("unshare") === null || Bun.which("ip") === null) return "unshare and ip are needed";
  if (Bun.spawnSync(["unshare", "-n", "true"]).exitCode !== 0)
    return "no network namespace can be made here: that needs root";
  return null;
}

interface Group {
  readonly route: "sm" | "tcp";
  /** How many there are in all. */
  readonly processes: 2 | 3;
  readonly seed: number;
}

function nameOf({ route, processes, seed }: Group): string {
  return `seed ${seed}, ${route}, ${processes} processes`;
}

/** Runs some cases, in a network namespace with nothing but a link of its own. */
function commandOf({ route, processes, seed }: Group, cases: number, first: number): string[] {
  const words = [process.execPath, `${import.meta.dir}/kill-survivor.ts`, cases, seed, first, processes];
  const way = route === "tcp" ? ["UCX_TLS=tcp"] : [];
  return ["env", ...way, "unshare", "-n", "sh", "-c", SCRIPT, ...words.map(String)];
}

/** Words as they are typed into a shell. */
function typed(words: readonly string[]): string {
  return words.map((word) => (/^[\w./=:@-]+$/.test(word) ? word : `'${word}'`)).join(" ");
}

const SCRIPT = 'ip link set lo up && exec "$0" "$@"';

async function survive(
  group: Group,
  cases: number,
  first: number,
  until: number,
): Promise<{ readonly reports: readonly KillReport[]; readonly how: string }> {
  if (cases === 0) return { reports: [], how: "" };
  const child = Bun.spawn(commandOf(group, cases, first), {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    detached: true,
  });
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
  return { reports, how: String(child.signalCode ?? `exit status ${child.exitCode}`) };
}

interface Growth {
  readonly what: keyof typeof NOISE;
  /** For each case. */
  readonly slope: number;
  /** What to know of it when it is too much. */
  readonly detail: string;
}

/** What rises from case to case once everything has been used for a while; nothing for too few cases. */
function growth(reports: readonly KillReport[]): Growth[] {
  const warm = reports.slice(WARM_CASES);
  if (warm.length < WARM_CASES) return [];
  const looks = comparable(warm);
  const [from, to] = [looks[0], looks.at(-1)].map((report) => JSON.stringify(report?.descriptors ?? null));
  return [
    {
      what: "descriptors",
      slope: slopeOf(looks.map(({ index, descriptors }) => [index, total(descriptors)])),
      detail: `, of ${looks.length} looks, from ${from} to ${to}`,
    },
    { what: "threads", slope: slopeOf(warm.map(({ index, threads }) => [index, threads])), detail: "" },
    { what: "rss", slope: slopeOf(warm.map(({ index, rss }) => [index, rss])), detail: "" },
  ];
}

/**
 * Cases after which descriptors are counted: those where every process that lives was imported once.
 *
 * NIXL closes an endpoint of a peer that it is told to forget without force, and UCX then keeps the connections until
 * one of both processes has ended. Two processes that do nothing but load each other's metadata, write 4 KiB and
 * invalidate the metadata have one socket more after each round (NIXL 1.5.1, over shared memory and TCP alike, the same
 * seconds later); transports, with a UCX worker for each lane, have three to five more after each reconnection. Those
 * tell how long the third process has lived and not what leaks: they end with it, while what kvferry itself failed to
 * close would stay.
 */
function comparable(reports: readonly KillReport[]): KillReport[] {
  return reports.filter(({ fresh }) => fresh);
}

function total(descriptors: KillReport["descriptors"]): number {
  return Object.values(descriptors).reduce((sum, count) => sum + count, 0);
}

/** Slope of the line through points, by least squares; NaN for too few. */
function slopeOf(points: readonly (readonly [at: number, value: number])[]): number {
  if (points.length < FEWEST_LOOKS) return Number.NaN;
  const mean = (which: 0 | 1): number => points.reduce((sum, point) => sum + point[which], 0) / points.length;
  const [middle, height] = [mean(0), mean(1)];
  let above = 0;
  let below = 0;
  for (const [at, value] of points) {
    above += (at - middle) * (value - height);
    below += (at - middle) ** 2;
  }
  return above / below;
}
