import { Encoder } from "@msgpack/msgpack";
import { readMap } from "./body-read.ts";
import type { BodyField } from "./body-read.ts";
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
  /** Makes a package long enough for what it holds; says nothing. */
  readonly padding?: Uint8Array | undefined;
}

const TEXT: BodyField = { kind: "text" };
const COLUMN: BodyField = { kind: "column" };
const COUNT: BodyField = { kind: "count" };

const HOST_FIELDS: Readonly<Record<keyof BodyHost, BodyField>> = {
  boot: TEXT,
  pid: TEXT,
  ipc: TEXT,
  net: TEXT,
  user: TEXT,
  uid: COUNT,
  process: COUNT,
  rendezvous: TEXT,
};

const FIELDS: Readonly<Record<keyof PackageBody, BodyField>> = {
  worker: { kind: "id" },
  agent: TEXT,
  wire: TEXT,
  incarnation: { kind: "incarnation" },
  sequence: COUNT,
  issued: { kind: "count", nullable: true },
  expires: { kind: "count", nullable: true },
  audience: { kind: "column", nullable: true },
  nixl: COLUMN,
  host: { kind: "map", nullable: true, fields: HOST_FIELDS },
  text: TEXT,
  textEnds: COLUMN,
  shapeNumbers: COLUMN,
  shapeWords: COLUMN,
  shapeLayers: COLUMN,
  generations: COLUMN,
  layouts: COLUMN,
  components: COLUMN,
  nixlDevices: COLUMN,
  addresses: COLUMN,
  sizes: COLUMN,
  padding: { kind: "column", optional: true },
};

/** Writes a body as MessagePack. Bytes of columns are written as they are. */
export function encodeBody(body: PackageBody): Uint8Array {
  let size = 4_096 + body.text.length * 3;
  for (const value of Object.values(body)) if (value instanceof Uint8Array) size += value.length + 8;
  return new Encoder({ useBigInt64: true, initialBufferSize: size }).encodeSharedRef(body);
}

/**
 * Reads a body: walked first, so that no header is met that lies, then read field by field.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the offset, or the field and what it should be.
 */
export function decodeBody(envelope: Envelope): PackageBody {
  const start = envelope.bodyAt;
  scanMessagePack(envelope.signed, start, start + envelope.body.length, LIMITS);
  const body = readMap({ bytes: envelope.signed, start, at: start }, FIELDS, "");
  // Every field that the type names was read as the kind that it says.
  return body as unknown as PackageBody;
}
