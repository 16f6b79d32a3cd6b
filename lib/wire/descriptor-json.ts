import { checkFormat, decodeDynamoPackage, encodeDynamoPackage } from "./dynamo.ts";
import { MAX_COMPONENT_REGIONS } from "./bounded.ts";
import { BLOCK_DIMS, CUSTOM_AXES, INNER_SHAPES, KV_BLOCK_LAYOUTS, MEMORY_TYPES } from "./dynamo-types.ts";
import type {
  DynamoDescriptor,
  DynamoFormat,
  DynamoLayoutConfig,
  DynamoLayoutDetails,
  DynamoLocation,
  KvBlockLayout,
  WideInteger,
} from "./dynamo-types.ts";
import { CONFIG_FIELDS } from "./dynamo-scratch.ts";
import {
  arrayJson,
  badJson,
  finishJson,
  integerJson,
  nullJson,
  objectJson,
  openJson,
  peekJson,
  skipJson,
  stringJson,
  takeJson,
} from "./json-cursor.ts";
import type { JsonCursor } from "./json-cursor.ts";

/**
 * A layout descriptor as the Rust crates write it in JSON: compact, keys in the order of declaration, integers exact
 * whatever their size.
 *
 * @param descriptor - Fields as `decodeDynamoPackage` gives them; integers also as safe numbers.
 * @throws KvferryError `INVALID_CONFIG` as `encodeDynamoPackage` does.
 */
export function descriptorToJson(descriptor: DynamoDescriptor<WideInteger>, format: DynamoFormat): string {
  const value = checked(descriptor, format);
  const { layout_config: config, nixl_metadata: nixl } = value;
  const last =
    format === "dynamo-1.0"
      ? `"inner_shape":${JSON.stringify(config.inner_shape)}`
      : `"num_heads":${config.num_heads ?? "null"}`;
  const regions = value.memory_descriptors.map(({ addr, size }) => `{"addr":${addr},"size":${size}}`);
  return (
    `{"version":${value.version},"layout_config":{"num_blocks":${config.num_blocks},` +
    `"num_layers":${config.num_layers},"outer_dim":${config.outer_dim},"page_size":${config.page_size},` +
    `"inner_dim":${config.inner_dim},"alignment":${config.alignment},` +
    `"dtype_width_bytes":${config.dtype_width_bytes},${last}},"location":${locationText(value.location)},` +
    `"nixl_metadata":{"agent_name":${JSON.stringify(nixl.agent_name)},"mem_type":"${nixl.mem_type}",` +
    `"device_id":${nixl.device_id}},"memory_descriptors":[${regions.join()}],` +
    // The details hold words only, and their keys stand in the order of declaration.
    `"layout_type_details":${JSON.stringify(value.layout_type_details)}}`
  );
}

/**
 * Reads a layout descriptor from JSON as the Rust crates do: members in any order, unknown ones passed over, structs
 * also as arrays of their fields; `num_heads` and `kv_block_layout` may be missing in kvbm-physical-1.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the position in the text and the reason.
 */
export function descriptorFromJson(text: string, format: DynamoFormat): DynamoDescriptor {
  checkFormat(format, "descriptorFromJson");
  const cursor = openJson(text, format);
  const slots: Partial<{ -readonly [Key in keyof DynamoDescriptor]: DynamoDescriptor[Key] }> = {};
  struct(cursor, "the descriptor", DESCRIPTOR_FIELDS, [], (field) => {
    if (field === 0) slots.version = Number(integerJson(cursor, 32, "version"));
    else if (field === 1) slots.layout_config = readConfig(cursor);
    else if (field === 2) slots.location = readLocation(cursor);
    else if (field === 3) slots.nixl_metadata = readNixl(cursor);
    else if (field === 4) slots.memory_descriptors = readRegions(cursor);
    else slots.layout_type_details = readDetails(cursor);
  });
  finishJson(cursor);
  // `struct` has refused the text unless every field was read.
  return slots as DynamoDescriptor;
}

