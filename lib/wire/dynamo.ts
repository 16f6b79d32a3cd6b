import {
  openWriter,
  readInteger,
  unencodable,
  writeBlob,
  writeByte,
  writeInteger,
  writeText,
  written,
} from "./bincode.ts";
import type { ByteWriter } from "./bincode.ts";
import { decodeText, finishReader, openReader } from "./bounded.ts";
import type { ByteReader } from "./bounded.ts";
import { readHeader, scanLayout, scanPackage, wide } from "./dynamo-scan.ts";
import { CONFIG_FIELDS, newScratch } from "./dynamo-scratch.ts";
import type { DynamoHeader, LayoutScratch } from "./dynamo-scratch.ts";
import {
  BLOCK_DIMS,
  CUSTOM_AXES,
  INNER_SHAPES,
  KV_BLOCK_LAYOUTS,
  LOGICAL_TYPES,
  MEMORY_TYPES,
} from "./dynamo-types.ts";
import type {
  CustomAxis,
  DynamoDescriptor,
  DynamoFormat,
  DynamoLayoutConfig,
  DynamoLayoutDetails,
  DynamoLocation,
  DynamoPackage,
  KvBlockLayout,
  WideInteger,
} from "./dynamo-types.ts";

/**
 * Decodes a package of Dynamo's to its own field names, without judging what it means.
 *
 * Integers of 64 bits and more are bigints, enums are tagged as serde tags them. The whole package is checked before
 * anything is built. `nixl_metadata` is a copy. The value has an object for each layout and each region, and may take
 * forty times the memory of the bytes; `decodePackage` does not.
 *
 * @param format - `dynamo-1.0` (dynamo-llm 1.0.2 to 1.6.1) or `kvbm-physical-1` (kvbm-physical 1.6.1).
 * @throws KvferryError `METADATA_MALFORMED` with format, offset and reason: truncated or trailing bytes, counts that
 *   do not fit, unknown variants, integers too wide or longer than needed, text that is not UTF-8.
 */
export function decodeDynamoPackage(bytes: Uint8Array, format: DynamoFormat): DynamoPackage {
  checkFormat(format, "decodeDynamoPackage");
  scanPackage(bytes, format);
  const reader = openReader(bytes, format);
  const header = readHeader(reader);
  const scratch = newScratch(header);
  const layouts: DynamoPackage["layouts"][number][] = [];
  for (let index = 0; index < header.layoutCount; index++) {
    scanLayout(reader, format, scratch);
    const handle = (wide(scratch.handle2, scratch.handle3) << 64n) | wide(scratch.handle0, scratch.handle1);
    const layout = descriptorOf(bytes, format, header, scratch);
    const tier = LOGICAL_TYPES[scratch.logicalType];
    layouts.push(tier === undefined ? { handle, layout } : { handle, logical_type: tier, layout });
  }
  finishReader(reader);
  return {
    worker_address: { worker_id: header.workerId, nixl_agent_name: header.agentName },
    nixl_metadata: bytes.slice(header.blobAt, header.blobAt + header.blobLength),
    layouts,
  };
}

/**
 * Encodes a package of Dynamo's, byte for byte as the Rust crates do.
 *
 * @param value - Fields as {@link decodeDynamoPackage} gives them; integers also as safe numbers.
 * @throws KvferryError `INVALID_CONFIG` with the field: integers out of range, unknown variants, fields of the other
 *   format.
 */
export function encodeDynamoPackage(value: DynamoPackage<WideInteger>, format: DynamoFormat): Uint8Array {
  checkFormat(format, "encodeDynamoPackage");
  const writer = openWriter(256 + value.nixl_metadata.length + value.layouts.length * 128);
  writeInteger(writer, value.worker_address.worker_id, 64, "worker_id");
  writeText(writer, value.worker_address.nixl_agent_name, "nixl_agent_name");
  if (!(value.nixl_metadata instanceof Uint8Array))
    throw unencodable("nixl_metadata", "a Uint8Array", typeof value.nixl_metadata);
  writeBlob(writer, value.nixl_metadata);
  writeInteger(writer, value.layouts.length, 64, "layouts");
  for (const layout of value.layouts) {
    writeInteger(writer, layout.handle, 128, "handle");
    if (format === "kvbm-physical-1")
      writeVariant(writer, LOGICAL_TYPES, layout.logical_type, "logical_type");
    else refuseField(layout.logical_type, "logical_type", format);
    writeDescriptor(writer, layout.layout, format);
  }
  return written(writer);
}

