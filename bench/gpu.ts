// Rows F1 to F7, F12 and F19: blocks between GPU and pinned memory, within a GPU, and between two; submission and waking.
import { dlopen, JSCallback } from "bun:ffi";

import { Transport } from "../index.ts";
import type { LayoutConfig, LocalLayout, Order, TransferRequest } from "../index.ts";
import { CUDA_LIBRARY_VARIABLE } from "../lib/native/cuda.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Goal, RowSpec } from "./result.ts";
import { quantile, seededRandom } from "./statistics.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
/** Bytes that one sample of F1 moves, near enough: whole blocks of 160 chunks. */
const MOVED = 256 * MIB;
const LAYERS = 80;
const CHUNKS = 2 * LAYERS;
const ARENA = GIB + 96 * MIB;
const PINNED_POOL = 8 * GIB;
/** Bytes that one sample of F4 moves: far beyond the cache, and long enough that submitting does not count. */
const SCATTERED = 4 * GIB;
/** Layers with memory of their own: few block ids, many runs. */
const SCATTER_LAYERS: Readonly<Record<string, number>> = {
  "256": 2048,
  "2k": 1024,
  "16k": 256,
  "256k": 64,
  "1m": 32,
};
/** Bytes that are moved before a row across the link is measured. */
const WARM_BYTES = 10 * GIB;
/** Slow anchors are shown, not compared: so many samples, in one process. */
const SLOW_SAMPLES = 3;

const SIZES: Readonly<Record<string, number>> = {
  "4k": 4 * KIB,
  "8k": 8 * KIB,
  "16k": 16 * KIB,
  "32k": 32 * KIB,
  "64k": 64 * KIB,
  "256k": 256 * KIB,
};
const RUNS: Readonly<Record<string, number>> = {
  "256": 256,
  "2k": 2 * KIB,
  "16k": 16 * KIB,
  "256k": 256 * KIB,
  "1m": MIB,
};

type Direction = "d2h" | "h2d";
type Form = "pool" | "scattered";

/** One row, and how a process measures it. */
interface Row extends RowSpec {
  readonly measure: (world: World, samples: number, slow: boolean) => Promise<Record<string, number[]>>;
  /** CUDA devices that it needs. */
  readonly devices?: number;
}

