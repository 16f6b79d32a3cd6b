// Lists so long that a kernel starts on the first of them while the rest is written: every byte against the oracle, at
// and beside the lengths at which lists are cut, with runs and with many regions as well.
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { LayoutSpec, LocalLayout, Transport } from "../../index.ts";
import { randomOf } from "../random.ts";
import { openCuda, verified } from "./harness.ts";

const BLOCKS = 6_000;
/** Blocks of one row each. */
const ONE_ROW = { numBlocks: BLOCKS, numLayers: 1, outerDim: 1, pageSize: 1 } as const;

let transport: Transport;

beforeAll(async () => {
  transport = await openCuda();
});

afterAll(async () => {
  expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0, inDoubt: 0 });
});

/** Layouts of a test, given back at its end. */
async function withLayouts(
  specs: readonly [LayoutSpec, LayoutSpec],
  work: (source: LocalLayout, destination: LocalLayout) => Promise<unknown>,
): Promise<void> {
  const source = await transport.register(specs[0]);
  const destination = await transport.register(specs[1]);
  await work(source, destination);
  await source.unregister({ wait: true });
  await destination.unregister({ wait: true });
}

/** So many ids in random order. */
function scattered(count: number, seed: number, blocks: number = BLOCKS): number[] {
  return randomOf(seed, count)
    .shuffled(Array.from({ length: blocks }, (_unused, id) => id))
    .slice(0, count);
}

const specOf = (kind: "pinned" | "device", innerDim: number, numBlocks: number = BLOCKS): LayoutSpec => ({
  config: { ...ONE_ROW, innerDim, numBlocks },
  arrangement: "fully-contiguous",
  memory: { kind },
});

for (const [from, to] of [
  ["device", "device"],
  ["pinned", "device"],
  ["device", "pinned"],
] as const)
  for (const [method, innerDim] of [
    ["cuda/kernel", 8],
    ["cuda/kernel", 1_024],
    ["cuda/kernel", 5],
    ["cuda/bulk", 16],
    // Handed to another thread, with the lists.
    [from === to ? "cuda/batch" : "cuda/slab", 8],
  ] as const)
    test(`${from} to ${to}, ${method}, rows of ${innerDim * 2} bytes`, () =>
      withLayouts([specOf(from, innerDim), specOf(to, innerDim)], async (source, destination) => {
        for (const count of innerDim > 100 ? [2_049] : [2_047, 2_048, 2_049, 5_000])
          await verified(
            transport,
            source,
            scattered(count, count),
            destination,
            scattered(count, 7 * count),
            { method },
          );
      }));

// Places in units of a power of two fit 16 bits; in units of 16 bytes, with a piece that is not whole, they do not.
for (const row of [4_096, 4_112])
  test(`long rows of ${row} bytes within a device, at the lengths at which lists no longer travel inside a launch`, () =>
    withLayouts([specOf("device", row / 2), specOf("device", row / 2)], async (source, destination) => {
      for (const count of [448, 449, 4_095, 4_096, 5_000])
        await verified(transport, source, scattered(count, count), destination, scattered(count, 7 * count), {
          method: "cuda/kernel",
        });
    }));

test("runs of unequal lengths, which keep a list of their own", () =>
  withLayouts(
    [specOf("device", 8, 2 * BLOCKS), specOf("device", 8, 2 * BLOCKS)],
    async (source, destination) => {
      const random = randomOf(3, 0);
      // Pieces of one to three blocks, in random order, with a gap behind each so that no two of them join.
      const pieces: { readonly start: number; readonly length: number }[] = [];
      for (let start = 0; start + 3 <= 2 * BLOCKS;) {
        const length = random.between(1, 3);
        pieces.push({ start, length });
        start += length + 1;
      }
      const ids = random
        .shuffled(pieces)
        .flatMap(({ start, length }) => Array.from({ length }, (_unused, step) => start + step));
      const result = await verified(transport, source, ids, destination, ids, { method: "cuda/kernel" });
      expect(result.descriptors).toBe(pieces.length);
      expect(pieces.length).toBeGreaterThan(3_000);
    },
  ));

for (const layers of [40, 220])
  test(`${layers} regions at uneven distances`, async () => {
    const blocks = 2_100;
    const config = { numBlocks: blocks, numLayers: layers, outerDim: 1, pageSize: 1, innerDim: 8 } as const;
    const size = blocks * 16;
    const apart = size + 16 * 256;
    const arena = await transport.register({
      config: { ...ONE_ROW, numBlocks: 1, innerDim: (layers * apart) / 2 },
      arrangement: "fully-contiguous",
      memory: { kind: "device" },
    });
    const first = arena.regions[0]?.address ?? 0;
    const regions = Array.from({ length: layers }, (_unused, layer) => ({
      address: first + layer * apart + 16 * ((layer * layer) % 251),
      size,
    }));
    await withLayouts(
      [
        {
          config,
          arrangement: "layer-separate/block-first",
          memory: { kind: "external", storage: { device: 0 }, regions },
        },
        { config, arrangement: "fully-contiguous", memory: { kind: "device" } },
      ],
      async (source, destination) =>
        await verified(
          transport,
          source,
          scattered(blocks, 5, blocks),
          destination,
          scattered(blocks, 6, blocks),
          {
            method: "cuda/kernel",
          },
        ),
    );
    await arena.unregister();
  });
