import type { BlockOffsets, CopyProgram, ProgramMemory } from "./program.ts";

/** A part of a program that fits one chunk of staging memory. */
export interface StagePiece {
  /** Bytes that it moves, and takes of the chunk. */
  readonly bytes: number;
  /** Bytes from one pair of it to the next one in the chunk. */
  readonly pairBytes: number;
  /**
   * The two hops for a chunk at that address: into it and out of it.
   *
   * @param stage - Where the chunk lies; default host memory.
   */
  hops(address: number, stage?: ProgramMemory): readonly [CopyProgram, CopyProgram];
}

/** Memory of the host. */
export const HOST: ProgramMemory = Object.freeze({ kind: 0, device: 0 });

/** The part of a program that has some of its bases and pairs, packed in a chunk. @param unit - Bytes of one base of one pair. */
export function pieceOf(
  program: CopyProgram,
  unit: number,
  firstBase: number,
  endBase: number,
  firstPair: number,
  endPair: number,
): StagePiece {
  const bases = endBase - firstBase;
  const pairs = endPair - firstPair;
  const rows = (unit / program.rowBytes) * bases * pairs;
  const bytes = unit * bases * pairs;
  const lead =
    program.dstMemory.kind === 2 || program.srcMemory.kind !== 2 ? program.dstStride : program.srcStride;
  const strides = packedStrides(program.count, lead, program.rowBytes);
  const step = bases * unit;
  const stagePairs: Side = { ids: null, stride: step, offsets: () => evenly(pairs, step) };
  const sourcePairs = pairsOf(program, "source", firstPair, endPair);
  const destinationPairs = pairsOf(program, "destination", firstPair, endPair);
  const into = fused(program.count, program.srcStride, strides, program.rowBytes, rows, strides);
  const out = fused(program.count, strides, program.dstStride, program.rowBytes, rows, strides);
  const outer = { run: null, pairs, srcRunStride: 0, dstRunStride: 0, bytes, layers: null };
  return {
    bytes,
    pairBytes: step,
    hops(address, memory = HOST) {
      const stage = new Float64Array(bases);
      for (let base = 0; base < bases; base++) stage[base] = address + base * unit;
      const inward: CopyProgram = {
        ...outer,
        ...into,
        srcBase: program.srcBase.subarray(firstBase, endBase),
        srcMemory: program.srcMemory,
        dstBase: stage,
        dstMemory: memory,
        blocks: blocksOf(sourcePairs, stagePairs, pairs),
        get srcOffset() {
          return sourcePairs.offsets();
        },
        get dstOffset() {
          return stagePairs.offsets();
        },
      };
      const outward: CopyProgram = {
        ...outer,
        ...out,
        srcBase: stage,
        srcMemory: memory,
        dstBase: program.dstBase.subarray(firstBase, endBase),
        dstMemory: program.dstMemory,
        blocks: blocksOf(stagePairs, destinationPairs, pairs),
        get srcOffset() {
          return stagePairs.offsets();
        },
        get dstOffset() {
          return destinationPairs.offsets();
        },
      };
      return [inward, outward];
    },
  };
}

/** Where the pairs of a piece lie on one side: as ids of blocks where the program has those, and as offsets for who asks. */
interface Side {
  readonly ids: Uint32Array | null;
  readonly stride: number;
  readonly offsets: () => Float64Array;
}

function pairsOf(
  program: CopyProgram,
  end: "source" | "destination",
  firstPair: number,
  endPair: number,
): Side {
  const { blocks } = program;
  if (blocks === null) {
    const offsets = (end === "source" ? program.srcOffset : program.dstOffset).subarray(firstPair, endPair);
    return { ids: null, stride: 0, offsets: () => offsets };
  }
  const ids = blocks[end].subarray(firstPair, endPair);
  const stride = end === "source" ? blocks.sourceStride : blocks.destinationStride;
  let made: Float64Array | undefined;
  return { ids, stride, offsets: () => (made ??= Float64Array.from(ids, (id) => id * stride)) };
}

/** Pairs one after the other in a chunk, and blocks by their ids on the other side; null where there are no ids. */
function blocksOf(source: Side, destination: Side, pairs: number): BlockOffsets | null {
  if (source.ids === null && destination.ids === null) return null;
  return {
    source: source.ids ?? counted(pairs),
    destination: destination.ids ?? counted(pairs),
    sourceStride: source.stride,
    destinationStride: destination.stride,
  };
}

function evenly(count: number, step: number): Float64Array {
  const offsets = new Float64Array(count);
  for (let index = 0; index < count; index++) offsets[index] = index * step;
  return offsets;
}

let numbers: Uint32Array = new Uint32Array(0);

/** 0, 1, 2 and so on, the same memory every time. */
export function counted(count: number): Uint32Array {
  if (numbers.length < count) numbers = Uint32Array.from({ length: 2 * count }, (_unused, index) => index);
  return numbers.subarray(0, count);
}

/** Strides of loops packed without gaps, the loop with the largest stride of the leading side outermost. */
function packedStrides(
  count: readonly number[],
  lead: readonly number[],
  rowBytes: number,
): readonly number[] {
  const order = count
    .map((_count, index) => index)
    .sort((a, b) => Math.abs(lead[a] ?? 0) - Math.abs(lead[b] ?? 0) || b - a);
  const strides = count.map(() => 0);
  let next = rowBytes;
  for (const index of order) {
    strides[index] = next;
    next *= count[index] ?? 1;
  }
  return strides;
}

/** Sorts loops by their stride in the stage and joins the innermost ones that continue the row on both sides. */
function fused(
  count: readonly number[],
  source: readonly number[],
  destination: readonly number[],
  rowBytes: number,
  rows: number,
  stage: readonly number[],
): Pick<CopyProgram, "count" | "srcStride" | "dstStride" | "rowBytes" | "rows"> {
  const loops = count
    .map((times, index) => ({
      times,
      source: source[index] ?? 0,
      destination: destination[index] ?? 0,
      stage: stage[index] ?? 0,
    }))
    .sort((a, b) => b.stage - a.stage);
  let row = rowBytes;
  let left = rows;
  for (;;) {
    const inner = loops.at(-1);
    if (inner === undefined || inner.source !== row || inner.destination !== row) break;
    row *= inner.times;
    left /= inner.times;
    loops.pop();
  }
  return {
    count: loops.map((loop) => loop.times),
    srcStride: loops.map((loop) => loop.source),
    dstStride: loops.map((loop) => loop.destination),
    rowBytes: row,
    rows: left,
  };
}
