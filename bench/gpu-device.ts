// Rows F4, F12 and F19: copies within a GPU and between two, and how long pinned memory takes to be there.
import type { LayoutConfig } from "../index.ts";
import {
  CHUNKS,
  dmaOf,
  few,
  GIB,
  KIB,
  LAYERS,
  least,
  MIB,
  release,
  SCATTERED,
  tablesOf,
  timed,
  verify,
} from "./gpu-world.ts";
import type { Row, World } from "./gpu-world.ts";
import { alternate } from "./processes.ts";
import { shuffled } from "./statistics.ts";

const PINNED_POOL = 8 * GIB;
/** Layers with memory of their own: few block ids, many runs. */
const SCATTER_LAYERS: Readonly<Record<string, number>> = {
  "256": 2048,
  "2k": 1024,
  "16k": 256,
  "256k": 64,
  "1m": 32,
};
const RUNS: Readonly<Record<string, number>> = {
  "256": 256,
  "2k": 2 * KIB,
  "16k": 16 * KIB,
  "256k": 256 * KIB,
  "1m": MIB,
};

export const DEVICE_ROWS: readonly Row[] = [
  ...Object.entries(RUNS).map(([size, run]) => scatterRow(size, run)),
  ...(["hnd", "universal-tp"] as const).flatMap((order) =>
    [64, 128].map((headDim) => orderRow(order, headDim)),
  ),
  {
    id: "F12.pinned",
    unit: "ms",
    direction: "time",
    goal: least(0.67),
    note: "register 8 GiB of pinned memory; limit: shareable memory touched by as many threads; one sample a process",
    measure: pinnedPool,
  },
  {
    id: "F19.peer.16k",
    unit: "GB/s",
    direction: "rate",
    goal: least(0.89),
    note: "GPU 0 to GPU 1 of one process, scattered 16 KiB; limit: one DMA over the link between them",
    devices: 2,
    measure: peer,
  },
];

function scatterRow(size: string, run: number): Row {
  return {
    id: `F4.scatter.${size}`,
    unit: "GB/s",
    direction: "rate",
    goal: least(run === 256 ? 0.8 : 0.92),
    note: "bytes copied; limit: a plain device copy of the same bytes; scattered on both sides",
    measure: async (world, samples, slow) => {
      const layers = SCATTER_LAYERS[size] ?? LAYERS;
      const blocks = Math.floor(SCATTERED / (2 * layers * run));
      const shape = { layers, blocks, chunk: run };
      const from = await world.side(await world.arena("device", 2), { device: 0 }, shape, false);
      const to = await world.side(await world.arena("device", 3), { device: 0 }, shape, false);
      const ids = shuffled(blocks, 1);
      const places = shuffled(blocks, 2);
      const request = {
        source: from.layout,
        sourceBlocks: ids,
        destination: to.layout,
        destinationBlocks: places,
      };
      await verify(world, request);
      const bytes = blocks * layers * 2 * run;
      const limit = await dmaOf(world, from, to, bytes);
      const table = run >= 2 * KIB ? tablesOf(world, from, to, ids, places, layers) : null;
      const rate = (micros: number): number => bytes / micros / 1000;
      const taken = await alternate(
        {
          ours: async () => rate(await timed(() => world.transport.transfer(request))),
          limit: () => rate(limit()),
          ...(table === null
            ? {}
            : { "plain kernel": () => rate(world.anchors.kernel(table, run, 4 * 132, 512)) }),
        },
        samples,
      );
      if (slow && table !== null && run >= 16 * KIB)
        taken["batched call"] = few(() => rate(world.anchors.batch(table, run).micros));
      table?.release();
      await release([from, to]);
      return taken;
    },
  };
}

function orderRow(order: "hnd" | "universal-tp", headDim: number): Row {
  const name = order === "hnd" ? "nhd-hnd" : "nhd-universal";
  return {
    id: `F4.${name}.${headDim}`,
    unit: "GB/s",
    direction: "rate",
    goal: least(0.92),
    note: `bytes copied; limit: a plain device copy of the same bytes; rows of ${2 * headDim} bytes`,
    measure: async (world, samples) => {
      const config: LayoutConfig = {
        numBlocks: 0,
        numLayers: 16,
        outerDim: 2,
        pageSize: 16,
        numHeads: 8,
        headDim,
      };
      const cell = 16 * 8 * headDim * 2;
      const blocks = Math.floor(SCATTERED / (32 * cell));
      const sized = { ...config, numBlocks: blocks };
      const shape = { layers: 16, blocks, chunk: cell };
      const from = await world.side(await world.arena("device", 2), { device: 0 }, shape, true, {
        order: "nhd",
        config: sized,
      });
      const to = await world.side(await world.arena("device", 3), { device: 0 }, shape, true, {
        order,
        config: sized,
      });
      const request = {
        source: from.layout,
        sourceBlocks: shuffled(blocks, 3),
        destination: to.layout,
        destinationBlocks: shuffled(blocks, 4),
      };
      await verify(world, request);
      const bytes = blocks * 32 * cell;
      const limit = await dmaOf(world, from, to, bytes);
      const taken = await alternate(
        {
          ours: async () => bytes / (await timed(() => world.transport.transfer(request))) / 1000,
          limit: () => bytes / limit() / 1000,
        },
        samples,
      );
      await release([from, to]);
      return taken;
    },
  };
}

async function pinnedPool(world: World): Promise<Record<string, number[]>> {
  const config = {
    numBlocks: PINNED_POOL / MIB,
    numLayers: 1,
    outerDim: 1,
    pageSize: 1,
    innerDim: MIB / 2,
  } as const;
  const register = async (allocator: "shared" | "driver"): Promise<number> => {
    const begun = Bun.nanoseconds();
    const layout = await world.transport.register({ config, memory: { kind: "pinned", allocator } });
    const millis = (Bun.nanoseconds() - begun) / 1e6;
    await layout.unregister();
    return millis;
  };
  const threads = Math.min(16, navigator.hardwareConcurrency);
  return await alternate(
    {
      ours: () => register("shared"),
      limit: () => world.anchors.touch(PINNED_POOL, threads) / 1000,
      "driver's allocation": () => register("driver"),
    },
    1,
    0,
  );
}

async function peer(world: World, samples: number): Promise<Record<string, number[]>> {
  const run = 16 * KIB;
  const shape = { layers: LAYERS, blocks: Math.floor((512 * MIB) / (CHUNKS * run)), chunk: run };
  const from = await world.side(await world.arena("device", 0, 0), { device: 0 }, shape, false);
  const to = await world.side(await world.arena("device", 0, 1), { device: 1 }, shape, false);
  const bytes = shape.blocks * CHUNKS * run;
  const request = {
    source: from.layout,
    sourceBlocks: shuffled(shape.blocks, 1),
    destination: to.layout,
    destinationBlocks: shuffled(shape.blocks, 2),
  };
  await verify(world, request);
  const limit = await dmaOf(world, from, to, bytes);
  const taken = await alternate(
    {
      ours: async () => bytes / (await timed(() => world.transport.transfer(request))) / 1000,
      limit: () => bytes / limit() / 1000,
    },
    samples,
  );
  await release([from, to]);
  return taken;
}
