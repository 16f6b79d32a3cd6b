import { toArrayBuffer } from "bun:ffi";
import { KvferryError } from "../core/errors.ts";
import { nativeError, type NativeContext } from "./context.ts";
import { KVF_MEMORY_GUARDED, KVF_MEMORY_HUGE, KVF_MEMORY_SHARED, KVF_OK } from "./symbols.ts";

/** The largest view that JavaScript can hold of foreign memory. */
export const MAX_VIEW_BYTES: number = 2 ** 32;

/** Mappings at least this large are advised to use huge pages. */
const HUGE_FROM_BYTES = 2 ** 22;

/** Memory that this process mapped: zeroed, page-aligned. Owned by whoever holds it until `release`. */
export interface MappedMemory {
  readonly address: number;
  /** Mapped bytes, whole pages. */
  readonly bytes: number;
  /** File descriptor of shareable memory, or -1. */
  readonly descriptor: number;
}

/**
 * Maps zeroed, page-aligned memory.
 *
 * @param bytes - At least 1.
 * @param shared - Backed by a sealed memory file that other processes can be given; `"guarded"`: which nothing but this
 * mapping can ever write to.
 * @throws KvferryError `OUT_OF_MEMORY` with the size that was asked for.
 */
export function mapMemory(context: NativeContext, bytes: number, shared: boolean | "guarded"): MappedMemory {
  const out = new Float64Array(new ArrayBuffer(32));
  const flags =
    (bytes >= HUGE_FROM_BYTES ? KVF_MEMORY_HUGE : 0) |
    (shared === false ? 0 : KVF_MEMORY_SHARED) |
    (shared === "guarded" ? KVF_MEMORY_GUARDED : 0);
  const status = context.library.kvf_memory_map(bytes, flags, out);
  if (status !== KVF_OK)
    throw nativeError(context.library, status, "register", `${bytes} bytes of memory could not be mapped`, {
      bytes,
    });
  return { address: out[0] ?? 0, bytes: out[1] ?? 0, descriptor: out[2] ?? -1 };
}

/** Mappings at least this large are given back on a thread of the library: the kernel takes its time over their pages. */
const UNMAP_ON_THREAD_BYTES = 2 ** 22;

/** Gives mapped memory back, large mappings without blocking this thread. Nothing may touch it any more. */
export async function releaseMemory(context: NativeContext, memory: MappedMemory): Promise<void> {
  if (memory.bytes < UNMAP_ON_THREAD_BYTES || !context.isOpen || context.available === 0) {
    unmapMemory(context, memory);
    return;
  }
  await context
    .job(
      "unregister",
      (slot) =>
        context.library.kvf_memory_unmap_job(
          context.address,
          slot,
          memory.address,
          memory.bytes,
          memory.descriptor,
        ),
      () => undefined,
    )
    .catch((error: unknown) => {
      // A context that closes meanwhile does not stop it, and nobody is left to be told.
      if (context.isOpen) throw error;
    });
}

/** Gives mapped memory back. Nothing may touch it any more. */
export function unmapMemory(context: NativeContext, memory: MappedMemory): void {
  context.library.kvf_memory_unmap(memory.address, memory.bytes, memory.descriptor);
}

/** Writes every page of mapped memory from several threads, so that later use finds it there. */
export function touchMemory(context: NativeContext, memory: MappedMemory, threads: number): Promise<void> {
  return context.job(
    "register",
    (slot) =>
      context.library.kvf_memory_touch_job(context.address, slot, memory.address, memory.bytes, threads),
    () => undefined,
  );
}

/** Views of live native memory that can all be emptied at once. */
export class ViewSet {
  readonly #buffers: Set<WeakRef<ArrayBuffer>> = new Set();

  /**
   * A view of native memory; its length becomes 0 at {@link ViewSet.detach}.
   *
   * @throws KvferryError `INVALID_CONFIG` for more than 4 GiB.
   */
  view(address: number, bytes: number): Uint8Array<ArrayBuffer> {
    if (bytes > MAX_VIEW_BYTES) {
      throw new KvferryError(
        "INVALID_CONFIG",
        "bytes",
        `a view of ${bytes} bytes passes the 4 GiB that JavaScript can hold in one`,
        "Use view(region, { offset, length }) for a part of the region.",
        { bytes, limit: MAX_VIEW_BYTES },
      );
    }
    if (bytes === 0) return new Uint8Array(new ArrayBuffer(0));
    const buffer = toArrayBuffer(address as never, 0, bytes);
    this.#buffers.add(new WeakRef(buffer));
    if (this.#buffers.size % 1024 === 0) this.#sweep();
    return new Uint8Array(buffer);
  }

  /** Empties every view that was handed out. */
  detach(): void {
    for (const reference of this.#buffers) {
      const buffer = reference.deref();
      // Transferring moves the borrowed memory to a buffer that nobody keeps; it is neither copied nor freed.
      if (buffer !== undefined && !buffer.detached) buffer.transfer();
    }
    this.#buffers.clear();
  }

  #sweep(): void {
    for (const reference of this.#buffers)
      if (reference.deref() === undefined) this.#buffers.delete(reference);
  }
}
