import { KvferryError } from "../core/errors.ts";
import { decodeText, malformed, MAX_PACKAGE_BYTES, tooLong } from "./bounded.ts";
import { unencodable } from "./bincode.ts";
import { crc32 } from "./crc32.ts";

// The envelope is one MessagePack array of five with exactly these spellings, so that nothing in it has two:
//
//     95                        array of 5
//     c4 08 <8 bytes>           signature
//     02                        version
//     c6 <4 bytes> <body>       body, a MessagePack map
//     c0                        no authentication, or
//     82 a5 "keyId" d9 <1 byte> <key id> a3 "mac" c4 <1 byte> <mac>
//     ce <4 bytes>              CRC-32 (polynomial 0x04C11DB7, reflected, as in Ethernet) of all bytes before this item
//
// The signature has bytes that no text and no bincode integer has where a Dynamo package would need one, so that a
// damaged envelope is never taken for a Dynamo package.
const OPENING: readonly number[] = [0x95, 0xc4, 0x08, 0xff, 0x4b, 0xff, 0x56, 0x46, 0x0d, 0xff, 0x0a];
const VERSION_AT: number = OPENING.length;
/** Where the body of a package begins. */
export const BODY_AT: number = VERSION_AT + 6;
const CHECKSUM_BYTES = 5;
const KEY_ID_TAG: readonly number[] = [0x82, 0xa5, 0x6b, 0x65, 0x79, 0x49, 0x64, 0xd9];
const MAC_TAG: readonly number[] = [0xa3, 0x6d, 0x61, 0x63, 0xc4];
const BODY_TAG: readonly number[] = [0xc6];
const CHECKSUM_TAG: readonly number[] = [0xce];

/** The version of the envelope that is written and the only one that is read. */
export const ENVELOPE_VERSION = 2;

/**
 * Computes a message authentication code, e.g. HMAC-SHA-256, with the key of that id. Answers null when it has no
 * such key.
 */
export type MacFunction = (keyId: string, bytes: Uint8Array) => Uint8Array | null;

/** How to authenticate a package that is written. */
export interface SigningKey {
  readonly keyId: string;
  readonly mac: MacFunction;
}

/** The parts of an envelope; `body` and `mac` are views of the input. */
export interface Envelope {
  readonly version: number;
  /** Offset of the body. */
  readonly bodyAt: number;
  readonly body: Uint8Array;
  readonly auth: { readonly keyId: string; readonly mac: Uint8Array } | null;
  readonly checksum: number;
  /** What the authentication code covers: all bytes up to the end of the body. */
  readonly signed: Uint8Array;
}

/** Tells whether bytes begin as a kvferry package does, one damaged byte allowed. */
export function looksLikeEnvelope(bytes: Uint8Array): boolean {
  if (bytes.length < OPENING.length) return false;
  let wrong = 0;
  for (let index = 0; index < OPENING.length; index++) if (bytes[index] !== OPENING[index]) wrong++;
  return wrong <= 1;
}

/**
 * Puts a body into an envelope.
 *
 * @param signing - Adds an authentication code over everything up to the end of the body.
 * @throws KvferryError `INVALID_CONFIG` when the key id or the code is longer than 255 bytes, or the key is unknown.
 */
export function writeEnvelope(body: Uint8Array, signing: SigningKey | null): Uint8Array {
  const keyId = signing === null ? new Uint8Array(0) : new TextEncoder().encode(signing.keyId);
  const bytes = new Uint8Array(
    BODY_AT + body.length + KEY_ID_TAG.length + 260 + MAC_TAG.length + 260 + CHECKSUM_BYTES,
  );
  bytes.set(OPENING, 0);
  bytes[VERSION_AT] = ENVELOPE_VERSION;
  bytes[VERSION_AT + 1] = 0xc6;
  setWord(bytes, VERSION_AT + 2, body.length);
  bytes.set(body, BODY_AT);
  let at = BODY_AT + body.length;
  if (signing === null) bytes[at++] = 0xc0;
  else {
    const mac = signing.mac(signing.keyId, bytes.subarray(0, at));
    if (mac === null || mac.length === 0 || mac.length > 255)
      throw unencodable(
        "the authentication code",
        "1 to 255 bytes",
        mac === null ? "no such key" : mac.length,
      );
    if (keyId.length > 255 || !signing.keyId.isWellFormed())
      throw unencodable("the key id", "text of at most 255 bytes", signing.keyId);
    for (const part of [KEY_ID_TAG, [keyId.length], keyId, MAC_TAG, [mac.length], mac]) {
      bytes.set(part, at);
      at += part.length;
    }
  }
  const checksum = crc32(bytes, at);
  bytes[at] = 0xce;
  setWord(bytes, at + 1, checksum);
  return bytes.slice(0, at + CHECKSUM_BYTES);
}

/**
 * Takes an envelope apart, strictly to the last byte, and checks its checksum.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the offset: damaged signature, later version, lengths that do not
 *   fit, bytes that differ from their checksum.
 */
