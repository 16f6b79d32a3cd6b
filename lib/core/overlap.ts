import { greatestCommonDivisor } from "./integers.ts";
import type { StridedView } from "./view.ts";

/** A set of bytes: rows of `rowBytes` at `base` plus every sum of `index * stride` with `0 <= index < size`. */
export interface StridedSet {
  readonly base: number;
  readonly rowBytes: number;
  /** Sizes at least 1, strides in bytes, not negative. */
  readonly axes: readonly { readonly size: number; readonly stride: number }[];
}

/** The answer of an overlap check; `decided` is false when the step budget ran out and overlap is assumed. */
export interface OverlapVerdict {
  readonly overlaps: boolean;
  readonly decided: boolean;
  /** Search steps that it took. */
  readonly steps: number;
  /** A sentence. */
  readonly reason: string;
}

/** Steps after which a check gives up and assumes an overlap; nested strides need a few dozen. */
export const OVERLAP_BUDGET = 20_000;

/**
 * Decides exactly whether two strided sets have a byte in common.
 *
 * Sets meet where some difference of row starts is smaller than a row: a bounded sum of strides has to fall into an
 * interval. That is searched stride by stride, largest first; equal strides count as one, and common divisors, bounds
 * and gap-free ranges cut the search. All in bytes.
 *
 * @param budget - Search steps; when they are spent the sets count as overlapping, and the reason says so.
 */
export function stridedSetsOverlap(
  left: StridedSet,
  right: StridedSet,
  budget: number = OVERLAP_BUDGET,
): OverlapVerdict {
  if (left.base + spanOf(left) <= right.base || right.base + spanOf(right) <= left.base) return APART;
  // left.base + x - (right.base + y) in (-left.rowBytes, right.rowBytes), where x and y are sums of strides;
  // -y is rewritten as the same sum counted from its far end, so that every coefficient is positive.
  const delta = right.base - left.base;
  const shift = spanOf(right) - right.rowBytes;
  const terms = mergeTerms([
    ...left.axes.map((axis) => ({ step: axis.stride, most: axis.size - 1 })),
    ...right.axes.map((axis) => ({ step: axis.stride, most: axis.size - 1 })),
  ]);
  return verdict(
    search(terms, delta + shift - left.rowBytes + 1, delta + shift + right.rowBytes - 1, budget),
  );
}

/**
 * Decides exactly whether two different cells of one strided set have a byte in common.
 *
 * @param budget - Search steps; when they are spent the set counts as overlapping itself.
 */
export function stridedSetOverlapsItself(
  set: Omit<StridedSet, "base">,
  budget: number = OVERLAP_BUDGET,
): OverlapVerdict {
  const axes = set.axes.filter((axis) => axis.size > 1).toSorted((a, b) => b.stride - a.stride);
  if (isNested(axes, set.rowBytes)) return APART;
  // Two cells differ first in some axis, by at least one step, and by anything in the axes after it.
  let spent = 0;
  for (const [index, axis] of axes.entries()) {
    if (axis.stride < set.rowBytes) return MEET;
    const rest = axes.slice(index + 1);
    const shift = rest.reduce((sum, other) => sum + other.stride * (other.size - 1), 0) - axis.stride;
    const terms = mergeTerms([
      { step: axis.stride, most: axis.size - 2 },
      ...rest.map((other) => ({ step: other.stride, most: 2 * (other.size - 1) })),
    ]);
    const result = search(terms, shift - set.rowBytes + 1, shift + set.rowBytes - 1, budget - spent);
    spent += result.steps;
    if (result.answer !== "no") return verdict({ answer: result.answer, steps: spent });
  }
  return APART;
}

/** The bytes of one region of a view, at a base address. */
export function regionSet(view: StridedView, base: number): StridedSet {
  return {
    base,
    rowBytes: view.rowBytes,
    axes: [
      { size: view.blocks, stride: view.strideBlock },
      ...(view.regionScheme === "one" ? [{ size: view.layers, stride: view.strideLayer }] : []),
      ...(view.regionScheme === "per-layer-and-outer"
        ? []
        : [{ size: view.outers, stride: view.strideOuter }]),
      { size: view.pages, stride: view.stridePage },
      { size: view.heads, stride: view.strideHead },
    ],
  };
}

/** Bytes from the start of the first row to the end of the last. */
function spanOf(set: Omit<StridedSet, "base">): number {
  let span = set.rowBytes;
  for (const axis of set.axes) span += (axis.size - 1) * axis.stride;
  return span;
}

