import { KvferryError, type ErrorDetails } from "../core/errors.ts";

/** Environment variable with the path of a CUDA driver library to use instead of `libcuda.so.1`. */
export const CUDA_LIBRARY_VARIABLE = "KVFERRY_CUDA_LIBRARY" as const;

/** The error for CUDA that is not there, from its reason. */
export function noCuda(reason: unknown, details: ErrorDetails = {}): KvferryError {
  const words = reason instanceof Error ? reason.message : String(reason);
  return new KvferryError(
    "NO_CUDA",
    "open",
    words,
    "Run on a machine with an NVIDIA driver of 525 or later and a GPU; `kvferry doctor` shows what this one has.",
    details,
    reason instanceof Error ? reason : undefined,
  );
}
