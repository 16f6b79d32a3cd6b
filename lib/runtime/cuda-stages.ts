import type { NativeContext } from "../native/context.ts";
import type { CudaSession } from "./cuda-session.ts";
import { mapShareable } from "./neighbour-memory.ts";
import type { PinnedMemory } from "./pinned-memory.ts";

/** Pinned memory that somebody uses for a moment. */
export interface PinnedStage {
  readonly address: number;
  readonly bytes: number;
  /** Gives it back; nothing may touch it any more. */
  release(): Promise<void>;
}

/** The smallest stage that is kept for the next user, bytes. */
const KEPT_BYTES = 16 * 2 ** 20;

/** Lends pinned memory for reading and writing blocks of GPU memory; one stage for each device is kept. */
export class CudaStages {
  readonly #context: NativeContext;
  readonly #cuda: CudaSession;
  readonly #kept: Map<number, PinnedMemory> = new Map();
  #open = true;

  constructor(context: NativeContext, cuda: CudaSession) {
    this.#context = context;
    this.#cuda = cuda;
  }

  /** @throws KvferryError `OUT_OF_MEMORY`, `NO_CUDA` or `CUDA`. */
  async take(device: number, bytes: number): Promise<PinnedStage> {
    const kept = this.#kept.get(device);
    this.#kept.delete(device);
    if (kept !== undefined && kept.bytes < bytes) await kept.release();
    const memory =
      kept !== undefined && kept.bytes >= bytes
        ? kept
        : await this.#allocate(device, Math.max(bytes, KEPT_BYTES));
    return {
      address: memory.address,
      bytes: memory.bytes,
      release: async () => {
        if (this.#open && !this.#kept.has(device)) this.#kept.set(device, memory);
        else await memory.release();
      },
    };
  }

  async #allocate(device: number, bytes: number): Promise<PinnedMemory> {
    const driver = await this.#cuda.demand(device);
    const { pinShareable } = await import("./pinned-memory.ts");
    return await pinShareable(this.#context, driver, device, () => mapShareable(this.#context, bytes, null));
  }

  /** Frees what is kept; later stages are freed when they are given back. */
  async close(): Promise<void> {
    this.#open = false;
    const kept = [...this.#kept.values()];
    this.#kept.clear();
    for (const memory of kept) await memory.release();
  }
}
