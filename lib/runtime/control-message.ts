import { authenticationCode, codesEqual } from "./authentication.ts";
import type { SecretKey } from "./options.ts";

/** What a control message says. */
export const CONTROL = {
  /** A user's payload that begins like a control message. */
  user: 0,
  /** The sender lives and wants to hear from the receiver as often as it says: milliseconds (u32). */
  heartbeat: 1,
  /** The sender lives: the answer to a heartbeat when it has said nothing else for as long. */
  alive: 2,
  /** The sender closes. */
  bye: 3,
  /** The sender took a layout back: its handle. Answered with `layoutQuiet` once nothing touches it any more. */
  layoutGone: 4,
  /** The sender imported a package of the receiver: a number, the package's sequence number, and where the sender runs. */
  imported: 5,
  /** The sender holds nothing of the receiver any more, and touches nothing of it. */
  released: 6,
  /** The sender touches a layout of the receiver no more, and will not again: its handle. */
  layoutQuiet: 7,
  /** Has all work of the receiver on a layout of the sender that exists now ended? A number and the handle. */
  askQuiet: 8,
  /** It has: the number of the question. */
  quiet: 9,
  /** Words of the staging protocol: see staged-protocol.ts. */
  staging: 10,
  /** A word by which both ends of a transfer are compared: see sum-words.ts. */
  sums: 11,
  /**
   * The answer to `imported`: the sender will tell the receiver of layouts that it takes back, and took these back
   * already: the number of what it answers, whether more such messages follow, and handles.
   */
  known: 12,
  /** A word of the staging protocol that left with the data it is about, whenever that was complete. */
  landed: 13,
} as const;

/** A control message that was read. */
export interface ControlMessage {
  readonly type: number;
  /** Rises with every message from this sender to this receiver. */
  readonly sequence: number;
  readonly body: Uint8Array<ArrayBuffer>;
}

/** The two ends, by their names on the wire: a message for one pair proves nothing to another. */
export interface ControlEnds {
  readonly sender: string;
  readonly receiver: string;
}

// No text and no UUID begins so; a user's payload that does is carried inside a control message.
const MAGIC: readonly number[] = [0x00, 0x6b, 0x76, 0x66, 0xff, 0x63, 0x74, 0x6c];
const VERSION = 2;
const HEADER_BYTES = 20;
const CODE_BYTES = 32;

/** Longer bodies are refused unread. */
export const MAX_CONTROL_BODY: number = 64 * 1024;

/** Whether bytes begin as a control message does. */
export function looksLikeControl(payload: Uint8Array): boolean {
  if (payload.byteLength < MAGIC.length) return false;
  for (let index = 0; index < MAGIC.length; index++) if (payload[index] !== MAGIC[index]) return false;
  return true;
}

/** The number of what looks like a control message; 0 for one that is too short, which nobody takes. */
export function controlSequence(payload: Uint8Array): number {
  if (payload.byteLength < HEADER_BYTES) return 0;
  const sequence = new DataView(payload.buffer, payload.byteOffset, payload.byteLength).getFloat64(12, true);
  return Number.isSafeInteger(sequence) ? sequence : 0;
}

/**
 * Writes a control message: magic, version, type, key id length, 0, sequence (f64), body, key id, code.
 *
 * @param secrets - The first key authenticates it; none leaves the code out.
 */
export function writeControl(
  type: number,
  sequence: number,
  body: Uint8Array,
  ends: ControlEnds,
  secrets: readonly SecretKey[],
): Uint8Array<ArrayBuffer> {
  const key = secrets[0];
  const keyId = new TextEncoder().encode(key?.keyId ?? "");
  const length = HEADER_BYTES + body.byteLength + (key === undefined ? 0 : keyId.byteLength + CODE_BYTES);
  const bytes = new Uint8Array(new ArrayBuffer(length));
  bytes.set(MAGIC);
  bytes[8] = VERSION;
  bytes[9] = type;
  bytes[10] = keyId.byteLength;
  new DataView(bytes.buffer).setFloat64(12, sequence, true);
  bytes.set(body, HEADER_BYTES);
  if (key !== undefined) {
    bytes.set(keyId, HEADER_BYTES + body.byteLength);
    const code = authenticationCode(
      secrets,
      key.keyId,
      covered(bytes.subarray(0, HEADER_BYTES + body.byteLength), ends),
    );
    if (code !== null) bytes.set(code, length - CODE_BYTES);
  }
  return bytes;
}

/**
 * Reads a control message.
 *
 * @param secrets - When there are any, the message must carry a right code.
 * @returns Null for anything malformed, of another version, too long or not authentic: it is dropped.
 */
export function readControl(
  payload: Uint8Array,
  ends: ControlEnds,
  secrets: readonly SecretKey[],
): ControlMessage | null {
  if (
    !looksLikeControl(payload) ||
    payload.byteLength < HEADER_BYTES ||
    payload[8] !== VERSION ||
    payload[11] !== 0
  )
    return null;
  const keyIdBytes = payload[10] ?? 0;
  const tail = keyIdBytes === 0 ? 0 : keyIdBytes + CODE_BYTES;
  const bodyEnd = payload.byteLength - tail;
  if (bodyEnd < HEADER_BYTES || bodyEnd - HEADER_BYTES > MAX_CONTROL_BODY) return null;
  if (secrets.length > 0) {
    if (keyIdBytes === 0) return null;
    const keyId = new TextDecoder().decode(payload.subarray(bodyEnd, bodyEnd + keyIdBytes));
    const expected = authenticationCode(secrets, keyId, covered(payload.subarray(0, bodyEnd), ends));
    if (expected === null || !codesEqual(expected, payload.subarray(payload.byteLength - CODE_BYTES)))
      return null;
  }
  const sequence = controlSequence(payload);
  if (sequence < 1) return null;
  const body = new Uint8Array(new ArrayBuffer(bodyEnd - HEADER_BYTES));
  body.set(payload.subarray(HEADER_BYTES, bodyEnd));
  return { type: payload[9] ?? 0, sequence, body };
}

/** What the code covers: the message and both names, each with its length. */
function covered(message: Uint8Array, ends: ControlEnds): Uint8Array {
  const names = new TextEncoder().encode(
    `${ends.sender.length}:${ends.sender}${ends.receiver.length}:${ends.receiver}`,
  );
  const bytes = new Uint8Array(message.byteLength + names.byteLength);
  bytes.set(message);
  bytes.set(names, message.byteLength);
  return bytes;
}
