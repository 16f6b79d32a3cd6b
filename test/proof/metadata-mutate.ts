// Ways to damage a package.
import { decode, encode } from "@msgpack/msgpack";
import { authenticationCode } from "../../lib/runtime/authentication.ts";
import { looksLikeEnvelope, readEnvelope, writeEnvelope } from "../../lib/wire/envelope.ts";
import { decodeDynamoPackage, encodeDynamoPackage } from "../../lib/wire/index.ts";
import type { DynamoFormat, DynamoPackage } from "../../lib/wire/index.ts";
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
    case "field":
      return {
        how,
        bytes: looksLikeEnvelope(copy) ? otherBody(random, copy, other) : otherFields(random, copy, other),
      };
  }
}

type Way =
  "bits" | "byte" | "length" | "cut" | "removed" | "doubled" | "spliced" | "nested" | "signed anew" | "field";

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
  "field",
];

/** Numbers that sizes, counts and ids should not be. */
const ODD: readonly bigint[] = [
  0n,
  1n,
  2n,
  250n,
  251n,
  65_535n,
  65_536n,
  0xffff_ffffn,
  1n << 32n,
  (1n << 53n) - 1n,
  1n << 53n,
  1n << 63n,
  (1n << 64n) - 1n,
];

/** A kvferry package whose body says something else, with a right checksum: what a liar without the key would send. */
function otherBody(random: Random, bytes: Uint8Array, other: Uint8Array): Uint8Array {
  const bodyOf = (of: Uint8Array): Record<string, unknown> =>
    decode(readEnvelope(of).body, { useBigInt64: true }) as Record<string, unknown>;
  const body = bodyOf(bytes);
  const fields = Object.keys(body);
  for (let count = random.between(1, 3); count > 0; count--) {
    const field = random.pick(fields);
    const value = body[field];
    if (random.chance(0.2) && looksLikeEnvelope(other)) body[field] = bodyOf(other)[field];
    else if (random.chance(0.05)) delete body[field];
    else if (value instanceof Uint8Array) body[field] = otherColumn(random, value);
    else if (typeof value === "string")
      body[field] = value.slice(random.between(0, value.length)) + "x".repeat(random.between(0, 300));
    else body[field] = random.chance(0.8) ? random.pick(ODD) : random.pick([null, -1, 0.5, "x", [], {}]);
  }
  return writeEnvelope(encode(body, { useBigInt64: true }), null);
}

function otherColumn(random: Random, column: Uint8Array): Uint8Array {
  const copy = column.slice();
  switch (random.between(0, 3)) {
    case 0:
      return copy.subarray(0, random.between(0, copy.length));
    case 1:
      return joined(copy, copy.subarray(random.between(0, copy.length)));
    default: {
      // One number of the column: 32 bits, or a float of 64.
      const data = new DataView(copy.buffer);
      if (random.chance(0.5) && copy.length >= 8)
        data.setFloat64(
          8 * random.between(0, (copy.length >> 3) - 1),
          random.chance(0.8)
            ? Number(random.pick(ODD))
            : random.pick([-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]),
          true,
        );
      else if (copy.length >= 4)
        data.setUint32(
          4 * random.between(0, (copy.length >> 2) - 1),
          Number(random.pick(ODD) & 0xffff_ffffn),
          true,
        );
      return copy;
    }
  }
}

/** A package of Dynamo's that is well formed and says something else. */
function otherFields(random: Random, bytes: Uint8Array, other: Uint8Array): Uint8Array {
  const read = (of: Uint8Array): readonly [DynamoPackage, DynamoFormat] | null => {
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const) {
      try {
        return [decodeDynamoPackage(of, format), format];
      } catch {
        // Of the other form.
      }
    }
    return null;
  };
  const found = read(bytes);
  if (found === null) return bytes;
  const [value, format] = found;
  const theirs = looksLikeEnvelope(other) ? null : read(other);
  const layouts = value.layouts.map((layout) => structuredClone(layout));
  // Layouts of another worker, doubled, lost, in another order.
  if (theirs !== null && theirs[1] === format && random.chance(0.3)) layouts.push(...theirs[0].layouts);
  if (layouts.length > 0 && random.chance(0.2)) layouts.splice(random.between(0, layouts.length - 1), 1);
  if (layouts.length > 0 && random.chance(0.2)) layouts.push(random.pick(layouts));
  if (layouts.length > 0 && random.chance(0.7)) changeNumber(random, random.pick(layouts));
  return encodeDynamoPackage(
    {
      worker_address: random.chance(0.1) && theirs !== null ? theirs[0].worker_address : value.worker_address,
      nixl_metadata: random.chance(0.1) && theirs !== null ? theirs[0].nixl_metadata : value.nixl_metadata,
      layouts,
    },
    format,
  );
}

/** Puts an odd number, or one that is off by one, in the place of one of an object's 64-bit numbers. */
function changeNumber(random: Random, layout: object): void {
  const places: (readonly [Record<string, unknown>, string])[] = [];
  const look = (value: object): void => {
    for (const [key, inner] of Object.entries(value)) {
      if (typeof inner === "bigint") places.push([value as Record<string, unknown>, key]);
      else if (typeof inner === "object" && inner !== null) look(inner);
    }
  };
  look(layout);
  const [holder, key] = random.pick(places);
  const old = holder[key] as bigint; // it was one above
  const value = random.chance(0.5) ? random.pick(ODD) : old + (random.chance(0.5) ? 1n : -1n);
  holder[key] = BigInt.asUintN(64, value) | ((old >> 64n) << 64n);
}

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
