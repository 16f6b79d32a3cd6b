// Rows F6 and F7: how soon JavaScript goes on once a GPU is done, and how long submitting takes.
import { JSCallback } from "bun:ffi";

import type { LocalLayout } from "../index.ts";
import { KIB, MIB, verify } from "./gpu-world.ts";
import type { Row, World } from "./gpu-world.ts";
import { alternate } from "./processes.ts";
import { quantile, shuffled } from "./statistics.ts";

export const MOMENT_ROWS: readonly Row[] = [
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
    note: "run() of a prepared transfer of scattered blocks of 4 KiB, the same ones every time, until it returns; limit: the batched call's own submission in C",
    measure: (world, samples) => submission(world, samples, blocks),
  })),
];

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
