import type { CopyProgram } from "./program.ts";

/** What a program is like whatever its pairs are. */
export interface Form {
  /** Bytes that continue each other on both sides once loops are sorted. */
  readonly row: number;
  /** All runs are alike, or there are none. */
  readonly evenRuns: boolean;
  /** Copies of boxes for each pair, or each block where runs differ; null where a pitch or the loops forbid them. */
  readonly boxes: number | null;
  /** Bytes that follow each other on the source's and the destination's side inside a block. */
  readonly along: readonly [Along, Along];
  /** The low bits of all strides and bases together. */
  readonly bits: number;
}

/** Bytes that follow each other on one side. */
export interface Along {
  readonly bytes: number;
  /** They are the whole block: where the next one begins is up to the pairs. */
  readonly whole: boolean;
}

/**
 * What a program is like whatever its pairs are.
 *
 * Without runs of its own a program is formed by its nest alone, which comes back with every transfer between the same two
 * layouts: it is found out once for the array of counts, which belongs to the nest.
 */
export function formOf(program: CopyProgram): Form {
  if (program.run !== null) return madeForm(program);
  const known = forms.get(program.count);
  if (known !== undefined && sameParts(known, program)) return known;
  const { srcStride, dstStride, srcBase, dstBase, rowBytes } = program;
  const made = { ...madeForm(program), srcStride, dstStride, srcBase, dstBase, rowBytes };
  forms.set(program.count, made);
  return made;
}

/** The low bits of all values together: a bit is set where one of them has it. Exact for safe integers. */
export function lowBits(values: Float64Array): number {
  let bits = 0;
  for (let index = 0; index < values.length; index++) bits |= values[index] as number; // in bounds
  return bits;
}

const MOST_PITCH = 2 ** 31 - 1;

/** A form, and what it was found for. */
interface KnownForm extends Form, FormParts {}

type FormParts = Pick<CopyProgram, "srcStride" | "dstStride" | "srcBase" | "dstBase" | "rowBytes">;

const forms: WeakMap<readonly number[], KnownForm> = new WeakMap();

interface Loop {
  readonly count: number;
  /** Source and destination strides. */
  readonly stride: readonly [number, number];
}

/** A program with even runs and evenly spaced bases as loops, sorted by the destination's strides and fused. */
interface Sorted {
  readonly row: number;
  /** Outermost first. */
  readonly loops: readonly Loop[];
  /** Whether bases are still a list of their own, and runs. */
  readonly bases: number;
  readonly evenRuns: boolean;
}

function sameParts(one: FormParts, other: FormParts): boolean {
  return (
    one.srcStride === other.srcStride &&
    one.dstStride === other.dstStride &&
    one.srcBase === other.srcBase &&
    one.dstBase === other.dstBase &&
    one.rowBytes === other.rowBytes
  );
}

function madeForm(program: CopyProgram): Form {
  const sorted = nestOf(program);
  return {
    row: sorted.row,
    evenRuns: sorted.evenRuns,
    boxes: boxesOf(sorted),
    along: [alongOf(program, sorted, 0), alongOf(program, sorted, 1)],
    bits: bitsOf(program),
  };
}

// The same normal form that the library brings programs to before it copies them: what is predicted to be pitched must
// not be refused there.
function nestOf(program: CopyProgram): Sorted {
  const loops: Loop[] = program.count.map((count, index) => ({
    count,
    stride: [program.srcStride[index] ?? 0, program.dstStride[index] ?? 0],
  }));
  const evenRuns = program.run === null || isEven(program.run, program.pairs);
  if (program.run !== null && evenRuns)
    loops.unshift({ count: program.run[0] ?? 1, stride: [program.srcRunStride, program.dstRunStride] });
  let bases = program.srcBase.length;
  if (bases > 1) {
    const from = stepOf(program.srcBase);
    const to = stepOf(program.dstBase);
    if (from !== null && to !== null) {
      loops.unshift({ count: bases, stride: [from, to] });
      bases = 1;
    }
  }
  // Joined first in the order of the program, then sorted and joined again, as the library does.
  const joined = fuse(program.rowBytes, loops);
  const sorted = fuse(
    joined.row,
    joined.loops.toSorted((a, b) => Math.abs(b.stride[1]) - Math.abs(a.stride[1])),
  );
  return { ...sorted, bases, evenRuns };
}

function fuse(
  rowBytes: number,
  given: readonly Loop[],
): { readonly row: number; readonly loops: readonly Loop[] } {
  let row = rowBytes;
  const loops: Loop[] = [];
  for (let index = given.length - 1; index >= 0; index--) {
    const loop = given[index] as Loop; // in bounds
    if (loop.count === 1) continue;
    const inner = loops[0];
    if (inner === undefined) {
      if (loop.stride[0] === row && loop.stride[1] === row) row *= loop.count;
      else loops.unshift(loop);
    } else if (
      loop.stride[0] === inner.stride[0] * inner.count &&
      loop.stride[1] === inner.stride[1] * inner.count
    ) {
      loops[0] = { count: inner.count * loop.count, stride: inner.stride };
    } else loops.unshift(loop);
  }
  return { row, loops };
}

/** Copies of boxes for each entry of the list; null when a pitch or the number of loops forbids it. */
function boxesOf({ row, loops, bases }: Sorted): number | null {
  if (loops.length > 2) return null;
  const inner = loops.at(-1);
  const outer = loops.length > 1 ? loops[0] : undefined;
  for (const side of [0, 1] as const) {
    const pitch = inner?.stride[side] ?? row;
    const height = inner?.count ?? 1;
    const slice = outer?.stride[side] ?? pitch * height;
    if (pitch < row || pitch >= MOST_PITCH || slice % pitch !== 0 || slice / pitch < height) return null;
  }
  return bases;
}

/** Bytes that follow each other on one side when its loops and bases are walked in the order of that side. */
function alongOf(program: CopyProgram, { row, loops, bases }: Sorted, side: 0 | 1): Along {
  const axes = loops.map(({ count, stride }) => ({ count, stride: stride[side] }));
  if (bases > 1) {
    const step = stepOf(side === 0 ? program.srcBase : program.dstBase);
    if (step !== null) axes.push({ count: bases, stride: step });
  }
  let bytes = row;
  for (const { count, stride } of axes.toSorted((a, b) => a.stride - b.stride)) {
    if (stride !== bytes) return { bytes, whole: false };
    bytes *= count;
  }
  return { bytes, whole: true };
}

function bitsOf(program: CopyProgram): number {
  let bits = program.rowBytes;
  if (program.run !== null) bits |= program.srcRunStride | program.dstRunStride;
  bits |= lowBitsOfStrides(program.srcStride) | lowBitsOfStrides(program.dstStride);
  return bits | lowBits(program.srcBase) | lowBits(program.dstBase);
}

/** The same as `lowBits`. One function for both kinds of array is compiled for one of them, and left whenever the other one comes. */
function lowBitsOfStrides(values: readonly number[]): number {
  let bits = 0;
  for (let index = 0; index < values.length; index++) bits |= values[index] as number; // in bounds
  return bits;
}

/** The step of evenly spaced numbers, or null. */
function stepOf(values: Float64Array): number | null {
  const step = (values[1] ?? 0) - (values[0] ?? 0);
  for (let index = 2; index < values.length; index++)
    if ((values[index] as number) - (values[index - 1] as number) !== step) return null; // in bounds
  return step;
}

function isEven(runs: Uint32Array, pairs: number): boolean {
  for (let pair = 1; pair < pairs; pair++) if (runs[pair] !== runs[0]) return false;
  return true;
}