/**
 * Checks the name of a format.
 *
 * @throws KvferryError `INVALID_CONFIG` for any other word.
 */
export function checkFormat(format: DynamoFormat, field: string): void {
  if (format !== "dynamo-1.0" && format !== "kvbm-physical-1")
    throw unencodable(`the format of ${field}`, `"dynamo-1.0" or "kvbm-physical-1"`, format);
}

/** The four axes of a custom block layout. */
export function customAxes(packed: number): readonly [CustomAxis, CustomAxis, CustomAxis, CustomAxis] {
  const axis = (index: number): CustomAxis => CUSTOM_AXES[(packed >> (2 * index)) & 3] ?? "Layer";
  return [axis(0), axis(1), axis(2), axis(3)];
}

function descriptorOf(
  bytes: Uint8Array,
  format: DynamoFormat,
  header: DynamoHeader,
  scratch: LayoutScratch,
): DynamoDescriptor {
  const name = bytes.subarray(scratch.agentAt, scratch.agentAt + scratch.agentLength);
  return {
    version: scratch.version,
    layout_config: configOf(scratch),
    location: locationOf(scratch),
    nixl_metadata: {
      agent_name: scratch.ownAgent
        ? header.agentName
        : decodeText(name, format, scratch.agentAt, "agent_name"),
      mem_type: MEMORY_TYPES[scratch.memoryType] ?? "Unknown",
      device_id: wide(scratch.device0, scratch.device1),
    },
    memory_descriptors: regionsOf(openReader(bytes, format), scratch),
    layout_type_details: detailsOf(scratch),
  };
}

function configOf(scratch: LayoutScratch): DynamoLayoutConfig {
  const words = scratch.config;
  const field = (index: number): bigint => wide(words[2 * index] ?? 0, words[2 * index + 1] ?? 0);
  const common = {
    num_blocks: field(0),
    num_layers: field(1),
    outer_dim: field(2),
    page_size: field(3),
    inner_dim: field(4),
    alignment: field(5),
    dtype_width_bytes: field(6),
  };
  const shape = INNER_SHAPES[scratch.innerShape];
  if (shape !== undefined) return { ...common, inner_shape: shape };
  return { ...common, num_heads: scratch.headsKnown ? wide(scratch.heads0, scratch.heads1) : null };
}

function locationOf(scratch: LayoutScratch): DynamoLocation {
  if (scratch.location === 0) return "System";
  if (scratch.location === 1) return "Pinned";
  if (scratch.location === 2) return { Device: scratch.location0 };
  return { Disk: wide(scratch.location0, scratch.location1) };
}

function regionsOf(reader: ByteReader, scratch: LayoutScratch): { addr: bigint; size: bigint }[] {
  const regions: { addr: bigint; size: bigint }[] = [];
  reader.position = scratch.regionsAt;
  let size = 0n;
  let low = 0;
  let high = 0;
  for (let index = 0; index < scratch.regionCount; index++) {
    readInteger(reader, 2, "addr");
    const addr = wide(reader.word0, reader.word1);
    readInteger(reader, 2, "size");
    // Regions of a layout mostly have one size: one bigint for all of them.
    if (reader.word0 !== low || reader.word1 !== high) {
      low = reader.word0;
      high = reader.word1;
      size = wide(low, high);
    }
    regions.push({ addr, size });
  }
  return regions;
}

function detailsOf(scratch: LayoutScratch): DynamoLayoutDetails {
  const variant = KV_BLOCK_LAYOUTS[scratch.kvLayout];
  const kv = variant === "Custom" ? { Custom: customAxes(scratch.custom) } : variant;
  const layout = kv === undefined ? {} : { kv_block_layout: kv };
  if (scratch.details === 0) return { FullyContiguous: { block_format: "Operational", ...layout } };
  return { LayerSeparate: { block_dim: BLOCK_DIMS[scratch.sub] ?? "BlockIsFirstDim", ...layout } };
}

