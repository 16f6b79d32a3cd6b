import { short } from "./picture.ts";
import type { BenchReport, BenchResult } from "./result.ts";

/** A row that two reports have. */
export interface Change {
  readonly id: string;
  readonly before: number;
  readonly after: number;
  /** After / before of the ratio to the limit, else of the figure itself as a rate: more is better. */
  readonly factor: number;
  /** Whether the intervals of the two do not touch: the change is beyond noise. */
  readonly certain: boolean;
}

/** What changed from one report to a later one; rows that only one of them has are left out. */
export function compareReports(before: BenchReport, after: BenchReport): Change[] {
  const earlier = new Map(before.results.map((row) => [row.id, row]));
  return after.results.flatMap((row) => {
    const old = earlier.get(row.id);
    return old === undefined ? [] : [changeOf(old, row)];
  });
}

/** The comparison as lines: what changed beyond noise first. */
export function comparisonText(changes: readonly Change[]): string {
  const ordered = changes.toSorted((a, b) => Number(b.certain) - Number(a.certain) || a.factor - b.factor);
  const lines = ordered.map(
    ({ id, before, after, factor, certain }) =>
      `${id.padEnd(28)} ${short(before).padStart(9)} -> ${short(after).padStart(9)}  x${short(factor)}  ${certain ? (factor < 1 ? "worse" : "better") : "within noise"}`,
  );
  return `${lines.join("\n")}\n`;
}

function changeOf(before: BenchResult, after: BenchResult): Change {
  const ratios = before.ratioToLimit !== undefined && after.ratioToLimit !== undefined;
  const old = ratios ? (before.ratioToLimit ?? 0) : before.ours;
  const now = ratios ? (after.ratioToLimit ?? 0) : after.ours;
  const times = !ratios && after.direction === "time";
  return {
    id: after.id,
    before: old,
    after: now,
    factor: times ? old / now : now / old,
    certain: apart(before, after),
  };
}

function apart(before: BenchResult, after: BenchResult): boolean {
  const [a, b] = [before.interval, after.interval];
  if (a === undefined || b === undefined) return false;
  return a[1] < b[0] || b[1] < a[0];
}
