import { attachmentBases } from "./attachment.ts";
import type { ResolvedConfig } from "./config.ts";
import { incompatible, requireEqual } from "./incompatible.ts";
import { intersectLayers, type LayerRange } from "./intersect-layers.ts";
import type { ComponentRecord } from "./layout.ts";
import type { StridedView } from "./view.ts";

/** What two components of one name have in common: the cells that a transfer moves, with strides on both sides. */
export interface ComponentPair {
  readonly name: string;
  readonly source: ComponentRecord;
  readonly destination: ComponentRecord;
  /** Blocks pair one to one and are moved whole. */
  readonly wholeBlocks: boolean;
  /** Tokens in a block of each side. */
  readonly sourcePage: number;
  readonly destinationPage: number;
  /** Contiguous bytes of one head, or of one token where heads lie side by side on both sides. */
  readonly rowBytes: number;
  readonly heads: Axis;
  readonly outers: number;
  /** Model layers (or the layouts' own) that are moved, ascending. */
  readonly layers: readonly number[];
  /** Address of (block 0, layer i, outer o, page 0, first moved head) at `i * outers + o`. */
  readonly sourceCells: Float64Array;
  readonly destinationCells: Float64Array;
  /** Neighbouring layers (outers) may share a row: they lie in one region on both sides. */
  readonly layersJoin: boolean;
  readonly outersJoin: boolean;
  /** Byte strides of a block and of a page. */
  readonly sourceBlock: number;
  readonly destinationBlock: number;
  readonly sourceStep: number;
  readonly destinationStep: number;
  /** Bytes moved for each token. */
  readonly tokenBytes: number;
  /** Bytes of each token that the destination has within the asked layers. */
  readonly askedTokenBytes: number;
}

/** An axis of a loop nest: bytes on both sides. */
export interface Axis {
  readonly count: number;
  readonly source: number;
  readonly destination: number;
  /** Whether its steps may be joined into one row. */
  readonly joins: boolean;
}

/**
 * Intersects two components of one name: heads, layers and outers that both sides hold.
 *
 * Returns null when the asked layers leave nothing to move for this component.
 *
 * @param range - Layers that were asked for; null for all.
 * @throws KvferryError `INCOMPATIBLE_LAYOUTS` when widths, shapes or windows do not fit each other.
 */
export function intersectComponents(
  name: string,
  source: ComponentRecord,
  destination: ComponentRecord,
  range: LayerRange | null,
): ComponentPair | null {
  const from = source.shape.config;
  const to = destination.shape.config;
  requireEqual(name, "elementBits", from.elementBits, to.elementBits, "element widths");
  requireEqual(name, "outerDim", from.outerDim, to.outerDim, "outer dimensions");
  const wholeBlocks = source.shape.wholeBlocks || destination.shape.wholeBlocks;
  if (wholeBlocks) requireWhole(name, from, to);

  const rows = intersectHeads(name, source, destination);
  const layers = intersectLayers(name, from, to, range);
  if (layers.model.length === 0) return null;

  const fromView = source.shape.view;
  const toView = destination.shape.view;
  const outers = fromView.outers;
  return {
    name,
    source,
    destination,
    wholeBlocks,
    sourcePage: from.pageSize,
    destinationPage: to.pageSize,
    rowBytes: rows.rowBytes,
    heads: rows.axis,
    outers,
    layers: layers.model,
    sourceCells: cellAddresses(source, layers.source, rows.sourceStart),
    destinationCells: cellAddresses(destination, layers.destination, rows.destinationStart),
    layersJoin: fromView.regionScheme === "one" && toView.regionScheme === "one",
    outersJoin:
      fromView.regionScheme !== "per-layer-and-outer" && toView.regionScheme !== "per-layer-and-outer",
    sourceBlock: fromView.strideBlock,
    destinationBlock: toView.strideBlock,
    sourceStep: fromView.stridePage,
    destinationStep: toView.stridePage,
    tokenBytes: layers.model.length * outers * rows.axis.count * rows.rowBytes,
    askedTokenBytes: layers.asked * outers * to.tokenBytes,
  };
}

/** Regions of bytes that only their owner can touch are named by offsets: each begins at a multiple of this. */
const STAGED_ALIGNMENT = 4_096;

/**
 * Where a region begins in the space of offsets by which peers name bytes that only their owner can touch: one region
 * after the other.
 */
