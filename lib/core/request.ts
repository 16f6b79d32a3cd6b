import type { LayoutHandle } from "./handle.ts";

/** Block ids: one list, or one list for each block-id space of a bundle. */
export type BlockList = Uint32Array | readonly number[];
export type BlockSelection = BlockList | Readonly<Record<string, BlockList>>;

/** A transfer as the planner sees it: layouts by handle, no callbacks. */
export interface PlanRequest {
  readonly source: LayoutHandle;
  readonly destination: LayoutHandle;
  readonly sourceBlocks: BlockSelection;
  readonly destinationBlocks: BlockSelection;
  /** Moves a part of the two token streams. */
  readonly tokens?: {
    readonly sourceStart: number;
    readonly destinationStart: number;
    readonly count: number;
  };
  /** Names of the components to move; default all that both sides have. */
  readonly components?: readonly string[];
  /** Model layers when either side has a layer shard, else the layout's own; end excluded. */
  readonly layers?: { readonly start: number; readonly end: number };
  /** Accept that the shards or components cover only a part of the destination blocks. */
  readonly partial?: boolean;
  /** Layers outermost; `every` n layers make one step. */
  readonly layerwise?: boolean | { readonly every: number };
  /** Force one method, for measuring. */
  readonly method?: string;
  readonly bounce?: { readonly layout: LayoutHandle; readonly blocks: BlockList };
  readonly checksum?: boolean;
  readonly priority?: "latency" | "bulk";
}
