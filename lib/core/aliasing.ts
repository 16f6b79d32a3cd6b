import { attachmentBases } from "./attachment.ts";
import type { ComponentPair } from "./intersect.ts";
import type { ComponentRecord } from "./layout.ts";
import { regionSet, stridedSetsOverlap } from "./overlap.ts";
import type { CopyProgram } from "./program.ts";
import { refusal } from "./refuse.ts";
import { type StridedView, VIEW_FIELDS } from "./view.ts";

/**
 * How the memory of a source component and of a destination component relate.
 *
 * `apart`: no byte in common. `same`: one view over one memory, so block ids can be compared. `mixed`: bytes in
 * common under different views: only the rows of a transfer can tell.
 */
export type Aliasing = "apart" | "same" | "mixed";

/** Rows on one side above which an overlap is assumed instead of decided. */
export const MOST_ROWS_COMPARED = 2_097_152;

/** Relates the memory of two components. Addresses are compared only within one address space. */
export function aliasingOf(
  source: ComponentRecord,
  destination: ComponentRecord,
  sameLayout: boolean,
): Aliasing {
  if (source === destination) return "same";
  if (!shareSpace(source, destination)) return "apart";
  // Components of one bundle were checked against each other when the layout was registered.
  if (sameLayout && !source.shape.alias && !destination.shape.alias) return "apart";
  const from = spanOf(source);
  const to = spanOf(destination);
  if (from.end <= to.start || to.end <= from.start) return "apart";
  if (sameView(source, destination)) return "same";
  return regionsMeet(source, destination) ? "mixed" : "apart";
}

/**
 * Refuses programs that read a byte which they also write.
 *
 * Compares the rows of both sides exactly, by sorting them; used only where memory is known to be shared under
 * different views, or where a block is both source and destination.
 *
 * @throws KvferryError `OVERLAP`.
 */
export function requireApart(
  reader: ComponentPair,
  writer: ComponentPair,
  reads: readonly CopyProgram[],
  writes: readonly CopyProgram[],
): void {
  const readRows = reads.reduce((sum, program) => sum + program.rows, 0);
  const writeRows = writes.reduce((sum, program) => sum + program.rows, 0);
  const details = { source: reader.name, destination: writer.name };
  if (Math.max(readRows, writeRows) > MOST_ROWS_COMPARED) {
    throw refusal(
      "OVERLAP",
      "source and destination share memory under different views, and the transfer has too many rows to prove them apart",
      "Move fewer blocks at a time, or register one layout for the shared memory.",
      { ...details, rows: readRows + writeRows, limit: MOST_ROWS_COMPARED, decided: false },
    );
  }
  const from = rowsOf(reads, "src");
  const to = rowsOf(writes, "dst");
  let read = 0;
  let write = 0;
  while (read < from.starts.length && write < to.starts.length) {
    const readStart = from.starts[read] as number; // in bounds
    const writeStart = to.starts[write] as number; // in bounds
    const readEnd = readStart + from.longest;
    const writeEnd = writeStart + to.longest;
    if (readEnd <= writeStart) read++;
    else if (writeEnd <= readStart) write++;
    else if (from.exact && to.exact) throw overlapping(details, Math.max(readStart, writeStart));
    else return requireApartOneByOne(reads, writes, details);
  }
}

interface Rows {
  readonly starts: Float64Array;
  readonly longest: number;
  /** All rows have the longest length. */
  readonly exact: boolean;
}

/** Programs with rows of several lengths: each length of one side against each length of the other. */
function requireApartOneByOne(
  reads: readonly CopyProgram[],
  writes: readonly CopyProgram[],
  details: Readonly<Record<string, unknown>>,
): void {
  for (const reading of reads) {
    for (const writing of writes) {
      const from = rowsOf([reading], "src");
      const to = rowsOf([writing], "dst");
      let read = 0;
      let write = 0;
      while (read < from.starts.length && write < to.starts.length) {
        const readStart = from.starts[read] as number; // in bounds
        const writeStart = to.starts[write] as number; // in bounds
        if (readStart + from.longest <= writeStart) read++;
        else if (writeStart + to.longest <= readStart) write++;
        else throw overlapping(details, Math.max(readStart, writeStart));
      }
    }
  }
}

