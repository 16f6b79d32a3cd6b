// Rows F1, F2, F3 and F5: blocks between GPU and pinned memory, across the link.
import type { TransferRequest } from "../index.ts";
import {
  again,
  CHUNKS,
  dmaOf,
  few,
  GIB,
  KIB,
  LAYERS,
  least,
  MIB,
  release,
  tablesOf,
  timed,
  verify,
} from "./gpu-world.ts";
import type { Row, Side, World } from "./gpu-world.ts";
import { alternate } from "./processes.ts";
import { shuffled } from "./statistics.ts";

/** Bytes that one sample of F1 moves, near enough: whole blocks of 160 chunks. */
const MOVED = 256 * MIB;
/** Bytes that are moved before a row across the link is measured. */
const WARM_BYTES = 10 * GIB;

const SIZES: Readonly<Record<string, number>> = {
  "4k": 4 * KIB,
  "8k": 8 * KIB,
  "16k": 16 * KIB,
  "32k": 32 * KIB,
  "64k": 64 * KIB,
  "256k": 256 * KIB,
};

type Direction = "d2h" | "h2d";
type Form = "pool" | "scattered";

export const LINK_ROWS: readonly Row[] = [
  ...(["d2h", "h2d"] as const).flatMap((direction) =>
    (["pool", "scattered"] as const).flatMap((form) =>
      Object.entries(SIZES).map(([size, chunk]) => linkRow(direction, form, size, chunk)),
    ),
  ),
  ...(["d2h", "h2d"] as const).flatMap((direction) => [
    smallRow(`F2.${direction}`, direction, 1, 32 * KIB, 0.77),
    smallRow(`F3.${direction}`, direction, 8, 8 * KIB, 0.83),
  ]),
  {
    id: "F5.both",
    unit: "GB/s",
    direction: "rate",
    goal: least(0.95),
    note: "limit: two DMAs at once; pool form, 64 KiB chunks",
    measure: both,
  },
];

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
    // Short ones are gone through again after the garbage was collected, which shows in microseconds.
    Math.max(3, Math.round(warmRounds(bytes) / 20)),
  );
  if (slow) {
    taken["batched call"] = few(() => figure(world.anchors.batch(table, chunk).micros, bytes));
    taken["loop of copies"] = few(() => figure(world.anchors.loop(table, chunk), bytes));
  }
  table.release();
  return taken;
}

function warmRounds(bytes: number): number {
  return Math.min(2_000, Math.round(WARM_BYTES / bytes));
}
