// Reading, writing, filling and hashing blocks: always in logical order, whatever the order in memory.
import { expect, test } from "bun:test";
import type { LayoutConfig, LayoutSpec, LocalLayout, Order } from "../../index.ts";
import { randomOf } from "../random.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, SMALL, systemSpec } from "./helpers/transports.ts";

const HEADS: LayoutConfig = { numBlocks: 5, numLayers: 3, outerDim: 2, pageSize: 4, numHeads: 2, headDim: 8 };
const SHAPES: readonly (readonly [string, Order])[] = [
  ["fully-contiguous", "nhd"],
  ["fully-contiguous", "universal-tp"],
  ["layer-separate/block-first", "hnd"],
  ["layer-separate/block-second", "nhd"],
];

function shaped([arrangement, order]: readonly [string, Order], config = HEADS): LayoutSpec {
  return {
    name: `${arrangement} ${String(order)}`,
    config,
    arrangement,
    order,
    memory: { kind: "system" },
  } as LayoutSpec;
}

test("what was written is read, and lies where the order says", async () => {
  await using transport = await openLocal();
  const random = randomOf(5, 5);
  const layouts: LocalLayout[] = [];
  for (const shape of SHAPES) layouts.push(await transport.register(shaped(shape)));
  const data = Array.from({ length: 5 }, () =>
    Uint8Array.from({ length: HEADS.numBlocks === 5 ? 768 : 0 }, () => random.between(0, 255)),
  );
  for (const layout of layouts) {
    expect(layout.config.blockBytes).toBe(768);
    for (const [block, bytes] of data.entries()) await layout.write(block, bytes);
    for (const [block, bytes] of data.entries())
      expect((await layout.read(block)).toHex()).toBe(bytes.toHex());
  }
  const sums = await layouts[0]?.checksums([0, 1, 2, 3, 4]);
  for (const layout of layouts) expect(await layout.checksums([0, 1, 2, 3, 4])).toEqual(sums as string[]);
  // Token 1, head 1 of layer 2, outer 1 in block 3, by hand: (layer, outer, page, head) in logical order.
  const logical = ((2 * 2 + 1) * 4 + 1) * 2 * 16 + 16;
  const hnd = layouts[2]?.bytes[2]; // region of layer 2, then block, outer, head, page
  const at = ((3 * 2 + 1) * 2 + 1) * 4 * 16 + 16;
  expect(hnd?.slice(at, at + 16).toHex()).toBe(data[3]?.slice(logical, logical + 16).toHex() as string);
});

test("a checksum is BLAKE3 of the block's bytes in logical order", async () => {
  await using transport = await openLocal();
  const layout = await transport.register(
    systemSpec("x", {
      numBlocks: 1,
      numLayers: 1,
      outerDim: 1,
      pageSize: 3,
      innerDim: 1,
      dtypeWidthBytes: 1,
    }),
  );
  await layout.write(0, new TextEncoder().encode("abc"));
  // The test vector of BLAKE3 for "abc".
  expect(await layout.checksums([0])).toEqual([
    "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
  ]);
});

test("layers can be read and written alone", async () => {
  await using transport = await openLocal();
  const layout = await transport.register(shaped(["layer-separate/block-second", "nhd"]));
  await layout.fill(1);
  await layout.write(2, new Uint8Array(256).fill(9), { layers: { start: 1, end: 2 } });
  const whole = await layout.read(2);
  expect([whole[255], whole[256], whole[511], whole[512]]).toEqual([1, 9, 9, 1]);
  expect(await layout.read(2, { layers: { start: 1, end: 3 } })).toEqual(whole.slice(256));
  expect((await layout.read(1)).every((byte) => byte === 1)).toBe(true);
});

test("every pattern fills what it should and nothing else", async () => {
  await using transport = await openLocal();
  for (const shape of SHAPES) {
    const layout = await transport.register(shaped(shape));
    await layout.fill(0xaa);
    await layout.fill({ constant: 7 }, { blocks: [1] });
    await layout.fill("sequential", { blocks: [2, 4] });
    const cell = layout.config.cellBytes;
    for (const block of [2, 4]) {
      const bytes = await layout.read(block);
      for (let layer = 0; layer < 3; layer++)
        for (let outer = 0; outer < 2; outer++)
          for (const k of [0, 1, cell - 1])
            expect(bytes[(layer * 2 + outer) * cell + k]).toBe((block + layer + k) % 256);
    }
    expect((await layout.read(1)).every((byte) => byte === 7)).toBe(true);
    expect((await layout.read(0)).every((byte) => byte === 0xaa)).toBe(true);
    await layout.fill({ random: 42 }, { blocks: [0] });
    const [first] = await layout.checksums([0]);
    await layout.fill({ random: 43 }, { blocks: [0] });
    expect(await layout.checksums([0])).not.toEqual([first as string]);
    await layout.fill({ random: 42 }, { blocks: [0] });
    expect(await layout.checksums([0])).toEqual([first as string]);
    expect((await layout.read(3)).every((byte) => byte === 0xaa)).toBe(true);
  }
});

