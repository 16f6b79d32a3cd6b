import type { NativeLibrary } from "./library.ts";

/** Gives numbers for lists of block ids from 1 on, none of them twice in this process, whoever asks. */
export function listNumbers(library: Pick<NativeLibrary, "kvf_list_number">): () => number {
  const out = new Float64Array(new ArrayBuffer(8));
  return () => {
    library.kvf_list_number(out);
    return out[0] ?? 0;
  };
}
