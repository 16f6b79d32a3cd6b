import type { SecretKey } from "./options.ts";

/** HMAC-SHA-256 over bytes by the key of that id, or null when the key is not known. 32 bytes. */
export function authenticationCode(
  secrets: readonly SecretKey[],
  keyId: string,
  bytes: Uint8Array,
): Uint8Array<ArrayBuffer> | null {
  const secret = secrets.find((candidate) => candidate.keyId === keyId);
  if (secret === undefined) return null;
  return Uint8Array.from(new Bun.CryptoHasher("sha256", secret.key).update(bytes).digest());
}

/** {@link authenticationCode} with the keys bound. */
export function macOf(
  secrets: readonly SecretKey[],
): (keyId: string, bytes: Uint8Array) => Uint8Array | null {
  return (keyId, bytes) => authenticationCode(secrets, keyId, bytes);
}

/** Compares two codes in time that does not depend on where they differ. */
export function codesEqual(left: Uint8Array, right: Uint8Array): boolean {
  return left.byteLength === right.byteLength && crypto.timingSafeEqual(left, right);
}
