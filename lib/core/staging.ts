import { descriptorsOf } from "./compile.ts";
import { gpuWork } from "./gpu-work.ts";
import { chooseMethod } from "./method.ts";
import type { Hop } from "./plan.ts";
import type { MachineProfile } from "./profile.ts";
import type { CopyProgram, ProgramMemory } from "./program.ts";
import type { PlanEnvironment } from "./environment.ts";
import { HOST, pieceOf, type StagePiece } from "./stage-piece.ts";

/** Programs with more bases than this are not unrolled further; their rows are moved one by one. */
const MOST_BASES = 65_536;

/** Rows that are cut begin at multiples of this, so that files and kernels find aligned parts. */
const CUT_ALIGNMENT = 4_096;

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
