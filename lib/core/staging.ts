import { descriptorsOf } from "./compile.ts";
import { gpuWork } from "./gpu-work.ts";
import { chooseMethod } from "./method.ts";
import type { Hop } from "./plan.ts";
import type { MachineProfile } from "./profile.ts";
import type { BlockOffsets, CopyProgram, ProgramMemory } from "./program.ts";
import type { PlanEnvironment } from "./route.ts";

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

/** Programs with more bases than this are not unrolled further; their rows are moved one by one. */
const MOST_BASES = 65_536;

/** Rows that are cut begin at multiples of this, so that files and kernels find aligned parts. */
const CUT_ALIGNMENT = 4_096;

const HOST: ProgramMemory = Object.freeze({ kind: 0, device: 0 });

/**
 * Cuts a program into parts that go through chunks of staging memory, in two hops each.
 *
 * Inside a chunk bytes are packed in the order of the side that is a file (the destination where both are), so that
 * its requests are long; the other hop scatters or gathers.
 *
 * @param chunkBytes - Bytes of the smallest chunk, at least 1.
 * @param mostListed - Bases and pairs of a part at most, for parts that a message has to hold.
 */
export function* stagePieces(
  program: CopyProgram,
  chunkBytes: number,
  mostListed: number = Number.MAX_SAFE_INTEGER,
): Generator<StagePiece, void> {
  const most = Math.max(1, Math.floor(mostListed / 2));
  for (const part of fitted(withoutRuns(program), chunkBytes)) {
    const unit = part.bytes / (part.srcBase.length * part.pairs);
    const bases = part.srcBase.length;
    if (bases * unit <= chunkBytes && bases <= most) {
      // All bases of some pairs: what lies together on the file side stays together.
      const pairs = Math.max(1, Math.min(mostListed - bases, Math.floor(chunkBytes / (bases * unit))));
      for (let pair = 0; pair < part.pairs; pair += pairs)
        yield pieceOf(part, unit, 0, bases, pair, Math.min(part.pairs, pair + pairs));
    } else {
      const step = Math.min(most, Math.max(1, Math.floor(chunkBytes / unit)));
      for (let pair = 0; pair < part.pairs; pair++)
        for (let base = 0; base < bases; base += step)
          yield pieceOf(part, unit, base, Math.min(bases, base + step), pair, pair + 1);
    }
  }
}

/** A hop of programs that go one way, with the method that is predicted to be fastest. */
export function plannedHop(
  executor: Hop["executor"],
  op: Hop["op"],
  agent: string | null,
  programs: readonly CopyProgram[],
  pageable: boolean,
  profile: MachineProfile,
  environment: PlanEnvironment,
): Hop {
  let bytes = 0;
  let descriptors = 0;
  for (const program of programs) {
    bytes += program.bytes;
    descriptors += descriptorsOf(program);
  }
  const choice = chooseMethod(
    {
      executor,
      op,
      bytes,
      descriptors,
      sourceKind: programs[0]?.srcMemory.kind ?? 0,
      destinationKind: programs[0]?.dstMemory.kind ?? 0,
      ...(executor === "cuda" ? { gpu: gpuWork(programs, pageable) } : undefined),
    },
    profile,
    environment,
    undefined,
  );
  return {
    executor,
    op,
    agent,
    programs,
    bytes,
    descriptorsBefore: descriptors,
    descriptorsAfter: descriptors,
    method: choice.method,
    width: choice.width,
    inline: choice.inline,
    predictedMicros: choice.predictedMicros,
    candidates: choice.candidates,
  };
}

/** One run of bytes from a chunk of staging memory to another one; both in host memory unless said otherwise. */
export function betweenChunks(
  source: number,
  destination: number,
  bytes: number,
  from: ProgramMemory = HOST,
  to: ProgramMemory = HOST,
): CopyProgram {
  const none = new Float64Array(1);
  return {
    srcBase: Float64Array.of(source),
    dstBase: Float64Array.of(destination),
    srcOffset: none,
    dstOffset: none,
    blocks: null,
    run: null,
    pairs: 1,
    srcRunStride: 0,
    dstRunStride: 0,
    count: [],
    srcStride: [],
    dstStride: [],
    rowBytes: bytes,
    bytes,
    rows: 1,
    srcMemory: from,
    dstMemory: to,
    layers: null,
  };
}

