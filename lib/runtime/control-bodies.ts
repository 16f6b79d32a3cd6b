import type { LayoutHandle } from "../core/handle.ts";
import type { ProcessIdentity } from "./process-watch.ts";

const HANDLE_BYTES = 16;
const KNOWN_BYTES = 5;
const LOW = (1n << 64n) - 1n;

/** What a worker tells another one whose package it imported. */
export interface ImportedBody {
  /** Rises with every such message of the importer: the answer repeats it. */
  readonly number: number;
  /** Sequence number of the package. */
  readonly sequence: number;
  /** Where the importer runs; null when it does not know. */
  readonly process: ProcessIdentity | null;
  /** NIXL's blob by which the importer's agent is reached; empty for none. */
  readonly connection: Uint8Array<ArrayBuffer>;
}

/** A layout's handle as 16 bytes, little-endian. */
export function handleBody(handle: LayoutHandle): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(HANDLE_BYTES));
  putHandle(bytes, 0, handle);
  return bytes;
}

/** @returns Null for a body of another length. */
export function readHandle(body: Uint8Array): LayoutHandle | null {
  return body.byteLength === HANDLE_BYTES ? handleAt(body, 0) : null;
}

/** Most handles of one {@link KnownBody}. */
export const MOST_GONE = 4_000;

/** What a worker answers to {@link ImportedBody}. */
export interface KnownBody {
  /** Of the message that is answered. */
  readonly number: number;
  /** Layouts that are gone, at most {@link MOST_GONE}. */
  readonly handles: readonly LayoutHandle[];
  /** Whether more follow. */
  readonly more: boolean;
}

/** The number (u32), whether more follow (one byte), handles. */
export function knownBody({ number, handles, more }: KnownBody): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(KNOWN_BYTES + handles.length * HANDLE_BYTES));
  viewOf(bytes).setUint32(0, number, true);
  bytes[4] = more ? 1 : 0;
  for (const [at, handle] of handles.entries()) putHandle(bytes, KNOWN_BYTES + at * HANDLE_BYTES, handle);
  return bytes;
}

/** @returns Null for a body of another form. */
export function readKnown(body: Uint8Array): KnownBody | null {
  const count = (body.byteLength - KNOWN_BYTES) / HANDLE_BYTES;
  if (!Number.isInteger(count) || count < 0 || count > MOST_GONE || (body[4] ?? 2) > 1) return null;
  const handles = Array.from({ length: count }, (_, at) => handleAt(body, KNOWN_BYTES + at * HANDLE_BYTES));
  return { number: viewOf(body).getUint32(0, true), handles, more: body[4] === 1 };
}

/** A question about a layout: a number of the asker's, and the handle. */
export function questionBody(question: number, handle: LayoutHandle): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(4 + HANDLE_BYTES));
  viewOf(bytes).setUint32(0, question, true);
  putHandle(bytes, 4, handle);
  return bytes;
}

/** @returns Null for a body of another length. */
export function readQuestion(
  body: Uint8Array,
): { readonly question: number; readonly handle: LayoutHandle } | null {
  return body.byteLength === 4 + HANDLE_BYTES
    ? { question: viewOf(body).getUint32(0, true), handle: handleAt(body, 4) }
    : null;
}

/** The number of a question that is answered. */
export function answerBody(question: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(4));
  viewOf(bytes).setUint32(0, question, true);
  return bytes;
}

/** @returns Null for a body of another length. */
export function readAnswer(body: Uint8Array): number | null {
  return body.byteLength === 4 ? viewOf(body).getUint32(0, true) : null;
}

/**
 * Sequence number (float64), number (u32), bytes of the text (u32), boot id, pid namespace, process id and start as text between
 * newlines, then NIXL's blob.
 */
export function importedBody({
  number,
  sequence,
  process,
  connection,
}: ImportedBody): Uint8Array<ArrayBuffer> {
  const text =
    process === null
      ? ""
      : [process.bootId, process.pidNamespace, process.processId, process.startedAt].join("\n");
  const encoded = new TextEncoder().encode(text);
  const bytes = new Uint8Array(new ArrayBuffer(IMPORTED_BYTES + encoded.byteLength + connection.byteLength));
  viewOf(bytes).setFloat64(0, sequence, true);
  viewOf(bytes).setUint32(8, number, true);
  viewOf(bytes).setUint32(12, encoded.byteLength, true);
  bytes.set(encoded, IMPORTED_BYTES);
  bytes.set(connection, IMPORTED_BYTES + encoded.byteLength);
  return bytes;
}

/** @returns Null for anything malformed or too long. */
export function readImported(body: Uint8Array<ArrayBuffer>): ImportedBody | null {
  if (body.byteLength < IMPORTED_BYTES) return null;
  const sequence = viewOf(body).getFloat64(0, true);
  const number = viewOf(body).getUint32(8, true);
  const textBytes = viewOf(body).getUint32(12, true);
  const blobAt = IMPORTED_BYTES + textBytes;
  if (!Number.isSafeInteger(sequence) || sequence < 0) return null;
  if (textBytes > MOST_TEXT || blobAt > body.byteLength || body.byteLength - blobAt > MOST_CONNECTION)
    return null;
  const connection = body.slice(blobAt);
  if (textBytes === 0) return { number, sequence, process: null, connection };
  const process = readProcess(new TextDecoder().decode(body.subarray(IMPORTED_BYTES, blobAt)));
  return process === null ? null : { number, sequence, process, connection };
}

const IMPORTED_BYTES = 16;
const MOST_TEXT = 256;
const MOST_CONNECTION = 16_384;

function readProcess(text: string): ProcessIdentity | null {
  const [bootId = "", pidNamespace = "", id = "", started = "", ...more] = text.split("\n");
  const well =
    more.length === 0 &&
    /^\d{1,10}$/.test(id) &&
    /^\d{1,15}$/.test(started) &&
    /^\d{1,20}$/.test(pidNamespace) &&
    /^[0-9a-f-]{1,64}$/.test(bootId);
  return well ? { bootId, pidNamespace, processId: Number(id), startedAt: Number(started) } : null;
}

function putHandle(bytes: Uint8Array, at: number, handle: LayoutHandle): void {
  const view = viewOf(bytes);
  view.setBigUint64(at, handle & LOW, true);
  view.setBigUint64(at + 8, handle >> 64n, true);
}

function handleAt(bytes: Uint8Array, at: number): LayoutHandle {
  const view = viewOf(bytes);
  return (view.getBigUint64(at, true) | (view.getBigUint64(at + 8, true) << 64n)) as LayoutHandle; // 128 bits
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
