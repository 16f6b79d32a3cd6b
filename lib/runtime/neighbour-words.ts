import * as v from "valibot";
import { KVF_NEIGHBOUR_DESCRIPTORS } from "../native/symbols.ts";
import { authenticationCode, codesEqual } from "./authentication.ts";
import type { SecretKey } from "./options.ts";

/** Version of the words that neighbours exchange. */
export const NEIGHBOUR_VERSION = 3;

/** Bytes of a nonce. */
const NONCE_BYTES = 32;

/** Who takes part, as both ends name them. */
export interface NeighbourName {
  /** Worker id, decimal. */
  readonly worker: string;
  readonly agent: string;
  /** Name on NIXL's wire: agent and incarnation. */
  readonly wire: string;
  readonly incarnation: number;
}

/** What an importer says to an exporter. Handles are decimal. */
export type ImporterWord =
  | {
      readonly say: "hello";
      readonly version: number;
      readonly from: NeighbourName;
      readonly to: NeighbourName;
      readonly nonce: string;
      /** Ids of the keys that it knows. */
      readonly keys: readonly string[];
    }
  | { readonly say: "proof"; readonly proof: string | null }
  | { readonly say: "want"; readonly layouts: readonly string[] }
  /** Nothing of these layouts is mapped at the importer any more. */
  | { readonly say: "released"; readonly layouts: readonly string[] }
  | MarkWord
  /** Nothing of the exporter is mapped at the importer any more; the connection ends. */
  | { readonly say: "bye" };

/** Blocks of a layout do not hold what was written to them, or were written again. */
export interface MarkWord {
  readonly say: "mark";
  readonly layout: string;
  readonly group: string;
  readonly blocks: readonly number[];
  readonly bad: boolean;
}

/** What an exporter says to an importer. */
export type ExporterWord =
  | {
      readonly say: "welcome";
      readonly nonce: string;
      readonly key: string | null;
      readonly proof: string | null;
    }
  | { readonly say: "ready" }
  | { readonly say: "refused"; readonly why: string }
  /** A layout's memory; the descriptors of its segments come with the message, in order. */
  | {
      readonly say: "layout";
      readonly layout: string;
      readonly readOnly: boolean;
      readonly segments: readonly SegmentWord[];
      readonly components: readonly ComponentWord[];
    }
  | { readonly say: "no"; readonly layouts: readonly string[]; readonly why: string }
  /** The exporter wants this layout's memory back. */
  | { readonly say: "release"; readonly layout: string }
  | MarkWord
  /** The exporter closes. */
  | { readonly say: "closing" }
  /** The exporter has dealt with that many bytes of messages. */
  | { readonly say: "credit"; readonly bytes: number };

/**
 * A segment, which is one run of addresses at either end: files, or what opens memory of a GPU. With each file and with an
 * exportable allocation comes a descriptor.
 */
export type SegmentWord = FilesWord | DeviceWord | ExportableWord;

/** Files in memory that are mapped one after the other. */
export interface FilesWord {
  /** Bytes of each. */
  readonly files: readonly number[];
}

/** An allocation of a GPU, for another process. */
export interface DeviceWord {
  /** The GPU. */
  readonly uuid: string;
  /** The driver's handle, in hex. */
  readonly handle: string;
  /** Where the allocation begins in its owner's process; 0 when that is a third one. */
  readonly start: number;
}

/** An exportable allocation of a GPU; its descriptor comes with the message. */
export interface ExportableWord {
  readonly uuid: string;
  readonly bytes: number;
}

/** Where the regions of a component lie, or why it cannot be mapped. */
export interface ComponentWord {
  readonly name: string;
  /** Segment, byte offset in it, bytes. */
  readonly regions: readonly (readonly [number, number, number])[] | null;
  readonly why: string | null;
}

const text = v.pipe(v.string(), v.maxLength(1024));
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const hex = v.pipe(v.string(), v.hexadecimal(), v.maxLength(256));
const DECIMAL = /^\d{1,39}$/;
const decimal = v.pipe(v.string(), v.regex(DECIMAL));
/** At most so many decimals. A package has thousands of layouts: all of them are one value to the schema. */
const decimals = (most: number): v.GenericSchema<unknown, readonly string[]> =>
  v.custom<readonly string[]>(
    (found) =>
      Array.isArray(found) &&
      found.length <= most &&
      found.every((one) => typeof one === "string" && DECIMAL.test(one)),
  );
const nonce = v.pipe(hex, v.length(NONCE_BYTES * 2));
const worker = v.strictObject({ worker: decimal, agent: text, wire: text, incarnation: count });
const component = v.strictObject({
  name: text,
  regions: v.nullable(v.pipe(v.array(v.strictTuple([count, count, count])), v.maxLength(65_536))),
  why: v.nullable(text),
});
const mark = v.strictObject({
  say: v.literal("mark"),
  layout: decimal,
  group: text,
  blocks: v.pipe(v.array(v.pipe(count, v.maxValue(0xffff_ffff))), v.maxLength(8_192)),
  bad: v.boolean(),
});
const segment = v.union([
  v.strictObject({
    files: v.pipe(v.array(count), v.minLength(1), v.maxLength(KVF_NEIGHBOUR_DESCRIPTORS)),
  }),
  v.strictObject({ uuid: text, handle: hex, start: count }),
  v.strictObject({ uuid: text, bytes: count }),
]);