export function stagedOffset(view: StridedView, region: number): number {
  return region * Math.ceil(view.regionBytes / STAGED_ALIGNMENT) * STAGED_ALIGNMENT;
}

interface Rows {
  readonly axis: Axis;
  readonly rowBytes: number;
  /** Byte offset of the first moved head inside a token. */
  readonly sourceStart: number;
  readonly destinationStart: number;
}

function intersectHeads(name: string, source: ComponentRecord, destination: ComponentRecord): Rows {
  const from = source.shape.config;
  const to = destination.shape.config;
  const fromView = source.shape.view;
  const toView = destination.shape.view;
  if (from.headsKnown !== to.headsKnown) {
    requireEqual(name, "innerDim", from.innerDim, to.innerDim, "elements of a token");
    const [known, side] = from.headsKnown
      ? ([source, "source"] as const)
      : ([destination, "destination"] as const);
    const { config, view } = known.shape;
    const contiguous = view.heads === 1 || view.strideHead === view.rowBytes;
    if (!contiguous || (config.headWindow !== null && config.headWindow.total !== config.numHeads)) {
      throw incompatible(
        name,
        `one side knows its heads and the other only innerDim, and the ${side}'s heads ${
          contiguous ? "are a shard" : "do not lie side by side within a token"
        }`,
        {
          field: "innerDim",
          side,
          numHeads: config.numHeads,
          headStride: view.strideHead,
          headBytes: view.rowBytes,
        },
      );
    }
    return {
      axis: { count: 1, source: 0, destination: 0, joins: true },
      rowBytes: from.tokenBytes,
      sourceStart: 0,
      destinationStart: 0,
    };
  }
  requireEqual(
    name,
    from.headsKnown ? "headDim" : "innerDim",
    from.headDim,
    to.headDim,
    "elements of a head",
  );
  requireEqual(name, "numHeads", headTotal(from), headTotal(to), "heads of the model");
  const fromStart = from.headWindow?.start ?? 0;
  const toStart = to.headWindow?.start ?? 0;
  const start = Math.max(fromStart, toStart);
  const end = Math.min(fromStart + from.numHeads, toStart + to.numHeads);
  if (end <= start) {
    throw incompatible(name, "the two sides hold different heads of the model", {
      field: "headWindow",
      source: [fromStart, fromStart + from.numHeads],
      destination: [toStart, toStart + to.numHeads],
    });
  }
  return {
    axis: { count: end - start, source: fromView.strideHead, destination: toView.strideHead, joins: true },
    rowBytes: fromView.rowBytes,
    sourceStart: (start - fromStart) * fromView.strideHead,
    destinationStart: (start - toStart) * toView.strideHead,
  };
}

function cellAddresses(
  component: ComponentRecord,
  layers: readonly number[],
  headOffset: number,
): Float64Array {
  const { view } = component.shape;
  const bases = attachmentBases(component.attachment);
  const cells = new Float64Array(layers.length * view.outers);
  let cell = 0;
  for (const layer of layers) {
    for (let outer = 0; outer < view.outers; outer++) {
      const region =
        view.regionScheme === "one"
          ? 0
          : view.regionScheme === "per-layer"
            ? layer
            : layer * view.outers + outer;
      // A region axis has stride 0, so the same sum serves every scheme.
      cells[cell++] =
        (bases === null ? stagedOffset(view, region) : (bases[region] ?? 0)) +
        layer * view.strideLayer +
        outer * view.strideOuter +
        headOffset;
    }
  }
  return cells;
}

function headTotal(config: ResolvedConfig): number {
  return config.headWindow?.total ?? config.numHeads;
}

function requireWhole(name: string, from: ResolvedConfig, to: ResolvedConfig): void {
  const why = "of whole blocks, which are never split";
  requireEqual(name, "pageSize", from.pageSize, to.pageSize, `page sizes ${why}`);
  // A side that gives only innerDim says nothing about heads; that its rows fit is checked with the heads.
  if (from.headsKnown !== to.headsKnown) return;
  requireEqual(name, "numHeads", from.numHeads, to.numHeads, `heads ${why}`);
  requireEqual(name, "headDim", from.headDim, to.headDim, `elements of a head ${why}`);
  requireEqual(
    name,
    "headWindow.start",
    from.headWindow?.start ?? 0,
    to.headWindow?.start ?? 0,
    `head windows ${why}`,
  );
}
