import { KvferryError } from "../core/errors.ts";
import type { NixlAgent, NixlRegion } from "../native/agent.ts";
import type { CudaSession } from "./cuda-session.ts";
import { StagingPool, type StagingMemory } from "./staging-pool.ts";

/** What staging memory on a GPU is used for: to send from, or to be sent to by peers. */
export type StagingUse = "send" | "receive";

/** Memory of a GPU, opened when it is first asked for. */
export function deviceStagingMemory(cuda: CudaSession, device: number): StagingMemory {
  return {
    map: async (bytes) => {
      const driver = await cuda.demand(device);
      return { address: await driver.allocate(device, bytes), bytes, files: [] };
    },
    release: async ({ address }) => {
      const driver = await cuda.demand(device);
      await driver.free(device, address).catch((error: unknown) => {
        // Memory of a device that is lost cannot be freed; the driver takes it back with the process.
        if (!(error instanceof KvferryError)) throw error;
      });
    },
  };
}

/**
 * Staging memory on GPUs: two pools for each device, for transfers between memory of GPUs that NIXL moves by itself.
 *
 * Each pool is made when first needed, and owned until `close`. A device whose memory could not be had has none from
 * then on: its transfers go through host memory.
 */
export class DeviceStaging {
  readonly #memoryOf: (device: number) => StagingMemory;
  readonly #bytes: number;
  readonly #chunkBytes: number;
  readonly #pools: Map<string, StagingPool> = new Map();
  readonly #without: Set<number> = new Set();

  /**
   * @param bytes - Of each pool.
   * @param chunkBytes - Of each chunk in it.
   */
  constructor(memoryOf: (device: number) => StagingMemory, bytes: number, chunkBytes: number) {
    this.#memoryOf = memoryOf;
    this.#bytes = bytes;
    this.#chunkBytes = chunkBytes;
  }

  /** Chunks that are lent now. */
  get lent(): number {
    let lent = 0;
    for (const pool of this.#pools.values()) lent += pool.lent;
    return lent;
  }

  /** A device's pool; null for a device whose memory could not be had. */
  pool(device: number, use: StagingUse): StagingPool | null {
    if (this.#without.has(device)) return null;
    const key = `${use} ${device}`;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new StagingPool(this.#watched(device), null, this.#bytes, this.#chunkBytes, device);
      this.#pools.set(key, pool);
    }
    return pool;
  }

  /** Makes what devices receive into and registers it with NIXL; metadata that are exported afterwards name it. */
  async register(devices: Iterable<number>, agent: NixlAgent): Promise<void> {
    const all = Array.from(devices, (device) => this.#registerOne(device, agent));
    await Promise.all(all);
  }

  /** What NIXL has registered of devices' memory to receive into. */
  registrations(devices: Iterable<number>): NixlRegion[] {
    return Array.from(devices, (device) => this.#pools.get(`receive ${device}`)?.registration ?? null).filter(
      (region) => region !== null,
    );
  }

  /** Gives the memory back; what is still lent stays. @returns Bytes that stay. */
  async close(): Promise<number> {
    const left = await Promise.all(Array.from(this.#pools.values(), (pool) => pool.close()));
    return left.reduce((sum, bytes) => sum + bytes, 0);
  }

  async #registerOne(device: number, agent: NixlAgent): Promise<void> {
    try {
      await this.pool(device, "receive")?.register(agent);
    } catch (error) {
      if (!(error instanceof KvferryError)) throw error;
      // NIXL does not take the memory, or there is none: host memory does it all.
      this.#without.add(device);
    }
  }

  /** Memory whose want is remembered. */
  #watched(device: number): StagingMemory {
    const memory = this.#memoryOf(device);
    return {
      map: async (bytes) => {
        try {
          return await memory.map(bytes);
        } catch (error) {
          this.#without.add(device);
          throw error;
        }
      },
      release: (mapping) => memory.release(mapping),
    };
  }
}
