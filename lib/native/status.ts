import type { ErrorWord } from "../core/errors.ts";
import {
  KVF_E_BUSY,
  KVF_E_CANCELLED,
  KVF_E_CHECKSUM,
  KVF_E_CLOSED,
  KVF_E_CUDA,
  KVF_E_INVALID,
  KVF_E_IO,
  KVF_E_NIXL,
  KVF_E_NOMEM,
  KVF_E_PEER,
  KVF_E_SYSTEM,
  KVF_E_UNAVAILABLE,
} from "./symbols.ts";

const WORDS: ReadonlyMap<number, ErrorWord> = new Map([
  [KVF_E_INVALID, "INVALID_CONFIG"],
  [KVF_E_NOMEM, "OUT_OF_MEMORY"],
  [KVF_E_SYSTEM, "IO"],
  [KVF_E_UNAVAILABLE, "UNSUPPORTED_PLATFORM"],
  [KVF_E_NIXL, "NIXL"],
  [KVF_E_CUDA, "CUDA"],
  [KVF_E_IO, "IO"],
  [KVF_E_CANCELLED, "TIMEOUT"],
  [KVF_E_PEER, "PEER_LOST"],
  [KVF_E_BUSY, "IN_USE"],
  [KVF_E_CLOSED, "CLOSED"],
  [KVF_E_CHECKSUM, "CHECKSUM"],
]);

/** The error word for a negative status of the native library. */
export function statusWord(status: number): ErrorWord {
  return WORDS.get(status) ?? "IO";
}
