/** At most this many loops inside a pair. */
export const MAX_LOOPS = 6;

/**
 * A copy program: the smallest loop nest that takes the bytes of one view to another, for a list of block pairs.
 *
 *     for each base r         srcBase[r], dstBase[r]
 *       for each pair p       srcOffset[p], dstOffset[p]
 *         for i < run[p]      i * srcRunStride, i * dstRunStride
 *           for each loop k   count[k], srcStride[k], dstStride[k]   outermost first
 *             copy rowBytes   contiguous on both sides
 *
 * All in bytes; addresses, offsets and strides are safe integers. Arrays may be shared between programs of one
 * hop and are never written after the plan is made. `run` is null when every run is 1.
 */
export interface CopyProgram {
  readonly srcBase: Float64Array;
  readonly dstBase: Float64Array;
  readonly srcOffset: Float64Array;
  readonly dstOffset: Float64Array;
  /** What the offsets are made of where they are block ids times a stride; else null. */
  readonly blocks: BlockOffsets | null;
  readonly run: Uint32Array | null;
  readonly pairs: number;
  readonly srcRunStride: number;
  readonly dstRunStride: number;
  readonly count: readonly number[];
  readonly srcStride: readonly number[];
  readonly dstStride: readonly number[];
  readonly rowBytes: number;
  /** Bytes that the program moves: bases x sum of runs x product of counts x rowBytes. */
  readonly bytes: number;
  /** Rows that it copies, each contiguous on both sides. */
  readonly rows: number;
  readonly srcMemory: ProgramMemory;
  readonly dstMemory: ProgramMemory;
  /** Layers that are complete once this program is (layer-wise plans): `[start, end)`, else null. */
  readonly layers: { readonly start: number; readonly end: number } | null;
}

/**
 * Offsets of whole blocks, one a pair. A plan has them in this form, and makes arrays of offsets only for who asks:
 * fresh memory for every transfer costs more than the multiplication.
 */
export interface BlockOffsets {
  /** Block ids. */
  readonly source: Uint32Array;
  readonly destination: Uint32Array;
  readonly sourceStride: number;
  readonly destinationStride: number;
}

/** Kind and device of one side of a program, as numbers the native side understands. */
export interface ProgramMemory {
  /** 0 host, 1 device, 2 file. */
  readonly kind: 0 | 1 | 2;
  /** CUDA ordinal, file number, or 0. For a remote side: the device id under which NIXL knows the memory. */
  readonly device: number;
  /** CUDA ordinal of the one device that reaches it, where that is not simply its own: a neighbour's GPU memory. */
  readonly via?: number;
}

/** CUDA ordinal of the device that runs a program: the one that holds the source, since writing is the faster direction. */
export function runningDeviceOf({
  srcMemory,
  dstMemory,
}: Pick<CopyProgram, "srcMemory" | "dstMemory">): number | null {
  const via = srcMemory.via ?? dstMemory.via;
  if (via !== undefined) return via;
  if (srcMemory.kind === 1) return srcMemory.device;
  return dstMemory.kind === 1 ? dstMemory.device : null;
}
