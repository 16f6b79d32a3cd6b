// Lists of ids that come again: their list of pairs is written once and used for the transfers behind it, so every byte is
// compared while lists alternate, change in one place, are clobbered by their owner, and transfers overlap.
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { LocalLayout, Transfer, Transport } from "../../index.ts";
import { randomOf } from "../random.ts";
import { calls, fetchBytes, openCuda, putBytes, regionsOf, scribble, STANDIN } from "./harness.ts";

const BLOCKS = 4_300;
/** Layers, each of which is a row of its own. */
const LAYERS = 3;
const ROW = 4_096;
/** More than travel inside a launch, and so many that a part of them is launched first. */
const COUNTS = [1_200, 4_200] as const;

let transport: Transport;

beforeAll(async () => {
  transport = await openCuda();
});

afterAll(async () => {
  expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0, inDoubt: 0 });
});

async function blocksOf(
  arrangement: "fully-contiguous" | "layer-separate/block-first",
): Promise<LocalLayout> {
  return await transport.register({
    config: { numBlocks: BLOCKS, numLayers: LAYERS, outerDim: 1, pageSize: 1, innerDim: ROW / 2 },
    arrangement,
    memory: { kind: "device" },
  });
}

interface Lists {
  readonly from: number[];
  readonly to: number[];
}

function listsOf(seed: number, count: number, blocks: number = BLOCKS): Lists {
  const random = randomOf(seed, count);
  const ids = (): number[] =>
    random.shuffled(Array.from({ length: blocks }, (_unused, id) => id)).slice(0, count);
  return { from: ids(), to: ids() };
}

for (const seed of [1, 2])
  test(`lists that alternate, change and are clobbered, transfers that overlap, seed ${seed}`, async () => {
    const random = randomOf(seed, 99);
    const sources = [await blocksOf("fully-contiguous"), await blocksOf("layer-separate/block-first")];
    const bytes = sources.map((layout, index) => {
      scribble(layout, seed + index);
      return regionsOf(layout);
    });
    const targets = await Promise.all(
      [0, 1, 2].map(async () => ({
        layout: await blocksOf("fully-contiguous"),
        wanted: new Uint8Array(new ArrayBuffer(BLOCKS * LAYERS * ROW)),
        running: null as Transfer | null,
      })),
    );
    for (const { layout, wanted } of targets) putBytes(layout.regions[0]?.address ?? 0, wanted, "device");
    const settle = async (target: (typeof targets)[number]): Promise<void> => {
      await target.running;
      target.running = null;
      const { address = 0, size = 0 } = target.layout.regions[0] ?? {};
      expect(Buffer.compare(fetchBytes(address, size, "device"), target.wanted)).toBe(0);
    };
    const pool = [listsOf(seed, COUNTS[0]), listsOf(seed + 10, COUNTS[1]), listsOf(seed + 20, COUNTS[1])];
    for (let step = 0; step < 36; step += 1) {
      const lists = pool[random.between(0, pool.length - 1)] as Lists;
      // One pair of ids changes places now and then: the same length, ends and sum.
      if (random.between(0, 3) === 0) {
        const side = random.between(0, 1) === 0 ? lists.from : lists.to;
        const [a, b] = [random.between(1, side.length - 2), random.between(1, side.length - 2)];
        [side[a], side[b]] = [side[b] as number, side[a] as number];
      }
      const which = random.between(0, 1);
      const target = targets[random.between(0, 2)] as (typeof targets)[number];
      if (target.running !== null) await settle(target);
      const start = random.between(0, LAYERS - 1);
      const end = random.between(0, 3) === 0 ? LAYERS : start + 1;
      const given = { from: Uint32Array.from(lists.from), to: Uint32Array.from(lists.to) };
      target.running = transport.transfer({
        source: sources[which] as LocalLayout,
        destination: target.layout,
        sourceBlocks: given.from,
        destinationBlocks: given.to,
        layers: { start, end },
        method: "cuda/kernel",
      });
      given.from.fill(0);
      given.to.fill(1);
      for (const [index, id] of lists.from.entries())
        for (let layer = start; layer < end; layer += 1) {
          const region = bytes[which]?.[which === 0 ? 0 : layer] ?? new Uint8Array(0);
          const at = (which === 0 ? id * LAYERS + layer : id) * ROW;
          target.wanted.set(region.subarray(at, at + ROW), ((lists.to[index] ?? 0) * LAYERS + layer) * ROW);
        }
      // Sometimes all are over before the next one comes, which then begins where the last list lies.
      if (random.between(0, 2) === 0) for (const each of targets) await settle(each);
    }
    for (const each of targets) await settle(each);
    for (const layout of [...sources, ...targets.map((each) => each.layout)])
      await layout.unregister({ wait: true });
  });

