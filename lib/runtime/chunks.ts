import type { KvferryError } from "../core/errors.ts";

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

/** Where chunks come from. Who asked first is served first, save whoever has its share; nobody gets two while another one waits. */
export interface ChunkSource {
  /** Bytes of the smallest chunk. */
  readonly chunkBytes: number;
  /** Chunks that there are. */
  readonly count: number;
  /** Whether GPU copies can use the memory without the driver's detour. */
  readonly pageable: boolean;
  /** CUDA ordinal of the GPU in whose memory they lie; null for host memory. */
  readonly device: number | null;
  request(waiter: ChunkWaiter): void;
  /** Takes a request back. */
  cancel(waiter: ChunkWaiter): void;
  release(chunk: Chunk): void;
  /** The chunk may be touched by something that hangs: another one takes its place until it is released. */
  giveUp(chunk: Chunk): void;
}
