import { type CopyProgram, runningDeviceOf } from "./program.ts";

/** What the cost model of CUDA copies needs to know of a hop beside its bytes. */
export interface GpuWork {
  /** CUDA ordinal of the device that runs it. */
  readonly device: number;
  /** Host to device, device to host, within one device, from one device to another. */
  readonly direction: "in" | "out" | "local" | "peer";
  /** A host side is not pinned: only the driver's own copies can be used, and they block. */
  readonly pageable: boolean;
  /** Bytes that follow each other on the host side, whatever the order on the device; 0 without a host side. */
  readonly hostRun: number;
  /** 2-D or 3-D copies that do all of it; null where it is not pitched. */
  readonly boxes: number | null;
  /** Bytes that continue each other on both sides once loops are sorted. */
  readonly row: number;
  /** Rows, so counted. */
  readonly rows: number;
  /** Every address and every row is a multiple of 16 bytes. */
  readonly aligned: boolean;
  /** More memory regions than a kernel's list holds. */
  readonly scattered: boolean;
}

/** The most regions that one kernel can be given. */
const MOST_BASES = 4_096;
const BULK_ALIGNMENT = 16;
/** Up to here looking again is as quick as remembering. */
const FEW_BASES = 16;
const MOST_PITCH = 2 ** 31 - 1;
const LONG_RUN = 4 * 2 ** 20;

/**
 * Describes a hop's programs for the cost model of CUDA copies.
 *
 * @param pageable - Whether a host side of any program is not pinned.
 */
export function gpuWork(programs: readonly CopyProgram[], pageable: boolean): GpuWork {
  const first = programs[0];
  const inward = first?.srcMemory.kind === 0;
  const outward = first?.dstMemory.kind === 0;
  const device = first === undefined ? 0 : (runningDeviceOf(first) ?? 0);
  const peer =
    first !== undefined && !inward && !outward && first.dstMemory.device !== first.srcMemory.device;
  let bytes = 0;
  let rows = 0;
  let hostRuns = 0;
  let boxes: number | null = 0;
  let aligned = true;
  let scattered = false;
  for (const program of programs) {
    if (program.bytes === 0) continue;
    const nest = nestOf(program);
    bytes += program.bytes;
    rows += program.bytes / nest.row;
    if (inward || outward) hostRuns += program.bytes / hostRunOf(program, nest, inward ? 0 : 1);
    const own = boxesOf(program, nest);
    boxes = own === null || boxes === null ? null : boxes + own;
    aligned &&= isAligned(program);
    scattered ||= program.srcBase.length > MOST_BASES;
  }
  return {
    device,
    direction: inward ? "in" : outward ? "out" : peer ? "peer" : "local",
    pageable,
    hostRun: hostRuns === 0 ? 0 : bytes / hostRuns,
    boxes,
    row: rows === 0 ? 0 : bytes / rows,
    rows,
    aligned,
    scattered,
  };
}

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

/** Copies of boxes; null when a pitch or the number of loops forbids it. */
function boxesOf(program: CopyProgram, { row, loops, bases, evenRuns }: Sorted): number | null {
  if (loops.length > 2) return null;
  const inner = loops.at(-1);
  const outer = loops.length > 1 ? loops[0] : undefined;
  for (const side of [0, 1] as const) {
    const pitch = inner?.stride[side] ?? row;
    const height = inner?.count ?? 1;
    const slice = outer?.stride[side] ?? pitch * height;
    if (pitch < row || pitch >= MOST_PITCH || slice % pitch !== 0 || slice / pitch < height) return null;
  }
  return bases * (program.run === null || evenRuns ? program.pairs : blocksOf(program.run, program.pairs));
}

function blocksOf(runs: Uint32Array, pairs: number): number {
  let blocks = 0;
  for (let pair = 0; pair < pairs; pair++) blocks += runs[pair] as number; // in bounds
  return blocks;
}

/** Bytes that follow each other on one side when its loops, bases and pairs are walked in the order of that side. */
function hostRunOf(program: CopyProgram, { row, loops, bases, evenRuns }: Sorted, side: 0 | 1): number {
  const axes = loops.map(({ count, stride }) => ({ count, stride: stride[side] }));
  if (bases > 1) {
    const step = stepOf(side === 0 ? program.srcBase : program.dstBase);
    if (step !== null) axes.push({ count: bases, stride: step });
  }
  let run = row;
  for (const { count, stride } of axes.toSorted((a, b) => a.stride - b.stride)) {
    if (stride !== run) return run;
    run *= count;
  }
  if (program.run !== null && !evenRuns) {
    if ((side === 0 ? program.srcRunStride : program.dstRunStride) !== run) return run;
    return run * (blocksOf(program.run, program.pairs) / program.pairs);
  }
  // Longer runs make no difference to the speed of a copy.
  if (run >= LONG_RUN) return run;
  return run / (1 - shareOfNeighbours(program, side, run));
}

/** Which part of the pairs begin where the pair before them ended; below 1. Of long lists some pairs are looked at. */
function shareOfNeighbours(program: CopyProgram, side: 0 | 1, block: number): number {
  const { blocks, pairs } = program;
  if (pairs === 0) return 0;
  if (blocks === null) return followers(side === 0 ? program.srcOffset : program.dstOffset, block);
  const step = block / (side === 0 ? blocks.sourceStride : blocks.destinationStride);
  return followers(side === 0 ? blocks.source : blocks.destination, step);
}

/** Looks at one in so many that this is their number: enough to tell a time by. */
const MOST_LOOKS = 512;

function followers(values: Float64Array | Uint32Array, step: number): number {
  const every = Math.ceil(values.length / MOST_LOOKS);
  let follow = 0;
  let looks = 1; // the first follows none
  for (let index = 1; index < values.length; index += every) {
    looks++;
    if ((values[index] as number) - (values[index - 1] as number) === step) follow++; // in bounds
  }
  return follow / looks;
}

function isAligned(program: CopyProgram): boolean {
  let bits = program.rowBytes;
  if (program.run !== null) bits |= program.srcRunStride | program.dstRunStride;
  bits |= lowBitsOfStrides(program.srcStride) | lowBitsOfStrides(program.dstStride);
  bits |= lowBitsOfBases(program.srcBase) | lowBitsOfBases(program.dstBase);
  const { blocks } = program;
  // Ids times a stride: what divides the stride divides all of them.
  bits |=
    blocks === null
      ? lowBits(program.srcOffset) | lowBits(program.dstOffset)
      : blocks.sourceStride | blocks.destinationStride;
  return (bits & (BULK_ALIGNMENT - 1)) === 0;
}

// Bases belong to a pair of layouts, so the same array comes back with every transfer between them.
const known: WeakMap<Float64Array, number> = new WeakMap();

function lowBitsOfBases(bases: Float64Array): number {
  if (bases.length <= FEW_BASES) return lowBits(bases);
  const before = known.get(bases);
  if (before !== undefined) return before;
  const bits = lowBits(bases);
  known.set(bases, bits);
  return bits;
}

/** The low bits of all values together: a bit is set where one of them has it. Exact for safe integers. */
function lowBits(values: Float64Array): number {
  let bits = 0;
  for (let index = 0; index < values.length; index++) bits |= values[index] as number; // in bounds
  return bits;
}

/** The same. One function for both kinds of array is compiled for one of them, and left whenever the other one comes. */
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
