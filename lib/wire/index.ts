/**
 * `kvferry/wire`: metadata packages to bytes and back. Pure: no clock, no I/O, no randomness, no keys of its own.
 */
import type { MetadataPackage, PackageFormat } from "../core/package.ts";
import { unencodable } from "./bincode.ts";
import { malformed, MAX_PACKAGE_BYTES, tooLong } from "./bounded.ts";
import { exportDynamoPackage } from "./dynamo-export.ts";
import { importDynamoPackage } from "./dynamo-import.ts";
import { looksLikeEnvelope, unauthenticated } from "./envelope.ts";
import type { MacFunction, SigningKey } from "./envelope.ts";
import { decodeKvferryPackage } from "./package-decode.ts";
import { encodeKvferryPackage } from "./package-encode.ts";

export { decodeDynamoPackage, encodeDynamoPackage } from "./dynamo.ts";
export { descriptorFromJson, descriptorToJson } from "./descriptor-json.ts";
export type {
  BlockDim,
  CustomAxis,
  DynamoDescriptor,
  DynamoFormat,
  DynamoLayoutConfig,
  DynamoLayoutDetails,
  DynamoLocation,
  DynamoPackage,
  DynamoPackageLayout,
  InnerShape,
  KvBlockLayout,
  LogicalType,
  MemoryType,
  WideInteger,
} from "./dynamo-types.ts";
export type { Envelope, MacFunction, SigningKey } from "./envelope.ts";
export { readEnvelope } from "./envelope.ts";
export type { MetadataPackage, PackageComponent, PackageFormat, PackageLayout } from "../core/package.ts";

/** How a package is read. */
export interface DecodeOptions {
  /**
   * Computes authentication codes. When given, packages must carry a right one; it is checked before anything else of
   * the package is decoded, and Dynamo's formats, which carry none, are refused.
   */
  readonly mac?: MacFunction;
  /** Takes packages of Dynamo's formats although `mac` is given. */
  readonly acceptUnauthenticated?: boolean;
  /** Longer packages are refused unread; default 256 MiB. */
  readonly maxBytes?: number;
}

/** How a package is written. */
export interface EncodeOptions {
  /** Authenticates packages of kvferry's own format. */
  readonly signing?: SigningKey;
}

/**
 * Reads a metadata package of any of the three formats into the common form.
 *
 * The format is told by decoding strictly to the last byte, and by what the bytes mean. A Dynamo package without
 * layouts is the same in both of its formats and counts as `dynamo-1.0`. The value is frozen and holds no view of
 * `bytes`.
 *
 * @throws KvferryError `METADATA_MALFORMED` with `format`, `offset` and `reason` in its details;
 *   `METADATA_UNAUTHENTICATED` where `mac` asks for proof that is not there.
 */
export function decodePackage(bytes: Uint8Array, options: DecodeOptions = {}): MetadataPackage {
  const maxBytes = options.maxBytes ?? MAX_PACKAGE_BYTES;
  if (looksLikeEnvelope(bytes)) return decodeKvferryPackage(bytes, options.mac ?? null, maxBytes);
  if (options.mac !== undefined && options.acceptUnauthenticated !== true)
    throw unauthenticated("formats of Dynamo's carry no authentication code", {});
  if (bytes.length > maxBytes) throw tooLong("dynamo-1.0", bytes.length, maxBytes);
  return decodeDynamo(bytes);
}

/**
 * Writes a metadata package.
 *
 * @param format - `kvferry`, `dynamo-1.0` or `kvbm-physical-1`; `value.format` does not matter.
 * @returns Bytes that belong to the caller.
 * @throws KvferryError `INVALID_CONFIG` with the thing that the format cannot say.
 */
export function encodePackage(
  value: MetadataPackage,
  format: PackageFormat,
  options: EncodeOptions = {},
): Uint8Array {
  switch (format) {
    case "kvferry":
      return encodeKvferryPackage(value, options.signing ?? null);
    case "dynamo-1.0":
    case "kvbm-physical-1":
      return exportDynamoPackage(value, format);
    default:
      throw unencodable("format", '"kvferry", "dynamo-1.0" or "kvbm-physical-1"', format);
  }
}

function decodeDynamo(bytes: Uint8Array): MetadataPackage {
  const first = importDynamoPackage(bytes, "dynamo-1.0");
  if (first.value !== null && first.value.layouts.length === 0) return first.value;
  const second = importDynamoPackage(bytes, "kvbm-physical-1");
  if (first.value !== null && second.value !== null) throw ambiguous();
  if (first.value !== null) return first.value;
  if (second.value !== null) return second.value;
  // The format that gets further is the one that was meant.
  throw second.reach > first.reach ? second.error : first.error;
}

function ambiguous(): Error {
  return malformed("dynamo-1.0", 0, "the bytes mean something in both of Dynamo's formats", {
    ambiguous: true,
  });
}
