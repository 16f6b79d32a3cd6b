import { KvferryError } from "./errors.ts";

/** The largest unsigned 64-bit integer. */
export const U64_MAX: bigint = (1n << 64n) - 1n;

/**
 * Checks that a value is an integer between two bounds and returns it.
 *
 * @throws KvferryError `INVALID_CONFIG` that names the field, the bounds and what was found.
 */
export function checkedInteger(
  value: unknown,
  field: string,
  minimum: number,
  maximum: number,
  operation: string,
): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < minimum || value > maximum)
    throw outside(value, field, minimum, maximum, operation);
  return value;
}

/**
 * Multiplies sizes and refuses a product that a number cannot hold exactly.
 *
 * @returns The product, below 2^53.
 * @throws KvferryError `INVALID_CONFIG` when the product passes 2^53 - 1.
 */
export function checkedProduct(operation: string, what: string, ...factors: readonly number[]): number {
  let product = 1;
  for (let index = 0; index < factors.length; index++) product *= factors[index] as number;
  if (!Number.isSafeInteger(product)) throw tooLarge(operation, what, factors);
  return product;
}

/**
 * Adds sizes or addresses and refuses a sum that a number cannot hold exactly.
 *
 * @throws KvferryError `INVALID_CONFIG` when the sum passes 2^53 - 1.
 */
export function checkedSum(operation: string, what: string, left: number, right: number): number {
  const sum = left + right;
  if (!Number.isSafeInteger(sum)) {
    throw new KvferryError(
      "INVALID_CONFIG",
      operation,
      `${what} passes 2^53: ${left} + ${right}`,
      "Check the addresses and sizes that were given.",
      { what, left, right },
    );
  }
  return sum;
}

/** The greatest common divisor of two positive integers. */
export function greatestCommonDivisor(left: number, right: number): number {
  let a = left;
  let b = right;
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}

// Refusals have functions of their own: a first package is read before the engine has compiled anything, and what is
// right need not compile them.

function outside(
  value: unknown,
  field: string,
  minimum: number,
  maximum: number,
  operation: string,
): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    `${field} must be an integer from ${minimum} to ${maximum}, found ${describe(value)}`,
    `Give ${field} as a whole number in that range.`,
    { field, minimum, maximum, found: typeof value === "bigint" ? value.toString() : value },
  );
}

function tooLarge(operation: string, what: string, factors: readonly number[]): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    `${what} passes 2^53 bytes: ${factors.join(" x ")}`,
    "Use fewer blocks, layers or heads for one layout, or register several layouts.",
    { what, factors },
  );
}

function describe(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value) : `${String(value)} (${typeof value})`;
}
