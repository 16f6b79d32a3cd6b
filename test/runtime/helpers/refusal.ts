import { expect } from "bun:test";
import { isKvferryError, type ErrorWord, type KvferryError } from "../../../lib/core/errors.ts";

/** Awaits a failure and checks what every refusal must have: its code, an operation, a remedy sentence, plain details. */
export async function refused(
  word: ErrorWord,
  work: PromiseLike<unknown> | (() => unknown),
): Promise<KvferryError> {
  let value: unknown;
  try {
    value = await (typeof work === "function" ? work() : work);
  } catch (error) {
    if (!isKvferryError(error)) throw error;
    expect(error.code, error.message).toBe(`ERR_KVF_${word}`);
    expect(error.operation).not.toBe("");
    expect(error.remedy, error.message).toMatch(/\S.*[.!)]$/);
    expect(() => structuredClone(error.details)).not.toThrow();
    expect(error.message).not.toContain("[object");
    return error;
  }
  throw new Error(`expected a refusal with ${word}, got ${Bun.inspect(value)}`);
}
