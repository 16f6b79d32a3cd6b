import { machineText } from "./machine.ts";
import { short } from "./picture.ts";
import { SPREAD_AT } from "./result.ts";
import type { BenchReport, BenchResult } from "./result.ts";
import type { Interval } from "./statistics.ts";

/** What can be said of a change: beyond noise or not, or nothing, where a report keeps no interval. */
export type Certainty = "better" | "worse" | "within noise" | "cannot be told";

/** A row that two reports have. */
export interface Change {
  readonly id: string;
  /** What is compared: ratios of one run where both have them, else the figure itself. */
  readonly figure: "ratio to limit" | "ratio to other" | "kvferry";
  readonly before: number;
  readonly after: number;
  /** How many times as good: after / before for ratios and rates, before / after for times. */
  readonly factor: number;
  readonly certainty: Certainty;
}

/** What changed from one report to a later one; rows that only one of them has are left out. */
export function compareReports(before: BenchReport, after: BenchReport): Change[] {
  const earlier = new Map(before.results.map((row) => [row.id, row]));
  return after.results.flatMap((row) => {
    const old = earlier.get(row.id);
    return old === undefined ? [] : [changeOf(old, row)];
  });
}

/** The comparison as lines: both machines, then what changed beyond noise, the worst first. */
export function comparisonText(before: BenchReport, after: BenchReport): string {
  const rank: Readonly<Record<Certainty, number>> = {
    worse: 0,
    better: 1,
    "cannot be told": 2,
    "within noise": 3,
  };
  const changes = compareReports(before, after).toSorted(
    (a, b) => rank[a.certainty] - rank[b.certainty] || a.factor - b.factor,
  );
  if (changes.length === 0) return "The two reports have no row in common.\n";
  const width = Math.max(...changes.map(({ id }) => id.length));
  const lines = changes.map(
    (change) =>
      `${change.id.padEnd(width)}  ${short(change.before).padStart(9)} -> ${short(change.after).padStart(9)}  x ${short(change.factor).padEnd(6)} ${change.certainty} (${change.figure})`,
  );
  const beyond = changes.filter(({ certainty }) => certainty === "better" || certainty === "worse").length;
  return [
    `before: ${before.machine.date.slice(0, 10)}, ${machineText(before.machine).join("; ")}`,
    `after:  ${after.machine.date.slice(0, 10)}, ${machineText(after.machine).join("; ")}`,
    `${beyond} of ${changes.length} rows changed beyond noise.`,
    "",
    ...lines,
    "",
  ].join("\n");
}

interface Figure {
  readonly name: Change["figure"];
  readonly of: (row: BenchResult) => number | undefined;
  readonly interval: (row: BenchResult) => Interval | undefined;
}

/** The first that both rows have is compared: a ratio within a run survives another machine's mood, a figure does not. */
const FIGURES: readonly Figure[] = [
  { name: "ratio to limit", of: (row) => row.ratioToLimit, interval: (row) => row.interval },
  { name: "ratio to other", of: (row) => row.ratioToPeer, interval: (row) => row.interval },
  { name: "kvferry", of: (row) => row.ours, interval: notch },
];

function changeOf(before: BenchResult, after: BenchResult): Change {
  const figure =
    FIGURES.find(({ of }) => of(before) !== undefined && of(after) !== undefined) ?? (FIGURES[2] as Figure);
  const [old, now] = [figure.of(before) ?? before.ours, figure.of(after) ?? after.ours];
  const times = figure.name === "kvferry" && after.direction === "time";
  const factor = times ? old / now : now / old;
  const [a, b] = [figure.interval(before), figure.interval(after)];
  const certainty =
    a === undefined || b === undefined
      ? "cannot be told"
      : a[1] >= b[0] && b[1] >= a[0]
        ? "within noise"
        : factor < 1
          ? "worse"
          : "better";
  return { id: after.id, figure: figure.name, before: old, after: now, factor, certainty };
}

/**
 * Bounds of the median from the quartiles, as the notches of box plots are drawn (McGill, Tukey and Larsen, 1978). The
 * samples of a process are not independent, so the number of processes stands for theirs: wide rather than wrong.
 */
function notch(row: BenchResult): Interval | undefined {
  const at = (share: number): number => row.spread?.["ours"]?.[SPREAD_AT.indexOf(share)] ?? Number.NaN;
  const half = (1.57 * (at(0.75) - at(0.25))) / Math.sqrt(row.processes);
  return Number.isNaN(half) ? undefined : [at(0.5) - half, at(0.5) + half];
}
