import { asKvferryError } from "../core/errors.ts";
import type { Chunk, ChunkSource, ChunkWaiter } from "./chunks.ts";
import type { CudaSession } from "./cuda-session.ts";
import type { NixlAgent, NixlRegion } from "../native/agent.ts";
import { KVF_MEM_DRAM, KVF_MEM_VRAM } from "../native/symbols.ts";
import type { NativeContext } from "../native/context.ts";
import { mapMemory, releaseMemory, type MappedMemory } from "../native/memory.ts";
import { closedError } from "../native/native-error.ts";

/** Where a pool's memory comes from; a simulation gives its own. */
export interface StagingMemory {
  map(bytes: number): MappedMemory | Promise<MappedMemory>;
  release(mapping: MappedMemory): Promise<void>;
}

/** Memory of this process. */
export function nativeStaging(context: NativeContext): StagingMemory {
  return {
    map: (bytes) => mapMemory(context, bytes, false),
    release: (mapping) => releaseMemory(context, mapping),
  };
}

/**
 * Chunks of host memory that take the place of those that were given up, for each chunk of the pool. Never touched
 * before: no memory. GPU memory has none: there it would be taken at once.
 */
const SPARES = 1;

/**
 * Staging memory in memory of the host or of a GPU, in chunks of one size, made when first needed.
 *
 * Host memory is pinned once a GPU takes part. The pool owns its memory until `close`. What a peer that falls silent keeps is kept for long:
 * once chunks are, nobody gets more than are left for others, so that no peer's silence takes them from all.
 */
export class StagingPool {
  readonly #memory: StagingMemory;
  readonly #cuda: CudaSession | null;
  /** CUDA ordinal of the GPU whose memory it is; null for host memory. */
  readonly #device: number | null;
  readonly #chunks: number;
  readonly chunkBytes: number;
  readonly count: number;
  #mapping: MappedMemory | undefined;
  #making: Promise<void> | undefined;
  #unpin: (() => Promise<void>) | undefined;
  #pinning: Promise<void> | undefined;
  /** Those that nobody has; the last is lent first, so that spare ones stay untouched. */
  readonly #idle: Chunk[] = [];
  readonly #waiters: Map<ChunkWaiter, User> = new Map();
  readonly #lent: Map<Chunk, User> = new Map();
  /** Lent ones that something may still touch, and that others have replaced while there were any. */
  readonly #givenUp: Set<Chunk> = new Set();
  readonly #users: Map<string, User> = new Map();
  #registered = false;
  #registering: Promise<void> | undefined;
  #closed = false;

  /**
   * @param cuda - By which host memory is pinned; null where no GPU can take part.
   * @param device - CUDA ordinal of the GPU whose memory it is; left out for host memory.
   */
  constructor(
    memory: StagingMemory,
    cuda: CudaSession | null,
    bytes: number,
    chunkBytes: number,
    device: number | null = null,
  ) {
    this.#memory = memory;
    this.#cuda = cuda;
    this.#device = device;
    this.chunkBytes = Math.max(1, Math.min(bytes, chunkBytes));
    this.count = Math.max(1, Math.floor(bytes / this.chunkBytes));
    this.#chunks = device === null ? this.count * (1 + SPARES) : this.count;
  }

  /** Chunks that are lent now. */
  get lent(): number {
    return this.#lent.size;
  }

  /** Those who wait. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /**
   * The pool as a source of chunks.
   *
   * @param device - CUDA ordinal of a GPU that takes part, or null.
   * @param agent - NIXL's agent when it takes part, or null.
   * @param peer - Wire name of the peer that the chunks are for, or null for work of this process alone.
   */
  source(device: number | null, agent: NixlAgent | null = null, peer: string | null = null): ChunkSource {
    return {
      chunkBytes: this.chunkBytes,
      count: this.count,
      pageable: false,
      device: this.#device,
      request: (waiter) => this.#request(waiter, device, agent, peer ?? ""),
      cancel: (waiter) => void this.#leave(waiter),
      release: (chunk) => this.#release(chunk),
      giveUp: (chunk) => this.#giveUp(chunk),
    };
  }