function rowsOf(programs: readonly CopyProgram[], side: "src" | "dst"): Rows {
  let count = 0;
  let longest = 0;
  for (const program of programs) {
    count += program.rows;
    longest = Math.max(longest, program.rowBytes);
  }
  const starts = new Float64Array(count);
  let at = 0;
  for (const program of programs) at = placeRows(program, side, starts, at);
  starts.sort();
  return { starts, longest, exact: programs.every((program) => program.rowBytes === longest) };
}

function placeRows(program: CopyProgram, side: "src" | "dst", starts: Float64Array, first: number): number {
  const bases = side === "src" ? program.srcBase : program.dstBase;
  const offsets = side === "src" ? program.srcOffset : program.dstOffset;
  const runStride = side === "src" ? program.srcRunStride : program.dstRunStride;
  const strides = side === "src" ? program.srcStride : program.dstStride;
  let at = first;
  const loop = (address: number, depth: number): void => {
    const count = program.count[depth];
    if (count === undefined) {
      starts[at++] = address;
      return;
    }
    const stride = strides[depth] ?? 0;
    for (let index = 0; index < count; index++) loop(address + index * stride, depth + 1);
  };
  for (const base of bases) {
    for (let pair = 0; pair < program.pairs; pair++) {
      const run = program.run?.[pair] ?? 1;
      for (let index = 0; index < run; index++) loop(base + (offsets[pair] as number) + index * runStride, 0); // in bounds
    }
  }
  return at;
}

function shareSpace(source: ComponentRecord, destination: ComponentRecord): boolean {
  const from = source.attachment;
  const to = destination.attachment;
  if (from.kind === "file" && to.kind === "file") return from.file === to.file;
  return from.kind === "addresses" && to.kind === "addresses";
}

function spanOf(component: ComponentRecord): { readonly start: number; readonly end: number } {
  const bases = attachmentBases(component.attachment);
  const { regionBytes } = component.shape.view;
  let start = Number.POSITIVE_INFINITY;
  let end = 0;
  for (const base of bases ?? []) {
    if (base < start) start = base;
    if (base + regionBytes > end) end = base + regionBytes;
  }
  return { start, end };
}

function sameView(source: ComponentRecord, destination: ComponentRecord): boolean {
  const from = source.shape.view;
  const to = destination.shape.view;
  if (from !== to) for (const key of VIEW_KEYS) if (from[key] !== to[key]) return false;
  const fromBases = attachmentBases(source.attachment);
  const toBases = attachmentBases(destination.attachment);
  return fromBases !== null && toBases !== null && fromBases.every((base, index) => base === toBases[index]);
}

// Block counts may differ: two views of one memory may end at different blocks.
const OF_COUNTS: readonly (keyof StridedView)[] = ["regionCount", "blocks", "regionBytes"];
const VIEW_KEYS = VIEW_FIELDS.filter((field) => !OF_COUNTS.includes(field));

/** Sweeps the regions of both sides by address and compares those whose spans meet, byte by byte exactly. */
function regionsMeet(source: ComponentRecord, destination: ComponentRecord): boolean {
  const fromView = source.shape.view;
  const toView = destination.shape.view;
  const from = [...(attachmentBases(source.attachment) ?? [])].sort((left, right) => left - right);
  const to = [...(attachmentBases(destination.attachment) ?? [])].sort((left, right) => left - right);
  let first = 0;
  for (const base of from) {
    while (first < to.length && (to[first] as number) + toView.regionBytes <= base) first++;
    for (let index = first; index < to.length; index++) {
      const other = to[index] as number; // in bounds
      if (other >= base + fromView.regionBytes) break;
      if (stridedSetsOverlap(regionSet(fromView, base), regionSet(toView, other)).overlaps) return true;
    }
  }
  return false;
}

function overlapping(details: Readonly<Record<string, unknown>>, address: number): Error {
  return refusal(
    "OVERLAP",
    "the transfer would read a byte that it also writes: source and destination share memory",
    "Choose blocks that do not share memory, or copy through a third block.",
    { ...details, address },
  );
}