const ROWS: readonly Row[] = [
  ...(["d2h", "h2d"] as const).flatMap((direction) =>
    (["pool", "scattered"] as const).flatMap((form) =>
      Object.entries(SIZES).map(([size, chunk]) => linkRow(direction, form, size, chunk)),
    ),
  ),
  ...(["d2h", "h2d"] as const).flatMap((direction) => [
    smallRow(`F2.${direction}`, direction, 1, 32 * KIB, 0.77),
    smallRow(`F3.${direction}`, direction, 8, 8 * KIB, 0.83),
  ]),
  ...Object.entries(RUNS).map(([size, run]) => scatterRow(size, run)),
  ...(["hnd", "universal-tp"] as const).flatMap((order) =>
    [64, 128].map((headDim) => orderRow(order, headDim)),
  ),
  {
    id: "F5.both",
    unit: "GB/s",
    direction: "rate",
    goal: least(0.95),
    note: "limit: two DMAs at once; pool form, 64 KiB chunks",
    measure: both,
  },
  ...(
    [
      ["p50", 0.5, 20],
      ["p99", 0.99, 80],
    ] as const
  ).map(([name, at, most]): Row => ({
    id: `F6.${name}`,
    unit: "us",
    direction: "time",
    goal: { figure: "ours", value: most },
    note: "from the last byte in host memory, as a spinning thread sees it, to JavaScript continuing; limit: the bare wake-up of a thread-safe callback",
    measure: (world, samples) => wake(world, samples, at),
  })),
  ...(
    [
      [1, 10],
      [4096, 150],
    ] as const
  ).map(([blocks, most]): Row => ({
    id: `F7.submit.${blocks}`,
    unit: "us",
    direction: "time",
    goal: { figure: "ours", value: most },
    note: "run() of a prepared transfer of scattered blocks of 4 KiB until it returns; limit: the batched call's own submission in C",
    measure: (world, samples) => submission(world, samples, blocks),
  })),
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

/** Measures the rows on this machine's GPU; says so and gives none where there is no GPU. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const devices = deviceCount();
  if (devices === 0) {
    options.progress(
      "NOT RUN: there is no GPU on this machine, so the rows F1 to F7, F12 and F19 have no figures",
    );
    return [];
  }
  const library = await buildNative("gpu_anchor.c", "library", options.progress);
  const rows = ROWS.filter((row) => row.id.includes(options.only) && (row.devices ?? 1) <= devices);
  for (const row of ROWS)
    if ((row.devices ?? 1) > devices) options.progress(`NOT RUN: ${row.id} needs ${row.devices} GPUs`);
  const sets: Record<string, SampleSets[number]>[] = [];
  for (let count = 0; count < options.processes; count += 1) {
    options.progress(`GPU: process ${count + 1} of ${options.processes}, ${rows.length} rows`);
    const [taken] = await inProcesses<Record<string, SampleSets[number]>>(
      import.meta.path,
      "measure",
      { library, ids: rows.map(({ id }) => id), samples: options.samples, slow: count === 0 },
      1,
    );
    if (taken !== undefined) sets.push(taken);
  }
  return rows.map(({ measure: _measure, devices: _devices, ...spec }) =>
    summarize(
      spec,
      sets.map((set) => set[spec.id] ?? {}),
    ),
  );
}

/** In one process: samples of the named rows. */
export async function measure(parameters: {
  readonly library: string;
  readonly ids: readonly string[];
  readonly samples: number;
  readonly slow: boolean;
}): Promise<Record<string, Record<string, number[]>>> {
  const world = await World.open(parameters.library);
  const taken: Record<string, Record<string, number[]>> = {};
  for (const row of ROWS.filter(({ id }) => parameters.ids.includes(id)))
    taken[row.id] = await row.measure(world, parameters.samples, parameters.slow);
  await world.transport.close();
  return taken;
}

/** Blocks of one layout, and where each of their chunks lies. */
interface Side {
  readonly layout: LocalLayout;
  readonly chunkAt: (block: number, layer: number, outer: number) => number;
}

/** What a process measures with: one transport, large pieces of memory, and the anchors in C. */
class World {
  readonly transport: Transport;
  readonly anchors: Anchors;
  readonly #arenas: Map<string, number> = new Map();

  private constructor(transport: Transport, anchors: Anchors) {
    this.transport = transport;
    this.anchors = anchors;
  }

  static async open(library: string): Promise<World> {
    const transport = await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: {} });
    const anchors = openAnchors(library);
    return new World(transport, anchors);
  }

  /** A piece of memory that stays for the process. */
  async arena(kind: "device" | "pinned", number = 0, device = 0): Promise<number> {
    const name = `${kind} ${number} ${device}`;
    const known = this.#arenas.get(name);
    if (known !== undefined) return known;
    // The later device pieces are for copies within the device.
    const size = number >= 2 ? SCATTERED + 256 * MIB : ARENA;
    const config = {
      numBlocks: size / MIB,
      numLayers: 1,
      outerDim: 1,
      pageSize: 1,
      innerDim: MIB / 2,
    } as const;
    const layout = await this.transport.register({ config, memory: { kind, device } });
    const address = layout.regions[0]?.address ?? 0;
    if (kind === "device") await layout.fill({ random: 1 + number }, { blocks: [0, 1, 2, 3] });
    this.#arenas.set(name, address);
    return address;
  }

  /** Layers and outers with memory of their own, unevenly spaced, or whole blocks one after the other. */
  async side(
    at: number,
    storage: "pinned" | { readonly device: number },
    shape: { readonly layers: number; readonly blocks: number; readonly chunk: number },
    contiguous: boolean,
    order?: { readonly order: Order; readonly config: LayoutConfig },
  ): Promise<Side> {
    const { layers, blocks, chunk } = shape;
    const config = order?.config ?? {
      numBlocks: blocks,
      numLayers: layers,
      outerDim: 2 as const,
      pageSize: 1,
      innerDim: chunk / 2,
    };
    const regionBytes = contiguous ? layers * 2 * blocks * chunk : 2 * blocks * chunk;
    const regions = contiguous
      ? [{ address: at, size: regionBytes }]
      : Array.from({ length: layers }, (_, layer) => ({
          address: at + layer * regionBytes + (8 * layer + ((layer * layer) % 7)) * 256,
          size: regionBytes,
        }));
    const layout = await this.transport.register({
      config,
      arrangement: contiguous ? "fully-contiguous" : "layer-separate/block-second",
      ...(order === undefined ? undefined : { order: order.order }),
      memory: { kind: "external", storage, regions },
    });
    return {
      layout,
      chunkAt: contiguous
        ? (block, layer, outer) => at + ((block * layers + layer) * 2 + outer) * chunk
        : (block, layer, outer) => (regions[layer]?.address ?? 0) + (outer * blocks + block) * chunk,
    };
  }
}

