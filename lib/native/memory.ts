import { toArrayBuffer } from "bun:ffi";
import { KvferryError } from "../core/errors.ts";
import type { NativeContext } from "./context.ts";
import { nativeError } from "./native-error.ts";
import {
  KVF_MEMORY_FILES,
  KVF_MEMORY_GUARDED,
  KVF_MEMORY_HUGE,
  KVF_MEMORY_SHARED,
  KVF_OK,
  KVF_TOUCH_HUGE,
} from "./symbols.ts";

/** The largest view that JavaScript can hold of foreign memory. */
export const MAX_VIEW_BYTES: number = 2 ** 32;

/** Mappings at least this large are to have huge pages. */
export const HUGE_FROM_BYTES: number = 2 ** 22;

/** A file in memory. */
export interface MemoryFile {
  readonly descriptor: number;
  readonly bytes: number;
}

/** Memory that this process mapped: zeroed, page-aligned. Owned by whoever holds it until `release`. */
export interface MappedMemory {
  readonly address: number;
  /** Mapped bytes, whole pages. */
  readonly bytes: number;
  /** Of shareable memory: the files that it lies in, one after the other and all of them as large as the first but the last. */
  readonly files: readonly MemoryFile[];
}

/**
 * Maps zeroed, page-aligned memory.
 *
 * @param bytes - At least 1.
 * @param shared - Backed by sealed memory files that other processes can be given; `"guarded"`: which nothing but this
 * mapping can ever write to.
 * @param fileBytes - Bytes of a file, a multiple of 2 MiB; 0: it is one file.
 * @throws KvferryError `OUT_OF_MEMORY` with the size that was asked for.
 */
export function mapMemory(
  context: NativeContext,
  bytes: number,
  shared: boolean | "guarded",
  fileBytes = 0,
): MappedMemory {
  const out = new Float64Array(new ArrayBuffer(8 * (2 + KVF_MEMORY_FILES)));
  const flags =
    (bytes >= HUGE_FROM_BYTES ? KVF_MEMORY_HUGE : 0) |
    (shared === false ? 0 : KVF_MEMORY_SHARED) |
    (shared === "guarded" ? KVF_MEMORY_GUARDED : 0);
  const status = context.library.kvf_memory_map(bytes, flags, fileBytes, out);
  if (status !== KVF_OK)
    throw nativeError(context.library, status, "register", `${bytes} bytes of memory could not be mapped`, {
      bytes,
    });
  const [address = 0, mapped = 0] = out;
  const step = fileBytes > 0 ? fileBytes : mapped;
  const count = shared === false ? 0 : Math.ceil(mapped / step);
  const files = Array.from({ length: count }, (_none, index) => ({
    descriptor: out[2 + index] ?? -1,
    bytes: Math.min(step, mapped - index * step),
  }));
  return { address, bytes: mapped, files };
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
          descriptorsOf(memory),
          memory.files.length,
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
  const { address, bytes, files } = memory;
  context.library.kvf_memory_unmap(address, bytes, descriptorsOf(memory), files.length);
}

/** Threads that touch fresh memory; more do not make the kernel faster. */
const TOUCH_THREADS: number = Math.min(16, navigator.hardwareConcurrency);

/**
 * Touches pages of mapped memory from several threads, in all of its files at once, so that later use finds them there.
 *
 * @param what - `"all"`: every page. `"huge"`: what becomes huge pages, until the kernel has no more of them; the rest
 * stays as it is.
 */
export function touchMemory(
  context: NativeContext,
  memory: MappedMemory,
  what: "all" | "huge",
): Promise<void> {
  return context.job(
    "register",
    (slot) =>
      context.library.kvf_memory_touch_job(
        context.address,
        slot,
        memory.address,
        memory.bytes,
        memory.files[0]?.bytes ?? 0,
        TOUCH_THREADS,
        what === "huge" ? KVF_TOUCH_HUGE : 0,
      ),
    () => undefined,
  );
}

const NO_DESCRIPTORS: Float64Array<ArrayBuffer> = new Float64Array(new ArrayBuffer(8));

function descriptorsOf({ files }: MappedMemory): Float64Array<ArrayBuffer> {
  if (files.length === 0) return NO_DESCRIPTORS;
  const descriptors = new Float64Array(new ArrayBuffer(8 * files.length));
  for (const [index, { descriptor }] of files.entries()) descriptors[index] = descriptor;
  return descriptors;
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