  /**
   * Gives the memory back; what is still lent keeps it mapped.
   *
   * @returns Bytes that stay mapped.
   */
  async close(): Promise<number> {
    this.#closed = true;
    for (const waiter of this.#waiters.keys()) waiter.refuse(closedError("transfer"));
    this.#waiters.clear();
    await this.#making?.catch(() => undefined);
    if (this.#mapping === undefined) return 0;
    if (this.#lent.size > 0) return this.#mapping.bytes;
    await this.#pinning?.catch(() => undefined);
    await this.#unpin?.();
    await this.#memory.release(this.#mapping);
    this.#mapping = undefined;
    return 0;
  }

  /** What NIXL has registered; null when it does not know the pool. */
  get registration(): NixlRegion | null {
    if (!this.#registered || this.#mapping === undefined) return null;
    const { address, bytes } = this.#mapping;
    return { address, bytes, device: this.#device ?? 0 };
  }

  /** Makes the memory and registers it with NIXL, once; metadata that are exported afterwards name it. */
  register(agent: NixlAgent): Promise<void> {
    this.#registering ??= this.#registerNow(agent).catch((error: unknown) => {
      this.#registering = undefined;
      throw error;
    });
    return this.#registering;
  }

  async #registerNow(agent: NixlAgent): Promise<void> {
    await this.#map();
    if (this.#mapping === undefined) throw closedError("transfer");
    const { address, bytes } = this.#mapping;
    await agent.register(this.#device === null ? KVF_MEM_DRAM : KVF_MEM_VRAM, [
      { address, bytes, device: this.#device ?? 0 },
    ]);
    this.#registered = true;
  }

  /** Makes the memory where there is none yet. @returns Null when it is there: what can be had at once is. */
  #map(): Promise<void> | null {
    if (this.#mapping !== undefined) return null;
    if (this.#making !== undefined) return this.#making;
    const made = this.#memory.map(this.#chunks * this.chunkBytes);
    if (!(made instanceof Promise)) {
      this.#keep(made);
      return null;
    }
    this.#making = made
      .then((mapping) => this.#keep(mapping))
      .finally(() => {
        this.#making = undefined;
      });
    return this.#making;
  }

  #keep(mapping: MappedMemory): void {
    this.#mapping = mapping;
    for (let index = this.#chunks - 1; index >= 0; index--)
      this.#idle.push({ address: mapping.address + index * this.chunkBytes, bytes: this.chunkBytes });
  }

  #request(waiter: ChunkWaiter, device: number | null, agent: NixlAgent | null, peer: string): void {
    if (this.#closed) {
      waiter.refuse(closedError("transfer"));
      return;
    }
    let making: Promise<void> | null;
    try {
      making = this.#map();
    } catch (error) {
      waiter.refuse(asKvferryError(error));
      return;
    }
    this.#waiters.set(waiter, this.#userOf(peer));
    const pinned = device === null || this.#device !== null || this.#unpin !== undefined;
    const known = agent === null || this.#registered;
    if (making === null && pinned && known) {
      this.#serve();
      return;
    }
    Promise.all([
      making,
      pinned ? null : Promise.resolve(making).then(() => this.#pin(device)),
      known ? null : this.register(agent),
    ]).then(
      () => this.#serve(),
      (error: unknown) => {
        if (this.#leave(waiter)) waiter.refuse(asKvferryError(error));
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
    for (const [waiter, user] of this.#waiters) {
      if (this.#lent.size - this.#givenUp.size >= this.count) return;
      if (!this.#mayHave(user)) continue;
      const chunk = this.#idle.pop();
      if (chunk === undefined) return;
      this.#waiters.delete(waiter);
      this.#lent.set(chunk, user);
      user.lent++;
      waiter.grant(chunk);
    }
  }

  /**
   * As many as stay for others, which is all that the pool has while none was given up; and one if it has no other that
   * works, though the last is for a peer only that has none.
   */
  #mayHave({ peer, lent, givenUp }: User): boolean {
    const idle = this.#idle.length;
    return lent < idle || (lent === givenUp && (idle > 1 || peer === ""));
  }

  #release(chunk: Chunk): void {
    const user = this.#lent.get(chunk);
    if (user === undefined) return;
    this.#lent.delete(chunk);
    user.lent--;
    if (this.#givenUp.delete(chunk)) user.givenUp--;
    this.#idle.push(chunk);
    this.#serve();
    this.#forget(user);
  }

  #giveUp(chunk: Chunk): void {
    const user = this.#lent.get(chunk);
    if (user === undefined || this.#givenUp.has(chunk) || this.#closed) return;
    this.#givenUp.add(chunk);
    user.givenUp++;
    this.#serve();
  }

  /** @returns Whether it waited. */
  #leave(waiter: ChunkWaiter): boolean {
    const user = this.#waiters.get(waiter);
    if (user === undefined) return false;
    this.#waiters.delete(waiter);
    this.#forget(user);
    return true;
  }

  #userOf(peer: string): User {
    const user = this.#users.get(peer) ?? { peer, lent: 0, givenUp: 0 };
    this.#users.set(peer, user);
    return user;
  }

  /** Peers come and go. */
  #forget(user: User): void {
    if (user.lent > 0) return;
    for (const waiting of this.#waiters.values()) if (waiting === user) return;
    this.#users.delete(user.peer);
  }
}

/** Whom chunks are for. */
interface User {
  readonly peer: string;
  /** Chunks that it has, and those of them that were given up. */
  lent: number;
  givenUp: number;
}
