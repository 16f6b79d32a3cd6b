import { KvferryError, type ErrorDetails } from "../core/errors.ts";
import { textOf } from "./c-string.ts";
import type { NativeLibrary } from "./library.ts";
import { statusWord } from "./status.ts";
import { KVF_E_CANCELLED } from "./symbols.ts";

/** The error for a call that returned a negative status on this thread. */
export function nativeError(
  library: NativeLibrary,
  status: number,
  operation: string,
  what: string,
  details: ErrorDetails = {},
): KvferryError {
  const text = new Uint8Array(new ArrayBuffer(1024));
  library.kvf_last_error(text, text.byteLength);
  const reason = textOf(text);
  return new KvferryError(
    statusWord(status),
    operation,
    reason === "" ? what : `${what}: ${reason}`,
    remedyOf(status),
    { ...details, status },
  );
}

/** What may be done about a negative status of the native library. */
export function remedyOf(status: number): string {
  return status === KVF_E_CANCELLED
    ? "The job was cancelled; start it again if it is still wanted."
    : "See the message for what the system reported; `kvferry doctor` shows what this machine offers.";
}

/** Every job slot of a context is taken. */
export function slotsTaken(operation: string, slots: number): KvferryError {
  return new KvferryError(
    "IN_USE",
    operation,
    `all ${slots} job slots are taken`,
    "Await some transfers before starting more, or open the transport with a larger maxInFlight.",
    { slots },
  );
}

/** The context is closed, and with it the transport that it is for. */
export function closedError(operation: string): KvferryError {
  return new KvferryError("CLOSED", operation, "the transport is closed", "Open a new Transport.");
}
