import { readInteger, readVariant } from "./bincode.ts";
import {
  checkCount,
  decodeText,
  finishReader,
  malformed,
  MAX_COMPONENT_REGIONS,
  mostDynamoLayouts,
  mostRegions,
  openReader,
  readByte,
} from "./bounded.ts";
import type { ByteReader } from "./bounded.ts";
import { CONFIG_FIELDS, newScratch } from "./dynamo-scratch.ts";
import type { DynamoHeader, LayoutScratch } from "./dynamo-scratch.ts";
import type { DynamoFormat } from "./dynamo-types.ts";

// No layout is shorter: one byte for each of its fields, with an empty name and no region.
const SMALLEST_LAYOUT = 17;
const LONG_NAME = 64;
// Integers below are one byte, and stand for themselves.
const MARK = 251;

/**
 * Reads all of a package strictly to its last byte and keeps nothing of it.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the place of the first byte that is wrong.
 */
export function scanPackage(bytes: Uint8Array, format: DynamoFormat): void {
  const reader = openReader(bytes, format);
  const header = readHeader(reader);
  const scratch = newScratch(header);
  for (let index = 0; index < header.layoutCount; index++) scanLayout(reader, format, scratch);
  finishReader(reader);
}

/** Reads what stands before the layouts. */
export function readHeader(reader: ByteReader): DynamoHeader {
  readInteger(reader, 2, "worker_id");
  const workerId = wide(reader.word0, reader.word1);
  const agentLength = readInteger(reader, 2, "nixl_agent_name");
  checkCount(reader, agentLength, 1, "nixl_agent_name");
  const agentAt = reader.position;
  const agentName = decodeText(
    reader.bytes.subarray(agentAt, agentAt + agentLength),
    reader.format,
    agentAt,
    "nixl_agent_name",
  );
  reader.position = agentAt + agentLength;
  const blobLength = readInteger(reader, 2, "nixl_metadata");
  checkCount(reader, blobLength, 1, "nixl_metadata");
  const blobAt = reader.position;
  reader.position = blobAt + blobLength;
  const layoutCount = readInteger(reader, 2, "layouts");
  checkCount(reader, layoutCount, SMALLEST_LAYOUT, "layouts");
  if (layoutCount > mostDynamoLayouts(reader.end)) throw tooManyLayouts(reader, layoutCount);
  return {
    workerId,
    agentName,
    agentAt,
    agentLength,
    blobAt,
    blobLength,
    layoutCount,
    mostRegions: mostRegions(reader.end),
  };
}

/**
 * Reads one layout into the scratch and moves past it.
 *
 * Nearly every field is one byte that stands for itself, read in place: before this code is compiled, a call for each
 * would cost more than all the rest. Whatever else stands there goes the long way.
 */
export function scanLayout(reader: ByteReader, format: DynamoFormat, scratch: LayoutScratch): void {
  const { bytes } = reader;
  scratch.at = reader.position;
  scratch.end = -1;
  readInteger(reader, 4, "handle");
  scratch.handle0 = reader.word0;
  scratch.handle1 = reader.word1;
  scratch.handle2 = reader.word2;
  scratch.handle3 = reader.word3;
  const kvbm = format === "kvbm-physical-1";
  if (kvbm) {
    const tier = bytes[reader.position] ?? MARK;
    if (tier < 4) {
      reader.position++;
      scratch.logicalType = tier;
    } else scratch.logicalType = readVariant(reader, 4, "logical_type");
  }
  const version = bytes[reader.position] ?? MARK;
  if (version < MARK) {
    reader.position++;
    scratch.version = version;
  } else scratch.version = readInteger(reader, 1, "version");
  scanConfig(reader, kvbm, scratch);
  scanPlace(reader, scratch);
  scanRegions(reader, scratch);
  scanDetails(reader, kvbm, scratch);
  scratch.end = reader.position;
}

/** A 64-bit integer from its words. */
export function wide(low: number, high: number): bigint {
  if (high < 2 ** 21) return BigInt(high * 2 ** 32 + low);
  return (BigInt(high) << 32n) | BigInt(low);
}

function scanConfig(reader: ByteReader, kvbm: boolean, scratch: LayoutScratch): void {
  const start = reader.position;
  const { config, configLength } = scratch;
  // Most layouts of a package have one config: the same bytes say the same and need not be read again.
  if (
    configLength > 0 &&
    configLength <= reader.end - start &&
    sameBytes(reader.bytes, start, scratch.configAt, configLength)
  ) {
    reader.position = start + configLength;
    return;
  }
  scratch.configLength = 0;
  scratch.configReading++;
  const { bytes } = reader;
  for (let field = 0; field < CONFIG_FIELDS.length; field++) {
    // Small numbers are the plain case: a call for each would cost more than all the rest.
    const first = bytes[reader.position] ?? MARK;
    if (first < MARK) {
      reader.position++;
      config[field * 2] = first;
      config[field * 2 + 1] = 0;
    } else {
      readInteger(reader, 2, "layout_config");
      config[field * 2] = reader.word0;
      config[field * 2 + 1] = reader.word1;
    }
  }
  if (kvbm) scanHeads(reader, scratch);
  else scratch.innerShape = readVariant(reader, 3, "inner_shape");
  scratch.configAt = start;
  scratch.configLength = reader.position - start;
}

function scanHeads(reader: ByteReader, scratch: LayoutScratch): void {
  const at = reader.position;
  const tag = readByte(reader, "num_heads");
  if (tag > 1) throw malformed(reader.format, at, `num_heads has the option tag ${tag}`);
  scratch.headsKnown = tag === 1;
  if (tag === 1) readInteger(reader, 2, "num_heads");
  scratch.heads0 = tag === 1 ? reader.word0 : 0;
  scratch.heads1 = tag === 1 ? reader.word1 : 0;
}