test("a fill larger than its stage goes through it in parts", async () => {
  await using transport = await openLocal();
  const config = { ...SMALL, numBlocks: 160, pageSize: 64, innerDim: 1024 };
  const layout = await transport.register(systemSpec("large", config));
  expect(layout.config.totalBytes).toBeGreaterThan(64 * 2 ** 20);
  await layout.fill({ random: 1 });
  const sums = await layout.checksums(Uint32Array.from({ length: 160 }, (_unused, index) => index));
  expect(new Set(sums).size).toBe(160);
  await layout.fill({ random: 1 }, { blocks: [159] });
  expect(await layout.checksums([159])).toEqual([sums[159] as string]);
});

test("what cannot be is refused, and nothing is written", async () => {
  await using transport = await openLocal();
  const layout = await transport.register(systemSpec("x"));
  await layout.fill(3);
  for (const block of [-1, 4, 0.5, Number.NaN, "0" as never]) {
    await refused("BLOCK_OUT_OF_RANGE", layout.read(block));
    await refused("BLOCK_OUT_OF_RANGE", layout.write(block, new Uint8Array(512)));
    await refused("BLOCK_OUT_OF_RANGE", layout.fill(1, { blocks: [block] }));
    await refused("BLOCK_OUT_OF_RANGE", layout.checksums([block]));
  }
  await refused("LENGTH_MISMATCH", layout.write(0, new Uint8Array(511)));
  await refused("LENGTH_MISMATCH", layout.write(0, new Uint8Array(512), { layers: { start: 0, end: 1 } }));
  for (const layers of [
    { start: 1, end: 1 },
    { start: 0, end: 3 },
    { start: -1, end: 1 },
  ])
    await refused("LAYER_RANGE", layout.read(0, { layers }));
  for (const pattern of [256, -1, 1.5, "random", { random: -1 }, { random: 0.5 }, {}, null] as never[])
    await refused("INVALID_CONFIG", layout.fill(pattern));
  expect(layout.bytes[0]?.every((byte) => byte === 3)).toBe(true);
  expect(await layout.checksums([])).toEqual([]);
  await layout.fill(9, { blocks: [] });
});

test("a bundle's blocks are read and written by component", async () => {
  await using transport = await openLocal();
  const memory = { kind: "system" } as const;
  const layout = await transport.register({
    components: { kv: { config: HEADS, memory }, scales: { config: { ...SMALL, numBlocks: 5 }, memory } },
  });
  const { kv, scales } = layout.components;
  await kv?.fill(1);
  await scales?.fill(2);
  expect((await kv?.read(0))?.every((byte) => byte === 1)).toBe(true);
  expect((await scales?.read(4))?.every((byte) => byte === 2)).toBe(true);
  await refused("INVALID_CONFIG", layout.read(0));
  await refused("INVALID_CONFIG", layout.fill(0));
  await refused("INVALID_CONFIG", () => layout.bytes);
});

test("addresses name the bytes that a view shows", async () => {
  await using transport = await openLocal();
  const layout = await transport.register(shaped(["layer-separate/block-second", "nhd"]));
  await layout.fill("sequential");
  const { address, size } = layout.address(3, 2, 1);
  const region = layout.regions[2];
  expect(size).toBe(layout.config.cellBytes);
  const view = layout.view(2, { offset: address - (region?.address ?? 0), length: size });
  expect(view[0]).toBe(3 + 2);
  view[0] = 77;
  expect((await layout.read(3))[(2 * 2 + 1) * size]).toBe(77);
  await refused("BLOCK_OUT_OF_RANGE", () => layout.address(5, 0, 0));
  await refused("LAYER_RANGE", () => layout.address(0, 3, 0));
  await refused("LAYER_RANGE", () => layout.address(0, 0, 2));
  await refused("INVALID_CONFIG", () => layout.view(9, { offset: 0, length: 1 }));
  await refused("INVALID_CONFIG", () => layout.view(0, { offset: 1, length: layout.regions[0]?.size ?? 0 }));
  const turned = await transport.register(shaped(["fully-contiguous", "universal-tp"]));
  await refused("INCOMPATIBLE_LAYOUTS", () => turned.address(0, 0, 0));
});
