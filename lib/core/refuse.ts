import { type ErrorDetails, type ErrorWord, KvferryError } from "./errors.ts";

/** The operation that planning errors name. */
export const PLAN_OPERATION = "transfer";

/** At most this many ids stand in the details of an error. */
export const IDS_IN_DETAILS = 16;

/**
 * Makes the error that refuses a transfer before its first byte moves.
 *
 * @returns A KvferryError whose `settlement` is `never-started`.
 */
export function refusal(
  word: ErrorWord,
  message: string,
  remedy: string,
  details: ErrorDetails,
): KvferryError {
  const error = new KvferryError(word, PLAN_OPERATION, message, remedy, details);
  error.settlement = "never-started";
  return error;
}
