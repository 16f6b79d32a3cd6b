/** The axes inside a block that an order can permute; the elements of a head are always innermost. */
export type OrderAxis = "layer" | "outer" | "page" | "head";

/** Names of orders inside a block, outermost axis first. */
export type OrderName = "nhd" | "hnd" | "universal-tp" | "universal-pp";

/** An order inside a block: a name or the four axes, outermost first. */
export type Order = OrderName | readonly OrderAxis[];

/** Where layers live: all in one allocation, or one for each layer with blocks or outers outermost. */
export type ArrangementPreset =
  "fully-contiguous" | "layer-separate/block-first" | "layer-separate/block-second";

/** Engines' own names: axes over layers L, blocks B, heads H, tokens N and content C (outer x elements). */
export type EnginePreset = "LBHNC" | "LBNHC" | "LHBNC" | "BLHNC" | "BLNHC" | "BHLNC" | "NHD" | "HND" | "MLA";

/** Which axes have memory regions of their own. */
export type RegionScheme = "one" | "per-layer" | "per-layer-and-outer";

/** Byte strides of memory that an engine laid out its own way. */
export interface StridedArrangement {
  readonly strides: {
    readonly block: number;
    readonly layer?: number;
    readonly outer?: number;
    readonly page: number;
    readonly head?: number;
  };
  readonly regions: RegionScheme;
}

/** How blocks lie in memory. */
export type Arrangement = ArrangementPreset | EnginePreset | StridedArrangement;
