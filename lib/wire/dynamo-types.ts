/** The two published binary forms of Dynamo's metadata. */
export type DynamoFormat = "dynamo-1.0" | "kvbm-physical-1";

/** Integers of 64 bits and more: bigint as decoded; encoders also take safe integers. */
export type WideInteger = bigint | number;

/** `InnerShape` of dynamo-llm 1.0.2, in wire order. */
export const INNER_SHAPES = ["Unknown", "NHD", "HND"] as const;
export type InnerShape = (typeof INNER_SHAPES)[number];

/** `MemType` of nixl-sys, in wire order. */
export const MEMORY_TYPES = ["Dram", "Vram", "Block", "Object", "File", "Unknown"] as const;
export type MemoryType = (typeof MEMORY_TYPES)[number];

/** Logical tiers of kvbm, in wire order. */
export const LOGICAL_TYPES = ["G1", "G2", "G3", "G4"] as const;
export type LogicalType = (typeof LOGICAL_TYPES)[number];

/** `BlockDim` of kvbm's custom block layouts, in wire order. */
export const CUSTOM_AXES = ["Layer", "Outer", "Page", "Head"] as const;
export type CustomAxis = (typeof CUSTOM_AXES)[number];

/** The variants of `KvBlockLayout` of kvbm-physical 1.6.1, in wire order. */
export const KV_BLOCK_LAYOUTS = [
  "UniversalTP",
  "UniversalPP",
  "OperationalHND",
  "OperationalNHD",
  "Custom",
  "Unknown",
] as const;
export type KvBlockLayout =
  | Exclude<(typeof KV_BLOCK_LAYOUTS)[number], "Custom">
  | { readonly Custom: readonly [CustomAxis, CustomAxis, CustomAxis, CustomAxis] };

/** Block dimensions of layer-separate layouts, in wire order. */
export const BLOCK_DIMS = ["BlockIsFirstDim", "BlockIsSecondDim"] as const;
export type BlockDim = (typeof BLOCK_DIMS)[number];

/** Where a layout's bytes live; enums are tagged from outside, as serde writes them. */
export type DynamoLocation<W = bigint> =
  "System" | "Pinned" | { readonly Device: number } | { readonly Disk: W };

/** A layout's shape. `inner_shape` stands in dynamo-1.0, `num_heads` in kvbm-physical-1. */
export interface DynamoLayoutConfig<W = bigint> {
  readonly num_blocks: W;
  readonly num_layers: W;
  readonly outer_dim: W;
  readonly page_size: W;
  readonly inner_dim: W;
  readonly alignment: W;
  readonly dtype_width_bytes: W;
  readonly inner_shape?: InnerShape;
  readonly num_heads?: W | null;
}

/** How a layout's blocks lie. `kv_block_layout` stands in kvbm-physical-1. */
export type DynamoLayoutDetails =
  | {
      readonly FullyContiguous: {
        readonly block_format: "Operational";
        readonly kv_block_layout?: KvBlockLayout;
      };
    }
  | { readonly LayerSeparate: { readonly block_dim: BlockDim; readonly kv_block_layout?: KvBlockLayout } };

/** Dynamo's `LayoutDescriptor`, with its own field names. */
export interface DynamoDescriptor<W = bigint> {
  readonly version: number;
  readonly layout_config: DynamoLayoutConfig<W>;
  readonly location: DynamoLocation<W>;
  readonly nixl_metadata: {
    readonly agent_name: string;
    readonly mem_type: MemoryType;
    readonly device_id: W;
  };
  readonly memory_descriptors: readonly { readonly addr: W; readonly size: W }[];
  readonly layout_type_details: DynamoLayoutDetails;
}

/** One layout of a package; `logical_type` stands in kvbm-physical-1. */
export interface DynamoPackageLayout<W = bigint> {
  readonly handle: W;
  readonly logical_type?: LogicalType;
  readonly layout: DynamoDescriptor<W>;
}

/** Dynamo's metadata package, with its own field names. */
export interface DynamoPackage<W = bigint> {
  readonly worker_address: { readonly worker_id: W; readonly nixl_agent_name: string };
  readonly nixl_metadata: Uint8Array;
  readonly layouts: readonly DynamoPackageLayout<W>[];
}
