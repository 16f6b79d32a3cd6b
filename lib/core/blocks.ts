import { IDS_IN_DETAILS, refusal } from "./refuse.ts";
import type { BlockList } from "./request.ts";

/** Which list of a request an error speaks of. */
export type Side = "source" | "destination" | "bounce";

/** The runs found in two lists of block ids that pair one to one. */
export interface BlockRuns {
  /** Pairs in the lists. */
  readonly total: number;
  /** Runs, each a first pair and a length; equals `total` when nothing continues, or too little to be worth it. */
  readonly runs: number;
  /** Index of each run's first pair in the lists; null when every run is 1. */
  readonly head: Uint32Array | null;
  /** Blocks in each run; null when every run is 1. */
  readonly length: Uint32Array | null;
  /** The length that all runs share, else 0. */
  readonly uniform: number;
}

/**
 * Looks at pairs of block ids.
 *
 * @returns Their runs, as `pairRuns` finds them; undefined where an id is not below its limit, where a destination repeats,
 *   or where it cannot tell. What is wrong is then found by who asked.
 */
export type PairScan = (
  source: Uint32Array,
  destination: Uint32Array,
  sourceLimit: number,
  destinationLimit: number,
) => BlockRuns | undefined;

/** Runs of that many pairs when so many of them continue another one; undefined when they are worth finding. */
export function runsApart(total: number, continued: number): BlockRuns | undefined {
  return continued * FEW_CONTINUE < total ? single(total) : undefined;
}

/**
 * Checks a list of block ids and gives it as unsigned 32-bit numbers.
 *
 * @param limit - Block count of the layout: ids are `0 <= id < limit`.
 * @returns The same array for a `Uint32Array`, a new one for a list of numbers.
 * @throws KvferryError `BLOCK_OUT_OF_RANGE` with the first offending ids: not an integer, negative, past the end.
 */
export function checkedIds(list: BlockList, limit: number, side: Side, group: string): Uint32Array {
  if (list instanceof Uint32Array) {
    let largest = 0;
    for (let index = 0; index < list.length; index++) {
      const id = list[index] as number; // in bounds
      if (id > largest) largest = id;
    }
    if (largest >= limit && list.length > 0) throw outOfRange(list, limit, side, group);
    return list;
  }
  if (!Array.isArray(list)) {
    throw refusal(
      "BLOCK_OUT_OF_RANGE",
      `${side} blocks of group ${JSON.stringify(group)} are neither a Uint32Array nor a list of numbers`,
      "Give block ids as a Uint32Array or as an array of whole numbers.",
      { side, group, found: Object.prototype.toString.call(list) },
    );
  }
  const numbers: readonly unknown[] = list;
  const ids = new Uint32Array(numbers.length);
  for (let index = 0; index < numbers.length; index++) {
    const id = numbers[index];
    if (typeof id !== "number" || id >>> 0 !== id || id >= limit)
      throw outOfRange(numbers, limit, side, group);
    ids[index] = id;
  }
  return ids;
}

/**
 * Checks that no destination id repeats.
 *
 * @throws KvferryError `DUPLICATE_BLOCK` with each repeated id once, in order of its first repeat.
 */
export function checkDistinct(ids: Uint32Array, side: Side, group: string): void {
  if (ids.length < 2) return;
  if (ids.length <= FEW) {
    for (let index = 1; index < ids.length; index++)
      for (let before = 0; before < index; before++)
        if (ids[index] === ids[before]) throw duplicates(ids, side, group);
    return;
  }
  const largest = largestOf(ids);
  const marks = marksFor(largest);
  if (marks === null) {
    const sorted = ids.slice().sort();
    for (let index = 1; index < sorted.length; index++)
      if (sorted[index] === sorted[index - 1]) throw duplicates(ids, side, group);
    return;
  }
  let marked = 0;
  try {
    for (; marked < ids.length; marked++) {
      const id = ids[marked] as number; // in bounds
      if (marks[id] !== 0) throw duplicates(ids, side, group);
      marks[id] = 1;
    }
  } finally {
    clear(marks, ids, marked, largest);
  }
}

