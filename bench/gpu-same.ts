// Rows G1.same: what moving blocks across the link costs a matrix product of the same process, and how fast the blocks
// move meanwhile.
import { Transport } from "../index.ts";
import type { TransferRequest } from "../index.ts";
import { defaultProfile } from "../lib/core/index.ts";
import { SameProduct } from "./gpu-product.ts";
import { acrossLink, KIB, least, MIB, verify } from "./gpu-world.ts";
import type { Row, World } from "./gpu-world.ts";
import { alternate } from "./processes.ts";
import { shuffled } from "./statistics.ts";

/** Products that are queued for one sample: some 200 ms on an H200. */
const PRODUCTS = 140;
/** Samples of a process at most: each is the mean of that many products. */
const MOST_SAMPLES = 8;
/** Transfers that are under way at once: the link never waits. */
const IN_FLIGHT = 3;
/** Few bytes a transfer, so that a sample has many ends to take a rate from. */
const BYTES = 128 * MIB;
const CHUNK = 16 * KIB;
const LAYERS = 40;
/** Ends of transfers that a line is laid through. */
const LINE = 12;
/** Milliseconds that transfers run before anything counts, and that their rate alone is taken over. */
const RUN_UP = 20;
const ALONE = 150;

type Direction = "d2h" | "h2d";

/** A method with so many CTAs; `whole`: all bytes are one piece on both sides. */
interface Way {
  readonly name: string;
  readonly method: string;
  readonly ctas?: number;
  readonly whole?: boolean;
  readonly goal?: number;
}

/** DMA takes no multiprocessors from the product; slabs and kernels take some. 16 and 32 CTAs are what plans ask for, half of it on a busy GPU. */
const WAYS: readonly Way[] = [
  { name: "dma", method: "cuda/dma", whole: true, goal: 0.97 },
  { name: "batch", method: "cuda/batch", goal: 0.97 },
  { name: "slab", method: "cuda/slab", goal: 0.97 },
  ...[4, 8, 16].map((ctas) => ({ name: `slab-${ctas}`, method: "cuda/slab", ctas })),
  ...[4, 8, 16, 32].map((ctas) => ({ name: `kernel-${ctas}`, method: "cuda/kernel", ctas })),
  { name: "bulk-8", method: "cuda/bulk", ctas: 8 },
];

export const SAME_ROWS: readonly Row[] = (["d2h", "h2d"] as const).flatMap((direction) =>
  WAYS.flatMap((way) => rowsOf(direction, way)),
);

/** What both rows of a way are made of, so that it is measured once. */
interface Measured {
  readonly times: Record<string, number[]>;
  readonly rates: Record<string, number[]>;
}
const measured = new WeakMap<World, Map<string, Promise<Measured>>>();

function rowsOf(direction: Direction, way: Way): Row[] {
  const id = `G1.same.${direction}.${way.name}`;
  const once = (world: World, samples: number): Promise<Measured> => {
    const known = measured.get(world) ?? new Map<string, Promise<Measured>>();
    measured.set(world, known);
    const taken = known.get(id) ?? same(world, direction, way, Math.min(samples, MOST_SAMPLES));
    known.set(id, taken);
    return taken;
  };
  return [
    {
      id,
      unit: "ms",
      direction: "time",
      ...(way.goal === undefined ? {} : { goal: least(way.goal) }),
      note: "one product of 8192 x 8192 bf16 matrices in this process while blocks cross the link without a pause; limit: the product alone",
      cublas: true,
      measure: async (world, samples) => (await once(world, samples)).times,
    },
    {
      id: `${id}.rate`,
      unit: "GB/s",
      direction: "rate",
      note: "what the transfers beside the product reach; limit: the same transfers alone",
      cublas: true,
      measure: async (world, samples) => (await once(world, samples)).rates,
    },
  ];
}

