import { isKvferryError } from "../../lib/core/errors.ts";
import type { ErrorWord, KvferryError } from "../../lib/core/errors.ts";

/** Runs something that must throw a KvferryError of a code, and gives the error back. */
export function refusalOf(word: ErrorWord, run: () => unknown): KvferryError {
  let value: unknown;
  try {
    value = run();
  } catch (error) {
    if (!isKvferryError(error, word)) throw error;
    if (error.remedy === "" || error.operation === "")
      throw new Error("an error without remedy or operation", { cause: error });
    return error;
  }
  throw new Error(`expected ${word}, got ${Bun.inspect(value)}`);
}

/** Runs something that must be refused as malformed, with its place; gives the reason and the place. */
export function malformedAt(
  format: string,
  length: number,
  run: () => unknown,
): { readonly offset: number; readonly reason: string; readonly details: KvferryError["details"] } {
  const { details, message } = refusalOf("METADATA_MALFORMED", run);
  const { offset, reason } = details;
  if (details["format"] !== format) throw new Error(`expected a refusal of ${format}: ${message}`);
  if (typeof offset !== "number" || !Number.isInteger(offset) || offset < 0 || offset > length)
    throw new Error(`a refusal without a place: ${message}`);
  if (typeof reason !== "string" || reason === "") throw new Error(`a refusal without a reason: ${message}`);
  return { offset, reason, details };
}