test("more transfers under way than there are lanes for, by few lists in turns", async () => {
  const blocks = 1_300;
  const config = { numBlocks: blocks, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: ROW / 2 } as const;
  const memory = { kind: "device" } as const;
  const source = await transport.register({ config, memory });
  scribble(source, 5);
  const bytes = regionsOf(source)[0] ?? new Uint8Array(0);
  const targets = await Promise.all(
    Array.from({ length: 16 }, async () => await transport.register({ config, memory })),
  );
  const pool = [1, 2, 3].map((seed) => listsOf(seed, COUNTS[0], blocks));
  for (let round = 0; round < 6; round += 1) {
    const zeros = new Uint8Array(new ArrayBuffer(blocks * ROW));
    for (const target of targets) putBytes(target.regions[0]?.address ?? 0, zeros, "device");
    // The first of a round finds its list where the last one of the round before left it.
    const order = targets.map((_target, index) => pool[(index * (round + 1)) % pool.length] as Lists);
    await Promise.all(
      targets.map((target, index) =>
        transport.transfer({
          source,
          destination: target,
          sourceBlocks: Uint32Array.from(order[index]?.from ?? []),
          destinationBlocks: Uint32Array.from(order[index]?.to ?? []),
          method: "cuda/kernel",
        }),
      ),
    );
    for (const [index, target] of targets.entries()) {
      const wanted = new Uint8Array(new ArrayBuffer(blocks * ROW));
      for (const [pair, id] of (order[index]?.from ?? []).entries())
        wanted.set(bytes.subarray(id * ROW, (id + 1) * ROW), (order[index]?.to[pair] ?? 0) * ROW);
      expect(Buffer.compare(regionsOf(target)[0] ?? new Uint8Array(0), wanted)).toBe(0);
    }
  }
  for (const layout of [source, ...targets]) await layout.unregister({ wait: true });
});

test("a list is written anew when the lists of short rows took its place", async () => {
  const [source, target] = [await blocksOf("fully-contiguous"), await blocksOf("fully-contiguous")];
  scribble(source, 3);
  const bytes = regionsOf(source)[0] ?? new Uint8Array(0);
  const rows = { numBlocks: 6_000, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 8 } as const;
  const short = await transport.register({ config: rows, memory: { kind: "device" } });
  const other = await transport.register({ config: rows, memory: { kind: "device" } });
  const { from, to } = listsOf(9, COUNTS[0]);
  const wanted = new Uint8Array(new ArrayBuffer(BLOCKS * LAYERS * ROW));
  for (const [pair, id] of from.entries()) {
    const row = bytes.subarray(id * LAYERS * ROW, (id * LAYERS + 1) * ROW);
    wanted.set(row, (to[pair] ?? 0) * LAYERS * ROW);
  }
  for (const count of [0, 0, 3_000, 5_000, 0]) {
    putBytes(
      target.regions[0]?.address ?? 0,
      new Uint8Array(new ArrayBuffer(BLOCKS * LAYERS * ROW)),
      "device",
    );
    const ids = listsOf(count, count, 6_000);
    if (count > 0)
      await transport.transfer({
        source: short,
        destination: other,
        sourceBlocks: Uint32Array.from(ids.from),
        destinationBlocks: Uint32Array.from(ids.to),
        method: "cuda/kernel",
      });
    await transport.transfer({
      source,
      destination: target,
      sourceBlocks: Uint32Array.from(from),
      destinationBlocks: Uint32Array.from(to),
      layers: { start: 0, end: 1 },
      method: "cuda/kernel",
    });
    expect(Buffer.compare(regionsOf(target)[0] ?? new Uint8Array(0), wanted)).toBe(0);
  }
  for (const layout of [source, target, short, other]) await layout.unregister({ wait: true });
});

if (STANDIN !== null)
  test("a list that comes again is sent once and then launched at once, and a changed one is written anew", async () => {
    const [source, target] = [await blocksOf("fully-contiguous"), await blocksOf("fully-contiguous")];
    const { from, to } = listsOf(7, COUNTS[1]);
    const launches = async (): Promise<number> => {
      const before = calls("cuLaunchKernelEx");
      await transport.transfer({
        source,
        destination: target,
        sourceBlocks: Uint32Array.from(from),
        destinationBlocks: Uint32Array.from(to),
        method: "cuda/kernel",
      });
      return calls("cuLaunchKernelEx") - before;
    };
    expect([await launches(), await launches(), await launches(), await launches()]).toEqual([2, 2, 1, 1]);
    [to[5], to[6]] = [to[6] ?? 0, to[5] ?? 0];
    expect([await launches(), await launches(), await launches()]).toEqual([2, 2, 1]);
    await source.unregister({ wait: true });
    await target.unregister({ wait: true });
  });
