import type { KvferryError } from "../core/errors.ts";
import type { Chunk, ChunkSource } from "./chunks.ts";

/** The chunks that one transfer has borrowed, and those that it waits for. */
export class LentChunks {
  readonly #waiting: Set<(error: KvferryError) => void> = new Set();
  readonly #lent: Map<Chunk, ChunkSource> = new Map();
  /** Chunks that something may still touch. */
  readonly #doubtful: Map<Chunk, ChunkSource> = new Map();
  #stopped: KvferryError | undefined;

  /** Borrows a chunk as soon as there is one; rejects when the transfer is stopped before. */
  take(source: ChunkSource): Promise<Chunk> {
    const { promise, resolve, reject } = Promise.withResolvers<Chunk>();
    const waiter = {
      grant: (chunk: Chunk): void => {
        this.#waiting.delete(stop);
        this.#lent.set(chunk, source);
        resolve(chunk);
      },
      refuse: reject,
    };
    const stop = (error: KvferryError): void => {
      source.cancel(waiter);
      reject(error);
    };
    this.#waiting.add(stop);
    if (this.#stopped === undefined) source.request(waiter);
    else stop(this.#stopped);
    return promise;
  }

  /** Gives a chunk back; one that something may still touch only once all is {@link quiet}. */
  giveBack(source: ChunkSource, chunk: Chunk, doubtful: boolean): void {
    this.#lent.delete(chunk);
    if (!doubtful) {
      source.release(chunk);
      return;
    }
    this.#doubtful.set(chunk, source);
    source.giveUp(chunk);
  }

  /** Gives a chunk back once its own touching has ended, whatever else does. */
  giveBackAfter(source: ChunkSource, chunk: Chunk, whenQuiet: (listener: () => void) => void): void {
    this.#lent.delete(chunk);
    let quiet = false;
    whenQuiet(() => {
      quiet = true;
      source.release(chunk);
    });
    if (!quiet) source.giveUp(chunk);
  }

  /** Nobody is lent another chunk. */
  stop(error: KvferryError): void {
    this.#stopped = error;
    for (const stop of this.#waiting) stop(error);
    this.#waiting.clear();
  }

  /** Whoever still touches a lent chunk is not waited for any more: the pool is not to lend it. */
  abandon(): void {
    for (const [chunk, source] of this.#lent) source.giveUp(chunk);
  }

  /** Nothing touches the doubtful ones any more. */
  quiet(): void {
    for (const [chunk, source] of this.#doubtful) source.release(chunk);
    this.#doubtful.clear();
  }
}
