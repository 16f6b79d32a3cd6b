import type { BenchResult } from "./result.ts";
import { SAMPLES } from "./result.ts";
import { quantile } from "./statistics.ts";

/** mitata's own ways to print. */
export const MITATA_FORMATS = ["mitata", "markdown", "json"] as const;

/** One of {@link MITATA_FORMATS}. */
export type MitataFormat = (typeof MITATA_FORMATS)[number];

/** Nanoseconds of a unit of time, by the first word of a row's unit. */
const NANOSECONDS: Readonly<Record<string, number>> = { ns: 1, us: 1e3, ms: 1e6, s: 1e9 };

/** What mitata prints of one contender. */
interface MitataStats {
  readonly kind: "fn";
  readonly debug: string;
  readonly ticks: number;
  readonly samples: readonly number[];
  readonly min: number;
  readonly max: number;
  readonly avg: number;
  readonly p25: number;
  readonly p50: number;
  readonly p75: number;
  readonly p99: number;
  readonly p999: number;
}

/**
 * Prints rows as mitata prints benchmarks: a group for each row, a benchmark for each contender, from the samples that
 * were taken. Rates become the time that 10^9 bytes take; rows that are neither times nor rates are left out.
 *
 * @param print - Receives each line.
 */
export async function printWithMitata(
  results: readonly BenchResult[],
  format: MitataFormat,
  print: (line: string) => void,
): Promise<void> {
  const { bench, group, run } = await import("mitata");
  for (const row of results) {
    const toNanoseconds = timeOf(row);
    if (toNanoseconds === null) continue;
    const title = `${row.id}${row.direction === "rate" ? ", time for 1 GB" : ""}`;
    group(title, () => {
      for (const [name, samples] of Object.entries(row[SAMPLES] ?? {})) {
        const label = name === "ours" ? "kvferry" : name;
        const trial = bench(label, () => undefined);
        const stats = statsOf(samples.map(toNanoseconds));
        const answer = {
          kind: "static",
          args: {},
          alias: label,
          group: groupOf(trial),
          baseline: false,
          runs: [{ stats, error: undefined, args: {}, name: label }],
          style: { highlight: false, compact: false },
        };
        // It was measured already, in processes of its own: mitata only prints it.
        Object.defineProperty(trial, "run", { value: () => Promise.resolve(answer) });
      }
    });
  }
  await run({ format: format === "json" ? { json: { debug: false } } : format, colors: false, print });
}

/** How a row's values become nanoseconds; null where they cannot. */
function timeOf(row: BenchResult): ((value: number) => number) | null {
  if (row.unit === "GB/s") return (rate) => 1e9 / rate;
  const factor = NANOSECONDS[row.unit.split("/")[0] ?? ""];
  return factor === undefined || row.direction !== "time" ? null : (value) => value * factor;
}

function statsOf(nanoseconds: readonly number[]): MitataStats {
  const samples = nanoseconds.toSorted((left, right) => left - right);
  return {
    kind: "fn",
    debug: "",
    ticks: samples.length,
    samples,
    min: quantile(samples, 0),
    max: quantile(samples, 1),
    avg: samples.reduce((sum, value) => sum + value, 0) / samples.length,
    p25: quantile(samples, 0.25),
    p50: quantile(samples, 0.5),
    p75: quantile(samples, 0.75),
    p99: quantile(samples, 0.99),
    p999: quantile(samples, 0.999),
  };
}

/** The number that mitata gave a benchmark's group. */
function groupOf(trial: object): number {
  return "_group" in trial && typeof trial._group === "number" ? trial._group : 0;
}
