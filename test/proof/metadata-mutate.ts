// Ways to damage a package.
import { encode } from "@msgpack/msgpack";
import { authenticationCode } from "../../lib/runtime/authentication.ts";
import { looksLikeEnvelope, readEnvelope, writeEnvelope } from "../../lib/wire/envelope.ts";
import type { Random } from "../random.ts";

/** A damaged package and how it was damaged. */
export interface Mutant {
  readonly how: string;
  readonly bytes: Uint8Array;
}

const WRONG_KEY = { keyId: "default", key: new Uint8Array(32).fill(0xee) };

/** Damages one of two packages, or joins them. */
export function mutate(random: Random, bytes: Uint8Array, other: Uint8Array): Mutant {
  const how = random.pick(WAYS);
  const copy = bytes.slice();
  switch (how) {
    case "bits":
      for (let count = random.between(1, 4); count > 0; count--) {
        const at = random.between(0, copy.length - 1);
        copy[at] = (copy[at] ?? 0) ^ (1 << random.between(0, 7));
      }
      return { how, bytes: copy };
    case "byte":
      copy[random.between(0, copy.length - 1)] = random.pick([
        0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
      ]);
      return { how, bytes: copy };
    case "length": {
      const width = random.pick([2, 4, 8]);
      const at = random.between(0, Math.max(0, copy.length - width));
      const value = random.pick([
        0n,
        1n,
        0xffn,
        0xffffn,
        0x7fffffffn,
        0xffffffffn,
        1n << 53n,
        (1n << 64n) - 1n,
      ]);
      for (let index = 0; index < width && at + index < copy.length; index++)
        copy[at + index] = Number((value >> BigInt(8 * index)) & 0xffn);
      return { how, bytes: copy };
    }
    case "cut":
      return { how, bytes: copy.subarray(0, random.between(0, copy.length - 1)) };
    case "removed": {
      const at = random.between(0, copy.length - 1);
      const end = Math.min(copy.length, at + random.between(1, 16));
      return { how, bytes: joined(copy.subarray(0, at), copy.subarray(end)) };
    }
    case "doubled": {
      const at = random.between(0, copy.length - 1);
      const part = copy.subarray(at, at + random.between(1, 64));
      return { how, bytes: joined(copy.subarray(0, at), part, copy.subarray(at)) };
    }
    case "spliced":
      return {
        how,
        bytes: joined(
          copy.subarray(0, random.between(0, copy.length)),
          other.subarray(random.between(0, other.length)),
        ),
      };
    case "nested": {
      const depth = random.between(2, 2_000);
      const layers = new Uint8Array(depth).fill(random.pick([0x91, 0x81, 0xdd]));
      const at = random.between(0, copy.length - 1);
      return { how, bytes: joined(copy.subarray(0, at), layers, copy.subarray(at)) };
    }
    case "signed anew":
      return { how, bytes: signedAnew(random, copy, other) };
  }
}

type Way = "bits" | "byte" | "length" | "cut" | "removed" | "doubled" | "spliced" | "nested" | "signed anew";

const WAYS: readonly Way[] = [
  "bits",
  "byte",
  "length",
  "cut",
  "removed",
  "doubled",
  "spliced",
  "nested",
  "signed anew",
];

/** A damaged body whose checksum is right, signed by a key that nobody has. */
function signedAnew(random: Random, bytes: Uint8Array, other: Uint8Array): Uint8Array {
  const source = looksLikeEnvelope(bytes) ? bytes : other;
  let body: Uint8Array;
  try {
    body = readEnvelope(source).body.slice();
  } catch {
    body = encode({ worker: 1n, agent: "x" }, { useBigInt64: true });
  }
  const at = random.between(0, Math.max(0, body.length - 1));
  body[at] = (body[at] ?? 0) ^ (1 << random.between(0, 7));
  return writeEnvelope(body, {
    keyId: WRONG_KEY.keyId,
    mac: (keyId, signed) => authenticationCode([WRONG_KEY], keyId, signed),
  });
}

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
