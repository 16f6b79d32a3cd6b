import { KvferryError } from "../core/errors.ts";
import { bytesEnd, malformed } from "./bounded.ts";
import type { ByteReader } from "./bounded.ts";

// Integers as bincode 2 writes them in its standard configuration: values up to 250 in one byte, else a marker byte
// and 2, 4, 8 or 16 bytes, little-endian, always the shortest form.
const MARK_16 = 251;
const MARK_32 = 252;
const MARK_64 = 253;
const MARK_128 = 254;

/**
 * Reads an unsigned integer of at most 32, 64 or 128 bits into `reader.word0` to `word3`.
 *
 * Only the shortest form is taken: an encoder never writes another, and so each value has one spelling.
 *
 * @param words - Width of the target in 32-bit words: 1, 2 or 4.
 * @returns The value as a number, exact below 2^53.
 * @throws KvferryError `METADATA_MALFORMED` for a form that is too wide for the target or longer than needed.
 */
export function readInteger(reader: ByteReader, words: 1 | 2 | 4, what: string): number {
  const { bytes } = reader;
  const at = reader.position;
  if (at >= reader.end) throw bytesEnd(reader, what);
  const body = at + 1;
  const first = bytes[at] ?? 0;
  reader.word1 = 0;
  reader.word2 = 0;
  reader.word3 = 0;
  if (first < MARK_16) {
    reader.position = body;
    return (reader.word0 = first);
  }
  const width = 1 << (first - MARK_16 + 1);
  if (first === 255 || width > words * 4) throw tooWide(reader, first, words, what);
  if (width > reader.end - body)
    throw bytesEnd(reader, `${what}: ${width} needed, ${reader.end - body} left`);
  reader.position = body + width;
  let shortest: boolean;
  if (first === MARK_16) {
    reader.word0 = (bytes[body] ?? 0) | ((bytes[body + 1] ?? 0) << 8);
    shortest = reader.word0 >= MARK_16;
  } else {
    reader.word0 = wordAt(bytes, body);
    if (first === MARK_32) shortest = reader.word0 > 0xffff;
    else {
      reader.word1 = wordAt(bytes, body + 4);
      if (first === MARK_64) shortest = reader.word1 !== 0;
      else {
        reader.word2 = wordAt(bytes, body + 8);
        reader.word3 = wordAt(bytes, body + 12);
        shortest = reader.word2 !== 0 || reader.word3 !== 0;
      }
    }
  }
  if (!shortest) throw notShortest(reader, at, width, what);
  return reader.word1 * 2 ** 32 + reader.word0;
}

// Refusals have functions of their own, which a package that is right never compiles.

function tooWide(reader: ByteReader, marker: number, words: number, what: string): KvferryError {
  const reason = `${what} has the marker ${marker}, too wide for ${words * 32} bits`;
  return malformed(reader.format, reader.position, reason);
}

function notShortest(reader: ByteReader, at: number, width: number, what: string): KvferryError {
  return malformed(reader.format, at, `${what} is written longer than needed (${width} bytes)`);
}

/**
 * Reads the index of an enum's variant.
 *
 * @throws KvferryError `METADATA_MALFORMED` for an index that the enum does not have.
 */
export function readVariant(reader: ByteReader, variants: number, what: string): number {
  const at = reader.position;
  const index = readInteger(reader, 1, what);
  if (index >= variants) throw noVariant(reader, at, index, variants, what);
  return index;
}

function noVariant(
  reader: ByteReader,
  at: number,
  index: number,
  variants: number,
  what: string,
): KvferryError {
  return malformed(reader.format, at, `${what} has no variant ${index}`, { variants });
}

/** Bytes under construction; `bytes` grows as needed and belongs to the writer until {@link written}. */
export interface ByteWriter {
  bytes: Uint8Array;
  position: number;
  lastText: string;
  lastTextBytes: Uint8Array;
}

/** Opens an empty writer. */
export function openWriter(capacity: number): ByteWriter {
  return { bytes: new Uint8Array(capacity), position: 0, lastText: "", lastTextBytes: new Uint8Array(0) };
}

/** A copy of what was written. */
export function written(writer: ByteWriter): Uint8Array {
  return writer.bytes.slice(0, writer.position);
}

