/** A part of an axis that a shard holds: `[start, start + own count)` of `total`. */
export interface AxisWindow {
  readonly start: number;
  readonly total: number;
}

/** Names of element types; `dtypeBits` of each stand in `dtype.ts`. */
export type DTypeName =
  "f16" | "bf16" | "f32" | "f64" | "fp8" | "int8" | "fp4" | "int4" | "fp6" | "u8" | "i32" | "i64";

/** What a caller says about the shape of one component's blocks. */
export interface LayoutConfig {
  /** Blocks in the layout, at least 1. */
  readonly numBlocks: number;
  /** Layers that this layout holds, at least 1. */
  readonly numLayers: number;
  /** 2 for separate keys and values, 1 for MLA or packed K/V. */
  readonly outerDim: 1 | 2;
  /** Tokens in a block, at least 1. */
  readonly pageSize: number;
  /** Elements per token, layer and outer; instead of `numHeads` and `headDim`. */
  readonly innerDim?: number;
  readonly numHeads?: number;
  readonly headDim?: number;
  /** Bytes per element; default 2. Say `dtypeBits` or `dtype` for widths below a byte. */
  readonly dtypeWidthBytes?: number;
  readonly dtypeBits?: number;
  readonly dtype?: DTypeName;
  /** A power of two that every region's address must be a multiple of; default 1. */
  readonly alignment?: number;
  /** Tensor parallelism: which heads of the model this worker holds. */
  readonly headWindow?: AxisWindow;
  /** Pipeline parallelism: which layers of the model this worker holds. */
  readonly layerWindow?: AxisWindow;
  /** Which layers of the model this worker holds, in the layout's order; instead of `layerWindow`. */
  readonly layers?: readonly number[];
}

/** A checked {@link LayoutConfig} with every default filled in. Frozen, shared between layouts of one shape. */
export interface ResolvedConfig {
  readonly numBlocks: number;
  readonly numLayers: number;
  readonly outerDim: 1 | 2;
  readonly pageSize: number;
  /** 1 when the caller gave `innerDim` only. */
  readonly numHeads: number;
  /** Elements of a head; `innerDim` when the caller gave no heads. */
  readonly headDim: number;
  /** `numHeads * headDim`. */
  readonly innerDim: number;
  /** Whether `numHeads` and `headDim` were given. */
  readonly headsKnown: boolean;
  /** Bits of one element. */
  readonly elementBits: number;
  readonly dtype: DTypeName | null;
  readonly alignment: number;
  readonly headWindow: AxisWindow | null;
  /** Model layer of each of the layout's layers, ascending or not, no duplicates; null when it holds the whole model. */
  readonly modelLayers: readonly number[] | null;
  /** Total layers of the model where the caller said so by `layerWindow`, else null. */
  readonly modelLayerTotal: number | null;
  /** Bytes of one head's elements: the row that every order keeps contiguous. */
  readonly headBytes: number;
  /** Bytes of one token in one layer and outer. */
  readonly tokenBytes: number;
  /** Bytes of one (block, layer, outer) cell: `pageSize * tokenBytes`. */
  readonly cellBytes: number;
  /** Bytes of one block over all layers and outers. */
  readonly blockBytes: number;
  /** Bytes of all blocks, a checked product. */
  readonly totalBytes: number;
}
