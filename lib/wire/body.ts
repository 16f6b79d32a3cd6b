import { Decoder, Encoder } from "@msgpack/msgpack";
import * as v from "valibot";
import { U64_MAX } from "../core/integers.ts";
import { MAX_INCARNATION } from "../core/registry-snapshot.ts";
import { decodeText, malformed } from "./bounded.ts";
import { BODY_AT } from "./envelope.ts";
import type { Envelope } from "./envelope.ts";
import { scanMessagePack } from "./msgpack-scan.ts";

// Bulk data stands in columns of little-endian numbers: one run of bytes each, whatever the number of layouts. So a
// body has a few dozen values, and a limit on their number costs nothing.
const LIMITS = { depth: 2, items: 128 } as const;

/** Where a process can be met, in a kvferry package. */
export interface BodyHost {
  readonly boot: string;
  readonly pid: string;
  readonly ipc: string;
  readonly net: string;
  readonly user: string;
  readonly uid: number;
  readonly process: number;
  readonly rendezvous: string;
}

/** What stands in the body of a kvferry package. */
export interface PackageBody {
  readonly worker: bigint;
  readonly agent: string;
  readonly wire: string;
  readonly incarnation: number;
  readonly sequence: number;
  readonly issued: number | null;
  readonly expires: number | null;
  /** Worker ids, 64 bits each. */
  readonly audience: Uint8Array | null;
  readonly nixl: Uint8Array;
  readonly host: BodyHost | null;
  /** All strings, joined, and where each ends. */
  readonly text: string;
  readonly textEnds: Uint8Array;
  /** The table of component shapes: numbers, words, and the model layers of all of them. */
  readonly shapeNumbers: Uint8Array;
  readonly shapeWords: Uint8Array;
  readonly shapeLayers: Uint8Array;
  /** Layouts: generation of the handle; words. */
  readonly generations: Uint8Array;
  readonly layouts: Uint8Array;
  /** Components of all layouts: words; device id for NIXL. */
  readonly components: Uint8Array;
  readonly nixlDevices: Uint8Array;
  /** Regions of all components. */
  readonly addresses: Uint8Array;
  readonly sizes: Uint8Array;
}

// Strings are decoded here: the decoder of the library drops a byte order mark and lets wrong bytes pass.
const text = v.pipe(
  v.instance(Uint8Array),
  v.transform((bytes) => decodeText(bytes, "kvferry", BODY_AT, "a string")),
);
const column = v.instance(Uint8Array);
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

const hostSchema = v.strictObject({
  boot: text,
  pid: text,
  ipc: text,
  net: text,
  user: text,
  uid: count,
  process: count,
  rendezvous: text,
});

const bodySchema: v.GenericSchema<unknown, PackageBody> = v.strictObject({
  worker: v.pipe(v.bigint(), v.minValue(0n), v.maxValue(U64_MAX)),
  agent: text,
  wire: text,
  incarnation: v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(MAX_INCARNATION)),
  sequence: count,
  issued: v.nullable(count),
  expires: v.nullable(count),
  audience: v.nullable(column),
  nixl: column,
  host: v.nullable(hostSchema),
  text,
  textEnds: column,
  shapeNumbers: column,
  shapeWords: column,
  shapeLayers: column,
  generations: column,
  layouts: column,
  components: column,
  nixlDevices: column,
  addresses: column,
  sizes: column,
});

/** Writes a body as MessagePack. Bytes of columns are written as they are. */
export function encodeBody(body: PackageBody): Uint8Array {
  let size = 4_096 + body.text.length * 3;
  for (const value of Object.values(body)) if (value instanceof Uint8Array) size += value.length + 8;
  return new Encoder({ useBigInt64: true, initialBufferSize: size }).encodeSharedRef(body);
}

/**
 * Reads a body: walked first, so that the decoder meets no header that lies, then decoded and parsed.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the offset, or the field and what it should be.
 */
export function decodeBody(envelope: Envelope): PackageBody {
  const start = envelope.bodyAt;
  scanMessagePack(envelope.signed, start, start + envelope.body.length, LIMITS);
  let decoded: unknown;
  try {
    decoded = new Decoder({
      useBigInt64: true,
      rawStrings: true,
      maxArrayLength: 0,
      maxExtLength: 0,
    }).decode(envelope.body);
  } catch (cause) {
    throw malformed("kvferry", start, "the body is no map of named values", {}, cause);
  }
  const parsed = v.safeParse(bodySchema, decoded, { abortEarly: true });
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0];
  const field = v.getDotPath(issue) ?? "body";
  throw malformed(
    "kvferry",
    start,
    `${field}: expected ${issue.expected ?? "another value"}, received ${issue.received}`,
    {
      field,
    },
  );
}