function writeDescriptor(
  writer: ByteWriter,
  value: DynamoDescriptor<WideInteger>,
  format: DynamoFormat,
): void {
  writeInteger(writer, value.version, 32, "version");
  const config = value.layout_config;
  for (const field of CONFIG_FIELDS) writeInteger(writer, config[field], 64, field);
  if (format === "dynamo-1.0") {
    writeVariant(writer, INNER_SHAPES, config.inner_shape, "inner_shape");
    refuseField(config.num_heads, "num_heads", format);
  } else {
    const heads = config.num_heads ?? null;
    writeByte(writer, heads === null ? 0 : 1);
    if (heads !== null) writeInteger(writer, heads, 64, "num_heads");
    refuseField(config.inner_shape, "inner_shape", format);
  }
  writeLocation(writer, value.location);
  writeText(writer, value.nixl_metadata.agent_name, "agent_name");
  writeVariant(writer, MEMORY_TYPES, value.nixl_metadata.mem_type, "mem_type");
  writeInteger(writer, value.nixl_metadata.device_id, 64, "device_id");
  writeInteger(writer, value.memory_descriptors.length, 64, "memory_descriptors");
  for (const region of value.memory_descriptors) {
    writeInteger(writer, region.addr, 64, "addr");
    writeInteger(writer, region.size, 64, "size");
  }
  writeDetails(writer, value.layout_type_details, format);
}

function writeLocation(writer: ByteWriter, location: DynamoLocation<WideInteger>): void {
  if (location === "System") writeByte(writer, 0);
  else if (location === "Pinned") writeByte(writer, 1);
  else if (typeof location === "object" && location !== null && "Device" in location) {
    writeByte(writer, 2);
    writeInteger(writer, location.Device, 32, "location.Device");
  } else if (typeof location === "object" && location !== null && "Disk" in location) {
    writeByte(writer, 3);
    writeInteger(writer, location.Disk, 64, "location.Disk");
  } else throw unencodable("location", `"System", "Pinned", { Device } or { Disk }`, location);
}

function writeDetails(writer: ByteWriter, details: DynamoLayoutDetails, format: DynamoFormat): void {
  let layout: KvBlockLayout | undefined;
  if ("FullyContiguous" in details) {
    writeByte(writer, 0);
    writeVariant(writer, ["Operational"], details.FullyContiguous.block_format, "block_format");
    layout = details.FullyContiguous.kv_block_layout;
  } else if ("LayerSeparate" in details) {
    writeByte(writer, 1);
    writeVariant(writer, BLOCK_DIMS, details.LayerSeparate.block_dim, "block_dim");
    layout = details.LayerSeparate.kv_block_layout;
  } else throw unencodable("layout_type_details", "{ FullyContiguous } or { LayerSeparate }", details);
  if (format === "dynamo-1.0") {
    refuseField(layout, "kv_block_layout", format);
    return;
  }
  // The same default as the JSON form has.
  const kv = layout ?? "Unknown";
  if (typeof kv === "string") {
    if (!KV_BLOCK_LAYOUTS.includes(kv) || (kv as string) === "Custom")
      throw unencodable("kv_block_layout", "a block layout of kvbm-physical", kv);
    writeVariant(writer, KV_BLOCK_LAYOUTS, kv, "kv_block_layout");
    return;
  }
  if (!Array.isArray(kv.Custom) || kv.Custom.length !== 4)
    throw unencodable("kv_block_layout.Custom", "four axes", kv.Custom);
  writeVariant(writer, KV_BLOCK_LAYOUTS, "Custom", "kv_block_layout");
  for (const axis of kv.Custom) writeVariant(writer, CUSTOM_AXES, axis, "kv_block_layout.Custom");
}

function writeVariant(
  writer: ByteWriter,
  variants: readonly string[],
  word: string | undefined,
  what: string,
): void {
  const index = word === undefined ? -1 : variants.indexOf(word);
  if (index < 0) throw unencodable(what, `one of ${variants.join(", ")}`, word);
  writeByte(writer, index);
}

function refuseField(value: unknown, field: string, format: DynamoFormat): void {
  if (value !== undefined) throw unencodable(field, `left out: ${format} has no such field`, value);
}
