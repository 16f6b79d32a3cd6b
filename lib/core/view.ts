import type { RegionScheme } from "./arrangement.ts";
import type { PresetAxis } from "./axes.ts";
import type { ResolvedConfig } from "./config.ts";
import { checkedProduct } from "./integers.ts";

/**
 * A strided view: labelled axes with sizes and byte strides over one or more base addresses. Immutable.
 *
 * The byte of (block b, layer l, outer o, page p, head h, byte k of the head's row) is
 * `base[region(l, o)] + b * strideBlock + l * strideLayer + o * strideOuter + p * stridePage + h * strideHead + k`.
 * An axis that selects the region has stride 0 here. All strides and sizes are bytes and safe integers.
 */
export interface StridedView {
  readonly regionScheme: RegionScheme;
  /** 1, `layers`, or `layers * outers` (outer fastest). */
  readonly regionCount: number;
  readonly blocks: number;
  readonly layers: number;
  readonly outers: number;
  readonly pages: number;
  readonly heads: number;
  /** Contiguous bytes of one head's elements. */
  readonly rowBytes: number;
  readonly strideBlock: number;
  readonly strideLayer: number;
  readonly strideOuter: number;
  readonly stridePage: number;
  readonly strideHead: number;
  /** Bytes that each region must have at least: one past the last byte that the view reaches. */
  readonly regionBytes: number;
}

/** All that a view says. */
export const VIEW_FIELDS: readonly (keyof StridedView)[] = [
  "regionScheme",
  "regionCount",
  "blocks",
  "layers",
  "outers",
  "pages",
  "heads",
  "rowBytes",
  "strideBlock",
  "strideLayer",
  "strideOuter",
  "stridePage",
  "strideHead",
  "regionBytes",
];

/**
 * The view of byte strides for each axis.
 *
 * @param regionBytes - What each region must have at least.
 * @returns A frozen view.
 * @throws KvferryError `INVALID_CONFIG` when all regions together are past 2^53 bytes.
 */
export function viewOf(
  config: ResolvedConfig,
  regionScheme: RegionScheme,
  strides: Readonly<Record<PresetAxis, number>>,
  regionBytes: number,
  operation: string,
): StridedView {
  const regionCount =
    regionScheme === "one"
      ? 1
      : regionScheme === "per-layer"
        ? config.numLayers
        : config.numLayers * config.outerDim;
  checkedProduct(operation, "all regions", regionCount, regionBytes);
  return Object.freeze({
    regionScheme,
    regionCount,
    blocks: config.numBlocks,
    layers: config.numLayers,
    outers: config.outerDim,
    pages: config.pageSize,
    heads: config.numHeads,
    rowBytes: config.headBytes,
    strideBlock: strides.block,
    strideLayer: strides.layer,
    strideOuter: strides.outer,
    stridePage: strides.page,
    strideHead: strides.head,
    regionBytes,
  });
}