const importerWord: v.GenericSchema<unknown, ImporterWord> = v.variant("say", [
  v.strictObject({
    say: v.literal("hello"),
    version: count,
    from: worker,
    to: worker,
    nonce,
    keys: v.pipe(v.array(text), v.maxLength(64)),
  }),
  v.strictObject({ say: v.literal("proof"), proof: v.nullable(hex) }),
  v.strictObject({ say: v.literal("want"), layouts: decimals(4_096) }),
  v.strictObject({ say: v.literal("released"), layouts: decimals(65_536) }),
  mark,
  v.strictObject({ say: v.literal("bye") }),
]);

const exporterWord: v.GenericSchema<unknown, ExporterWord> = v.variant("say", [
  v.strictObject({ say: v.literal("welcome"), nonce, key: v.nullable(text), proof: v.nullable(hex) }),
  v.strictObject({ say: v.literal("ready") }),
  v.strictObject({ say: v.literal("refused"), why: text }),
  v.strictObject({
    say: v.literal("layout"),
    layout: decimal,
    readOnly: v.boolean(),
    segments: v.pipe(v.array(segment), v.maxLength(65_536)),
    components: v.pipe(v.array(component), v.maxLength(1_024)),
  }),
  v.strictObject({
    say: v.literal("no"),
    layouts: decimals(4_096),
    why: text,
  }),
  v.strictObject({ say: v.literal("release"), layout: decimal }),
  mark,
  v.strictObject({ say: v.literal("closing") }),
  v.strictObject({ say: v.literal("credit"), bytes: count }),
]);

/** A layout's memory as it is handed over. */
export type LayoutWord = Extract<ExporterWord, { say: "layout" }>;

const WORD = 0;
const NOTIFICATION = 1;

/** The bytes of a word. */
export function wordBytes(word: ExporterWord | ImporterWord): Uint8Array<ArrayBuffer> {
  return tagged(WORD, new TextEncoder().encode(JSON.stringify(word)));
}

/** The bytes of a user's notification. */
export function notificationBytes(payload: Uint8Array): Uint8Array<ArrayBuffer> {
  return tagged(NOTIFICATION, payload);
}

/** What arrived: a user's notification, a word to be read, or nothing that is known. */
export function readTag(bytes: Uint8Array<ArrayBuffer>): {
  readonly kind: "word" | "notification" | "unknown";
  readonly body: Uint8Array<ArrayBuffer>;
} {
  const body = bytes.slice(1);
  if (bytes[0] === NOTIFICATION) return { kind: "notification", body };
  return { kind: bytes[0] === WORD ? "word" : "unknown", body };
}

/** An importer's word, or null for anything that is none. */
export function readImporterWord(body: Uint8Array): ImporterWord | null {
  return read(importerWord, body);
}

/** An exporter's word, or null for anything that is none. */
export function readExporterWord(body: Uint8Array): ExporterWord | null {
  return read(exporterWord, body);
}

/** A number that nobody can guess, in hex. */
export function freshNonce(): string {
  return crypto.getRandomValues(new Uint8Array(NONCE_BYTES)).toHex();
}

/** What a proof is about: both ends, their processes, and both nonces. A proof for one pair proves nothing to another. */
export interface Meeting {
  readonly importer: NeighbourName;
  readonly exporter: NeighbourName;
  readonly importerProcess: number;
  readonly exporterProcess: number;
  readonly importerNonce: string;
  readonly exporterNonce: string;
}

/** Proves that one end knows the key, to the other end of this one meeting. Null when the key is not known. */
export function proofOf(
  side: "importer" | "exporter",
  meeting: Meeting,
  secrets: readonly SecretKey[],
  keyId: string,
): string | null {
  const { importer, exporter, importerProcess, exporterProcess, importerNonce, exporterNonce } = meeting;
  const covered = JSON.stringify([
    "kvferry neighbour",
    NEIGHBOUR_VERSION,
    side,
    named(importer),
    importerProcess,
    importerNonce,
    named(exporter),
    exporterProcess,
    exporterNonce,
  ]);
  return authenticationCode(secrets, keyId, new TextEncoder().encode(covered))?.toHex() ?? null;
}

/** Compares a proof that arrived with the one that is right, in time that does not depend on where they differ. */
export function proofHolds(expected: string | null, found: string | null): boolean {
  if (expected === null || found === null) return false;
  const encoder = new TextEncoder();
  return codesEqual(encoder.encode(expected), encoder.encode(found));
}

/** Whether both name the same worker, agent and incarnation. */
export function sameName(left: NeighbourName, right: NeighbourName): boolean {
  return named(left).every((part, index) => part === named(right)[index]);
}

function named({ worker: id, agent, wire, incarnation }: NeighbourName): readonly (string | number)[] {
  return [id, agent, wire, incarnation];
}

function tagged(tag: number, body: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(1 + body.byteLength));
  bytes[0] = tag;
  bytes.set(body, 1);
  return bytes;
}

function read<Word>(schema: v.GenericSchema<unknown, Word>, body: Uint8Array): Word | null {
  try {
    const parsed = v.safeParse(schema, JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body)));
    return parsed.success ? parsed.output : null;
  } catch {
    return null;
  }
}
