import { readInteger, readVariant } from "./bincode.ts";
import {
  checkCount,
  decodeText,
  finishReader,
  malformed,
  MAX_COMPONENT_REGIONS,
  mostDynamoLayouts,
  openReader,
  readByte,
} from "./bounded.ts";
import type { ByteReader } from "./bounded.ts";
import type { DynamoFormat } from "./dynamo-types.ts";

/** The places of the seven integers of a layout's config, in wire order. */
export const CONFIG_FIELDS = [
  "num_blocks",
  "num_layers",
  "outer_dim",
  "page_size",
  "inner_dim",
  "alignment",
  "dtype_width_bytes",
] as const;

/** What stands before the layouts of a package. */
export interface DynamoHeader {
  readonly workerId: bigint;
  readonly agentName: string;
  /** Where the name's bytes lie, to compare the layouts' names without decoding them. */
  readonly agentAt: number;
  readonly agentLength: number;
  readonly blobAt: number;
  readonly blobLength: number;
  readonly layoutCount: number;
}

/**
 * One layout as it stands in the bytes, in fields that are overwritten by the next: what is refused later never cost
 * an object. Integers of 64 bits are pairs of words, low first.
 */
export interface LayoutScratch {
  /** Offset of the layout, and of what follows it. */
  at: number;
  end: number;
  handle0: number;
  handle1: number;
  handle2: number;
  handle3: number;
  /** -1 in dynamo-1.0. */
  logicalType: number;
  version: number;
  /** Where the bytes of the config stand that the fields below were read from; length 0 for none. */
  configAt: number;
  configLength: number;
  /** Counts the configs that were read anew: the same number means the same config. */
  configReading: number;
  /** {@link CONFIG_FIELDS}, two words each. */
  readonly config: Uint32Array;
  /** Variant in dynamo-1.0, -1 else. */
  innerShape: number;
  headsKnown: boolean;
  heads0: number;
  heads1: number;
  location: number;
  location0: number;
  location1: number;
  agentAt: number;
  agentLength: number;
  /** Whether the layout's agent is the worker's, whose name stands at `workerAt`. */
  ownAgent: boolean;
  workerAt: number;
  workerLength: number;
  memoryType: number;
  device0: number;
  device1: number;
  regionsAt: number;
  regionCount: number;
  /** The regions, `regionCount` of them; numbers from 2^53 on are only known to be that large. */
  addresses: Float64Array;
  sizes: Float64Array;
  /** 0 fully contiguous, 1 layer separate. */
  details: number;
  /** Block format or block dimension. */
  sub: number;
  /** Variant in kvbm-physical-1, -1 else. */
  kvLayout: number;
  /** Four axes of a custom block layout, two bits each, first lowest. */
  custom: number;
}

/** A fresh scratch layout for a package with that header. */
export function newScratch(header: DynamoHeader): LayoutScratch {
  return {
    at: 0,
    end: 0,
    handle0: 0,
    handle1: 0,
    handle2: 0,
    handle3: 0,
    logicalType: -1,
    version: 0,
    configAt: 0,
    configLength: 0,
    configReading: 0,
    config: new Uint32Array(2 * CONFIG_FIELDS.length),
    innerShape: -1,
    headsKnown: false,
    heads0: 0,
    heads1: 0,
    location: 0,
    location0: 0,
    location1: 0,
    agentAt: 0,
    agentLength: 0,
    ownAgent: false,
    workerAt: header.agentAt,
    workerLength: header.agentLength,
    memoryType: 0,
    device0: 0,
    device1: 0,
    regionsAt: 0,
    regionCount: 0,
    addresses: new Float64Array(FEW_REGIONS),
    sizes: new Float64Array(FEW_REGIONS),
    details: 0,
    sub: 0,
    kvLayout: -1,
    custom: 0,
  };
}

