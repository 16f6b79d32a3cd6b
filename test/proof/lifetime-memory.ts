// Memory that layouts adopt: its owner is not the transport, as an engine's is not. What is given back is unmapped at
// once, so that any later access faults, or kept for a while under a pattern that shows late writes of the kernel too.
import { toArrayBuffer } from "bun:ffi";
import type { LocalLayout } from "../../index.ts";
import { NativeContext } from "../../lib/native/context.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { mapMemory, unmapMemory, type MappedMemory } from "../../lib/native/memory.ts";

const PATTERN = 0xa5;
/** How long a pattern is watched for late writes, milliseconds. */
const WATCH_MILLIS = 400;

interface Watched {
  readonly name: string;
  readonly memory: MappedMemory;
  readonly bytes: Uint8Array;
  readonly until: number;
}

/** The memory of adopted layouts, and what became of it. */
export class Adoptions {
  readonly #context: NativeContext = NativeContext.open(openLibrary(), 64);
  readonly #bytes: number;
  readonly #find: (finding: string) => void;
  readonly #adopted: Map<LocalLayout, MappedMemory> = new Map();
  #watched: Watched[] = [];

  /** @param bytes - Of each piece of memory. */
  constructor(bytes: number, find: (finding: string) => void) {
    this.#bytes = bytes;
    this.#find = find;
  }

  map(): MappedMemory {
    return mapMemory(this.#context, this.#bytes, false);
  }

  unmap(memory: MappedMemory): void {
    unmapMemory(this.#context, memory);
  }

  adopt(layout: LocalLayout, memory: MappedMemory): void {
    this.#adopted.set(layout, memory);
  }

  /**
   * A layout let its memory go: nothing may touch it from now on.
   *
   * @param watch - Whether it is kept for a while to see late writes; else it is unmapped at once.
   * @returns Whether the layout's memory was adopted.
   */
  free(layout: LocalLayout, watch: boolean): boolean {
    const memory = this.#adopted.get(layout);
    if (memory === undefined) return false;
    this.#adopted.delete(layout);
    if (!watch) {
      this.unmap(memory);
      return true;
    }
    // The pointer type of bun:ffi is a branded number.
    const bytes = new Uint8Array(toArrayBuffer(memory.address as never, 0, this.#bytes));
    bytes.fill(PATTERN);
    this.#watched.push({ name: layout.name, memory, bytes, until: performance.now() + WATCH_MILLIS });
    return true;
  }

  /** Looks at what was watched for long enough. */
  look(all = false): void {
    const now = performance.now();
    const ripe = this.#watched.filter(({ until }) => all || now >= until);
    if (ripe.length === 0) return;
    this.#watched = this.#watched.filter((one) => !ripe.includes(one));
    for (const { name, memory, bytes } of ripe) {
      const at = bytes.findIndex((byte) => byte !== PATTERN);
      if (at >= 0) this.#find(`byte ${at} of ${name} was written after its memory was let go`);
      this.unmap(memory);
    }
  }

  close(): void {
    this.look(true);
    this.#context.close(1_000);
  }
}
