/** Bytes of a zero-terminated string for a call. Pass the returned view itself; do not keep its address. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  const encoded = new TextEncoder().encode(text);
  const bytes = new Uint8Array(new ArrayBuffer(encoded.byteLength + 1));
  bytes.set(encoded);
  return bytes;
}

/** The text of a zero-terminated string that a call has written. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.byteLength : end));
}
