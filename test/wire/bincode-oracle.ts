// Dynamo's wire rules written a second time, from the definition and for clearness only: no code shared with lib/wire.
import type { DynamoFormat, DynamoPackage } from "../../lib/wire/index.ts";

/** What a package's bytes must be, as a list of numbers. */
export function oracleBytes(value: DynamoPackage, format: DynamoFormat): number[] {
  const kvbm = format === "kvbm-physical-1";
  return [
    ...integer(value.worker_address.worker_id),
    ...text(value.worker_address.nixl_agent_name),
    ...integer(BigInt(value.nixl_metadata.length)),
    ...value.nixl_metadata,
    ...integer(BigInt(value.layouts.length)),
    ...value.layouts.flatMap(({ handle, logical_type, layout }) => {
      const config = layout.layout_config;
      const location = layout.location;
      const details = layout.layout_type_details;
      const inner = "FullyContiguous" in details ? details.FullyContiguous : details.LayerSeparate;
      return [
        ...integer(handle),
        ...(kvbm ? [["G1", "G2", "G3", "G4"].indexOf(logical_type ?? "")] : []),
        ...integer(BigInt(layout.version)),
        ...integer(config.num_blocks),
        ...integer(config.num_layers),
        ...integer(config.outer_dim),
        ...integer(config.page_size),
        ...integer(config.inner_dim),
        ...integer(config.alignment),
        ...integer(config.dtype_width_bytes),
        ...(kvbm
          ? option(config.num_heads ?? null)
          : [["Unknown", "NHD", "HND"].indexOf(config.inner_shape ?? "")]),
        ...(location === "System"
          ? [0]
          : location === "Pinned"
            ? [1]
            : "Device" in location
              ? [2, ...integer(BigInt(location.Device))]
              : [3, ...integer(location.Disk)]),
        ...text(layout.nixl_metadata.agent_name),
        ["Dram", "Vram", "Block", "Object", "File", "Unknown"].indexOf(layout.nixl_metadata.mem_type),
        ...integer(layout.nixl_metadata.device_id),
        ...integer(BigInt(layout.memory_descriptors.length)),
        ...layout.memory_descriptors.flatMap(({ addr, size }) => [...integer(addr), ...integer(size)]),
        ...("block_format" in inner
          ? [0, 0]
          : [1, ["BlockIsFirstDim", "BlockIsSecondDim"].indexOf(inner.block_dim)]),
        ...(kvbm ? blockLayout(inner.kv_block_layout ?? "Unknown") : []),
      ];
    }),
  ];
}

/** What a descriptor's JSON must be. */
export function oracleJson(value: unknown): string {
  return JSON.stringify(value, (_key, member: unknown) =>
    typeof member === "bigint" ? `\u0001${member}\u0001` : member,
  ).replace(/"\\u0001(\d+)\\u0001"/g, "$1");
}

function integer(value: bigint): number[] {
  if (value < 251n) return [Number(value)];
  const [mark, width] =
    value < 2n ** 16n ? [251, 2] : value < 2n ** 32n ? [252, 4] : value < 2n ** 64n ? [253, 8] : [254, 16];
  return [mark, ...Array.from({ length: width }, (_, index) => Number((value >> BigInt(8 * index)) & 255n))];
}

function text(value: string): number[] {
  const bytes = [...new TextEncoder().encode(value)];
  return [...integer(BigInt(bytes.length)), ...bytes];
}

function option(value: bigint | null): number[] {
  return value === null ? [0] : [1, ...integer(value)];
}

function blockLayout(value: string | { readonly Custom: readonly string[] }): number[] {
  if (typeof value !== "string")
    return [4, ...value.Custom.map((axis) => ["Layer", "Outer", "Page", "Head"].indexOf(axis))];
  return [["UniversalTP", "UniversalPP", "OperationalHND", "OperationalNHD", "", "Unknown"].indexOf(value)];
}