function scanPlace(reader: ByteReader, scratch: LayoutScratch): void {
  const { bytes } = reader;
  const location = bytes[reader.position] ?? MARK;
  scratch.location0 = 0;
  scratch.location1 = 0;
  if (location < 2) {
    reader.position++;
    scratch.location = location;
  } else {
    scratch.location = readVariant(reader, 4, "location");
    readInteger(reader, scratch.location === 2 ? 1 : 2, "location");
    scratch.location0 = reader.word0;
    scratch.location1 = reader.word1;
  }
  let length = bytes[reader.position] ?? MARK;
  if (length < MARK) reader.position++;
  else length = readInteger(reader, 2, "agent_name");
  const at = reader.position;
  if (length > reader.end - at) checkCount(reader, length, 1, "agent_name");
  // The layout's name is nearly always the worker's: the same bytes as a name that was checked need no check. Long ones
  // are compared as text.
  let own = length === scratch.workerLength && length < LONG_NAME;
  const difference = scratch.workerAt - at;
  for (let index = at; own && index < at + length; index++) own = bytes[index] === bytes[index + difference];
  scratch.ownAgent =
    own ||
    decodeText(bytes.subarray(at, at + length), reader.format, at, "agent_name") === scratch.workerName;
  scratch.agentAt = at;
  scratch.agentLength = length;
  reader.position = at + length;
  const memory = bytes[reader.position] ?? MARK;
  if (memory < 6) {
    reader.position++;
    scratch.memoryType = memory;
  } else scratch.memoryType = readVariant(reader, 6, "mem_type");
  const device = bytes[reader.position] ?? MARK;
  if (device < MARK) {
    reader.position++;
    scratch.device0 = device;
    scratch.device1 = 0;
  } else {
    readInteger(reader, 2, "device_id");
    scratch.device0 = reader.word0;
    scratch.device1 = reader.word1;
  }
}

function scanRegions(reader: ByteReader, scratch: LayoutScratch): void {
  const { bytes } = reader;
  let count = bytes[reader.position] ?? MARK;
  if (count < MARK) reader.position++;
  else count = readInteger(reader, 2, "memory_descriptors");
  if (count * 2 > reader.end - reader.position) checkCount(reader, count, 2, "memory_descriptors");
  if (count > MAX_COMPONENT_REGIONS) throw manyInOne(reader, count);
  scratch.regionsLeft -= count;
  if (scratch.regionsLeft < 0) throw tooManyRegions(reader);
  scratch.regionsAt = reader.position;
  scratch.regionCount = count;
  if (count > scratch.addresses.length) {
    scratch.addresses = new Float64Array(count);
    scratch.sizes = new Float64Array(count);
  }
  const { addresses, sizes } = scratch;
  scratch.wideAddress = false;
  scratch.wideSize = false;
  for (let index = 0; index < count; index++) {
    let value = bytes[reader.position] ?? MARK;
    if (value < MARK) reader.position++;
    else if ((value = readInteger(reader, 2, "addr")) > Number.MAX_SAFE_INTEGER) scratch.wideAddress = true;
    addresses[index] = value;
    value = bytes[reader.position] ?? MARK;
    if (value < MARK) reader.position++;
    else if ((value = readInteger(reader, 2, "size")) > Number.MAX_SAFE_INTEGER) scratch.wideSize = true;
    sizes[index] = value;
  }
}

function scanDetails(reader: ByteReader, kvbm: boolean, scratch: LayoutScratch): void {
  const { bytes } = reader;
  const details = bytes[reader.position] ?? MARK;
  if (details < 2) {
    reader.position++;
    scratch.details = details;
  } else scratch.details = readVariant(reader, 2, "layout_type_details");
  const sub = bytes[reader.position] ?? MARK;
  if (sub <= details) {
    reader.position++;
    scratch.sub = sub;
  } else
    scratch.sub =
      scratch.details === 0 ? readVariant(reader, 1, "block_format") : readVariant(reader, 2, "block_dim");
  scratch.form = scratch.details | (scratch.sub << 1);
  if (!kvbm) return;
  scratch.custom = 0;
  const layout = bytes[reader.position] ?? MARK;
  if (layout < 6) {
    reader.position++;
    scratch.kvLayout = layout;
  } else scratch.kvLayout = readVariant(reader, 6, "kv_block_layout");
  if (scratch.kvLayout === 4)
    for (let axis = 0; axis < 4; axis++)
      scratch.custom |= readVariant(reader, 4, "kv_block_layout") << (2 * axis);
  scratch.form |= (scratch.kvLayout << 2) | (scratch.custom << 5);
}

// Refusals have functions of their own, which a package that is right never compiles.

function tooManyLayouts(reader: ByteReader, layouts: number): Error {
  const limit = mostDynamoLayouts(reader.end);
  const reason = `${layouts} layouts, more than the ${limit} of a package of ${reader.end} bytes`;
  return malformed(reader.format, reader.position, reason, { layouts, limit });
}

function manyInOne(reader: ByteReader, count: number): Error {
  return malformed(reader.format, reader.position, `${count} memory_descriptors in one layout`);
}

function tooManyRegions(reader: ByteReader): Error {
  const limit = mostRegions(reader.end);
  const reason = `more memory_descriptors than the ${limit} of a package of ${reader.end} bytes`;
  return malformed(reader.format, reader.position, reason, { limit });
}

/** Tells whether two runs of the same bytes are equal. */
export function sameBytes(bytes: Uint8Array, left: number, right: number, length: number): boolean {
  for (let index = 0; index < length; index++) if (bytes[left + index] !== bytes[right + index]) return false;
  return true;
}