async function same(world: World, direction: Direction, way: Way, samples: number): Promise<Measured> {
  const product = await world.keep("same product", SameProduct.start);
  await using transport = await Transport.open({
    workerId: 3n,
    nixl: false,
    neighbours: false,
    cuda: {},
    profile: profileOf(way),
  });
  const request = await requestOf(transport, direction, way);
  const rates: Record<string, number[]> = { ours: [], limit: [] };
  const alone = async (): Promise<number> => {
    product.queue(PRODUCTS);
    return (await product.over()) / PRODUCTS;
  };
  const beside = async (): Promise<number> => {
    const movers = start(transport, request);
    await Bun.sleep(RUN_UP);
    const begun = Bun.nanoseconds();
    product.queue(PRODUCTS);
    const millis = await product.over().finally(() => movers.stop());
    const ended = begun + millis * 1e6;
    rates["ours"]?.push(rateOf(await movers.ends, begun, ended));
    return millis / PRODUCTS;
  };
  const moving = async (): Promise<number> => {
    const movers = start(transport, request);
    await Bun.sleep(RUN_UP);
    const begun = Bun.nanoseconds();
    await Bun.sleep(ALONE);
    movers.stop();
    const rate = rateOf(await movers.ends, begun, begun + ALONE * 1e6);
    rates["limit"]?.push(rate);
    return rate;
  };
  const { moving: _rates, ...times } = await alternate({ ours: beside, limit: alone, moving }, samples, 1);
  // The warm-up rounds are left out here as there.
  for (const [name, values] of Object.entries(rates)) rates[name] = values.slice(-samples);
  return { times, rates };
}

function profileOf({ ctas }: Way): typeof defaultProfile {
  if (ctas === undefined) return defaultProfile;
  const cuda = { ...defaultProfile.cuda, kernelCtas: ctas, slabCtas: ctas, bulkCtas: ctas };
  return { ...defaultProfile, cuda };
}

async function requestOf(transport: Transport, direction: Direction, way: Way): Promise<TransferRequest> {
  const { source, destination, numBlocks } = await acrossLink(
    transport,
    direction,
    { bytes: BYTES, layers: LAYERS, chunk: CHUNK },
    way.whole,
  );
  const inOrder = Uint32Array.from({ length: numBlocks }, (_, block) => block);
  const request = {
    source,
    sourceBlocks: way.whole === true ? inOrder : shuffled(numBlocks, 1),
    destination,
    destinationBlocks: way.whole === true ? inOrder : shuffled(numBlocks, 2),
    method: way.method,
  };
  if (way.whole === true && transport.explain(request).descriptorsAfter !== 1)
    throw new Error("one DMA was meant");
  await verify({ transport }, request);
  return request;
}

/** Transfers one after the other, several at once, until told to stop. */
function start(
  transport: Transport,
  request: TransferRequest,
): { readonly ends: Promise<readonly number[]>; stop(): void } {
  let going = true;
  const ends: number[] = [];
  const movers = Array.from({ length: IN_FLIGHT }, async () => {
    while (going) {
      await transport.transfer(request);
      ends.push(Bun.nanoseconds());
    }
  });
  return {
    ends: Promise.all(movers).then(() => ends),
    stop: () => {
      going = false;
    },
  };
}

/**
 * GB/s by the line that fits the ends between two moments best: where the first and the last end fall matters little.
 * Few ends, which may come in threes, make no line: they are counted.
 */
function rateOf(ends: readonly number[], from: number, until: number): number {
  const moved = Math.floor(BYTES / (2 * LAYERS * CHUNK)) * 2 * LAYERS * CHUNK;
  const inside = ends.filter((at) => at >= from && at <= until);
  if (inside.length < LINE) return (inside.length * moved) / (until - from);
  const middle = inside.reduce((sum, at) => sum + at, 0) / inside.length;
  let [above, below] = [0, 0];
  for (const [count, at] of inside.entries()) {
    above += (at - middle) * (count - (inside.length - 1) / 2);
    below += (at - middle) ** 2;
  }
  return (above / below) * moved;
}
