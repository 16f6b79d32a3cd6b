import { type Form, formOf, lowBits } from "./gpu-form.ts";
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
    const form = formOf(program);
    bytes += program.bytes;
    rows += program.bytes / form.row;
    if (inward || outward) hostRuns += program.bytes / hostRunOf(program, form, inward ? 0 : 1);
    boxes = form.boxes === null || boxes === null ? null : boxes + form.boxes * listedOf(program, form);
    aligned &&= ((form.bits | pairBits(program)) & (BULK_ALIGNMENT - 1)) === 0;
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

/** Entries of the list that a program goes by: its pairs, or its blocks where runs differ. */
function listedOf({ run, pairs }: CopyProgram, { evenRuns }: Form): number {
  return run === null || evenRuns ? pairs : blocksOf(run, pairs);
}

function blocksOf(runs: Uint32Array, pairs: number): number {
  let blocks = 0;
  for (let pair = 0; pair < pairs; pair++) blocks += runs[pair] as number; // in bounds
  return blocks;
}

/** The same when pairs are walked as well. */
function hostRunOf(program: CopyProgram, { along, evenRuns }: Form, side: 0 | 1): number {
  const { bytes, whole } = along[side];
  if (!whole) return bytes;
  if (program.run !== null && !evenRuns) {
    if ((side === 0 ? program.srcRunStride : program.dstRunStride) !== bytes) return bytes;
    return bytes * (blocksOf(program.run, program.pairs) / program.pairs);
  }
  // Longer runs make no difference to the speed of a copy.
  if (bytes >= LONG_RUN) return bytes;
  return bytes / (1 - shareOfNeighbours(program, side, bytes));
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

/** The low bits of where pairs lie. */
function pairBits(program: CopyProgram): number {
  const { blocks } = program;
  // Ids times a stride: what divides the stride divides all of them.
  return blocks === null
    ? lowBits(program.srcOffset) | lowBits(program.dstOffset)
    : blocks.sourceStride | blocks.destinationStride;
}