// ---- rows ----------------------------------------------------------------------------------------------------------

function linkRow(direction: Direction, form: Form, size: string, chunk: number): Row {
  const wanted = form === "pool" ? 0.95 : direction === "d2h" ? 0.94 : 0.91;
  return {
    id: `F1.${direction}.${form}.${size}`,
    unit: "GB/s",
    direction: "rate",
    goal: least(size === "4k" ? (form === "pool" ? 0.92 : wanted - 0.01) : wanted),
    note: `limit: one DMA; ${form === "pool" ? "whole blocks" : "chunks scattered"} in pinned memory, submit to await in JavaScript, the second of two in a row`,
    measure: async (world, samples, slow) => {
      const blocks = Math.floor(MOVED / (CHUNKS * chunk));
      const sides = await linkSides(world, direction, form, blocks, chunk);
      const taken = await compare(
        world,
        sides,
        direction,
        blocks,
        chunk,
        samples,
        slow,
        (micros, bytes) => bytes / micros / 1000,
      );
      await release(sides);
      return taken;
    },
  };
}

function smallRow(id: string, direction: Direction, blocks: number, chunk: number, goal: number): Row {
  return {
    id,
    unit: "us",
    direction: "time",
    goal: least(goal),
    note: `limit: one DMA in C, launch to event; ${blocks} blocks of ${CHUNKS} x ${chunk / KIB} KiB, submit to await in JavaScript, the second of two in a row`,
    measure: async (world, samples) => {
      const sides = await linkSides(world, direction, "pool", Math.max(64, blocks), chunk);
      const taken = await compare(world, sides, direction, blocks, chunk, samples, true, (micros) => micros);
      await release(sides);
      return taken;
    },
  };
}

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

async function both(world: World, samples: number): Promise<Record<string, number[]>> {
  const chunk = 64 * KIB;
  const blocks = Math.floor(MOVED / (CHUNKS * chunk));
  const out = await linkSides(world, "d2h", "pool", blocks, chunk);
  const back = await linkSides(world, "h2d", "pool", blocks, chunk, 1);
  const bytes = blocks * CHUNKS * chunk;
  const request = ([source, destination]: readonly [Side, Side], seed: number): TransferRequest => ({
    source: source.layout,
    sourceBlocks: shuffled(blocks, seed),
    destination: destination.layout,
    destinationBlocks: shuffled(blocks, seed + 1),
  });
  const requests = [request(out, 1), request(back, 3)];
  for (const one of requests) await verify(world, one);
  const start = ([source, destination]: readonly [Side, Side]): readonly [number, number] => [
    source.layout.regions[0]?.address ?? 0,
    destination.layout.regions[0]?.address ?? 0,
  ];
  const [src0, dst0] = start(out);
  const [src1, dst1] = start(back);
  const taken = await alternate(
    {
      ours: () =>
        again(
          async () =>
            (2 * bytes) /
            (await timed(() => Promise.all(requests.map((one) => world.transport.transfer(one))))) /
            1000,
        ),
      limit: () => again(() => (2 * bytes) / world.anchors.two(dst0, src0, dst1, src1, bytes) / 1000),
    },
    samples,
  );
  await release([...out, ...back]);
  return taken;
}