/** Writes one raw byte. */
export function writeByte(writer: ByteWriter, value: number): void {
  reserve(writer, 1);
  writer.bytes[writer.position++] = value;
}

/**
 * Writes an unsigned integer in its shortest form.
 *
 * @param bits - Width of the target: 32, 64 or 128.
 * @throws KvferryError `INVALID_CONFIG` for anything but an integer that fits.
 */
export function writeInteger(
  writer: ByteWriter,
  value: number | bigint,
  bits: 32 | 64 | 128,
  what: string,
): void {
  reserve(writer, 17);
  if (typeof value === "number") {
    if (!Number.isSafeInteger(value) || value < 0 || (bits === 32 && value > 0xffff_ffff))
      throw unencodable(what, `an unsigned integer of ${bits} bits`, value);
    writeNumber(writer, value);
    return;
  }
  if (typeof value !== "bigint" || value < 0n || value >> BigInt(bits) !== 0n)
    throw unencodable(what, `an unsigned integer of ${bits} bits`, value);
  if (value <= 9_007_199_254_740_991n) {
    writeNumber(writer, Number(value));
    return;
  }
  const wide = value >> 64n !== 0n;
  writer.bytes[writer.position++] = wide ? MARK_128 : MARK_64;
  const data = new DataView(writer.bytes.buffer);
  data.setBigUint64(writer.position, value & 0xffff_ffff_ffff_ffffn, true);
  if (wide) data.setBigUint64(writer.position + 8, value >> 64n, true);
  writer.position += wide ? 16 : 8;
}

/** Writes a length and the bytes. */
export function writeBlob(writer: ByteWriter, value: Uint8Array): void {
  reserve(writer, 17 + value.length);
  writeNumber(writer, value.length);
  writer.bytes.set(value, writer.position);
  writer.position += value.length;
}

/**
 * Writes a length and UTF-8.
 *
 * @throws KvferryError `INVALID_CONFIG` for anything but a string without lone surrogates.
 */
export function writeText(writer: ByteWriter, value: string, what: string): void {
  if (typeof value !== "string" || !value.isWellFormed())
    throw unencodable(what, "text without lone surrogates", value);
  // The agent's name stands in every layout: it is turned into bytes once.
  if (value !== writer.lastText || value === "") {
    writer.lastText = value;
    writer.lastTextBytes = new TextEncoder().encode(value);
  }
  writeBlob(writer, writer.lastTextBytes);
}

/** The refusal of a value that an encoder cannot write. */
export function unencodable(what: string, expected: string, found: unknown): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "encodePackage",
    `${what} must be ${expected}`,
    `Correct ${what} in the value to encode.`,
    { field: what, expected, found: typeof found === "bigint" ? found.toString() : found },
  );
}

function writeNumber(writer: ByteWriter, value: number): void {
  const bytes = writer.bytes;
  let at = writer.position;
  if (value < MARK_16) bytes[at++] = value;
  else {
    const width = value <= 0xffff ? 2 : value <= 0xffff_ffff ? 4 : 8;
    bytes[at++] = width === 2 ? MARK_16 : width === 4 ? MARK_32 : MARK_64;
    let low = value >>> 0;
    for (let index = 0; index < Math.min(width, 4); index++, low >>>= 8) bytes[at++] = low & 0xff;
    let high = Math.floor(value / 2 ** 32);
    for (let index = 4; index < width; index++, high >>>= 8) bytes[at++] = high & 0xff;
  }
  writer.position = at;
}

function reserve(writer: ByteWriter, count: number): void {
  const needed = writer.position + count;
  if (needed <= writer.bytes.length) return;
  const larger = new Uint8Array(Math.max(needed, writer.bytes.length * 2));
  larger.set(writer.bytes.subarray(0, writer.position));
  writer.bytes = larger;
}

/** Four bytes that are there: the caller has counted them. */
function wordAt(bytes: Uint8Array, at: number): number {
  return (
    ((bytes[at] as number) |
      ((bytes[at + 1] as number) << 8) |
      ((bytes[at + 2] as number) << 16) |
      ((bytes[at + 3] as number) << 24)) >>>
    0
  );
}