/**
 * Finds the ids that stand in both lists.
 *
 * @returns Each shared id once, in destination order; empty when the lists are disjoint.
 */
export function sharedIds(source: Uint32Array, destination: Uint32Array): readonly number[] {
  if (source.length === 1 && destination.length === 1)
    return source[0] === destination[0] ? [source[0] as number] : [];
  const largest = Math.max(largestOf(source), largestOf(destination));
  const marks = marksFor(largest);
  if (marks === null) {
    const known = new Set(source);
    return [...new Set(destination)].filter((id) => known.has(id));
  }
  let found = false;
  for (let index = 0; index < destination.length; index++) marks[destination[index] as number] = 1;
  for (let index = 0; index < source.length; index++) {
    if (marks[source[index] as number] !== 0) {
      found = true;
      break;
    }
  }
  clear(marks, destination, destination.length, largest);
  if (!found) return [];
  const known = new Set(source);
  return [...new Set(destination)].filter((id) => known.has(id));
}

/**
 * Finds runs of pairs in which both ids rise by one, whatever their order in the lists, in linear time.
 *
 * A table from destination id to source id tells for each pair whether another one continues it, so falling and
 * shuffled lists merge as well as rising ones, without sorting. The same table finds repeated destination ids. Long
 * lists in which hardly anything continues are left as they are: taking them apart costs more than it saves.
 *
 * @param source - Checked ids.
 * @param destination - Checked ids, as many, below `limit`.
 * @throws KvferryError `DUPLICATE_BLOCK` when a destination id repeats.
 */
export function pairRuns(
  source: Uint32Array,
  destination: Uint32Array,
  limit: number,
  group: string,
): BlockRuns {
  const total = source.length;
  if (total < 2) return single(total);
  if (total <= FEW) return fewRuns(source, destination, group);
  // The entry of an id is the one behind its number, and one follows the largest: both neighbours are always there.
  const largest = 2 + (limit <= total * DENSE ? limit - 1 : largestOf(destination));
  const marks = marksFor(largest);
  if (marks === null) {
    checkDistinct(destination, "destination", group);
    return single(total);
  }
  let marked = 0;
  try {
    let continued = 0;
    for (; marked < total; marked++) {
      const to = destination[marked] as number; // in bounds
      const from = source[marked] as number; // in bounds
      if (marks[to + 1] !== 0) throw duplicates(destination, "destination", group);
      marks[to + 1] = from + 1;
      // Each meeting is seen once: when the second of the two comes. 0 means an empty entry.
      if (marks[to + 2] === from + 2) continued++;
      if (marks[to] === from && from > 0) continued++;
    }
    return runsApart(total, continued) ?? collect(marks, source, destination, total - continued);
  } finally {
    clear(marks, destination, marked, largest, 1);
  }
}

/** Where less than one pair of so many continues another one, runs are not worth finding. */
const FEW_CONTINUE = 64;

/** A table with at most so many entries for each id is cleared all at once. */
const DENSE = 8;

/** Up to here comparing every pair beats a table. */
const FEW = 8;

/** Larger ids than this are checked by sorting: the table would take more memory than it is worth. */
const MOST_MARKS = 1 << 24;

// Scratch of all zeros between calls: a table that is made anew for every call costs more than the check.
let scratch: Uint32Array<ArrayBuffer> = new Uint32Array(1 << 12);

function marksFor(largest: number): Uint32Array | null {
  if (largest >= MOST_MARKS) return null;
  if (largest >= scratch.length)
    scratch = new Uint32Array(Math.min(MOST_MARKS, Math.max(largest + 1, 2 * scratch.length)));
  return scratch;
}

/**
 * Puts zeros back where ids were marked: all at once where they lie dense, else one by one.
 *
 * @param largest - Index of the last entry that may be marked.
 * @param behind - How far the entry of an id lies behind its number.
 */
