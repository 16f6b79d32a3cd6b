import type { BlockRuns } from "./blocks.ts";
import type { ComponentPair } from "./intersect.ts";
import type { ComponentRecord } from "./layout.ts";
import { type Nest, rowsOfCell, unrolled, widened } from "./nest.ts";
import type { BlockOffsets, CopyProgram, ProgramMemory } from "./program.ts";
import { type SegmentGroup, segmentRuns } from "./segments.ts";

/** Pairs that were placed and merged, ready to be combined with the nests of any layers. */
export interface PlacedPairs {
  /** Tokens of a segment. */
  readonly tokens: number;
  readonly runs: BlockRuns;
  /** Bytes from one segment of a run to the next, on both sides. */
  readonly sourceStride: number;
  readonly destinationStride: number;
  /** Offset of each pair when runs are kept apart, and of each run's first pair: filled when first needed. */
  readonly offsets: OffsetSource;
}

/** Where pair offsets come from: block ids times a stride, or segments that were placed already. */
export type OffsetSource =
  | {
      readonly kind: "blocks";
      readonly source: Uint32Array;
      readonly destination: Uint32Array;
      readonly made: MadeOffsets;
    }
  | { readonly kind: "segments"; readonly group: SegmentGroup; readonly made: MadeOffsets };

/** Offsets that were made already, so that programs of one hop share them. */
export interface MadeOffsets {
  apart: readonly [Float64Array, Float64Array] | null;
  merged: readonly [Float64Array, Float64Array] | null;
}

/** Places whole blocks that pair one to one. */
export function placeBlocks(
  pair: ComponentPair,
  source: Uint32Array,
  destination: Uint32Array,
  runs: BlockRuns,
): PlacedPairs {
  return {
    tokens: pair.sourcePage,
    runs,
    sourceStride: pair.sourceBlock,
    destinationStride: pair.destinationBlock,
    offsets: { kind: "blocks", source, destination, made: { apart: null, merged: null } },
  };
}

/** Places segments of blocks whose page sizes differ or that are moved in part. */
export function placeSegments(pair: ComponentPair, group: SegmentGroup): PlacedPairs {
  const { tokens } = group;
  // A segment that fills its block is followed by the next block, any other one by the next pages of its block.
  const sourceStride = tokens === pair.sourcePage ? pair.sourceBlock : tokens * pair.sourceStep;
  const destinationStride =
    tokens === pair.destinationPage ? pair.destinationBlock : tokens * pair.destinationStep;
  return {
    tokens,
    runs: segmentRuns(group, sourceStride, destinationStride),
    sourceStride,
    destinationStride,
    offsets: { kind: "segments", group, made: { apart: null, merged: null } },
  };
}

/**
 * The copy program of placed pairs over the layers of `outside`.
 *
 * Where a segment is contiguous on both sides and the run strides equal its bytes, runs fold into rows: into one row
 * length when all runs are equal, else by keeping the run with no loops inside, which executors join into one row.
 *
 * @param nest - `nestOf(pair, outside, placed.tokens)`, made before where it can be shared.
 */
export function compileProgram(
  pair: ComponentPair,
  placed: PlacedPairs,
  nest: Nest,
  layers: CopyProgram["layers"],
): CopyProgram {
  const { runs } = placed;
  if (runs.runs < runs.total) {
    if (nest.rowBytes === placed.sourceStride && nest.rowBytes === placed.destinationStride) {
      if (runs.uniform > 0) return build(pair, placed, widened(nest, runs.uniform), true, null, layers);
      const flat = unrolled(nest);
      if (flat !== null) return build(pair, placed, flat, true, runs.length, layers);
    }
    // Runs whose blocks cannot be joined still shorten the lists; below a factor of two that is not worth an array.
    if (runs.runs * 2 <= runs.total) return build(pair, placed, nest, true, runs.length, layers);
  }
  return build(pair, placed, nest, false, null, layers);
}

/** Contiguous pieces that an executor sees in a program: runs that fold into the row count once. */
export function descriptorsOf(program: CopyProgram): number {
  const folds =
    program.run !== null &&
    program.count.length === 0 &&
    program.srcRunStride === program.rowBytes &&
    program.dstRunStride === program.rowBytes;
  return folds ? program.srcBase.length * program.pairs : program.rows;
}