/** Moments that one sample of a quantile is made of, and bytes of each. */
const MOMENTS = 100;
const WAKE_BYTES = 16 * MIB;

async function wake(world: World, samples: number, at: number): Promise<Record<string, number[]>> {
  const { transport, anchors } = world;
  // One run of 16 MiB each: a DMA writes it from front to back, so its last word comes last.
  const config = { numBlocks: 2, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: WAKE_BYTES / 2 } as const;
  const adopt = (address: number, storage: "pinned" | { readonly device: number }): Promise<LocalLayout> =>
    transport.register({
      config,
      memory: { kind: "external", storage, regions: [{ address, size: 2 * WAKE_BYTES }] },
    });
  const gpu = await adopt(await world.arena("device", 0), { device: 0 });
  const host = await adopt(await world.arena("pinned", 0), "pinned");
  const bytes = host.bytes[0];
  if (bytes === undefined) throw new Error("pinned memory has no bytes");
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const last = words.length - 1;
  const watched = (host.regions[0]?.address ?? 0) + last * 4;
  let value = 1;
  const begin = async (): Promise<() => Promise<unknown>> => {
    value += 1;
    words[words.length / 2 - 1] = value;
    await transport.transfer({ source: host, sourceBlocks: [0], destination: gpu, destinationBlocks: [0] });
    await Bun.sleep(1);
    anchors.watch(watched, value);
    const transfer = transport.transfer({
      source: gpu,
      sourceBlocks: [0],
      destination: host,
      destinationBlocks: [1],
    });
    return async () => await transfer;
  };
  const late = async (moment: () => Promise<number>): Promise<number> => {
    const moments: number[] = [];
    for (let count = 0; count < MOMENTS; count += 1) moments.push(await moment());
    return quantile(moments, at);
  };
  // A callback that is safe to call from any thread does not keep the process alive by itself.
  const hold = setInterval(() => undefined, 10_000);
  let waked: () => void = () => undefined;
  const callback = new JSCallback(() => waked(), { args: [], returns: "void", threadsafe: true });
  const taken = await alternate(
    {
      ours: () =>
        late(async () => {
          const ended = await begin();
          await ended();
          return anchors.since();
        }),
      limit: () =>
        late(async () => {
          const { promise, resolve } = Promise.withResolvers<void>();
          waked = resolve;
          anchors.wake(callback.ptr as unknown as number);
          await promise;
          return anchors.since();
        }),
      "1 ms tick": () =>
        late(async () => {
          const ended = await begin();
          while (words[last] !== value) await Bun.sleep(1);
          const since = anchors.since();
          await ended();
          return since;
        }),
    },
    Math.min(samples, 2),
    1,
  );
  clearInterval(hold);
  callback.close();
  await gpu.unregister();
  await host.unregister();
  return taken;
}

