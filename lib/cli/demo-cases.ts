import type { ArrangementPreset, OrderName } from "../core/arrangement.ts";
import type { LayoutConfig } from "../core/config.ts";

/** One side of a demo case: how its blocks lie in memory, and which of them take part. */
export interface DemoSide {
  readonly numBlocks: number;
  /** Tokens in a block. */
  readonly pageSize: number;
  /** First head of the model that this side holds, and how many. */
  readonly heads: readonly [start: number, count: number];
  readonly arrangement: ArrangementPreset;
  readonly order: OrderName;
  readonly blocks: readonly number[];
}

/** A transfer of the demo between the processes `a` and `b`. */
export interface DemoCase {
  readonly name: string;
  /** `push` writes into the other process, `pull` reads from it. */
  readonly direction: "push" | "pull";
  readonly initiator: DemoPeerName;
  readonly numLayers: number;
  readonly source: DemoSide;
  readonly destination: DemoSide;
  /** Layers that move, end excluded; all when left out. */
  readonly layers?: { readonly start: number; readonly end: number };
}

/** The two processes. */
export type DemoPeerName = "a" | "b";

/** Heads of the demo's model, elements of a head, and bytes of an element. */
export const MODEL = { heads: 8, headDim: 64, elementBytes: 2, outers: 2 } as const;

/** The cases in the order in which they run. */
export const DEMO_CASES: readonly DemoCase[] = [
  {
    name: "push, same shape on both sides",
    direction: "push",
    initiator: "a",
    numLayers: 4,
    source: side("fully-contiguous", "nhd", 16, [3, 9, 4, 31, 30, 2]),
    destination: side("fully-contiguous", "nhd", 16, [0, 1, 2, 17, 16, 40]),
  },
  {
    name: "pull, same shape on both sides",
    direction: "pull",
    initiator: "a",
    numLayers: 4,
    source: side("fully-contiguous", "nhd", 16, [12, 7, 8, 9, 1]),
    destination: side("fully-contiguous", "nhd", 16, [5, 20, 21, 22, 63]),
  },
  {
    name: "push, layer-separate to contiguous",
    direction: "push",
    initiator: "b",
    numLayers: 4,
    source: side("layer-separate/block-second", "nhd", 16, [3, 9, 4, 12]),
    destination: side("fully-contiguous", "nhd", 16, [0, 1, 2, 50]),
  },
  {
    name: "pull, block-first to block-second",
    direction: "pull",
    initiator: "b",
    numLayers: 4,
    source: side("layer-separate/block-first", "nhd", 16, [40, 11, 12, 13]),
    destination: side("layer-separate/block-second", "nhd", 16, [8, 9, 10, 60]),
  },
  {
    name: "push, NHD to HND",
    direction: "push",
    initiator: "a",
    numLayers: 4,
    source: side("fully-contiguous", "nhd", 16, [5, 6, 1]),
    destination: side("fully-contiguous", "hnd", 16, [0, 33, 7]),
  },
  {
    name: "pull, HND layer-separate to universal",
    direction: "pull",
    initiator: "a",
    numLayers: 4,
    source: side("layer-separate/block-first", "hnd", 16, [2, 4, 6]),
    destination: side("fully-contiguous", "universal-tp", 16, [9, 8, 3]),
  },
  {
    name: "push, pages of 16 to pages of 64",
    direction: "push",
    initiator: "b",
    numLayers: 4,
    source: side("fully-contiguous", "nhd", 16, [4, 5, 6, 7, 20, 3, 19, 2]),
    destination: side("fully-contiguous", "nhd", 64, [1, 6], 16),
  },
  {
    name: "pull, pages of 32 to pages of 16",
    direction: "pull",
    initiator: "b",
    numLayers: 4,
    source: side("layer-separate/block-second", "nhd", 32, [7, 0], 16),
    destination: side("fully-contiguous", "hnd", 16, [30, 2, 3, 11]),
  },
  {
    name: "push, layers 1 and 2 of 4",
    direction: "push",
    initiator: "a",
    numLayers: 4,
    layers: { start: 1, end: 3 },
    source: side("fully-contiguous", "nhd", 16, [1, 2, 3]),
    destination: side("layer-separate/block-first", "nhd", 16, [61, 62, 0]),
  },
  {
    name: "push, all heads to a shard of four",
    direction: "push",
    initiator: "a",
    numLayers: 4,
    source: side("fully-contiguous", "nhd", 16, [10, 30, 20]),
    destination: { ...side("fully-contiguous", "nhd", 16, [3, 1, 2]), heads: [4, 4] },
  },
  {
    name: "push, 32 MiB in one run",
    direction: "push",
    initiator: "a",
    numLayers: 8,
    source: side("fully-contiguous", "nhd", 16, range(8, 128), 144),
    destination: side("fully-contiguous", "nhd", 16, range(4, 128), 144),
  },
  {
    name: "pull, 32 MiB in one run",
    direction: "pull",
    initiator: "b",
    numLayers: 8,
    source: side("fully-contiguous", "nhd", 16, range(0, 128), 144),
    destination: side("fully-contiguous", "nhd", 16, range(16, 128), 144),
  },
];

/** The name under which both processes register a case's layout. */
export function layoutName(index: number): string {
  return `case-${index}`;
}

/** The process that owns a case's source or destination. */
export function ownerOf(one: DemoCase, role: "source" | "destination"): DemoPeerName {
  const other = one.initiator === "a" ? "b" : "a";
  const initiatorIsSource = one.direction === "push";
  return (role === "source") === initiatorIsSource ? one.initiator : other;
}

/** The side as a layout config; a shard says which heads of the model it holds. */
export function configOf(one: DemoCase, which: DemoSide): LayoutConfig {
  const [start, count] = which.heads;
  return {
    numBlocks: which.numBlocks,
    numLayers: one.numLayers,
    outerDim: MODEL.outers,
    pageSize: which.pageSize,
    numHeads: count,
    headDim: MODEL.headDim,
    dtype: "bf16",
    ...(count === MODEL.heads ? {} : { headWindow: { start, total: MODEL.heads } }),
  };
}

function side(
  arrangement: ArrangementPreset,
  order: OrderName,
  pageSize: number,
  blocks: readonly number[],
  numBlocks = 64,
): DemoSide {
  return { numBlocks, pageSize, heads: [0, MODEL.heads], arrangement, order, blocks };
}

function range(start: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => start + index);
}
