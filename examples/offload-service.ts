// A KV-offload service: engines hand it blocks that they evict and get them back later. Blocks move by one-sided
// transfers between the engine's memory and the service's pool; HTTP carries metadata and keys only.
//
//   bun run examples/offload-service.ts            shows it with an engine of its own
//   bun run examples/offload-service.ts serve      serves until it is interrupted (PORT, default 8400)
import { isKvferryError, Transport, type LayoutConfig, type RemoteLayout } from "kvferry";
import { answerParent, startChild } from "./children.ts";

const SHAPE = { numLayers: 4, outerDim: 2, pageSize: 16, numHeads: 4, headDim: 64, dtype: "bf16" } as const;
const POOL: LayoutConfig = { ...SHAPE, numBlocks: 256 };
const ENGINE: LayoutConfig = { ...SHAPE, numBlocks: 32 };

/** A block of an engine under the key that both sides know it by, e.g. a hash of its tokens and all before them. */
interface Item {
  readonly key: string;
  readonly block: number;
}

/** Body of `POST /offload` and `POST /onboard`. */
interface Order {
  readonly worker: string;
  readonly items: readonly Item[];
}

/** Which pool block has which key, the one that was not used for longest first. */
class Pool {
  readonly #blocks = new Map<string, number>();
  readonly #free: number[];

  constructor(blocks: number) {
    this.#free = Array.from({ length: blocks }, (_, block) => block);
  }

  get size(): number {
    return this.#blocks.size;
  }

  /** A block to write into: a free one, or the one that was not used for longest. It belongs to nobody meanwhile. */
  take(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    const [oldest] = this.#blocks;
    if (oldest === undefined) return undefined;
    this.#blocks.delete(oldest[0]);
    return oldest[1];
  }

  /** A written block gets its key; a block that had the key before is free again. */
  put(key: string, block: number): void {
    const old = this.#blocks.get(key);
    if (old !== undefined) this.#free.push(old);
    this.#blocks.delete(key);
    this.#blocks.set(key, block);
  }

  /** Takes a block out, so that nobody overwrites it while it is read. */
  borrow(key: string): number | undefined {
    const block = this.#blocks.get(key);
    this.#blocks.delete(key);
    return block;
  }

  giveBack(block: number): void {
    this.#free.push(block);
  }
}

/** Starts the service. It owns its transport and its pool until `stop`. */
async function startService(port: number): Promise<{ readonly url: URL; stop(): Promise<void> }> {
  const transport = await Transport.open({ workerId: 100n, agentName: "offload" });
  const memory = await transport.register({ name: "pool", config: POOL, memory: { kind: "system" } });
  const pool = new Pool(POOL.numBlocks);

  const cacheOf = (worker: string): RemoteLayout => {
    const peer = transport.peer(BigInt(worker));
    if (peer === undefined) throw new Error(`worker ${worker} is not attached`);
    return peer.layout("cache");
  };

  /** Reads the engine's blocks into the pool. */
  const offload = async ({ worker, items }: Order): Promise<{ readonly stored: string[] }> => {
    const taken = items.flatMap((item) => {
      const into = pool.take();
      return into === undefined ? [] : [{ ...item, into }];
    });
    const transfer = transport.transfer({
      source: cacheOf(worker),
      sourceBlocks: taken.map((item) => item.block),
      destination: memory,
      destinationBlocks: taken.map((item) => item.into),
    });
    try {
      await transfer;
    } catch (failure) {
      // Only when it is certain that nothing writes into them any more are the blocks free again.
      void transfer.settled.then(() => taken.forEach((item) => pool.giveBack(item.into)));
      throw failure;
    }
    for (const item of taken) pool.put(item.key, item.into);
    return { stored: taken.map((item) => item.key) };
  };

  /** Writes what the pool has of the keys into the engine's blocks. */
  const onboard = async ({ worker, items }: Order): Promise<{ readonly found: string[] }> => {
    const held = items.flatMap((item) => {
      const from = pool.borrow(item.key);
      return from === undefined ? [] : [{ ...item, from }];
    });
    const transfer = transport.transfer({
      source: memory,
      sourceBlocks: held.map((item) => item.from),
      destination: cacheOf(worker),
      destinationBlocks: held.map((item) => item.block),
    });
    // Whatever became of the engine's blocks, ours are as they were.
    void transfer.settled.then(() => held.forEach((item) => pool.put(item.key, item.from)));
    await transfer;
    return { found: held.map((item) => item.key) };
  };

  const attach = async (metadata: Uint8Array): Promise<Uint8Array<ArrayBuffer>> => {
    await transport.importMetadata(metadata);
    return new Uint8Array(await transport.exportMetadata());
  };

  const server = Bun.serve({
    hostname: "127.0.0.1",
    port,
    routes: {
      "/attach": { POST: async (request) => new Response(await attach(await request.bytes())) },
      "/offload": { POST: async (request) => Response.json(await offload((await request.json()) as Order)) },
      "/onboard": { POST: async (request) => Response.json(await onboard((await request.json()) as Order)) },
      "/metrics": () =>
        new Response(`${transport.metricsText()}offload_blocks ${pool.size}\n`, {
          headers: { "content-type": "text/plain; version=0.0.4" },
        }),
    },
    error: (failure) =>
      isKvferryError(failure)
        ? Response.json(
            { code: failure.code, message: failure.message, remedy: failure.remedy },
            { status: 409 },
          )
        : Response.json({ message: failure.message }, { status: 500 }),
  });
  return {
    url: server.url,
    stop: async () => {
      await server.stop(true);
      await transport.close();
    },
  };
}

