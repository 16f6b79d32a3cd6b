// What registering layouts, exporting and importing them takes, and the memory that they take.
import { heapStats } from "bun:jsc";

import { Transport } from "../index.ts";
import type { LayoutSpec } from "../index.ts";
import { alternate } from "./processes.ts";

/** As many layouts as a worker can have. */
export const MOST_LAYOUTS = 65_535;

/** Milliseconds to register as many layouts as a worker can have, beside a Map. */
export async function registeringAll(samples: number): Promise<Record<string, number[]>> {
  const specs = specsOf(MOST_LAYOUTS);
  return await alternate(
    { ours: () => registering(specs, 1e6), limit: () => mapping(MOST_LAYOUTS) },
    samples,
    3,
  );
}

/** Microseconds for each of so many layouts. */
export async function growingRegistry(samples: number, count: number): Promise<Record<string, number[]>> {
  const specs = specsOf(count);
  // A few layouts register within a clock's tick or two: several transports in turn make a sample.
  const times = Math.max(1, Math.min(50, Math.floor(2_000 / count)));
  return await alternate(
    {
      ours: async () => {
        let spent = 0;
        for (let time = 0; time < times; time += 1) spent += await registering(specs, 1e3);
        return spent / times / count;
      },
    },
    samples,
    3,
  );
}

/** Milliseconds to export 1,000 layouts, beside a Map. */
export async function exporting(samples: number): Promise<Record<string, number[]>> {
  await using transport = await localTransport(1n);
  for (const spec of specsOf(1_000)) await transport.register(spec);
  return await alternate(
    {
      ours: async () => {
        const start = Bun.nanoseconds();
        const bytes = await transport.exportMetadata();
        const spent = (Bun.nanoseconds() - start) / 1e6;
        if (bytes.length < 1_000) throw new Error("the package is too short");
        return spent;
      },
      limit: () => mapping(1_000),
    },
    samples,
    30,
  );
}

/** Milliseconds to import 1,000 layouts, beside a Map. */
export async function importing(samples: number): Promise<Record<string, number[]>> {
  await using sender = await localTransport(1n);
  for (const spec of specsOf(1_000)) await sender.register(spec);
  const bytes = await sender.exportMetadata();
  await using receiver = await localTransport(2n);
  return await alternate(
    {
      ours: async () => {
        const start = Bun.nanoseconds();
        const peer = await receiver.importMetadata(bytes);
        const spent = (Bun.nanoseconds() - start) / 1e6;
        if (peer.layouts.length !== 1_000) throw new Error("layouts are missing");
        await peer.forget();
        return spent;
      },
      limit: () => mapping(1_000),
    },
    samples,
    30,
  );
}

/** Bytes of JavaScript heap for each layout. */
export async function layoutMemory(samples: number): Promise<Record<string, number[]>> {
  const specs = specsOf(10_000);
  return await alternate(
    {
      ours: async () => {
        await using transport = await localTransport(1n);
        const before = heapBytes();
        for (const spec of specs) await transport.register(spec);
        return (heapBytes() - before) / specs.length;
      },
    },
    Math.min(samples, 5),
    1,
  );
}

/** A transport without NIXL and CUDA. */
export function localTransport(workerId: bigint): Promise<Transport> {
  return Transport.open({ workerId, nixl: false, cuda: false });
}

/** External memory of one region each, at addresses that nobody touches. */
function specsOf(count: number): LayoutSpec[] {
  const config = {
    numBlocks: 64,
    numLayers: 32,
    outerDim: 2,
    pageSize: 16,
    numHeads: 8,
    headDim: 128,
  } as const;
  const size = 64 * 32 * 2 * 16 * 8 * 128 * 2;
  return Array.from({ length: count }, (_, index) => ({
    name: `layout-${index}`,
    config,
    arrangement: "fully-contiguous",
    memory: {
      kind: "external",
      storage: "system",
      regions: [{ address: 2 ** 32 + index * size, size }],
    },
  }));
}

/** Time to register every one with a new transport, in units of so many nanoseconds. */
async function registering(specs: readonly LayoutSpec[], unit: number): Promise<number> {
  const transport = await localTransport(1n);
  const pending: Promise<unknown>[] = [];
  // What earlier samples left is not this one's to sweep.
  if (specs.length > 1_000) Bun.gc(true);
  const start = Bun.nanoseconds();
  for (const spec of specs) pending.push(transport.register(spec));
  await Promise.all(pending);
  const spent = (Bun.nanoseconds() - start) / unit;
  if (transport.localLayouts.length !== specs.length) throw new Error("layouts are missing");
  transport.closeNow();
  return spent;
}

/** Milliseconds to fill a Map with so many plain records. */
function mapping(count: number): number {
  const start = Bun.nanoseconds();
  const map = new Map<bigint, { readonly name: string; readonly address: number; readonly size: number }>();
  for (let index = 0; index < count; index += 1)
    map.set(1n | (BigInt(index) << 64n), { name: `layout-${index}`, address: index, size: index });
  const spent = (Bun.nanoseconds() - start) / 1e6;
  if (map.size !== count) throw new Error("records are missing");
  return spent;
}

function heapBytes(): number {
  Bun.gc(true);
  const { heapSize, extraMemorySize } = heapStats();
  return heapSize + extraMemorySize;
}