function clear(marks: Uint32Array, ids: Uint32Array, count: number, largest: number, behind = 0): void {
  if (count * DENSE > largest) marks.fill(0, 0, largest + 1);
  else for (let index = 0; index < count; index++) marks[(ids[index] as number) + behind] = 0; // in bounds
}

function largestOf(ids: Uint32Array): number {
  let largest = 0;
  for (let index = 0; index < ids.length; index++) {
    const id = ids[index] as number; // in bounds
    if (id > largest) largest = id;
  }
  return largest;
}

function single(total: number): BlockRuns {
  return { total, runs: total, head: null, length: null, uniform: 1 };
}

function collect(marks: Uint32Array, source: Uint32Array, destination: Uint32Array, runs: number): BlockRuns {
  const head = new Uint32Array(runs);
  const length = new Uint32Array(runs);
  let found = 0;
  let uniform = 0;
  for (let pair = 0; pair < source.length; pair++) {
    const from = source[pair] as number; // in bounds
    const to = destination[pair] as number; // in bounds
    // The entry before holds source id - 1, plus 1: this pair continues it.
    if (from > 0 && marks[to] === from) continue;
    let count = 1;
    while (marks[to + count + 1] === from + count + 1) count++;
    head[found] = pair;
    length[found] = count;
    uniform = found === 0 || uniform === count ? count : 0;
    found++;
  }
  return { total: source.length, runs, head, length, uniform };
}

function fewRuns(source: Uint32Array, destination: Uint32Array, group: string): BlockRuns {
  const total = source.length;
  const head: number[] = [];
  const length: number[] = [];
  for (let pair = 0; pair < total; pair++) {
    const to = destination[pair] as number; // in bounds
    for (let before = 0; before < pair; before++)
      if (destination[before] === to) throw duplicates(destination, "destination", group);
    if (follower(source, destination, pair, -1) >= 0) continue;
    let count = 1;
    for (let at = follower(source, destination, pair, 1); at >= 0; at = follower(source, destination, at, 1))
      count++;
    head.push(pair);
    length.push(count);
  }
  if (head.length === total) return single(total);
  const first = length[0] ?? 0;
  const uniform = length.every((count) => count === first) ? first : 0;
  return {
    total,
    runs: head.length,
    head: Uint32Array.from(head),
    length: Uint32Array.from(length),
    uniform,
  };
}

function follower(source: Uint32Array, destination: Uint32Array, pair: number, step: number): number {
  const from = (source[pair] as number) + step; // in bounds
  const to = (destination[pair] as number) + step; // in bounds
  for (let other = 0; other < source.length; other++)
    if (destination[other] === to && source[other] === from) return other;
  return -1;
}

function outOfRange(list: ArrayLike<unknown>, limit: number, side: Side, group: string): Error {
  const found: unknown[] = [];
  let count = 0;
  for (let index = 0; index < list.length; index++) {
    const id = list[index];
    if (typeof id === "number" && id >>> 0 === id && id < limit) continue;
    count++;
    if (found.length < IDS_IN_DETAILS) found.push(typeof id === "number" ? id : String(id));
  }
  return refusal(
    "BLOCK_OUT_OF_RANGE",
    `${count} ${side} block ${count === 1 ? "id is" : "ids are"} outside 0 to ${limit - 1}: ${found.join(", ")}`,
    `Give whole block ids below the ${limit} blocks of the ${side} layout.`,
    { side, group, ids: found, count, limit },
  );
}

function duplicates(ids: Uint32Array, side: Side, group: string): Error {
  const seen = new Set<number>();
  const repeated = new Set<number>();
  for (const id of ids) {
    if (seen.has(id)) repeated.add(id);
    seen.add(id);
  }
  const found = [...repeated];
  return refusal(
    "DUPLICATE_BLOCK",
    `${found.length} ${side} block ${found.length === 1 ? "id repeats" : "ids repeat"}: ${found.slice(0, IDS_IN_DETAILS).join(", ")}`,
    "Name each destination block once; source blocks may repeat.",
    { side, group, ids: found.slice(0, IDS_IN_DETAILS), count: found.length },
  );
}
