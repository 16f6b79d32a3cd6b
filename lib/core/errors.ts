/** What went wrong, as a stable word: every code is `ERR_KVF_` and one of these. */
export const ERROR_CODES = [
  "INVALID_CONFIG",
  "TOO_MANY_LAYOUTS",
  "OUT_OF_MEMORY",
  "BLOCK_OUT_OF_RANGE",
  "DUPLICATE_BLOCK",
  "OVERLAP",
  "LENGTH_MISMATCH",
  "LAYER_RANGE",
  "INCOMPATIBLE_LAYOUTS",
  "PARTIAL",
  "NO_ROUTE",
  "UNKNOWN_HANDLE",
  "STALE_HANDLE",
  "IN_USE",
  "ACCESS",
  "QUARANTINED",
  "METADATA_MALFORMED",
  "METADATA_UNAUTHENTICATED",
  "METADATA_EXPIRED",
  "DUPLICATE_WORKER",
  "AGENT_MISMATCH",
  "NO_NIXL",
  "NO_CUDA",
  "NIXL",
  "CUDA",
  "IO",
  "CHECKSUM",
  "TIMEOUT",
  "PEER_LOST",
  "CLOSED",
  "UNSUPPORTED_PLATFORM",
] as const;

/** One of {@link ERROR_CODES}. */
export type ErrorWord = (typeof ERROR_CODES)[number];

/** The `code` of a {@link KvferryError}. */
export type ErrorCode = `ERR_KVF_${ErrorWord}`;

/** Plain facts about a failure: ids, limits, which side, what was found. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/** How a transfer ended: all bytes arrived, nothing was touched, or nobody can tell yet. */
export type Settlement = "done" | "never-started" | "in-doubt";

/** The one error type of kvferry. */
export class KvferryError extends Error {
  override readonly name: string = "KvferryError";
  /** Stable code, e.g. `ERR_KVF_BLOCK_OUT_OF_RANGE`. */
  readonly code: ErrorCode;
  /** The operation that was refused or failed, e.g. `transfer`. */
  readonly operation: string;
  /** Plain data: ids, limits, side, what was found. */
  readonly details: ErrorDetails;
  /** A sentence that says what to do about it. */
  readonly remedy: string;
  /** Set on failures of transfers: what is known about the destination's bytes. */
  declare settlement?: Settlement;

  constructor(
    word: ErrorWord,
    operation: string,
    message: string,
    remedy: string,
    details: ErrorDetails = {},
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = `ERR_KVF_${word}`;
    this.operation = operation;
    this.details = details;
    this.remedy = remedy;
  }
}

/**
 * Tells whether a value is a {@link KvferryError}, and of the given code.
 *
 * @param value - Anything that was thrown.
 * @param word - The code's word without `ERR_KVF_`; any code when left out.
 */
export function isKvferryError(value: unknown, word?: ErrorWord): value is KvferryError {
  return value instanceof KvferryError && (word === undefined || value.code === `ERR_KVF_${word}`);
}

/**
 * An error of the library as it is; anything else, which only the system or a defect throws, as the cause of one.
 *
 * @param during - What failed, where the thrown error does not say it.
 */
export function asKvferryError(error: unknown, during?: string): KvferryError {
  if (error instanceof KvferryError) return error;
  const said = error instanceof Error ? error.message : String(error);
  const message = during === undefined ? said : `${during}: ${said}`;
  return new KvferryError("IO", "transfer", message, "See the cause.", {}, error);
}
