// Rows G1 and G2: what moving blocks across the link costs a matrix product that runs on the same GPU, and how the time
// of a transfer grows with the number of its blocks.
import { Transport } from "../index.ts";
import type { LocalLayout } from "../index.ts";
import { defaultProfile } from "../lib/core/index.ts";
import { acrossLink, again, dmaOf, KIB, MIB, release, timed, verify } from "./gpu-world.ts";
import type { Row, World } from "./gpu-world.ts";
import { alternate } from "./processes.ts";
import { shuffled } from "./statistics.ts";

/** Products that one sample takes the mean of: some tens of milliseconds. */
const PRODUCTS = 40;
/** Transfers that are under way at once while the product runs: the link never waits. */
const IN_FLIGHT = 3;
const CHUNK = 16 * KIB;
const LAYERS = 40;
const GROWING = [1, 4, 16, 64, 256, 1024, 4096, 16_384];

/** Methods, and the CTAs that their kernels get; kernels take multiprocessors from the product, DMA does not. */
const BESIDE = [
  ["slab", "cuda/slab", null, 0.97],
  ["batch", "cuda/batch", null, 0.97],
  ["kernel-8", "cuda/kernel", 8, null],
  ["kernel-16", "cuda/kernel", 16, null],
  ["kernel-32", "cuda/kernel", 32, null],
] as const;

export const BESIDE_ROWS: readonly Row[] = [
  ...(["d2h", "h2d"] as const).flatMap((direction) =>
    BESIDE.map(([name, method, ctas, least]): Row => ({
      id: `G1.beside.${direction}.${name}`,
      unit: "ms",
      direction: "time",
      ...(least === null ? {} : { goal: { figure: "ratioToLimit", value: least } }),
      note: "one product of 8192 x 8192 bf16 matrices in another process while blocks cross the link without a pause; limit: the product alone",
      torch: true,
      measure: (world, samples) => beside(world, direction, method, ctas, samples),
    })),
  ),
  ...GROWING.map((blocks): Row => ({
    id: `G2.grow.${blocks}`,
    unit: "us",
    direction: "time",
    note: "GPU to pinned memory, scattered blocks of 16 KiB on both sides, submit to await; limit: one DMA of the same bytes",
    measure: (world, samples) => grow(world, blocks, samples),
  })),
];

async function beside(
  world: World,
  direction: "d2h" | "h2d",
  method: string,
  ctas: number | null,
  samples: number,
): Promise<Record<string, number[]>> {
  const { cuda } = defaultProfile;
  const profile = ctas === null ? defaultProfile : { ...defaultProfile, cuda: { ...cuda, kernelCtas: ctas } };
  await using transport = await Transport.open({
    workerId: 2n,
    nixl: false,
    neighbours: false,
    cuda: {},
    profile,
  });
  const { source, destination, numBlocks } = await acrossLink(transport, direction, {
    bytes: 512 * MIB,
    layers: LAYERS,
    chunk: CHUNK,
  });
  const request = {
    source,
    sourceBlocks: shuffled(numBlocks, 1),
    destination,
    destinationBlocks: shuffled(numBlocks, 2),
    method,
  };
  await verify({ transport }, request);
  const product = await world.keep("product", Product.start);
  return await alternate(
    {
      ours: async () => {
        let moving = true;
        const movers = Array.from({ length: IN_FLIGHT }, async () => {
          while (moving) await transport.transfer(request);
        });
        const millis = await product.take();
        moving = false;
        await Promise.all(movers);
        return millis;
      },
      limit: () => product.take(),
    },
    samples,
  );
}

async function grow(world: World, blocks: number, samples: number): Promise<Record<string, number[]>> {
  const all = 32_768;
  const config = { numBlocks: all, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: CHUNK / 2 } as const;
  const adopt = async (kind: "device" | "pinned"): Promise<LocalLayout> =>
    await world.transport.register({
      config,
      memory: {
        kind: "external",
        storage: kind === "device" ? { device: 0 } : "pinned",
        regions: [{ address: await world.arena(kind, 0), size: all * CHUNK }],
      },
    });
  const [from, to] = [await adopt("device"), await adopt("pinned")];
  const request = {
    source: from,
    sourceBlocks: shuffled(all, 1).slice(0, blocks),
    destination: to,
    destinationBlocks: shuffled(all, 2).slice(0, blocks),
  };
  await verify(world, request);
  const sides = [from, to].map((layout) => ({ layout, chunkAt: () => 0 }));
  const [source, destination] = sides;
  if (source === undefined || destination === undefined) throw new Error("two sides were made");
  const limit = await dmaOf(world, source, destination, blocks * CHUNK);
  for (let round = 0; round < 300; round += 1) await world.transport.transfer(request);
  const taken = await alternate(
    {
      ours: () => again(() => timed(() => world.transport.transfer(request))),
      limit: () => again(limit),
    },
    samples,
  );
  await release(sides);
  return taken;
}

/** A process that multiplies matrices on the GPU. */
class Product implements AsyncDisposable {
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncIterator<string>;

  private constructor() {
    const program = `${import.meta.dirname}/native/gpu_product.py`;
    this.#child = Bun.spawn(["python3", program], { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    this.#lines = linesOf(this.#child.stdout);
  }

  static async start(): Promise<Product> {
    const product = new Product();
    if ((await product.#next()) !== "ready") throw new Error("the product needs python3 with PyTorch");
    return product;
  }

  /** Milliseconds of one product. */
  async take(): Promise<number> {
    this.#child.stdin.write(`${PRODUCTS}\n`);
    await this.#child.stdin.flush();
    return Number(await this.#next());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.stdin.end();
    await this.#child.exited;
  }

  async #next(): Promise<string> {
    const { value, done } = await this.#lines.next();
    return done === true ? "" : value;
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  let open = "";
  for await (const chunk of stream) {
    const lines = (open + decoder.decode(chunk, { stream: true })).split("\n");
    open = lines.pop() ?? "";
    yield* lines;
  }
}
