import type { DTypeName } from "./config.ts";

/** Bits of one element of each named type. `fp8` stands for both e4m3 and e5m2: only the width matters to a copy. */
export const DTYPE_BITS: Readonly<Record<DTypeName, number>> = Object.freeze({
  f16: 16,
  bf16: 16,
  f32: 32,
  f64: 64,
  fp8: 8,
  int8: 8,
  fp4: 4,
  int4: 4,
  fp6: 6,
  u8: 8,
  i32: 32,
  i64: 64,
});

/** Bits of an element when a config says nothing about its type: two bytes, as Dynamo's. */
export const DEFAULT_ELEMENT_BITS = 16;

/** Tells whether a value is the name of an element type. */
export function isDTypeName(value: unknown): value is DTypeName {
  return typeof value === "string" && Object.hasOwn(DTYPE_BITS, value);
}

/**
 * Bits of one element of a named type.
 *
 * @returns 4 to 64.
 */
export function dtypeBits(name: DTypeName): number {
  return DTYPE_BITS[name];
}
