import type { Machine } from "./machine.ts";
import type { SampleSets } from "./processes.ts";
import { bootstrapRatio, median, quantile } from "./statistics.ts";
import type { Interval } from "./statistics.ts";

/** Whether more is better (a rate) or less (a time). */
export type Direction = "rate" | "time";

/** One row of a report. Ratios are ours / other for rates and other / ours for times: 1 is equal, more is better. */
export interface BenchResult {
  readonly id: string;
  readonly unit: string;
  readonly direction: Direction;
  readonly ours: number;
  /** What the hardware or the best hand-written C does with the same bytes. */
  readonly limit?: number;
  readonly peers: Readonly<Record<string, number>>;
  readonly ratioToLimit?: number;
  /** To the first of the peers. */
  readonly ratioToPeer?: number;
  /** 95 % interval of `ratioToLimit`, else of `ratioToPeer`. */
  readonly interval?: Interval;
  /** The goal in words, e.g. `ratioToLimit >= 0.97`, and whether the median reaches it. */
  readonly goal?: string;
  readonly met?: boolean;
  /** Samples of ours in all processes together. */
  readonly samples: number;
  readonly processes: number;
  readonly note?: string;
  /** How the samples of each contender are spread: their values at {@link SPREAD_AT}. */
  readonly spread?: Readonly<Record<string, readonly number[]>>;
  /** The samples themselves, while the process lives that took them; no file has them. */
  readonly [SAMPLES]?: Readonly<Record<string, readonly number[]>>;
}

/** Key of a row's samples: JSON leaves symbols out. */
export const SAMPLES: unique symbol = Symbol("samples");

/** Shares of the samples whose values a row's `spread` has. */
export const SPREAD_AT: readonly number[] = [
  0, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 1,
];

/** What a suite measured, and where. */
export interface BenchReport {
  readonly suite: string;
  readonly machine: Machine;
  readonly results: readonly BenchResult[];
}

/** What a row is about. */
export interface RowSpec {
  readonly id: string;
  readonly unit: string;
  readonly direction: Direction;
  /** Of several all must be reached. */
  readonly goal?: Goal | readonly Goal[];
  readonly note?: string;
}

/** A goal of a row: the named figure at least (ratios, rates) or at most (times) this value. */
export interface Goal {
  readonly figure: "ratioToLimit" | "ratioToPeer" | "ours";
  readonly value: number;
}

/**
 * Makes a row of the samples of several processes. The contender `ours` is a must, `limit` is the limit, every other
 * name is a peer, in the order in which they stand.
 *
 * @throws RangeError when a process has no samples of ours, or lists of different lengths.
 */
export function summarize(spec: RowSpec, sets: SampleSets): BenchResult {
  const pooled = (name: string): number[] => sets.flatMap((set) => [...(set[name] ?? [])]);
  const names = [...new Set(sets.flatMap((set) => Object.keys(set)))];
  const peers = names.filter((name) => name !== "ours" && name !== "limit");
  const toLimit = names.includes("limit") ? ratioTo(spec, sets, "limit") : undefined;
  const [firstPeer] = peers;
  const toPeer = firstPeer === undefined ? undefined : ratioTo(spec, sets, firstPeer);
  const interval = (toLimit ?? toPeer)?.interval;
  const result = {
    id: spec.id,
    unit: spec.unit,
    direction: spec.direction,
    ours: median(pooled("ours")),
    ...(toLimit === undefined ? {} : { limit: median(pooled("limit")), ratioToLimit: toLimit.ratio }),
    peers: Object.fromEntries(peers.map((name) => [name, median(pooled(name))])),
    ...(toPeer === undefined ? {} : { ratioToPeer: toPeer.ratio }),
    ...(interval === undefined ? {} : { interval }),
    samples: pooled("ours").length,
    processes: sets.length,
    ...(spec.note === undefined ? {} : { note: spec.note }),
    spread: Object.fromEntries(names.map((name) => [name, spreadOf(pooled(name))])),
    [SAMPLES]: Object.fromEntries(names.map((name) => [name, pooled(name)])),
  };
  return spec.goal === undefined ? result : { ...result, ...judge(spec, [spec.goal].flat(), result) };
}

/** A report as lines of text. */
export function resultRows(results: readonly BenchResult[]): {
  readonly header: string[];
  readonly rows: string[][];
} {
  return {
    header: ["id", "unit", "ours", "limit", "to limit", "first peer", "to peer", "95 %", "goal", "met"],
    rows: results.map((row) => [
      row.id,
      row.unit,
      figure(row.ours),
      figure(row.limit),
      figure(row.ratioToLimit),
      Object.entries(row.peers)
        .slice(0, 1)
        .map(([name, value]) => `${name} ${figure(value)}`)
        .join(""),
      figure(row.ratioToPeer),
      row.interval === undefined ? "" : `${figure(row.interval[0])} to ${figure(row.interval[1])}`,
      row.goal ?? "",
      row.met === undefined ? "" : row.met ? "yes" : "no",
    ]),
  };
}

/** Three significant digits, or nothing. */
export function figure(value: number | undefined): string {
  if (value === undefined) return "";
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 1_000 ? Math.round(value).toString() : Number(value.toPrecision(3)).toString();
}

/** A goal in words. Goals are computed from others now and then: `0.9299999999999999` is 0.93. */
export function goalText(goal: string): string {
  return goal.replaceAll(/\d+\.\d{4,}/g, (digits) => String(Number(Number(digits).toPrecision(3))));
}

/** Four digits are more than any sample is good for. */
function spreadOf(samples: readonly number[]): number[] {
  return SPREAD_AT.map((at) => Number(quantile(samples, at).toPrecision(4)));
}

function ratioTo(spec: RowSpec, sets: SampleSets, name: string): ReturnType<typeof bootstrapRatio> {
  return bootstrapRatio(
    sets.map((set) => {
      const ours = set["ours"] ?? [];
      const other = set[name] ?? [];
      return spec.direction === "rate" ? { ours, other } : { ours: other, other: ours };
    }),
  );
}

function judge(
  spec: RowSpec,
  goals: readonly Goal[],
  result: { readonly ours: number; readonly ratioToLimit?: number; readonly ratioToPeer?: number },
): { readonly goal: string; readonly met: boolean } {
  const verdicts = goals.map((goal) => {
    const found = result[goal.figure] ?? Number.NaN;
    const atMost = goal.figure === "ours" && spec.direction === "time";
    const name = goal.figure === "ours" ? "" : `${goal.figure} `;
    return {
      text: `${name}${atMost ? "<=" : ">="} ${goal.value}`,
      met: atMost ? found <= goal.value : found >= goal.value,
    };
  });
  return {
    goal: verdicts.map((verdict) => verdict.text).join(", "),
    met: verdicts.every((verdict) => verdict.met),
  };
}
