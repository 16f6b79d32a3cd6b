import { decode, encode } from "@msgpack/msgpack";
import type { Arrangement, Order } from "../../lib/core/arrangement.ts";
import { resolveShape } from "../../lib/core/component-shape.ts";
import type { LayoutConfig } from "../../lib/core/config.ts";
import { resolveConfig } from "../../lib/core/config-resolve.ts";
import { makeHandle } from "../../lib/core/handle.ts";
import type { Storage } from "../../lib/core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../../lib/core/package.ts";
import { readEnvelope, writeEnvelope } from "../../lib/wire/envelope.ts";
import { encodePackage } from "../../lib/wire/index.ts";
import type { DynamoDescriptor, DynamoPackage } from "../../lib/wire/index.ts";

/** 2 blocks of 2 layers, K and V, 4 tokens of 8 two-byte elements: 512 bytes. */
export const CONFIG: LayoutConfig = {
  numBlocks: 2,
  numLayers: 2,
  outerDim: 2,
  pageSize: 4,
  innerDim: 8,
  dtypeBits: 16,
};

/** What a component of a test package may say. */
export interface ComponentParts {
  readonly name?: string;
  readonly config?: LayoutConfig;
  readonly arrangement?: Arrangement;
  readonly order?: Order;
  readonly group?: string;
  readonly wholeBlocks?: boolean;
  readonly alias?: boolean;
  readonly storage?: Storage;
  readonly addresses?: readonly number[];
  readonly slack?: number;
}

/** A component whose regions follow each other from 0x10000, or stand where the test says. */
export function componentOf(parts: ComponentParts = {}): PackageComponent {
  const shape = resolveShape(
    {
      name: parts.name ?? "kv",
      config: resolveConfig(parts.config ?? CONFIG, "test"),
      arrangement: parts.arrangement ?? "fully-contiguous",
      order: parts.order,
      group: parts.group ?? "default",
      wholeBlocks: parts.wholeBlocks ?? false,
      alias: parts.alias ?? false,
    },
    "test",
  );
  const storage = parts.storage ?? { kind: "system" };
  const count = storage.kind === "disk" ? 0 : shape.view.regionCount;
  const size = shape.view.regionBytes + (parts.slack ?? 0);
  const addresses = parts.addresses ?? Array.from({ length: count }, (_, index) => 0x10000 + index * size);
  return {
    ...shape,
    storage,
    regionAddresses: Float64Array.from(addresses),
    regionSizes: Float64Array.from(addresses, () => size),
    nixlDevice: storage.kind === "device" ? storage.device : 0,
  };
}

/** A layout of worker 7. */
export function layoutOf(
  id: number,
  parts: ComponentParts | readonly PackageComponent[] = {},
): PackageLayout {
  const components = isList(parts) ? parts : [componentOf(parts)];
  const disk = components.some(({ storage }) => storage.kind === "disk");
  const device = components.some(({ storage }) => storage.kind === "device");
  return {
    handle: makeHandle(7n, id),
    name: `layout-${id}`,
    tier: disk ? "G3" : device ? "G1" : "G2",
    access: "read-write",
    fingerprint: null,
    stagedOnly: disk,
    components,
  };
}

function isList(parts: ComponentParts | readonly PackageComponent[]): parts is readonly PackageComponent[] {
  return Array.isArray(parts);
}

/** A package of worker 7 that any format can say. */
export function packageOf(
  layouts: readonly PackageLayout[],
  change: Partial<MetadataPackage> = {},
): MetadataPackage {
  return {
    format: "kvferry",
    workerId: 7n,
    agentName: "worker-7",
    wireName: "worker-7",
    incarnation: 0,
    sequence: 0,
    issuedAtMs: null,
    expiresAtMs: null,
    audience: null,
    nixlMetadata: new Uint8Array([1, 2, 3, 4, 5]),
    host: null,
    layouts,
    ...change,
  };
}

/** A kvferry package whose body was changed and whose checksum is right again: what a liar would send. */
export function forged(value: MetadataPackage, change: (body: Record<string, unknown>) => void): Uint8Array {
  const body = decode(readEnvelope(encodePackage(value, "kvferry")).body, { useBigInt64: true }) as Record<
    string,
    unknown
  >;
  change(body);
  return writeEnvelope(encode(body, { useBigInt64: true }), null);
}

/** Changes one number of a column of a forged body. */
export function poke(
  body: Record<string, unknown>,
  column: string,
  index: number,
  value: number,
  words: boolean,
): void {
  const bytes = (body[column] as Uint8Array).slice();
  const data = new DataView(bytes.buffer);
  if (words) data.setUint32(index * 4, value, true);
  else data.setFloat64(index * 8, value, true);
  body[column] = bytes;
}

/** A raw package of worker 7 with one layout, to be changed by tests. */
export function rawOf(
  change: Partial<DynamoDescriptor> = {},
  config: Partial<DynamoDescriptor["layout_config"]> = {},
  handle = 7n,
): DynamoPackage {
  return {
    worker_address: { worker_id: 7n, nixl_agent_name: "w" },
    nixl_metadata: new Uint8Array([0xaa, 0xbb]),
    layouts: [
      {
        handle,
        layout: {
          version: 1,
          layout_config: {
            num_blocks: 2n,
            num_layers: 2n,
            outer_dim: 2n,
            page_size: 4n,
            inner_dim: 8n,
            alignment: 1n,
            dtype_width_bytes: 2n,
            inner_shape: "NHD",
            ...config,
          },
          location: "System",
          nixl_metadata: { agent_name: "w", mem_type: "Dram", device_id: 0n },
          memory_descriptors: [{ addr: 0x1000n, size: 4096n }],
          layout_type_details: { FullyContiguous: { block_format: "Operational" } },
          ...change,
        },
      },
    ],
  };
}

/** The same package in the form of kvbm-physical. */
export function kvbmOf(
  raw: DynamoPackage,
  heads: bigint | null,
  layout: "UniversalTP" | "UniversalPP" | "OperationalHND" | "OperationalNHD" | "Unknown" | readonly string[],
): DynamoPackage {
  const kv_block_layout = typeof layout === "string" ? layout : { Custom: layout };
  return {
    ...raw,
    layouts: raw.layouts.map(({ handle, layout: descriptor }) => {
      const { inner_shape: _, ...config } = descriptor.layout_config;
      const details = descriptor.layout_type_details;
      return {
        handle,
        logical_type: "G2" as const,
        layout: {
          ...descriptor,
          layout_config: { ...config, num_heads: heads },
          layout_type_details: ("FullyContiguous" in details
            ? { FullyContiguous: { ...details.FullyContiguous, kv_block_layout } }
            : {
                LayerSeparate: { ...details.LayerSeparate, kv_block_layout },
              }) as DynamoDescriptor["layout_type_details"],
        },
      };
    }),
  };
}
