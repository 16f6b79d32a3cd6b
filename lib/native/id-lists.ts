import type { NativeLibrary } from "./library.ts";
import { KVF_OK } from "./symbols.ts";

/** Gives numbers for lists of block ids from 1 on, none of them twice in this process, whoever asks. */
export function listNumbers(library: Pick<NativeLibrary, "kvf_list_number">): () => number {
  const out = new Float64Array(new ArrayBuffer(8));
  return () => {
    library.kvf_list_number(out);
    return out[0] ?? 0;
  };
}

/** Tells whether two lists of one length hold the same block ids. */
export function idComparison(
  library: Pick<NativeLibrary, "kvf_ids_compare">,
): (left: Uint32Array, right: Uint32Array) => boolean {
  return (left, right) => library.kvf_ids_compare(left, right, left.length) === KVF_OK;
}
