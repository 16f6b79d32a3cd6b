import { malformed } from "./bounded.ts";
import type { DynamoFormat } from "./dynamo-types.ts";

// A reader of JSON text that keeps integers exact (JSON.parse rounds above 2^53), builds nothing that was not asked
// for, and goes no deeper than it is told. Strict as RFC 8259: no comments, no trailing commas, no leading zeros.

/** Values inside each other, at most. */
export const MAX_JSON_DEPTH = 64;

/** A position in a JSON text. */
export interface JsonCursor {
  readonly text: string;
  readonly format: DynamoFormat;
  position: number;
  depth: number;
}

/** Opens a cursor at the first character. */
export function openJson(text: string, format: DynamoFormat): JsonCursor {
  return { text, format, position: 0, depth: 0 };
}

/** The refusal of a text, with the position in it. */
export function badJson(cursor: JsonCursor, reason: string, at: number = cursor.position): Error {
  return malformed(cursor.format, at, reason);
}

/** The next character that is not white space, without taking it; empty at the end. */
export function peekJson(cursor: JsonCursor): string {
  const { text } = cursor;
  let at = cursor.position;
  for (let code = text.charCodeAt(at); code === 32 || code === 10 || code === 13 || code === 9;)
    code = text.charCodeAt(++at);
  cursor.position = at;
  return text.charAt(at);
}

/** Takes one punctuation character. */
export function takeJson(cursor: JsonCursor, expected: string): void {
  const found = peekJson(cursor);
  if (found !== expected)
    throw badJson(cursor, `expected ${expected}, found ${found === "" ? "the end" : found}`);
  cursor.position++;
}

/** Checks that only white space follows. */
export function finishJson(cursor: JsonCursor): void {
  if (peekJson(cursor) !== "") throw badJson(cursor, "characters follow the value");
}

/**
 * Reads an unsigned integer, exact.
 *
 * @param bits - 32 or 64.
 */
export function integerJson(cursor: JsonCursor, bits: 32 | 64, what: string): bigint {
  peekJson(cursor);
  const { text } = cursor;
  const at = cursor.position;
  const end = digitsFrom(text, at);
  const next = text.charAt(end);
  const leadingZero = end > at + 1 && text.charCodeAt(at) === 48;
  if (end === at || end > at + 20 || leadingZero || next === "." || next === "e" || next === "E")
    throw badJson(cursor, `${what} must be an unsigned integer`, at);
  const digits = text.slice(at, end);
  const value = BigInt(digits);
  if (value >> BigInt(bits) !== 0n) throw badJson(cursor, `${what} does not fit ${bits} bits: ${digits}`, at);
  cursor.position = end;
  return value;
}

/** Reads a string, escapes resolved. */
export function stringJson(cursor: JsonCursor, what: string): string {
  if (peekJson(cursor) !== '"') throw badJson(cursor, `${what} must be a string`);
  const { text } = cursor;
  const at = cursor.position;
  let end = at + 1;
  let escaped = false;
  for (let code = text.charCodeAt(end); code !== 34; code = text.charCodeAt(++end)) {
    // Not a number past the end of the text.
    if (!(code >= 32)) throw badJson(cursor, `${what} is no whole string`, Math.min(end, text.length));
    if (code !== 92) continue;
    escaped = true;
    end++;
  }
  cursor.position = end + 1;
  const value = escaped ? unescape(cursor, text.slice(at, end + 1), what, at) : text.slice(at + 1, end);
  if (!value.isWellFormed()) throw badJson(cursor, `${what} has half of a surrogate pair`, at);
  return value;
}

/** Takes the literal `null` if it stands next. */
export function nullJson(cursor: JsonCursor): boolean {
  if (peekJson(cursor) !== "n" || !cursor.text.startsWith("null", cursor.position)) return false;
  cursor.position += 4;
  return true;
}

/** Calls `visit` for each entry of an array, with the cursor at it. */
export function arrayJson(cursor: JsonCursor, visit: (index: number) => void): void {
  enter(cursor, "[");
  if (peekJson(cursor) !== "]") {
    for (let index = 0; ; index++) {
      visit(index);
      if (peekJson(cursor) !== ",") break;
      cursor.position++;
    }
  }
  leave(cursor, "]");
}

/** Calls `visit` for each member of an object, with the cursor at its value. */
export function objectJson(cursor: JsonCursor, visit: (key: string) => void): void {
  enter(cursor, "{");
  if (peekJson(cursor) !== "}") {
    while (true) {
      const key = stringJson(cursor, "a key");
      takeJson(cursor, ":");
      visit(key);
      if (peekJson(cursor) !== ",") break;
      cursor.position++;
    }
  }
  leave(cursor, "}");
}

/** Moves past a value of any kind. */
export function skipJson(cursor: JsonCursor): void {
  const next = peekJson(cursor);
  if (next === "[") return arrayJson(cursor, () => skipJson(cursor));
  if (next === "{") return objectJson(cursor, () => skipJson(cursor));
  if (next === '"') return void stringJson(cursor, "a string");
  if (next === "n") return skipWord(cursor, "null");
  if (next === "t") return skipWord(cursor, "true");
  if (next === "f") return skipWord(cursor, "false");
  skipNumber(cursor);
}

function skipWord(cursor: JsonCursor, word: string): void {
  if (!cursor.text.startsWith(word, cursor.position)) throw badJson(cursor, "no value of JSON");
  cursor.position += word.length;
}

/** Moves past a number: sign, digits without leading zeros, fraction, exponent. */
function skipNumber(cursor: JsonCursor): void {
  const { text } = cursor;
  const start = text.charAt(cursor.position) === "-" ? cursor.position + 1 : cursor.position;
  let end = digitsFrom(text, start);
  if (end === start || (end > start + 1 && text.charCodeAt(start) === 48))
    throw badJson(cursor, "no value of JSON");
  if (text.charAt(end) === ".") end = someDigits(cursor, end + 1);
  const exponent = text.charAt(end);
  if (exponent === "e" || exponent === "E") {
    const sign = text.charAt(end + 1);
    end = someDigits(cursor, sign === "+" || sign === "-" ? end + 2 : end + 1);
  }
  cursor.position = end;
}

function someDigits(cursor: JsonCursor, at: number): number {
  const end = digitsFrom(cursor.text, at);
  if (end === at) throw badJson(cursor, "a number ends before its digits", at);
  return end;
}

/** Where the digits that begin at `at` end. */
function digitsFrom(text: string, at: number): number {
  let end = at;
  for (let code = text.charCodeAt(end); code >= 48 && code <= 57;) code = text.charCodeAt(++end);
  return end;
}

function unescape(cursor: JsonCursor, token: string, what: string, at: number): string {
  try {
    // One token between quotes, so the answer is a string.
    return JSON.parse(token) as string;
  } catch (cause) {
    throw malformed(cursor.format, at, `${what} has an escape that is none`, {}, cause);
  }
}

function enter(cursor: JsonCursor, open: string): void {
  takeJson(cursor, open);
  if (++cursor.depth > MAX_JSON_DEPTH) throw badJson(cursor, `nested deeper than ${MAX_JSON_DEPTH}`);
}

function leave(cursor: JsonCursor, close: string): void {
  takeJson(cursor, close);
  cursor.depth--;
}
