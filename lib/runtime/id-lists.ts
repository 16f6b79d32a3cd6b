import type { BlockSelection } from "../core/request.ts";
import type { PairScan } from "../core/blocks.ts";
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
  /** Buffers that nobody uses, by the power of two of their length. */
  readonly #free: Map<number, Uint32Array<ArrayBuffer>[]> = new Map();
  readonly #lent: WeakMap<object, Held> = new WeakMap();
  /** The last ones that were copied, in a ring: whatever has the same ids is them. */
  readonly #last: (Held | undefined)[] = Array.from({ length: KEPT_LISTS });
  #turn = 0;

  /** @param nextNumber - Gives numbers from 1 on, none of them twice in this process. */
  constructor(nextNumber: () => number) {
    this.#nextNumber = nextNumber;
  }

  /** A list of ids as the engine keeps it, like `copyBlocks`; the caller may change its own afterwards. */
  copy(blocks: BlockSelection): BlockSelection {
    if (!(blocks instanceof Uint32Array) || blocks.length < SHORT || blocks.length > LONG)
      return copyBlocks(blocks);
    const held = this.#known(blocks) ?? this.#hold(blocks);
    held.borrowers++;
    // A list of its own for every borrower: each gives back what it borrowed, once.
    const list = held.buffer.subarray(0, held.length);
    this.#lent.set(list, held);
    return list;
  }

  /** Whether the list lies in memory that may be used again. */
  has(blocks: BlockSelection): boolean {
    return this.#lent.has(blocks);
  }

  /** The number of a list that was lent: lists of one number hold the same ids. 0 for all others. */
  numberOf(blocks: Uint32Array): number {
    return this.#lent.get(blocks)?.number ?? 0;
  }

  /** The transfer is done, and nobody looks at the list any more. Lists that are never given back are simply dropped. */
  giveBack(blocks: BlockSelection): void {
    const held = this.#lent.get(blocks);
    if (held === undefined) return;
    this.#lent.delete(blocks);
    held.borrowers--;
    this.#freeUnused(held);
  }

  /** The scan, which is not asked twice about lists of the same numbers and limits. */
  remembering(scan: PairScan): PairScan {
    const answers: Answer[] = [];
    let turn = 0;
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
          return answer.continued;
      const continued = scan(source, destination, sourceLimit, destinationLimit);
      answers[turn] = { from, to, sourceLimit, destinationLimit, continued };
      turn = (turn + 1) % KEPT_LISTS;
      return continued;
    };
  }

  #known(blocks: Uint32Array): Held | undefined {
    let bytes: Uint8Array | undefined;
    for (const held of this.#last) {
      if (held === undefined || held.length !== blocks.length) continue;
      // Most lists differ at once: these need no comparison of all.
      if (held.buffer[0] !== blocks[0] || held.buffer[held.length - 1] !== blocks[held.length - 1]) continue;
      bytes ??= new Uint8Array(blocks.buffer, blocks.byteOffset, blocks.byteLength);
      if (Buffer.compare(held.bytes, bytes) === 0) return held;
    }
    return undefined;
  }

  #hold(blocks: Uint32Array): Held {
    const { length } = blocks;
    const buffer = this.#free.get(orderOf(length))?.pop() ?? new Uint32Array(2 ** orderOf(length));
    buffer.set(blocks);
    const bytes = new Uint8Array(buffer.buffer, 0, blocks.byteLength);
    const held: Held = { buffer, bytes, length, number: this.#nextNumber(), borrowers: 0, last: true };
    const before = this.#last[this.#turn];
    this.#last[this.#turn] = held;
    this.#turn = (this.#turn + 1) % KEPT_LISTS;
    if (before !== undefined) {
      before.last = false;
      this.#freeUnused(before);
    }
    return held;
  }

  #freeUnused({ buffer, borrowers, last }: Held): void {
    if (borrowers > 0 || last) return;
    const order = orderOf(buffer.length);
    const free = this.#free.get(order) ?? [];
    if (free.length < KEPT_BUFFERS) free.push(buffer);
    this.#free.set(order, free);
  }
}

/** A list that was copied. Its ids stay as they are as long as somebody borrows it, or it is among the last ones. */
interface Held {
  readonly buffer: Uint32Array<ArrayBuffer>;
  /** The bytes of its ids. */
  readonly bytes: Uint8Array;
  readonly length: number;
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
  readonly continued: number | undefined;
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
