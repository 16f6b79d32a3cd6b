import { KvferryError } from "../core/errors.ts";
import type { CudaSession } from "./cuda-session.ts";
import type { NativeContext } from "../native/context.ts";
import { mapMemory, releaseMemory, type MappedMemory } from "../native/memory.ts";

/** A piece of staging memory, lent to one user at a time. */
export interface Chunk {
  readonly address: number;
  readonly bytes: number;
}

/** Somebody who waits for a chunk. */
export interface ChunkWaiter {
  /** Called once, perhaps before `request` returns. */
  grant(chunk: Chunk): void;
  /** Called instead when there will never be one. */
  refuse(error: KvferryError): void;
}

/** Where chunks come from. Who asked first is served first; nobody gets two while another one waits. */
export interface ChunkSource {
  /** Bytes of the smallest chunk. */
  readonly chunkBytes: number;
  /** Chunks that there are. */
  readonly count: number;
  /** Whether GPU copies can use the memory without the driver's detour. */
  readonly pageable: boolean;
  request(waiter: ChunkWaiter): void;
  /** Takes a request back. */
  cancel(waiter: ChunkWaiter): void;
  release(chunk: Chunk): void;
  /** The chunk may be touched by something that hangs: another one takes its place until it is released. */
  giveUp(chunk: Chunk): void;
}

/** How many chunks may be replaced because something hangs, for each chunk of the pool. */
const MOST_REPLACED = 4;

/**
 * Staging memory in host memory, in chunks of one size, made when first needed.
 *
 * Pinned once a GPU takes part. It owns its memory until `close`.
 */
export class StagingPool {
  readonly #context: NativeContext;
  readonly #cuda: CudaSession | null;
  readonly #bytes: number;
  readonly chunkBytes: number;
  readonly count: number;
  #mapping: MappedMemory | undefined;
  #unpin: (() => Promise<void>) | undefined;
  #pinning: Promise<void> | undefined;
  readonly #free: Chunk[] = [];
  readonly #waiters: Set<ChunkWaiter> = new Set();
  readonly #replaced: Map<Chunk, Chunk> = new Map();
  readonly #spare: MappedMemory[] = [];
  #lent = 0;
  #closed = false;

  constructor(context: NativeContext, cuda: CudaSession | null, bytes: number, chunkBytes: number) {
    this.#context = context;
    this.#cuda = cuda;
    this.chunkBytes = Math.max(1, Math.min(bytes, chunkBytes));
    this.count = Math.max(1, Math.floor(bytes / this.chunkBytes));
    this.#bytes = this.count * this.chunkBytes;
  }

  /** Chunks that are lent now. */
  get lent(): number {
    return this.#lent;
  }

  /** Those who wait. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /** Start of the memory and its size, which is made when there is none yet. */
  memory(): { readonly address: number; readonly bytes: number } {
    if (this.#mapping === undefined) {
      const mapping = mapMemory(this.#context, this.#bytes, false);
      this.#mapping = mapping;
      for (let index = this.count - 1; index >= 0; index--)
        this.#free.push({ address: mapping.address + index * this.chunkBytes, bytes: this.chunkBytes });
    }
    return { address: this.#mapping.address, bytes: this.#mapping.bytes };
  }

  /**
   * The pool as a source of chunks.
   *
   * @param device - CUDA ordinal of a GPU that takes part, or null.
   */
  source(device: number | null): ChunkSource {
    return {
      chunkBytes: this.chunkBytes,
      count: this.count,
      pageable: false,
      request: (waiter) => this.#request(waiter, device),
      cancel: (waiter) => void this.#waiters.delete(waiter),
      release: (chunk) => this.#release(chunk),
      giveUp: (chunk) => this.#giveUp(chunk),
    };
  }

  /** Gives the memory back; what is still lent keeps it mapped. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const waiter of this.#waiters) waiter.refuse(closedPool());
    this.#waiters.clear();
    if (this.#lent > 0 || this.#mapping === undefined) return;
    await this.#pinning?.catch(() => undefined);
    await this.#unpin?.();
    await releaseMemory(this.#context, this.#mapping);
    for (const mapping of this.#spare) await releaseMemory(this.#context, mapping);
    this.#mapping = undefined;
  }

  #request(waiter: ChunkWaiter, device: number | null): void {
    if (this.#closed) {
      waiter.refuse(closedPool());
      return;
    }
    try {
      this.memory();
    } catch (error) {
      waiter.refuse(asKvferryError(error));
      return;
    }
    this.#waiters.add(waiter);
    if (device === null || this.#unpin !== undefined) {
      this.#serve();
      return;
    }
    this.#pin(device).then(
      () => this.#serve(),
      (error: unknown) => {
        if (this.#waiters.delete(waiter)) waiter.refuse(asKvferryError(error));
      },
    );
  }

  /** Pins the memory for every GPU, once. */
  #pin(device: number): Promise<void> {
    this.#pinning ??= this.#pinNow(device).catch((error: unknown) => {
      this.#pinning = undefined;
      throw error;
    });
    return this.#pinning;
  }

  async #pinNow(device: number): Promise<void> {
    const mapping = this.#mapping;
    if (this.#cuda === null || mapping === undefined) return;
    const driver = await this.#cuda.demand(device);
    await driver.pin(device, mapping.address, mapping.bytes);
    this.#unpin = async () => {
      await driver.unpin(device, mapping.address).catch(() => undefined);
    };
  }

  #serve(): void {
    for (const waiter of this.#waiters) {
      const chunk = this.#free.pop();
      if (chunk === undefined) return;
      this.#waiters.delete(waiter);
      this.#lent++;
      waiter.grant(chunk);
    }
  }

  #release(chunk: Chunk): void {
    this.#lent--;
    const instead = this.#replaced.get(chunk);
    this.#replaced.delete(chunk);
    // The one that took its place stays; this one is the spare now.
    if (instead === undefined) this.#free.push(chunk);
    this.#serve();
  }

  #giveUp(chunk: Chunk): void {
    if (this.#replaced.has(chunk) || this.#closed) return;
    if (this.#replaced.size >= this.count * MOST_REPLACED) return;
    try {
      const mapping = mapMemory(this.#context, this.chunkBytes, false);
      this.#spare.push(mapping);
      const fresh = { address: mapping.address, bytes: this.chunkBytes };
      this.#replaced.set(chunk, fresh);
      this.#free.push(fresh);
    } catch {
      // Without memory the pool goes on with fewer chunks.
      return;
    }
    this.#serve();
  }
}

function asKvferryError(error: unknown): KvferryError {
  if (error instanceof KvferryError) return error;
  return new KvferryError("IO", "transfer", String(error), "See the cause.", {}, error);
}

function closedPool(): KvferryError {
  return new KvferryError(
    "CLOSED",
    "transfer",
    "the transport is closed",
    "Open a new Transport.",
  );
}
