// Other sizes of staging memory than by default, and other numbers of UCX workers, for the staged bench.
import type { OpenOptions, Transport } from "../index.ts";

const MIB = 2 ** 20;
const DEFAULT_POOL = 64;

/** What both ends are opened with. */
export interface Variant {
  /** The operand that asked for it. */
  readonly name: string;
  /** MiB of a chunk, and of each pool of chunks. */
  readonly chunk: number;
  readonly pool: number;
  /** UCX workers of each end; null: as many as by default. */
  readonly workers: number | null;
}

/**
 * Reads an operand: MiB of a chunk, of a pool, and UCX workers, the last two where they are not as by default: `8`, `8x128`,
 * `4@3` or `8x128@4`.
 *
 * @throws Error for anything else.
 */
export function variantOf(operand: string): Variant {
  const parts = /^(\d+)(?:x(\d+))?(?:@(\d+))?$/.exec(operand);
  const [chunk, pool, workers] = [parts?.[1], parts?.[2] ?? DEFAULT_POOL, parts?.[3] ?? null];
  const variant = {
    name: operand,
    chunk: Number(chunk ?? 0),
    pool: Number(pool),
    workers: workers === null ? null : Number(workers),
  };
  if (variant.chunk < 1 || variant.pool < variant.chunk || variant.workers === 0)
    throw new Error(
      `${operand} is no variant such as 8, 8x128 or 8x128@4 (MiB of chunk and pool, UCX workers)`,
    );
  return variant;
}

/** Options of a transport for it. */
export function optionsOf(variant: Variant): Pick<OpenOptions, "staging" | "nixl"> {
  const { chunk, pool, workers } = variant;
  return {
    staging: { sendBytes: pool * MIB, receiveBytes: pool * MIB, chunkBytes: chunk * MIB },
    ...(workers === null ? {} : { nixl: { backends: { UCX: { num_workers: String(workers) } } } }),
  };
}

/** Does something while somebody awaits a message at this end, as staged transfers do throughout. */
export async function whileAwaited<Value>(transport: Transport, work: () => Promise<Value>): Promise<Value> {
  const stop = new AbortController();
  const awaited = (async (): Promise<void> => {
    for await (const _message of transport.notifications({ signal: stop.signal })) continue;
  })();
  try {
    // The library's thread learns of it in a moment.
    await Bun.sleep(1);
    return await work();
  } finally {
    stop.abort();
    await awaited;
  }
}
