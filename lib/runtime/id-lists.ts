import type { BlockSelection } from "../core/request.ts";
import { copyBlocks } from "./submit.ts";

/**
 * Copies long lists of block ids into memory that is used again: touching fresh memory for every transfer costs several
 * times the copy.
 */
export class IdLists {
  /** Buffers that nobody uses, by the power of two of their length. */
  readonly #free: Map<number, Uint32Array<ArrayBuffer>[]> = new Map();
  readonly #lent: WeakSet<object> = new WeakSet();

  /** A list of ids as the engine keeps it, like `copyBlocks`; the caller may change its own afterwards. */
  copy(blocks: BlockSelection): BlockSelection {
    if (!(blocks instanceof Uint32Array) || blocks.length < SHORT || blocks.length > LONG)
      return copyBlocks(blocks);
    const order = 32 - Math.clz32(blocks.length - 1);
    const buffer = this.#free.get(order)?.pop() ?? new Uint32Array(2 ** order);
    const list = buffer.subarray(0, blocks.length);
    list.set(blocks);
    this.#lent.add(list);
    return list;
  }

  /** Whether the list lies in memory that may be used again. */
  has(blocks: BlockSelection): boolean {
    return this.#lent.has(blocks);
  }

  /** The transfer is done, and nobody looks at the list any more. Lists that are never given back are simply dropped. */
  giveBack(blocks: BlockSelection): void {
    if (!(blocks instanceof Uint32Array) || !this.#lent.delete(blocks)) return;
    const buffer = new Uint32Array(blocks.buffer as ArrayBuffer); // made above
    const order = Math.log2(buffer.length);
    const free = this.#free.get(order) ?? [];
    if (free.length < KEPT) free.push(buffer);
    this.#free.set(order, free);
  }
}

/** Shorter lists are copied as quickly anew. */
const SHORT = 512;
/** Longer ones are not kept: 4 MiB. */
const LONG = 2 ** 20;
/** Buffers of each size that are kept. */
const KEPT = 8;