const DESCRIPTOR_FIELDS = [
  "version",
  "layout_config",
  "location",
  "nixl_metadata",
  "memory_descriptors",
  "layout_type_details",
] as const;
const NIXL_FIELDS = ["agent_name", "mem_type", "device_id"] as const;
const REGION_FIELDS = ["addr", "size"] as const;
const CUSTOM_WORD = "Custom";

/** The same descriptor through the binary form: whatever that refuses, this refuses, and all integers are bigints. */
function checked(descriptor: DynamoDescriptor<WideInteger>, format: DynamoFormat): DynamoDescriptor {
  const shell = {
    worker_address: { worker_id: 0, nixl_agent_name: "" },
    nixl_metadata: new Uint8Array(0),
    layouts: [
      format === "dynamo-1.0"
        ? { handle: 0, layout: descriptor }
        : { handle: 0, logical_type: "G2" as const, layout: descriptor },
    ],
  };
  const [first] = decodeDynamoPackage(encodeDynamoPackage(shell, format), format).layouts;
  return first?.layout as DynamoDescriptor; // one layout went in
}

function locationText(location: DynamoLocation): string {
  if (typeof location === "string") return `"${location}"`;
  return "Device" in location ? `{"Device":${location.Device}}` : `{"Disk":${location.Disk}}`;
}

function readConfig(cursor: JsonCursor): DynamoLayoutConfig {
  const kvbm = cursor.format === "kvbm-physical-1";
  const config: Partial<Record<string, bigint | string | null>> = {};
  const last = kvbm ? "num_heads" : "inner_shape";
  struct(cursor, "layout_config", [...CONFIG_FIELDS, last], kvbm ? [last] : [], (field) => {
    const name = CONFIG_FIELDS[field];
    if (name !== undefined) config[name] = integerJson(cursor, 64, name);
    else if (kvbm) config[last] = nullJson(cursor) ? null : integerJson(cursor, 64, last);
    else config[last] = unitVariant(cursor, INNER_SHAPES, last);
  });
  if (kvbm) config[last] ??= null;
  return config as unknown as DynamoLayoutConfig; // every field was read, or has its default
}

function readLocation(cursor: JsonCursor): DynamoLocation {
  return variant(cursor, ["System", "Pinned", "Device", "Disk"], "location", (word, hasValue) => {
    if (word === "System" || word === "Pinned") {
      unitValue(cursor, hasValue, "location");
      return word;
    }
    needValue(cursor, hasValue, `location ${word}`);
    if (word === "Device") return { Device: Number(integerJson(cursor, 32, "location.Device")) };
    return { Disk: integerJson(cursor, 64, "location.Disk") };
  });
}

function readNixl(cursor: JsonCursor): DynamoDescriptor["nixl_metadata"] {
  let agent = "";
  let memory: (typeof MEMORY_TYPES)[number] = "Unknown";
  let device = 0n;
  struct(cursor, "nixl_metadata", NIXL_FIELDS, [], (field) => {
    if (field === 0) agent = stringJson(cursor, "agent_name");
    else if (field === 1) memory = unitVariant(cursor, MEMORY_TYPES, "mem_type");
    else device = integerJson(cursor, 64, "device_id");
  });
  return { agent_name: agent, mem_type: memory, device_id: device };
}

function readRegions(cursor: JsonCursor): { addr: bigint; size: bigint }[] {
  const regions: { addr: bigint; size: bigint }[] = [];
  arrayJson(cursor, (index) => {
    if (index >= MAX_COMPONENT_REGIONS)
      throw badJson(cursor, `more than ${MAX_COMPONENT_REGIONS} memory descriptors`);
    const region = { addr: 0n, size: 0n };
    struct(cursor, "a memory descriptor", REGION_FIELDS, [], (field) => {
      const name = REGION_FIELDS[field] ?? "size";
      region[name] = integerJson(cursor, 64, name);
    });
    regions.push(region);
  });
  return regions;
}