async function submission(world: World, samples: number, count: number): Promise<Record<string, number[]>> {
  const chunk = 4 * KIB;
  const blocks = 8192;
  // One chunk a block: scattered pairs of places that nothing joins.
  const config = { numBlocks: blocks, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: chunk / 2 } as const;
  const regions = async (kind: "device" | "pinned"): Promise<LocalLayout> =>
    await world.transport.register({
      config,
      memory: {
        kind: "external",
        storage: kind === "device" ? { device: 0 } : "pinned",
        regions: [{ address: await world.arena(kind, 0), size: blocks * chunk }],
      },
    });
  const [source, destination] = [await regions("device"), await regions("pinned")];
  const ids = shuffled(blocks, 5).slice(0, count);
  const places = shuffled(blocks, 6).slice(0, count);
  const request = { source, sourceBlocks: ids, destination, destinationBlocks: places };
  await verify(world, request);
  const at = (layout: LocalLayout, list: Uint32Array): BigUint64Array =>
    BigUint64Array.from(list, (id) => BigInt((layout.regions[0]?.address ?? 0) + id * chunk));
  const table = world.anchors.tables(at(source, ids), at(destination, places));
  const prepared = world.transport.prepare({ source, destination });
  const timedStart = async (start: () => PromiseLike<unknown>): Promise<number> => {
    const begun = Bun.nanoseconds();
    const transfer = start();
    const micros = (Bun.nanoseconds() - begun) / 1000;
    await transfer;
    return micros;
  };
  const taken = await alternate(
    {
      ours: () => timedStart(() => prepared.run(ids, places)),
      limit: () => world.anchors.batch(table, chunk).submit,
      "without prepare": () => timedStart(() => world.transport.transfer(request)),
    },
    samples * 5,
    300,
  );
  table.release();
  await source.unregister();
  await destination.unregister();
  return taken;
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

// ---- parts of rows ---------------------------------------------------------------------------------------------------

async function linkSides(
  world: World,
  direction: Direction,
  form: Form,
  blocks: number,
  chunk: number,
  arena = 0,
): Promise<readonly [Side, Side]> {
  const shape = { layers: LAYERS, blocks, chunk };
  // Two directions at once share the pinned arena, each with a half.
  const host = (await world.arena("pinned", 0)) + arena * 512 * MIB;
  const gpu = await world.side(await world.arena("device", arena), { device: 0 }, shape, false);
  const pool = await world.side(host, "pinned", shape, form === "pool");
  return direction === "d2h" ? [gpu, pool] : [pool, gpu];
}

async function compare(
  world: World,
  [from, to]: readonly [Side, Side],
  direction: Direction,
  blocks: number,
  chunk: number,
  samples: number,
  slow: boolean,
  figure: (micros: number, bytes: number) => number,
): Promise<Record<string, number[]>> {
  const all = from.layout.config.numBlocks;
  const ids = shuffled(all, 1).slice(0, blocks);
  const places = shuffled(all, 2).slice(0, blocks);
  const bytes = blocks * CHUNKS * chunk;
  const request = {
    source: from.layout,
    sourceBlocks: ids,
    destination: to.layout,
    destinationBlocks: places,
  };
  await verify(world, request);
  const limit = await dmaOf(world, from, to, bytes);
  const table = tablesOf(world, from, to, ids, places, LAYERS);
  const start = (): PromiseLike<unknown> => world.transport.transfer(request);
  // JavaScript's engine compiles what runs often; an application that moves blocks all day has that behind it.
  for (let round = 0; round < warmRounds(bytes); round += 1) await start();
  const taken = await alternate(
    {
      ours: () => again(async () => figure(await timed(start), bytes)),
      limit: () => again(() => figure(limit(), bytes)),
      "plain zero-copy kernel": () =>
        again(() => figure(world.anchors.kernel(table, chunk, direction === "d2h" ? 16 : 32, 1024), bytes)),
    },
    samples,
  );
  if (slow) {
    taken["batched call"] = few(() => figure(world.anchors.batch(table, chunk).micros, bytes));
    taken["loop of copies"] = few(() => figure(world.anchors.loop(table, chunk), bytes));
  }
  table.release();
  return taken;
}

/** One plain copy of as many bytes between the same pieces of memory. */
async function dmaOf(world: World, from: Side, to: Side, bytes: number): Promise<() => number> {
  const source = from.layout.regions[0]?.address ?? 0;
  const destination = to.layout.regions[0]?.address ?? 0;
  return () => world.anchors.dma(destination, source, bytes);
}

function tablesOf(
  world: World,
  from: Side,
  to: Side,
  ids: Uint32Array,
  places: Uint32Array,
  layers: number,
): Tables {
  const count = ids.length * layers * 2;
  const src = new BigUint64Array(count);
  const dst = new BigUint64Array(count);
  let at = 0;
  for (const [index, id] of ids.entries())
    for (let layer = 0; layer < layers; layer += 1)
      for (let outer = 0; outer < 2; outer += 1) {
        src[at] = BigInt(from.chunkAt(id, layer, outer));
        dst[at] = BigInt(to.chunkAt(places[index] ?? 0, layer, outer));
        at += 1;
      }
  return world.anchors.tables(src, dst);
}

/** Moves once and compares some of the blocks. */
async function verify(world: World, request: TransferRequest): Promise<void> {
  const { source, destination } = request;
  if (typeof source === "bigint" || typeof destination === "bigint")
    throw new TypeError("layouts, not handles");
  const [from, to] = [source as LocalLayout, destination as LocalLayout];
  const ids = [...(request.sourceBlocks as Uint32Array)];
  const places = [...(request.destinationBlocks as Uint32Array)];
  const picked = [0, ids.length >> 1, ids.length - 1];
  const blocks = [...new Set(picked.map((index) => ids[index] ?? 0))];
  await from.fill({ random: ids.length }, { blocks });
  await world.transport.transfer(request);
  const wanted = await from.checksums(picked.map((index) => ids[index] ?? 0));
  const found = await to.checksums(picked.map((index) => places[index] ?? 0));
  if (wanted.join() !== found.join()) throw new Error("the bytes did not arrive");
}

async function timed(work: () => PromiseLike<unknown>): Promise<number> {
  const begun = Bun.nanoseconds();
  await work();
  return (Bun.nanoseconds() - begun) / 1000;
}

/** The second of two in a row: the first one wakes threads that slept while others were measured. */
async function again(work: () => number | Promise<number>): Promise<number> {
  await work();
  return await work();
}

function warmRounds(bytes: number): number {
  return Math.min(2_000, Math.round(WARM_BYTES / bytes));
}

function few(work: () => number): number[] {
  work();
  return Array.from({ length: SLOW_SAMPLES }, work);
}

async function release(sides: readonly Side[]): Promise<void> {
  for (const { layout } of sides) await layout.unregister();
}

function shuffled(count: number, seed: number): Uint32Array {
  const random = seededRandom(seed);
  const order = Uint32Array.from({ length: count }, (_, index) => index);
  for (let index = count - 1; index > 0; index -= 1) {
    const other = Math.floor(random() * (index + 1));
    const kept = order[index] as number; // in bounds
    order[index] = order[other] as number; // in bounds
    order[other] = kept;
  }
  return order;
}

function least(value: number): Goal {
  return { figure: "ratioToLimit", value };
}

function deviceCount(): number {
  if (Bun.which("nvidia-smi") === null) return 0;
  const found = Bun.spawnSync(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    env: process.env,
  });
  return found.exitCode === 0 ? found.stdout.toString().trim().split("\n").filter(Boolean).length : 0;
}