/** True when each stride clears all that lies inside it: then no two cells meet, and most layouts end here. */
function isNested(
  descending: readonly { readonly size: number; readonly stride: number }[],
  row: number,
): boolean {
  let inner = row;
  for (let index = descending.length - 1; index >= 0; index--) {
    const axis = descending[index];
    if (axis === undefined) break;
    if (axis.stride < inner) return false;
    inner += (axis.size - 1) * axis.stride;
  }
  return true;
}

interface Term {
  readonly step: number;
  readonly most: number;
}

/** Largest step first; equal steps joined, steps of nothing dropped. */
function mergeTerms(terms: readonly Term[]): readonly Term[] {
  const most = new Map<number, number>();
  for (const term of terms)
    if (term.step > 0 && term.most > 0) most.set(term.step, (most.get(term.step) ?? 0) + term.most);
  return [...most].map(([step, count]) => ({ step, most: count })).toSorted((a, b) => b.step - a.step);
}

/** What is known of the sums that terms `k` and later can make. */
interface Suffix {
  readonly step: number;
  readonly most: number;
  /** The largest sum of the terms after this one. */
  readonly rest: number;
  /** The largest sum of this term and those after it. */
  readonly total: number;
  /** No two neighbouring sums of this term and those after it are further apart. */
  readonly gap: number;
  /** Divides every sum of this term and those after it. */
  readonly divisor: number;
}

function suffixes(terms: readonly Term[]): readonly Suffix[] {
  const result: Suffix[] = [];
  let total = 0;
  let gap = 0;
  let divisor = 0;
  for (const term of terms.toReversed()) {
    const rest = total;
    gap = Math.max(gap, term.step - rest);
    total += term.step * term.most;
    divisor = greatestCommonDivisor(divisor, term.step);
    result.push({ step: term.step, most: term.most, rest, total, gap, divisor });
  }
  return result.reverse();
}

type Answer = "yes" | "no" | "unknown";

/** Whether some sum of `count * step` with `0 <= count <= most` falls into `[low, high]`. */
function search(
  terms: readonly Term[],
  low: number,
  high: number,
  budget: number,
): { readonly answer: Answer; readonly steps: number } {
  const levels = suffixes(terms);
  // Sums that a number cannot hold exactly are not judged.
  if (!isExact(low) || !isExact(high) || !isExact(levels[0]?.total ?? 0))
    return { answer: "unknown", steps: 0 };
  let steps = 0;
  const visit = (index: number, from: number, to: number): Answer => {
    if (from <= 0 && to >= 0) return "yes";
    const level = levels[index];
    if (level === undefined || to < 0 || from > level.total) return "no";
    if (to >= level.total) return "yes";
    // Strictly inside the range from here on: neighbouring sums are at most `gap` apart.
    if (to - from + 1 >= level.gap) return "yes";
    if (Math.floor(to / level.divisor) * level.divisor < from) return "no";
    const first = Math.max(0, Math.ceil((from - level.rest) / level.step));
    const last = Math.min(level.most, Math.floor(to / level.step));
    let undecided = false;
    for (let count = first; count <= last; count++) {
      if (++steps > budget) return "unknown";
      const answer = visit(index + 1, from - count * level.step, to - count * level.step);
      if (answer === "yes") return "yes";
      if (answer === "unknown") undecided = true;
    }
    return undecided ? "unknown" : "no";
  };
  return { answer: visit(0, low, high), steps };
}

function isExact(sum: number): boolean {
  return Number.isSafeInteger(sum);
}

function verdict(result: { readonly answer: Answer; readonly steps: number }): OverlapVerdict {
  const { answer, steps } = result;
  if (answer !== "unknown") return { ...(answer === "yes" ? MEET : APART), steps };
  const reason =
    steps === 0
      ? "the strides pass 2^53 together, so the bytes count as overlapping"
      : `whether the bytes overlap was not decided within ${steps} steps, so they count as overlapping`;
  return { overlaps: true, decided: false, steps, reason };
}

const APART: OverlapVerdict = Object.freeze({
  overlaps: false,
  decided: true,
  steps: 0,
  reason: "no byte belongs to both",
});

const MEET: OverlapVerdict = Object.freeze({
  overlaps: true,
  decided: true,
  steps: 0,
  reason: "at least one byte belongs to both",
});