/** An engine in a process of its own: evicts blocks, reuses their memory, and gets them back into other blocks. */
async function engine(service: string): Promise<void> {
  await using transport = await Transport.open({ workerId: 1n });
  const cache = await transport.register({
    name: "cache",
    config: ENGINE,
    arrangement: "layer-separate/block-second",
    memory: { kind: "system" },
  });
  await answerParent(async () => {
    const post = async (path: string, body: Uint8Array<ArrayBuffer> | string): Promise<Response> => {
      const response = await fetch(new URL(path, service), { method: "POST", body });
      if (!response.ok) throw new Error(`${path}: ${await response.text()}`);
      return response;
    };
    const theirs = await post("/attach", new Uint8Array(await transport.exportMetadata()));
    await transport.importMetadata(await theirs.bytes());

    await cache.fill({ random: 7 });
    const evicted = [4, 17, 5, 30];
    const order = (blocks: readonly number[]): string =>
      JSON.stringify({
        worker: "1",
        items: evicted.map((block, at) => ({ key: `prefix-${block}`, block: blocks[at] })),
      });
    const before = await cache.checksums(evicted);
    await post("/offload", order(evicted));
    await cache.fill(0);
    const landing = [0, 1, 2, 3];
    const { found } = (await (await post("/onboard", order(landing))).json()) as { readonly found: string[] };
    const after = await cache.checksums(landing);
    return found.length === evicted.length && after.every((sum, at) => sum === before[at]);
  });
}

async function show(): Promise<void> {
  const service = await startService(0);
  const child = startChild(import.meta.path, "engine", service.url.href);
  const same = await child.ask<boolean>({});
  const page = await (await fetch(new URL("/metrics", service.url))).text();
  await child.end();
  await service.stop();
  console.log(
    page
      .split("\n")
      .filter((line) => /^(kvferry_transfers_total|kvferry_transfer_bytes_total|offload)/.test(line))
      .join("\n"),
  );
  if (!same) throw new Error("the blocks that came back are not those that were evicted");
  console.log("verified: 4 blocks were evicted, their memory reused, and brought back into other blocks");
}

async function serve(): Promise<void> {
  const service = await startService(Number(process.env["PORT"] ?? 8400));
  console.log(`offload service at ${service.url}`);
  process.once("SIGINT", () => void service.stop());
  process.once("SIGTERM", () => void service.stop());
}

const [role = "show", address = ""] = process.argv.slice(2);
await (role === "engine" ? engine(address) : role === "serve" ? serve() : show());
