import { decodeText, malformed } from "./bounded.ts";

/** Bounds of a MessagePack value that is about to be decoded. */
export interface ScanLimits {
  /** Maps and arrays inside each other. */
  readonly depth: number;
  /** Values and keys in all. */
  readonly items: number;
}

/**
 * Walks one MessagePack value without decoding it: every header must fit what is left, nothing may nest deeper or
 * count more than allowed, strings must be UTF-8, extension types are refused, and the value must end where the bytes
 * end. Decoders reserve by header and recurse by nesting; after this walk neither can be abused.
 *
 * @param start - Where the value begins; offsets in errors count from byte 0.
 * @throws KvferryError `METADATA_MALFORMED` with the offset.
 */
export function scanMessagePack(bytes: Uint8Array, start: number, end: number, limits: ScanLimits): void {
  // Values that are still to come, for each open container.
  const open: number[] = [];
  let remaining = 1;
  let items = 0;
  let at = start;
  while (true) {
    while (remaining === 0) {
      const outer = open.pop();
      if (outer === undefined) {
        if (at !== end) throw bad(at, `${end - at} bytes follow the value`);
        return;
      }
      remaining = outer;
    }
    if (at >= end) throw bad(at, "the bytes end inside a value");
    if (++items > limits.items) throw bad(at, `more than ${limits.items} values`);
    remaining--;
    const head = headerAt(bytes, at, end);
    if (head.children === 0) {
      if (head.size > end - at)
        throw bad(at, `a value of ${head.size} bytes does not fit into the ${end - at} left`);
      if (head.text > 0)
        decodeText(bytes.subarray(at + head.text, at + head.size), "kvferry", at, "a string");
    } else {
      if (open.length + 1 > limits.depth) throw bad(at, `nested deeper than ${limits.depth}`);
      if (head.children > end - at - head.size)
        throw bad(at, `${head.children} values do not fit into the ${end - at - head.size} bytes left`);
      open.push(remaining);
      remaining = head.children;
    }
    at += head.size;
  }
}

interface Header {
  /** Bytes of the whole value, or of a container's header. */
  readonly size: number;
  /** Values inside a container (two for each entry of a map); 0 for all else. */
  readonly children: number;
  /** Where a string's bytes begin in the value, else 0. */
  readonly text: number;
}

function headerAt(bytes: Uint8Array, at: number, end: number): Header {
  const tag = bytes[at] ?? 0;
  if (tag <= 0x7f || tag >= 0xe0) return scalar(1);
  if (tag <= 0x8f) return { size: 1, children: 2 * (tag & 15), text: 0 };
  if (tag <= 0x9f) return { size: 1, children: tag & 15, text: 0 };
  if (tag <= 0xbf) return { size: 1 + (tag & 31), children: 0, text: 1 };
  const fixed = SCALAR_SIZES.get(tag);
  if (fixed !== undefined) return scalar(fixed);
  const lengthBytes = LENGTH_BYTES.get(tag);
  if (lengthBytes === undefined) throw bad(at, `the type 0x${tag.toString(16)} has no place in a package`);
  if (lengthBytes > end - at - 1) throw bad(at, "the bytes end inside a header");
  let length = 0;
  for (let index = 1; index <= lengthBytes; index++) length = length * 256 + (bytes[at + index] ?? 0);
  const header = 1 + lengthBytes;
  if (tag <= 0xc6) return scalar(header + length);
  if (tag <= 0xdb) return { size: header + length, children: 0, text: header };
  return { size: header, children: tag <= 0xdd ? length : 2 * length, text: 0 };
}

function bad(at: number, reason: string): Error {
  return malformed("kvferry", at, reason);
}

function scalar(size: number): Header {
  return { size, children: 0, text: 0 };
}

// nil, false, true, floats, unsigned and signed integers. 0xc1 is never used, 0xc7 to 0xc9 and 0xd4 to 0xd8 are
// extension types.
const SCALAR_SIZES: ReadonlyMap<number, number> = new Map([
  [0xc0, 1],
  [0xc2, 1],
  [0xc3, 1],
  [0xca, 5],
  [0xcb, 9],
  [0xcc, 2],
  [0xcd, 3],
  [0xce, 5],
  [0xcf, 9],
  [0xd0, 2],
  [0xd1, 3],
  [0xd2, 5],
  [0xd3, 9],
]);

// Bytes of the length in a header: bin, str, array, map.
const LENGTH_BYTES: ReadonlyMap<number, number> = new Map([
  [0xc4, 1],
  [0xc5, 2],
  [0xc6, 4],
  [0xd9, 1],
  [0xda, 2],
  [0xdb, 4],
  [0xdc, 2],
  [0xdd, 4],
  [0xde, 2],
  [0xdf, 4],
]);