/** Where chunks lie: in memory of the GPU of that ordinal, or of the host. */
export function stageMemory(device: number | null): ProgramMemory {
  return device === null ? HOST : { kind: 1, device };
}

/** Who moves bytes between staging memory and this kind of memory: chunks in GPU memory are for the same GPU's only. */
export function executorBeside(memory: ProgramMemory): "host" | "cuda" | "file" {
  return memory.kind === 1 ? "cuda" : memory.kind === 2 ? "file" : "host";
}

/** The same program with one pair for each block of its runs. */
function withoutRuns(program: CopyProgram): CopyProgram {
  const { run } = program;
  if (run === null) return program;
  let blocks = 0;
  for (const length of run) blocks += length;
  const source = new Float64Array(blocks);
  const destination = new Float64Array(blocks);
  let at = 0;
  run.forEach((length, pair) => {
    for (let step = 0; step < length; step++, at++) {
      source[at] = (program.srcOffset[pair] ?? 0) + step * program.srcRunStride;
      destination[at] = (program.dstOffset[pair] ?? 0) + step * program.dstRunStride;
    }
  });
  return {
    ...program,
    srcOffset: source,
    dstOffset: destination,
    blocks: null,
    run: null,
    pairs: blocks,
    srcRunStride: 0,
    dstRunStride: 0,
  };
}

/** Programs of which one base of one pair fits a chunk: loops become bases, and rows are cut, until it does. */
function fitted(program: CopyProgram, chunkBytes: number): CopyProgram[] {
  const bases = program.srcBase.length;
  if (program.bytes === 0) return [];
  const unit = program.bytes / (bases * program.pairs);
  if (unit <= chunkBytes) return [program];
  const count = program.count[0];
  if (count !== undefined && bases * count <= MOST_BASES) {
    return fitted(
      {
        ...program,
        srcBase: spread(program.srcBase, count, program.srcStride[0] ?? 0),
        dstBase: spread(program.dstBase, count, program.dstStride[0] ?? 0),
        count: program.count.slice(1),
        srcStride: program.srcStride.slice(1),
        dstStride: program.dstStride.slice(1),
      },
      chunkBytes,
    );
  }
  if (count !== undefined) {
    // Too many bases for one program: one for each turn of the loop.
    return Array.from({ length: count }, (_unused, index) =>
      shifted(program, index * (program.srcStride[0] ?? 0), index * (program.dstStride[0] ?? 0), {
        count: program.count.slice(1),
        srcStride: program.srcStride.slice(1),
        dstStride: program.dstStride.slice(1),
        bytes: program.bytes / count,
        rows: program.rows / count,
      }),
    ).flatMap((part) => fitted(part, chunkBytes));
  }
  const length =
    chunkBytes > CUT_ALIGNMENT ? Math.floor(chunkBytes / CUT_ALIGNMENT) * CUT_ALIGNMENT : chunkBytes;
  const parts: CopyProgram[] = [];
  for (let at = 0; at < program.rowBytes; at += length) {
    const rowBytes = Math.min(length, program.rowBytes - at);
    parts.push(shifted(program, at, at, { rowBytes, bytes: program.rows * rowBytes }));
  }
  return parts;
}

function spread(bases: Float64Array, count: number, stride: number): Float64Array {
  const all = new Float64Array(bases.length * count);
  for (let index = 0; index < all.length; index++)
    all[index] = (bases[Math.floor(index / count)] ?? 0) + (index % count) * stride;
  return all;
}

function shifted(
  program: CopyProgram,
  source: number,
  destination: number,
  change: Partial<CopyProgram>,
): CopyProgram {
  return {
    ...program,
    srcBase: program.srcBase.map((base) => base + source),
    dstBase: program.dstBase.map((base) => base + destination),
    ...change,
  };
}

function pieceOf(
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
