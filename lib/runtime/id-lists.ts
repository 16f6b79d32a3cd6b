import type { BlockSelection } from "../core/request.ts";
import type { BlockRuns, PairScan } from "../core/blocks.ts";
import { copyBlocks } from "./submit.ts";

/**
 * Long lists of block ids as the engine keeps them.
 *
 * They are copied into memory that is used again: touching fresh memory for every transfer costs several times the copy.
 * A list that holds the same ids as one of the last ones is not copied but lent once more, under the same number: engines
 * move layer after layer, or keys and values, by the same ids, and what was found out about lists of a number need not be
 * found out anew.
 */
export class IdLists {
  readonly #nextNumber: () => number;
  readonly #same: SameIds;
  /** Buffers that nobody uses, by the power of two of their length. */
  readonly #free: Map<number, Uint32Array<ArrayBuffer>[]> = new Map();
  readonly #held: WeakMap<object, Held> = new WeakMap();
  /** The last ones that were copied, the newest first: whatever has the same ids is them. */
  readonly #last: Held[] = [];

  /**
   * @param nextNumber - Gives numbers from 1 on, none of them twice in this process.
   * @param same - Whether two lists of one length hold the same ids.
   */
  constructor(nextNumber: () => number, same: SameIds) {
    this.#nextNumber = nextNumber;
    this.#same = same;
  }

  /** A list of ids as the engine keeps it, like `copyBlocks`; the caller may change its own afterwards. */
  copy(blocks: BlockSelection): BlockSelection {
    if (!(blocks instanceof Uint32Array) || blocks.length < SHORT || blocks.length > LONG)
      return copyBlocks(blocks);
    const held = this.#known(blocks) ?? this.#hold(blocks);
    held.borrowers++;
    return held.list;
  }

  /** Whether the list lies in memory that may be used again. */
  has(blocks: BlockSelection): boolean {
    return this.#held.has(blocks);
  }

  /** The number of a list that is lent, or was and has its ids still: lists of one number hold the same ids. 0 for all others. */
  numberOf(blocks: Uint32Array): number {
    return this.#held.get(blocks)?.number ?? 0;
  }

  /**
   * The transfer is done, and nobody looks at the list any more for its sake: called once for each time that it was lent.
   * Lists that are never given back are simply dropped.
   */
  giveBack(blocks: BlockSelection): void {
    const held = this.#held.get(blocks);
    if (held === undefined || held.borrowers === 0) return;
    held.borrowers--;
    this.#freeUnused(held);
  }

  /** The scan, which is not asked twice about lists of the same numbers and limits. */
  remembering(scan: PairScan): PairScan {
    const answers: Answer[] = [];
    return (source, destination, sourceLimit, destinationLimit) => {
      const [from, to] = [this.numberOf(source), this.numberOf(destination)];
      if (from === 0 || to === 0) return scan(source, destination, sourceLimit, destinationLimit);
      for (const answer of answers)
        if (
          answer.from === from &&
          answer.to === to &&
          answer.sourceLimit === sourceLimit &&
          answer.destinationLimit === destinationLimit
        )
          return answer.runs;
      const runs = scan(source, destination, sourceLimit, destinationLimit);
      answers.unshift({ from, to, sourceLimit, destinationLimit, runs });
      if (answers.length > KEPT_LISTS) answers.pop();
      return runs;
    };
  }

  #known(blocks: Uint32Array): Held | undefined {
    for (const held of this.#last) {
      if (held.list.length !== blocks.length) continue;
      // Most lists differ at once: these need no comparison of all.
      if (held.list[0] !== blocks[0] || held.list.at(-1) !== blocks.at(-1)) continue;
      if (this.#same(held.list, blocks)) return held;
    }
    return undefined;
  }

  #hold(blocks: Uint32Array): Held {
    const { length } = blocks;
    const buffer = this.#free.get(orderOf(length))?.pop() ?? new Uint32Array(2 ** orderOf(length));
    buffer.set(blocks);
    const list = buffer.subarray(0, length);
    const held: Held = { buffer, list, number: this.#nextNumber(), borrowers: 0, last: true };
    this.#held.set(list, held);
    this.#last.unshift(held);
    const oldest = this.#last.length > KEPT_LISTS ? this.#last.pop() : undefined;
    if (oldest !== undefined) {
      oldest.last = false;
      this.#freeUnused(oldest);
    }
    return held;
  }

  #freeUnused({ buffer, list, borrowers, last }: Held): void {
    if (borrowers > 0 || last) return;
    this.#held.delete(list);
    const order = orderOf(buffer.length);
    const free = this.#free.get(order) ?? [];
    if (free.length < KEPT_BUFFERS) free.push(buffer);
    this.#free.set(order, free);
  }
}

/** Whether two lists of one length hold the same ids. */
export type SameIds = (left: Uint32Array, right: Uint32Array) => boolean;

/** A list that was copied. Its ids stay as they are as long as somebody borrows it, or it is among the last ones. */
interface Held {
  readonly buffer: Uint32Array<ArrayBuffer>;
  /** Its ids, the beginning of the buffer: what is lent. */
  readonly list: Uint32Array<ArrayBuffer>;
  readonly number: number;
  borrowers: number;
  last: boolean;
}

/** What a scan said. */
interface Answer {
  readonly from: number;
  readonly to: number;
  readonly sourceLimit: number;
  readonly destinationLimit: number;
  readonly runs: BlockRuns | undefined;
}

/** Shorter lists are copied as quickly anew. */
const SHORT = 512;
/** Longer ones are not kept: 4 MiB. */
const LONG = 2 ** 20;
/** Lists that are compared with what comes: those of two transfers. More would be out of the caches when they come again. */
const KEPT_LISTS = 4;
/** Buffers of each size that are kept. */
const KEPT_BUFFERS = 8;

function orderOf(length: number): number {
  return 32 - Math.clz32(length - 1);
}