// ---- anchors ---------------------------------------------------------------------------------------------------------

/** Addresses of chunks, here and on the device. */
interface Tables {
  readonly src: BigUint64Array;
  readonly dst: BigUint64Array;
  readonly srcOnDevice: number;
  readonly dstOnDevice: number;
  release(): void;
}

/** What plain C on the driver does; microseconds. */
interface Anchors {
  dma(destination: number, source: number, bytes: number): number;
  two(dst0: number, src0: number, dst1: number, src1: number, bytes: number): number;
  loop(tables: Tables, bytes: number): number;
  batch(tables: Tables, bytes: number): { readonly micros: number; readonly submit: number };
  kernel(tables: Tables, bytes: number, ctas: number, threads: number): number;
  tables(src: BigUint64Array, dst: BigUint64Array): Tables;
  touch(bytes: number, threads: number): number;
  watch(address: number, value: number): void;
  wake(callback: number): void;
  since(): number;
}

function openAnchors(library: string): Anchors {
  const { symbols } = dlopen(library, {
    anchor_open: { args: ["ptr", "i32"], returns: "i32" },
    anchor_dma: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_two: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_loop: { args: ["ptr", "ptr", "u32", "ptr", "ptr"], returns: "i32" },
    anchor_batch: { args: ["ptr", "ptr", "u32", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_kernel: { args: ["ptr", "ptr", "u32", "ptr", "u32", "u32", "ptr"], returns: "i32" },
    anchor_upload: { args: ["ptr", "u32", "ptr"], returns: "i32" },
    anchor_release: { args: ["ptr"], returns: "i32" },
    anchor_touch: { args: ["ptr", "u32", "ptr"], returns: "i32" },
    anchor_watch: { args: ["ptr", "u32"], returns: "i32" },
    anchor_wake: { args: ["ptr"], returns: "i32" },
    anchor_since: { args: ["ptr"], returns: "i32" },
  });
  const first = new Float64Array(new ArrayBuffer(8));
  const second = new Float64Array(new ArrayBuffer(8));
  const number = (value: number): never => value as never;
  const must = (status: number, what: string): void => {
    if (status !== 0) throw new Error(`${what}: CUDA result ${-status}`);
  };
  const path = new TextEncoder().encode(`${process.env[CUDA_LIBRARY_VARIABLE] ?? ""}\0`);
  must(symbols.anchor_open(path, 0), "opening the anchors");
  return {
    dma: (destination, source, bytes) => {
      must(symbols.anchor_dma(number(destination), number(source), number(bytes), first), "one DMA");
      return first[0] ?? Number.NaN;
    },
    two: (dst0, src0, dst1, src1, bytes) => {
      must(
        symbols.anchor_two(number(dst0), number(src0), number(dst1), number(src1), number(bytes), first),
        "two DMAs",
      );
      return first[0] ?? Number.NaN;
    },
    loop: ({ src, dst }, bytes) => {
      must(symbols.anchor_loop(dst, src, src.length, number(bytes), first), "a loop of copies");
      return first[0] ?? Number.NaN;
    },
    batch: ({ src, dst }, bytes) => {
      must(symbols.anchor_batch(dst, src, src.length, number(bytes), first, second), "a batched call");
      return { micros: first[0] ?? Number.NaN, submit: second[0] ?? Number.NaN };
    },
    kernel: ({ src, srcOnDevice, dstOnDevice }, bytes, ctas, threads) => {
      must(
        symbols.anchor_kernel(
          number(dstOnDevice),
          number(srcOnDevice),
          src.length,
          number(bytes),
          ctas,
          threads,
          first,
        ),
        "the plain kernel",
      );
      return first[0] ?? Number.NaN;
    },
    tables: (src, dst) => {
      const upload = (table: BigUint64Array): number => {
        must(symbols.anchor_upload(table, table.length, first), "uploading addresses");
        return first[0] ?? 0;
      };
      const [srcOnDevice, dstOnDevice] = [upload(src), upload(dst)];
      return {
        src,
        dst,
        srcOnDevice,
        dstOnDevice,
        release: () => {
          symbols.anchor_release(number(srcOnDevice));
          symbols.anchor_release(number(dstOnDevice));
        },
      };
    },
    touch: (bytes, threads) => {
      must(symbols.anchor_touch(number(bytes), threads, first), "touching memory");
      return first[0] ?? Number.NaN;
    },
    watch: (address, value) => must(symbols.anchor_watch(number(address), value), "watching memory"),
    wake: (callback) => must(symbols.anchor_wake(number(callback)), "waking"),
    since: () => {
      symbols.anchor_since(first);
      return first[0] ?? Number.NaN;
    },
  };
}
