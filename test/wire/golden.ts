// The records of test/data/dynamo-metadata.json: bytes that the published Rust crates wrote and judged themselves.
import type { DynamoFormat, DynamoPackage } from "../../lib/wire/index.ts";

/** A package that a crate encoded. */
export interface PackageRecord {
  readonly kind: "package";
  readonly crate: "dynamo-llm" | "kvbm-physical";
  readonly name: string;
  readonly input: GoldenInput;
  readonly hex: string;
}

/** Bytes that a crate decoded, refused, or died of. */
export interface DecodeRecord {
  readonly kind: "decode";
  readonly crate: "dynamo-llm" | "kvbm-physical";
  readonly name: string;
  readonly hex: string;
  readonly accepted: boolean;
  readonly canonical?: boolean;
  readonly decoded?: {
    readonly handles: readonly string[];
    readonly logical_types?: readonly string[];
    readonly layouts_json: readonly string[];
    readonly nixl_agent_name: string;
    readonly nixl_metadata_hex: string;
    readonly worker_id: string;
  };
}

/** A descriptor's JSON that a crate took or refused. */
export interface JsonRecord {
  readonly kind: "json-decode";
  readonly crate: "dynamo-llm" | "kvbm-physical";
  readonly name: string;
  readonly input: string;
  readonly accepted: boolean;
}

export type GoldenRecord = PackageRecord | DecodeRecord | JsonRecord;

interface Tagged {
  readonly kind: string;
  readonly value?: string;
}

interface GoldenInput {
  readonly worker_id: string;
  readonly nixl_agent_name: string;
  readonly nixl_metadata_hex: string;
  readonly layouts: readonly {
    readonly handle: string;
    readonly logical_type?: string;
    readonly layout: {
      readonly version: number;
      readonly layout_config: Readonly<Record<string, string | null>>;
      readonly location: Tagged;
      readonly nixl_metadata: {
        readonly agent_name: string;
        readonly mem_type: string;
        readonly device_id: string;
      };
      readonly memory_descriptors: readonly { readonly addr: string; readonly size: string }[];
      readonly layout_type_details: Tagged & Readonly<Record<string, unknown>>;
    };
  }[];
}

/** All records. */
export const goldenRecords: readonly GoldenRecord[] = await Bun.file(
  `${import.meta.dir}/../data/dynamo-metadata.json`,
).json();

/** The format that a crate writes. */
export function formatOf(record: GoldenRecord): DynamoFormat {
  return record.crate === "dynamo-llm" ? "dynamo-1.0" : "kvbm-physical-1";
}

/** A record's input in the shape of the raw level: bigints, enums tagged from outside. */
export function rawOf(input: GoldenInput): DynamoPackage {
  const layouts = input.layouts.map(({ handle, logical_type, layout }) => {
    const { kind, ...details } = layout.layout_type_details;
    const config = Object.fromEntries(
      Object.entries(layout.layout_config).map(([field, value]) => [
        field,
        field === "inner_shape" || value === null ? value : BigInt(value),
      ]),
    );
    return {
      handle: BigInt(handle),
      ...(logical_type === undefined ? {} : { logical_type }),
      layout: {
        version: layout.version,
        layout_config: config,
        location: locationOf(layout.location),
        nixl_metadata: { ...layout.nixl_metadata, device_id: BigInt(layout.nixl_metadata.device_id) },
        memory_descriptors: layout.memory_descriptors.map(({ addr, size }) => ({
          addr: BigInt(addr),
          size: BigInt(size),
        })),
        layout_type_details: { [kind]: details },
      },
    };
  });
  return {
    worker_address: { worker_id: BigInt(input.worker_id), nixl_agent_name: input.nixl_agent_name },
    nixl_metadata: Uint8Array.fromHex(input.nixl_metadata_hex),
    // Built field by field from records that the crates' own types made.
    layouts: layouts as unknown as DynamoPackage["layouts"],
  };
}

function locationOf({ kind, value }: Tagged): unknown {
  if (value === undefined) return kind;
  return kind === "Device" ? { Device: Number(value) } : { Disk: BigInt(value) };
}
