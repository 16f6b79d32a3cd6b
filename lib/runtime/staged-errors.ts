import { KvferryError, type ErrorDetails } from "../core/errors.ts";

/** An error of the library as it is; anything else wrapped into one. */
export function asKvferryError(error: unknown): KvferryError {
  if (error instanceof KvferryError) return error;
  return new KvferryError("IO", "transfer", String(error), "See the cause.", {}, error);
}

/** A staged copy was stopped before its end. */
export function stopped(details: ErrorDetails = {}): KvferryError {
  return new KvferryError(
    "TIMEOUT",
    "transfer",
    "the copy was stopped",
    "The transfer was cancelled; start it again if it is still wanted.",
    details,
  );
}
