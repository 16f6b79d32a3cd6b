import { KvferryError } from "../core/errors.ts";

// What NIXL itself writes begins with text; several of its blobs travel in one with this before them.
const OPENING: readonly number[] = [0x00, 0x6b, 0x76, 0x66, 0x2d, 0x62, 0x6c, 0x6f, 0x62, 0x73];
const MOST_BLOBS = 64;

/** Several blobs of one agent, to be loaded in this order, as one. */
export function packBlobs(blobs: readonly Uint8Array[]): Uint8Array {
  const [only] = blobs;
  if (blobs.length === 1 && only !== undefined) return only;
  const bytes = new Uint8Array(blobs.reduce((sum, blob) => sum + 4 + blob.byteLength, OPENING.length));
  bytes.set(OPENING);
  const view = new DataView(bytes.buffer);
  let at = OPENING.length;
  for (const blob of blobs) {
    view.setUint32(at, blob.byteLength, true);
    bytes.set(blob, at + 4);
    at += 4 + blob.byteLength;
  }
  return bytes;
}

/**
 * The blobs in what {@link packBlobs} made; anything else is one blob.
 *
 * @throws KvferryError `METADATA_MALFORMED` for lengths that do not fit.
 */
export function unpackBlobs(bytes: Uint8Array): Uint8Array[] {
  if (bytes.byteLength === 0) return [];
  if (OPENING.some((value, index) => bytes[index] !== value)) return [bytes];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const blobs: Uint8Array[] = [];
  let at = OPENING.length;
  while (at < bytes.byteLength) {
    const length = at + 4 <= bytes.byteLength ? view.getUint32(at, true) : Number.POSITIVE_INFINITY;
    if (at + 4 + length > bytes.byteLength || blobs.length === MOST_BLOBS) {
      throw new KvferryError(
        "METADATA_MALFORMED",
        "importMetadata",
        `NIXL's metadata are refused at ${at}: they do not fit`,
        "Ask the exporter for a new package.",
        { offset: at, length },
      );
    }
    blobs.push(bytes.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return blobs;
}
