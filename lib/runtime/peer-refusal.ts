import { KvferryError, type ErrorWord } from "../core/errors.ts";

/**
 * The error for what a peer refused in words.
 *
 * @param known - Codes that a peer may give here; any other one becomes `IO`.
 */
export function peerRefusal(known: ReadonlySet<string>, code: string, message: string): KvferryError {
  const word = (known.has(code) ? code : "IO") as ErrorWord; // one of the set
  return new KvferryError(
    word,
    "transfer",
    `the peer says: ${message}`,
    "See the message for what the peer reported.",
    { code },
  );
}