function readDetails(cursor: JsonCursor): DynamoLayoutDetails {
  const kvbm = cursor.format === "kvbm-physical-1";
  const optional = kvbm ? ["kv_block_layout"] : [];
  return variant(cursor, ["FullyContiguous", "LayerSeparate"], "layout_type_details", (word, hasValue) => {
    needValue(cursor, hasValue, word);
    const first = word === "FullyContiguous" ? "block_format" : "block_dim";
    let dim: (typeof BLOCK_DIMS)[number] = "BlockIsFirstDim";
    let kv: KvBlockLayout = "Unknown";
    struct(cursor, word, [first, ...optional], optional, (field) => {
      if (field === 1) kv = readBlockLayout(cursor);
      else if (word === "FullyContiguous") unitVariant(cursor, ["Operational"], first);
      else dim = unitVariant(cursor, BLOCK_DIMS, first);
    });
    const rest = kvbm ? { kv_block_layout: kv } : {};
    if (word === "FullyContiguous") return { FullyContiguous: { block_format: "Operational", ...rest } };
    return { LayerSeparate: { block_dim: dim, ...rest } };
  });
}

function readBlockLayout(cursor: JsonCursor): KvBlockLayout {
  return variant(cursor, KV_BLOCK_LAYOUTS, "kv_block_layout", (word, hasValue): KvBlockLayout => {
    if (word !== CUSTOM_WORD) {
      unitValue(cursor, hasValue, "kv_block_layout");
      return word;
    }
    needValue(cursor, hasValue, "kv_block_layout Custom");
    const axes: (typeof CUSTOM_AXES)[number][] = [];
    arrayJson(cursor, (index) => {
      if (index > 3) throw badJson(cursor, "a custom block layout has four axes");
      axes.push(unitVariant(cursor, CUSTOM_AXES, "an axis"));
    });
    const [first, second, third, fourth] = axes;
    if (first === undefined || second === undefined || third === undefined || fourth === undefined)
      throw badJson(cursor, "a custom block layout has four axes");
    return { Custom: [first, second, third, fourth] };
  });
}

/** Reads an object, or an array of its fields; each known field once, unknown members passed over. */
function struct(
  cursor: JsonCursor,
  what: string,
  fields: readonly string[],
  optional: readonly string[],
  read: (field: number) => void,
): void {
  let seen = 0;
  const take = (field: number): void => {
    if ((seen & (1 << field)) !== 0) throw badJson(cursor, `${fields[field]} stands twice in ${what}`);
    seen |= 1 << field;
    read(field);
  };
  if (peekJson(cursor) === "[")
    arrayJson(cursor, (index) => {
      if (index >= fields.length) throw badJson(cursor, `${what} has more than ${fields.length} fields`);
      take(index);
    });
  else
    objectJson(cursor, (key) => {
      const field = fields.indexOf(key);
      if (field < 0) skipJson(cursor);
      else take(field);
    });
  const all = (1 << fields.length) - 1;
  if (seen === all) return;
  for (const [field, name] of fields.entries())
    if ((seen & (1 << field)) === 0 && !optional.includes(name))
      throw badJson(cursor, `${name} is missing in ${what}`);
}

/** Reads an enum tagged from outside: a word, or an object with one member. */
function variant<Word extends string, Result>(
  cursor: JsonCursor,
  words: readonly Word[],
  what: string,
  read: (word: Word, hasValue: boolean) => Result,
): Result {
  const find = (found: string): Word => {
    const word = words.find((candidate) => candidate === found);
    if (word === undefined)
      throw badJson(cursor, `${what} has no variant ${JSON.stringify(found.slice(0, 40))}`);
    return word;
  };
  if (peekJson(cursor) !== "{") return read(find(stringJson(cursor, what)), false);
  takeJson(cursor, "{");
  const word = find(stringJson(cursor, what));
  takeJson(cursor, ":");
  const result = read(word, true);
  takeJson(cursor, "}");
  return result;
}

function unitVariant<Word extends string>(cursor: JsonCursor, words: readonly Word[], what: string): Word {
  return variant(cursor, words, what, (word, hasValue) => {
    unitValue(cursor, hasValue, what);
    return word;
  });
}

function unitValue(cursor: JsonCursor, hasValue: boolean, what: string): void {
  if (hasValue && !nullJson(cursor)) throw badJson(cursor, `${what} takes no value`);
}

function needValue(cursor: JsonCursor, hasValue: boolean, what: string): void {
  if (!hasValue) throw badJson(cursor, `${what} needs a value`);
}
