import { KvferryError } from "../core/errors.ts";
import type { ErrorDetails } from "../core/errors.ts";
import type { PackageFormat } from "../core/package.ts";

/** Packages above this many bytes are refused unread: 65,535 layouts of 128 regions fit several times over. */
export const MAX_PACKAGE_BYTES: number = 256 * 2 ** 20;

/** At most this many layouts can stand in a package: ids 0 to 65,534. */
export const MAX_PACKAGE_LAYOUTS = 65_535;

/** At most this many regions can belong to one component: one for each layer, or each layer and outer. */
export const MAX_COMPONENT_REGIONS: number = 2 * 65_536;

/** At most this many workers can be named as a package's audience. */
export const MAX_AUDIENCE = 16_384;

// An object of the common form takes more memory than the bytes that say it, and more time, most of all in a process
// that decodes its first package. What a package of up to a mebibyte may hold is therefore bounded, far above what
// workers export; beyond that length, what it may hold follows from it.
const MEBIBYTE = 2 ** 20;

/** How many of a kind a package may have: so many in the first mebibyte, and one more for each `bytes` after it. */
interface Allowance {
  readonly first: number;
  readonly bytes: number;
}

/** Components, and so much more for each further shape: a shape costs much more to check than its bytes. */
const COMPONENTS: Allowance = { first: 1_024, bytes: 64 };
const SHAPE_COMPONENTS = 24;
const REGIONS: Allowance = { first: 16_384, bytes: 16 };
const LISTED_LAYERS: Allowance = { first: 4_096, bytes: 16 };

/** The layouts that a package of Dynamo's may have. */
export function mostDynamoLayouts(bytes: number): number {
  return Math.min(MAX_PACKAGE_LAYOUTS, mostOf(COMPONENTS, bytes));
}

/** The components, of all layouts together, that a kvferry package may have. Each layout has one at least. */
export function mostComponents(bytes: number): number {
  return mostOf(COMPONENTS, bytes);
}

/** The regions of all layouts together. */
export function mostRegions(bytes: number): number {
  return mostOf(REGIONS, bytes);
}

/** The different shapes that a package with so many components may have. */
export function mostShapes(bytes: number, components: number): number {
  return 1 + Math.max(0, Math.floor((mostOf(COMPONENTS, bytes) - components) / SHAPE_COMPONENTS));
}

/** The model layers that the shapes of a kvferry package may list, all together. */
export function mostListedLayers(bytes: number): number {
  return mostOf(LISTED_LAYERS, bytes);
}

/** What a package holds of what its length bounds. */
export interface PackageContent {
  readonly components: number;
  readonly regions: number;
  readonly shapes: number;
  readonly listedLayers: number;
}

/** The length from which on a kvferry package may hold that much. Shorter ones are filled up by the encoder. */
export function leastBytes(content: PackageContent): number {
  return Math.max(
    leastFor(COMPONENTS, content.components + SHAPE_COMPONENTS * Math.max(0, content.shapes - 1)),
    leastFor(REGIONS, content.regions),
    leastFor(LISTED_LAYERS, content.listedLayers),
  );
}

function mostOf({ first, bytes }: Allowance, length: number): number {
  return first + Math.floor(Math.max(0, length - MEBIBYTE) / bytes);
}

function leastFor({ first, bytes }: Allowance, count: number): number {
  return count <= first ? 0 : MEBIBYTE + (count - first) * bytes;
}

/**
 * A cursor over untrusted bytes. `position` moves; a read past `end` is refused, never answered with zeros.
 *
 * `word0` to `word3` hold the 32-bit words of the integer read last, lowest first, so that 64 and 128 bits are exact
 * without a bigint for each.
 */
export interface ByteReader {
  readonly bytes: Uint8Array;
  readonly end: number;
  readonly format: PackageFormat;
  position: number;
  word0: number;
  word1: number;
  word2: number;
  word3: number;
}

/** Opens a cursor at byte 0. */
export function openReader(bytes: Uint8Array, format: PackageFormat): ByteReader {
  return { bytes, end: bytes.length, format, position: 0, word0: 0, word1: 0, word2: 0, word3: 0 };
}

/**
 * Reads one raw byte.
 *
 * @throws KvferryError `METADATA_MALFORMED` at the end of the bytes.
 */
export function readByte(reader: ByteReader, what: string): number {
  const at = reader.position;
  if (at >= reader.end) throw bytesEnd(reader, what);
  reader.position = at + 1;
  return reader.bytes[at] ?? 0;
}

/**
 * Checks that `count` things of at least `each` bytes fit into what is left, before anything is reserved for them.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the count and the bytes left.
 */
export function checkCount(reader: ByteReader, count: number, each: number, what: string): void {
  if (count * each > reader.end - reader.position) throw doesNotFit(reader, count, what);
}

/**
 * Checks that nothing follows.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the number of bytes that do.
 */
export function finishReader(reader: ByteReader): void {
  if (reader.position !== reader.end) throw bytesFollow(reader);
}

/**
 * The refusal of bytes that say something impossible.
 *
 * @param offset - Where in the bytes (or characters) the trouble begins.
 * @param reason - A clause without a full stop.
 */
export function malformed(
  format: PackageFormat,
  offset: number,
  reason: string,
  details: ErrorDetails = {},
  cause?: unknown,
): KvferryError {
  return new KvferryError(
    "METADATA_MALFORMED",
    "decodePackage",
    `${format} metadata is refused at ${offset}: ${reason}`,
    "Ask the exporter for a new package, and check that the bytes arrived whole and unchanged.",
    { format, offset, reason, ...details },
    cause,
  );
}

/** The refusal of bytes that end too early. */
export function bytesEnd(reader: ByteReader, what: string): KvferryError {
  return malformed(reader.format, reader.position, `the bytes end inside ${what}`);
}

/** The refusal of a package that is longer than what is read. */
export function tooLong(format: PackageFormat, bytes: number, limit: number): KvferryError {
  return malformed(format, 0, `${bytes} bytes, more than the ${limit} that are read`, { limit });
}

/**
 * Runs a check of the core and says its refusal as one of this package.
 *
 * @param offset - Where in the bytes the thing stands.
 */
export function refusedAs<Result>(
  format: PackageFormat,
  offset: number,
  what: string,
  run: () => Result,
): Result {
  try {
    return run();
  } catch (cause) {
    if (!(cause instanceof KvferryError) || cause.code === "ERR_KVF_METADATA_MALFORMED") throw cause;
    throw malformed(format, offset, `${what}: ${cause.message}`, cause.details, cause);
  }
}

/**
 * Decodes UTF-8 strictly: no replacement characters, no byte order mark removed.
 *
 * @throws KvferryError `METADATA_MALFORMED` when the bytes are not UTF-8.
 */
export function decodeText(bytes: Uint8Array, format: PackageFormat, offset: number, what: string): string {
  try {
    return strictText.decode(bytes);
  } catch (cause) {
    throw malformed(format, offset, `${what} is not UTF-8`, {}, cause);
  }
}

// Refusals have functions of their own, which a package that is right never compiles.

function doesNotFit(reader: ByteReader, count: number, what: string): KvferryError {
  const left = reader.end - reader.position;
  const reason = `${what}: ${count} do not fit into the ${left} bytes left`;
  return malformed(reader.format, reader.position, reason, { count, left });
}

function bytesFollow(reader: ByteReader): KvferryError {
  const left = reader.end - reader.position;
  return malformed(reader.format, reader.position, `${left} bytes follow the end of the package`, { left });
}

const strictText = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
