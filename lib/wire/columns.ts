import { malformed } from "./bounded.ts";
import { BODY_AT } from "./envelope.ts";

// Columns are told by name: where the body puts them does not matter to whoever has to look for the trouble.

/**
 * Copies a column's bytes into numbers of 64 bits. Columns are little-endian, as every platform is that runs this;
 * they are copied because a decoded run of bytes lies at any offset of a larger buffer.
 *
 * @throws KvferryError `METADATA_MALFORMED` when the column does not have exactly `length` numbers.
 */
export function floatColumn(bytes: Uint8Array, length: number, field: string): Float64Array {
  return new Float64Array(columnBuffer(bytes, length * 8, field));
}

/** As {@link floatColumn}, unsigned 32 bits. */
export function wordColumn(bytes: Uint8Array, length: number, field: string): Uint32Array {
  return new Uint32Array(columnBuffer(bytes, length * 4, field));
}

/** As {@link floatColumn}, unsigned 64 bits. */
export function wideColumn(bytes: Uint8Array, length: number, field: string): BigUint64Array {
  return new BigUint64Array(columnBuffer(bytes, length * 8, field));
}

/**
 * The rows that a column has at `rowBytes` each.
 *
 * @throws KvferryError `METADATA_MALFORMED` when the last row is not whole.
 */
export function rowCount(bytes: Uint8Array, rowBytes: number, field: string): number {
  const rows = bytes.length / rowBytes;
  if (rows % 1 !== 0) throw badColumn(field, `${bytes.length} bytes, not whole rows of ${rowBytes}`);
  return rows;
}

/** The bytes of a column, as a view. */
export function columnBytes(column: Float64Array | Uint32Array | BigUint64Array): Uint8Array {
  return new Uint8Array(column.buffer as ArrayBuffer, column.byteOffset, column.byteLength);
}

/** All strings of a package, each once; columns name them by index. */
export interface TextTable {
  readonly indices: Map<string, number>;
  readonly texts: string[];
}

/** The index of a string, added when it is new. */
export function textIndex(table: TextTable, text: string): number {
  const known = table.indices.get(text);
  if (known !== undefined) return known;
  const index = table.texts.length;
  table.indices.set(text, index);
  table.texts.push(text);
  return index;
}

/** Where each string ends in the joined text, in UTF-16 units. */
export function textEnds(texts: readonly string[]): Uint32Array {
  const ends = new Uint32Array(new ArrayBuffer(texts.length * 4));
  let end = 0;
  for (const [index, text] of texts.entries()) ends[index] = end += text.length;
  return ends;
}

/**
 * Cuts the joined text into its strings.
 *
 * @throws KvferryError `METADATA_MALFORMED` when a string is empty, the ends do not rise to the text's length, or cut a character.
 */
export function splitTexts(joined: string, ends: Uint32Array): readonly string[] {
  const texts: string[] = [];
  let start = 0;
  for (let index = 0; index < ends.length; index++) {
    const end = ends[index] ?? 0;
    if (end <= start || end > joined.length)
      throw badText(index, `ends at ${end}, outside ${start + 1} to ${joined.length}`);
    const text = joined.substring(start, end);
    if (!text.isWellFormed()) throw badText(index, "cuts a character");
    texts.push(text);
    start = end;
  }
  if (start !== joined.length) throw charactersFollow(start, joined.length);
  return texts;
}

function columnBuffer(bytes: Uint8Array, length: number, field: string): ArrayBuffer {
  if (bytes.length !== length) throw badColumn(field, `${bytes.length} bytes, its rows need ${length}`);
  const buffer = new ArrayBuffer(length);
  new Uint8Array(buffer).set(bytes);
  return buffer;
}

// Refusals have functions of their own, which a package that is right never compiles.

function badColumn(field: string, found: string): Error {
  return malformed("kvferry", BODY_AT, `column ${field} has ${found}`, { field });
}

function badText(index: number, what: string): Error {
  return malformed("kvferry", BODY_AT, `string ${index} ${what}`, { index });
}

function charactersFollow(end: number, length: number): Error {
  return malformed("kvferry", BODY_AT, `${length - end} characters follow the last string`, { end });
}