export function readEnvelope(bytes: Uint8Array, maxBytes: number = MAX_PACKAGE_BYTES): Envelope {
  if (bytes.length > maxBytes) throw tooLong("kvferry", bytes.length, maxBytes);
  expectBytes(bytes, 0, OPENING, "the signature");
  const version = byteAt(bytes, VERSION_AT);
  if (version !== ENVELOPE_VERSION) throw otherVersion(version);
  expectBytes(bytes, VERSION_AT + 1, BODY_TAG, "the body's header");
  const length = wordAt(bytes, VERSION_AT + 2);
  if (length > bytes.length - BODY_AT) throw bodyTooLong(length, bytes.length);
  const bodyEnd = BODY_AT + length;
  const { auth, next } =
    byteAt(bytes, bodyEnd) === 0xc0 ? { auth: null, next: bodyEnd + 1 } : readAuth(bytes, bodyEnd);
  expectBytes(bytes, next, CHECKSUM_TAG, "the checksum's header");
  const checksum = wordAt(bytes, next + 1);
  if (bytes.length !== next + CHECKSUM_BYTES) throw bytesFollow(next + CHECKSUM_BYTES, bytes.length);
  const found = crc32(bytes, next);
  if (found !== checksum) throw wrongChecksum(next, found, checksum);
  return {
    version,
    bodyAt: BODY_AT,
    body: bytes.subarray(BODY_AT, bodyEnd),
    auth,
    checksum,
    signed: bytes.subarray(0, bodyEnd),
  };
}

/**
 * Checks an envelope's authentication code in constant time.
 *
 * @throws KvferryError `METADATA_UNAUTHENTICATED` when there is none, its key is unknown, or it is wrong.
 */
export function authenticate(envelope: Envelope, mac: MacFunction): void {
  const { auth } = envelope;
  if (auth === null) throw unauthenticated("it carries no authentication code", {});
  const expected = mac(auth.keyId, envelope.signed);
  if (expected === null) throw unauthenticated("its key is not known here", { keyId: auth.keyId });
  let difference = expected.length ^ auth.mac.length;
  for (let index = 0; index < expected.length; index++)
    difference |= (expected[index] ?? 0) ^ (auth.mac[index] ?? 0);
  if (difference !== 0) throw unauthenticated("its authentication code is wrong", { keyId: auth.keyId });
}

/** The refusal of a package that proves nothing while proof is asked for. */
export function unauthenticated(reason: string, details: Readonly<Record<string, unknown>>): KvferryError {
  return new KvferryError(
    "METADATA_UNAUTHENTICATED",
    "decodePackage",
    `the metadata package is refused: ${reason}`,
    "Give both workers the same secret and key id, or accept unauthenticated packages on purpose.",
    { reason, ...details },
  );
}

function readAuth(
  bytes: Uint8Array,
  start: number,
): { readonly auth: Envelope["auth"]; readonly next: number } {
  expectBytes(bytes, start, KEY_ID_TAG, "the authentication");
  const keyAt = start + KEY_ID_TAG.length + 1;
  const keyEnd = keyAt + byteAt(bytes, keyAt - 1);
  expectBytes(bytes, keyEnd, MAC_TAG, "the authentication code");
  const macAt = keyEnd + MAC_TAG.length + 1;
  const next = macAt + byteAt(bytes, macAt - 1);
  byteAt(bytes, next);
  const keyId = decodeText(bytes.subarray(keyAt, keyEnd), "kvferry", keyAt, "the key id");
  return { auth: { keyId, mac: bytes.subarray(macAt, next) }, next };
}

function expectBytes(bytes: Uint8Array, at: number, expected: readonly number[], what: string): void {
  for (let index = 0; index < expected.length; index++)
    if (byteAt(bytes, at + index) !== expected[index])
      throw malformed("kvferry", at + index, `${what} is damaged`);
}

function byteAt(bytes: Uint8Array, at: number): number {
  const value = bytes[at];
  if (value === undefined) throw malformed("kvferry", bytes.length, "the bytes end inside the envelope");
  return value;
}

function wordAt(bytes: Uint8Array, at: number): number {
  return (
    byteAt(bytes, at) * 2 ** 24 +
    byteAt(bytes, at + 1) * 2 ** 16 +
    byteAt(bytes, at + 2) * 2 ** 8 +
    byteAt(bytes, at + 3)
  );
}

function setWord(bytes: Uint8Array, at: number, value: number): void {
  for (let index = 0; index < 4; index++) bytes[at + index] = value >>> (24 - 8 * index);
}

// Refusals have functions of their own, which a package that is right never compiles.

function otherVersion(version: number): Error {
  return malformed("kvferry", VERSION_AT, `version ${version} is not known, only ${ENVELOPE_VERSION}`, {
    version,
  });
}

function bodyTooLong(length: number, bytes: number): Error {
  return malformed(
    "kvferry",
    VERSION_AT + 2,
    `a body of ${length} bytes does not fit into ${bytes - BODY_AT}`,
  );
}

function bytesFollow(end: number, bytes: number): Error {
  return malformed("kvferry", end, `${bytes - end} bytes follow the package`);
}

function wrongChecksum(end: number, found: number, checksum: number): Error {
  return malformed(
    "kvferry",
    end + 1,
    `the checksum of bytes 0 to ${end - 1} is ${hex(found)}, not ${hex(checksum)}`,
    { covered: { start: 0, end } },
  );
}

function hex(value: number): string {
  return value.toString(16).padStart(8, "0");
}
