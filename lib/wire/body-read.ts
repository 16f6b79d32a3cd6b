import { MAX_INCARNATION } from "../core/registry-snapshot.ts";
import { decodeText, malformed } from "./bounded.ts";

// A body is a map of a few dozen values of six kinds. They are read straight from the bytes, without the library's
// decoder and without a schema: in a process that decodes its first package those two took longer than all the rest.

/** What a field of a body may be. */
export type BodyKind = "text" | "column" | "count" | "incarnation" | "id" | "map";

/** A field: its kind, whether nil may stand for it, whether it may be left out; the fields of a map. */
export interface BodyField {
  readonly kind: BodyKind;
  readonly nullable?: true;
  readonly optional?: true;
  readonly fields?: Readonly<Record<string, BodyField>>;
}

/** A place in a MessagePack value that was walked: no header in it lies. */
export interface BodyCursor {
  readonly bytes: Uint8Array;
  readonly start: number;
  at: number;
}

/**
 * Reads a map of named values: each field once, none that is not known. Columns are views of the input.
 *
 * @param path - What stands before a field's name in errors.
 * @throws KvferryError `METADATA_MALFORMED` with the field and what it should be.
 */
export function readMap(
  cursor: BodyCursor,
  fields: Readonly<Record<string, BodyField>>,
  path: string,
): Readonly<Record<string, unknown>> {
  const tag = cursor.bytes[cursor.at++] ?? 0;
  let count = tag & 15;
  if (tag === 0xde || tag === 0xdf) count = unsigned(cursor, tag === 0xde ? 2 : 4);
  else if (tag < 0x80 || tag > 0x8f) throw noMap(cursor, path);
  const found: Record<string, unknown> = {};
  for (let index = 0; index < count; index++) {
    const length = textLength(cursor);
    if (length === null) throw noMap(cursor, path);
    const name = textOf(cursor, length);
    const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (field === undefined) throw unexpected(cursor, path + name, "no such field");
    if (Object.hasOwn(found, name)) throw unexpected(cursor, path + name, "one value");
    found[name] = valueOf(cursor, field, path + name);
  }
  for (const name in fields)
    if (!Object.hasOwn(found, name) && fields[name]?.optional !== true)
      throw unexpected(cursor, path + name, "a value");
  return found;
}

function valueOf(cursor: BodyCursor, field: BodyField, path: string): unknown {
  const { bytes } = cursor;
  if (field.nullable === true && bytes[cursor.at] === 0xc0) {
    cursor.at++;
    return null;
  }
  switch (field.kind) {
    case "text": {
      const length = textLength(cursor);
      if (length === null) throw unexpected(cursor, path, "text");
      return textOf(cursor, length);
    }
    case "column": {
      const tag = bytes[cursor.at] ?? 0;
      if (tag < 0xc4 || tag > 0xc6) throw unexpected(cursor, path, "bytes");
      cursor.at++;
      const length = unsigned(cursor, 1 << (tag - 0xc4));
      cursor.at += length;
      return bytes.subarray(cursor.at - length, cursor.at);
    }
    case "count":
      return countOf(cursor, path, Number.MAX_SAFE_INTEGER);
    case "incarnation":
      return countOf(cursor, path, MAX_INCARNATION);
    case "id": {
      if (bytes[cursor.at] !== 0xcf) throw unexpected(cursor, path, "an unsigned integer of 64 bits");
      cursor.at += 9;
      return viewOf(cursor, 8).getBigUint64(0);
    }
    case "map":
      return readMap(cursor, field.fields ?? {}, `${path}.`);
  }
}

/** Unsigned integers in every width up to 32 bits; larger ones are written as floats. */
function countOf(cursor: BodyCursor, path: string, most: number): number {
  const tag = cursor.bytes[cursor.at] ?? 0;
  let value = Number.NaN;
  if (tag <= 0x7f) {
    cursor.at++;
    value = tag;
  } else if (tag >= 0xcc && tag <= 0xce) {
    cursor.at++;
    value = unsigned(cursor, 1 << (tag - 0xcc));
  } else if (tag === 0xca) {
    cursor.at += 5;
    value = viewOf(cursor, 4).getFloat32(0);
  } else if (tag === 0xcb) {
    cursor.at += 9;
    value = viewOf(cursor, 8).getFloat64(0);
  }
  if (!Number.isSafeInteger(value) || value < 0 || value > most)
    throw unexpected(cursor, path, `an integer of 0 to ${most}`);
  return value;
}

/** The length of a string whose header stands next; null for anything else. */
function textLength(cursor: BodyCursor): number | null {
  const tag = cursor.bytes[cursor.at] ?? 0;
  if (tag >= 0xa0 && tag <= 0xbf) {
    cursor.at++;
    return tag & 31;
  }
  if (tag < 0xd9 || tag > 0xdb) return null;
  cursor.at++;
  return unsigned(cursor, 1 << (tag - 0xd9));
}

// Strings are decoded strictly: other decoders drop a byte order mark and let wrong bytes pass.
function textOf(cursor: BodyCursor, length: number): string {
  const { at } = cursor;
  cursor.at = at + length;
  return decodeText(cursor.bytes.subarray(at, at + length), "kvferry", at, "a string");
}

function unsigned(cursor: BodyCursor, width: number): number {
  let value = 0;
  for (let index = 0; index < width; index++) value = value * 256 + (cursor.bytes[cursor.at++] ?? 0);
  return value;
}

/** The last `width` bytes that were taken. */
function viewOf(cursor: BodyCursor, width: number): DataView {
  const { bytes } = cursor;
  return new DataView(bytes.buffer, bytes.byteOffset + cursor.at - width, width);
}

function noMap(cursor: BodyCursor, path: string): Error {
  const what = path === "" ? "the body" : path.slice(0, -1);
  return malformed("kvferry", cursor.start, `${what} is no map of named values`, { field: what });
}

function unexpected(cursor: BodyCursor, field: string, expected: string): Error {
  const tag = cursor.bytes[cursor.at] ?? 0;
  return malformed("kvferry", cursor.start, `${field}: expected ${expected}, found 0x${tag.toString(16)}`, {
    field,
  });
}