/** Descriptors of placed pairs with one or more for each (block, layer, outer), as when nothing is merged. */
export function unmergedDescriptors(pair: ComponentPair, placed: PlacedPairs, layers: number): number {
  return placed.runs.total * layers * pair.outers * rowsOfCell(pair, placed.tokens);
}

function build(
  pair: ComponentPair,
  placed: PlacedPairs,
  nest: Nest,
  merged: boolean,
  run: Uint32Array | null,
  layers: CopyProgram["layers"],
): CopyProgram {
  const pairs = merged ? placed.runs.runs : placed.runs.total;
  const rows = nest.sourceBase.length * (run === null ? pairs : placed.runs.total) * nest.rows;
  return {
    srcBase: nest.sourceBase,
    dstBase: nest.destinationBase,
    get srcOffset(): Float64Array {
      return offsetsOf(placed, merged)[0];
    },
    get dstOffset(): Float64Array {
      return offsetsOf(placed, merged)[1];
    },
    blocks: merged ? null : blocksOf(placed),
    run,
    pairs,
    srcRunStride: run === null ? 0 : placed.sourceStride,
    dstRunStride: run === null ? 0 : placed.destinationStride,
    count: nest.count,
    srcStride: nest.sourceStride,
    dstStride: nest.destinationStride,
    rowBytes: nest.rowBytes,
    bytes: rows * nest.rowBytes,
    rows,
    srcMemory: memoryOf(pair.source),
    dstMemory: memoryOf(pair.destination),
    layers,
  };
}

function blocksOf({ offsets, sourceStride, destinationStride }: PlacedPairs): BlockOffsets | null {
  if (offsets.kind !== "blocks") return null;
  const { source, destination } = offsets;
  return { source, destination, sourceStride, destinationStride };
}

function offsetsOf(placed: PlacedPairs, merged: boolean): readonly [Float64Array, Float64Array] {
  const { made } = placed.offsets;
  const known = merged ? made.merged : made.apart;
  if (known !== null) return known;
  const offsets = merged ? mergedOffsets(placed) : apartOffsets(placed);
  if (merged) made.merged = offsets;
  else made.apart = offsets;
  return offsets;
}

function apartOffsets(placed: PlacedPairs): readonly [Float64Array, Float64Array] {
  const { offsets } = placed;
  if (offsets.kind === "segments") return [offsets.group.source, offsets.group.destination];
  return [scaled(offsets.source, placed.sourceStride), scaled(offsets.destination, placed.destinationStride)];
}

function mergedOffsets(placed: PlacedPairs): readonly [Float64Array, Float64Array] {
  const { offsets } = placed;
  const head = placed.runs.head ?? new Uint32Array(0);
  if (offsets.kind === "segments")
    return [picked(offsets.group.source, head, 1), picked(offsets.group.destination, head, 1)];
  return [
    picked(offsets.source, head, placed.sourceStride),
    picked(offsets.destination, head, placed.destinationStride),
  ];
}

function scaled(ids: Uint32Array, stride: number): Float64Array {
  const offsets = new Float64Array(ids.length);
  for (let index = 0; index < ids.length; index++) offsets[index] = (ids[index] as number) * stride; // in bounds
  return offsets;
}

function picked(values: Uint32Array | Float64Array, heads: Uint32Array, stride: number): Float64Array {
  const offsets = new Float64Array(heads.length);
  for (let index = 0; index < heads.length; index++)
    offsets[index] = (values[heads[index] as number] as number) * stride; // in bounds
  return offsets;
}

const HOST: ProgramMemory = Object.freeze({ kind: 0, device: 0 });

function memoryOf(component: ComponentRecord): ProgramMemory {
  const { attachment, storage } = component;
  if (attachment.kind === "file") return { kind: 2, device: attachment.file };
  const device =
    attachment.kind === "nixl" ? component.nixlDevice : storage.kind === "device" ? storage.device : 0;
  if (storage.kind === "device")
    return attachment.kind === "addresses" && attachment.via !== undefined
      ? { kind: 1, device, via: attachment.via }
      : { kind: 1, device };
  if (storage.kind === "disk") return { kind: 2, device };
  return device === 0 ? HOST : { kind: 0, device };
}
