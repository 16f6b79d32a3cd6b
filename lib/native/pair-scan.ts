import type { PairScan } from "../core/blocks.ts";
import type { NativeLibrary } from "./library.ts";

/** Ids above this are looked at without a table, elsewhere. */
const MOST_ENTRIES = 2 ** 24;
const FIRST_ENTRIES = 2 ** 12;

/** The look at pairs of block ids that the library makes, with a table of its own that is used again. */
export function pairScan(library: Pick<NativeLibrary, "kvf_pairs_scan">): PairScan {
  let marks = new Uint32Array(new ArrayBuffer(4 * FIRST_ENTRIES));
  const out = new Float64Array(new ArrayBuffer(8));
  return (source, destination, sourceLimit, destinationLimit) => {
    const entries = destinationLimit + 2;
    if (entries > MOST_ENTRIES || sourceLimit > MOST_ENTRIES) return undefined;
    if (entries > marks.length)
      marks = new Uint32Array(
        new ArrayBuffer(4 * Math.min(MOST_ENTRIES, Math.max(entries, 2 * marks.length))),
      );
    const status = library.kvf_pairs_scan(
      source,
      destination,
      source.length,
      sourceLimit,
      destinationLimit,
      marks,
      marks.length,
      out,
    );
    const [continued = -1] = out;
    return status === 0 && continued >= 0 ? continued : undefined;
  };
}
