import { type BlockRuns, type PairScan, runsApart } from "../core/blocks.ts";
import type { NativeLibrary } from "./library.ts";

/** Ids above this are looked at without a table, elsewhere. */
const MOST_ENTRIES = 2 ** 24;
const FIRST_ENTRIES = 2 ** 12;

type PairCalls = Pick<NativeLibrary, "kvf_pairs_scan" | "kvf_pairs_runs">;

/** The look at pairs of block ids that the library makes. */
export function pairScan(library: PairCalls): PairScan {
  const table = new PairTable(library);
  return (source, destination, sourceLimit, destinationLimit) => {
    const continued = table.continued(source, destination, sourceLimit, destinationLimit);
    if (continued === undefined) return undefined;
    return runsApart(source.length, continued) ?? table.runs(source, destination, destinationLimit);
  };
}

/** Looks by a table of destinations, and memory for what is found, that are used again. */
export class PairTable {
  readonly #library: PairCalls;
  readonly #out: Float64Array = new Float64Array(new ArrayBuffer(16));
  #marks: Uint32Array = numbers(FIRST_ENTRIES);
  #heads: Uint32Array = numbers(FIRST_ENTRIES);
  #lengths: Uint32Array = numbers(FIRST_ENTRIES);

  constructor(library: PairCalls) {
    this.#library = library;
  }

  /**
   * How many pairs continue another one by one on both sides, or somewhat more.
   *
   * @returns Undefined where an id is not below its limit, where a destination repeats, or where the table would be too large.
   */
  continued(
    source: Uint32Array,
    destination: Uint32Array,
    sourceLimit: number,
    destinationLimit: number,
  ): number | undefined {
    const entries = destinationLimit + 2;
    if (entries > MOST_ENTRIES || sourceLimit > MOST_ENTRIES) return undefined;
    if (entries > this.#marks.length)
      this.#marks = numbers(Math.min(MOST_ENTRIES, Math.max(entries, 2 * this.#marks.length)));
    const status = this.#library.kvf_pairs_scan(
      source,
      destination,
      source.length,
      sourceLimit,
      destinationLimit,
      this.#marks,
      this.#marks.length,
      this.#out,
    );
    const [continued = -1] = this.#out;
    return status === 0 && continued >= 0 ? continued : undefined;
  }

  /** The runs of pairs that were looked at right before, with nothing wrong. */
  runs(source: Uint32Array, destination: Uint32Array, destinationLimit: number): BlockRuns | undefined {
    const total = source.length;
    if (total > this.#heads.length) {
      this.#heads = numbers(2 * total);
      this.#lengths = numbers(2 * total);
    }
    const status = this.#library.kvf_pairs_runs(
      source,
      destination,
      total,
      destinationLimit,
      this.#marks,
      this.#marks.length,
      this.#heads,
      this.#lengths,
      this.#out,
    );
    if (status !== 0) return undefined;
    const [runs = 0, uniform = 0] = this.#out;
    return (
      runsApart(total, total - runs) ?? {
        total,
        runs,
        head: this.#heads.slice(0, runs),
        length: this.#lengths.slice(0, runs),
        uniform,
      }
    );
  }
}

function numbers(count: number): Uint32Array {
  return new Uint32Array(new ArrayBuffer(4 * count));
}
