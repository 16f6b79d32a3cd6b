// Laws of the codecs, each for one seed: used by the property tests (few seeds) and by the proof (many).
import { isKvferryError } from "../../lib/core/errors.ts";
import type { MetadataPackage } from "../../lib/core/package.ts";
import {
  decodeDynamoPackage,
  decodePackage,
  descriptorFromJson,
  descriptorToJson,
  encodeDynamoPackage,
  encodePackage,
} from "../../lib/wire/index.ts";
import type { DynamoFormat, PackageFormat } from "../../lib/wire/index.ts";
import type { Random } from "../random.ts";
import { oracleBytes, oracleJson } from "./bincode-oracle.ts";
import { makePackage, makeRawPackage } from "./generate.ts";

export const DYNAMO_FORMATS: readonly DynamoFormat[] = ["dynamo-1.0", "kvbm-physical-1"];

/** What breaks a law, in words; null when it holds. */
export type Verdict = string | null;

/** Any package comes back from kvferry's format, and is written the same again. */
export function ownFormatHolds(random: Random): Verdict {
  const value = makePackage(random, { format: null, layouts: 4 });
  const bytes = encodePackage(value, "kvferry");
  const found = decodePackage(bytes);
  if (!Bun.deepEquals(found, value, true)) return `kvferry changed ${show(value)} to ${show(found)}`;
  if (!equalBytes(encodePackage(found, "kvferry"), bytes)) return "what came back is written differently";
  return null;
}

/** What a format of Dynamo's can say comes back from it, and from kvferry's format after it. */
export function dynamoFormatHolds(random: Random, format: DynamoFormat): Verdict {
  const value = makePackage(random, { format, layouts: 4 });
  const bytes = encodePackage(value, format);
  const found = decodePackage(bytes);
  const expected: MetadataPackage = { ...value, format: value.layouts.length === 0 ? "dynamo-1.0" : format };
  if (!Bun.deepEquals(found, expected, true)) return `${format} changed ${show(expected)} to ${show(found)}`;
  const across = decodePackage(encodePackage(found, "kvferry"));
  if (!Bun.deepEquals(across, { ...found, format: "kvferry" }, true))
    return `kvferry changed what ${format} said`;
  if (!equalBytes(encodePackage(across, format), bytes)) return `${format} after kvferry has other bytes`;
  return null;
}

/** Any raw value is written as the rules say (a second encoder), and comes back; so do its descriptors in JSON. */
export function rawFormHolds(random: Random, format: DynamoFormat): Verdict {
  const value = makeRawPackage(random, format);
  const bytes = encodeDynamoPackage(value, format);
  if (!equalBytes(bytes, Uint8Array.from(oracleBytes(value, format))))
    return `${format} has wrong bytes for ${show(value)}`;
  const found = decodeDynamoPackage(bytes, format);
  if (!Bun.deepEquals(found, value, true)) return `${format} changed ${show(value)} to ${show(found)}`;
  for (const { layout } of value.layouts) {
    const text = descriptorToJson(layout, format);
    if (text !== oracleJson(layout)) return `JSON is ${text}`;
    if (!Bun.deepEquals(descriptorFromJson(text, format), layout, true)) return `JSON changed ${text}`;
  }
  return null;
}

/**
 * Bytes that somebody changed are refused with code and place, or are exactly the encoding of what they decode to: no
 * two spellings mean the same, and nothing is read that is not there.
 */
export function changedBytesHold(bytes: Uint8Array, original: PackageFormat): Verdict {
  if (original === "kvferry") {
    const found = attempt(() => decodePackage(bytes));
    return typeof found === "string"
      ? found === ""
        ? null
        : found
      : "a changed package of kvferry's was taken";
  }
  const raw = attempt(() => decodeDynamoPackage(bytes, original));
  if (typeof raw === "string" && raw !== "") return raw;
  if (typeof raw !== "string") {
    const again = encodeDynamoPackage(raw, original);
    if (!equalBytes(again, bytes)) return `${bytes.toHex()} means what ${again.toHex()} means`;
  }
  const found = attempt(() => decodePackage(bytes));
  if (typeof found === "string") return found === "" ? null : found;
  if (found.format === "kvferry") return "bytes of Dynamo's were taken for kvferry's";
  // Whatever was taken for a package must be one by the raw rules of its format, and say the same.
  const meant = decodeDynamoPackage(bytes, found.format);
  if (meant.worker_address.worker_id !== found.workerId) return "the worker id was read differently";
  if (!equalBytes(meant.nixl_metadata, found.nixlMetadata)) return "the blob was read differently";
  if (meant.layouts.length !== found.layouts.length) return "layouts were lost or added";
  for (const [index, { handle, layout }] of meant.layouts.entries()) {
    const other = found.layouts[index];
    const [component] = other?.components ?? [];
    if (other === undefined || component === undefined || (other.handle as bigint) !== handle)
      return "a handle was read differently";
    if (BigInt(component.config.numBlocks) !== layout.layout_config.num_blocks)
      return "num_blocks was read differently";
    const addresses =
      component.storage.kind === "disk" ? [] : layout.memory_descriptors.map(({ addr }) => addr);
    if (addresses.join() !== component.regionAddresses.join()) return "an address was read differently";
  }
  return null;
}

/** The result; an empty string for a proper refusal; else what is wrong with how it failed. */
function attempt<Result>(run: () => Result): Result | string {
  try {
    return run();
  } catch (error) {
    if (!isKvferryError(error, "METADATA_MALFORMED")) return `failed with ${Bun.inspect(error)}`;
    const { offset, reason, format } = error.details;
    const placed =
      typeof offset === "number" && offset >= 0 && typeof reason === "string" && typeof format === "string";
    return placed ? "" : `refused without a place: ${error.message}`;
  }
}

function equalBytes(left: Uint8Array, right: Uint8Array): boolean {
  return left.length === right.length && Buffer.compare(left, right) === 0;
}

function show(value: unknown): string {
  return Bun.inspect(value, { depth: 8 });
}