// No layout is shorter: one byte for each of its fields, with an empty name and no region.
const SMALLEST_LAYOUT = 17;
const FEW_REGIONS = 128;
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
  const most = mostDynamoLayouts(reader.end);
  if (layoutCount > most)
    throw malformed(
      reader.format,
      reader.position,
      `${layoutCount} layouts, more than the ${most} of a package of ${reader.end} bytes`,
      { layouts: layoutCount, limit: most },
    );
  return { workerId, agentName, agentAt, agentLength, blobAt, blobLength, layoutCount };
}

/** Reads one layout into the scratch and moves past it. */
export function scanLayout(reader: ByteReader, format: DynamoFormat, scratch: LayoutScratch): void {
  scratch.at = reader.position;
  scratch.end = -1;
  readInteger(reader, 4, "handle");
  scratch.handle0 = reader.word0;
  scratch.handle1 = reader.word1;
  scratch.handle2 = reader.word2;
  scratch.handle3 = reader.word3;
  const kvbm = format === "kvbm-physical-1";
  if (kvbm) scratch.logicalType = readVariant(reader, 4, "logical_type");
  scratch.version = readInteger(reader, 1, "version");
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
  scratch.location = readVariant(reader, 4, "location");
  scratch.location0 = 0;
  scratch.location1 = 0;
  if (scratch.location >= 2) {
    readInteger(reader, scratch.location === 2 ? 1 : 2, "location");
    scratch.location0 = reader.word0;
    scratch.location1 = reader.word1;
  }
  const length = readInteger(reader, 2, "agent_name");
  checkCount(reader, length, 1, "agent_name");
  const at = reader.position;
  // The layout's name is nearly always the worker's: the same bytes as a name that was checked need no check.
  scratch.ownAgent = length === scratch.workerLength && sameBytes(reader.bytes, at, scratch.workerAt, length);
  if (!scratch.ownAgent) decodeText(reader.bytes.subarray(at, at + length), reader.format, at, "agent_name");
  scratch.agentAt = at;
  scratch.agentLength = length;
  reader.position = at + length;
  scratch.memoryType = readVariant(reader, 6, "mem_type");
  readInteger(reader, 2, "device_id");
  scratch.device0 = reader.word0;
  scratch.device1 = reader.word1;
}

function scanRegions(reader: ByteReader, scratch: LayoutScratch): void {
  const count = readInteger(reader, 2, "memory_descriptors");
  checkCount(reader, count, 2, "memory_descriptors");
  if (count > MAX_COMPONENT_REGIONS)
    throw malformed(reader.format, reader.position, `${count} memory_descriptors in one layout`);
  scratch.regionsAt = reader.position;
  scratch.regionCount = count;
  if (count > scratch.addresses.length) {
    scratch.addresses = new Float64Array(count);
    scratch.sizes = new Float64Array(count);
  }
  const { bytes } = reader;
  const { addresses, sizes } = scratch;
  for (let index = 0; index < count; index++) {
    let first = bytes[reader.position] ?? MARK;
    if (first < MARK) {
      reader.position++;
      addresses[index] = first;
    } else addresses[index] = readInteger(reader, 2, "addr");
    first = bytes[reader.position] ?? MARK;
    if (first < MARK) {
      reader.position++;
      sizes[index] = first;
    } else sizes[index] = readInteger(reader, 2, "size");
  }
}

function scanDetails(reader: ByteReader, kvbm: boolean, scratch: LayoutScratch): void {
  scratch.details = readVariant(reader, 2, "layout_type_details");
  scratch.sub =
    scratch.details === 0 ? readVariant(reader, 1, "block_format") : readVariant(reader, 2, "block_dim");
  if (!kvbm) return;
  scratch.kvLayout = readVariant(reader, 6, "kv_block_layout");
  scratch.custom = 0;
  if (scratch.kvLayout !== 4) return;
  for (let axis = 0; axis < 4; axis++)
    scratch.custom |= readVariant(reader, 4, "kv_block_layout") << (2 * axis);
}

/** Tells whether two runs of the same bytes are equal. */
export function sameBytes(bytes: Uint8Array, left: number, right: number, length: number): boolean {
  for (let index = 0; index < length; index++) if (bytes[left + index] !== bytes[right + index]) return false;
  return true;
}
