// Every pair of memory kinds, arrangements and orders over the CUDA executor, against the oracle: run on a GPU by
// test/gpu, on the stand-in by test/runtime. Every byte of the destination is compared, guards included.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { LocalLayout, Transport } from "../../index.ts";
import {
  failureOf,
  KINDS,
  METHODS,
  openCuda,
  regionsOf,
  scribble,
  specOf,
  STANDIN,
  verified,
} from "./harness.ts";

/** The stand-in runs kernels on one thread: it gets the same cases with fewer bytes. */
const FULL = STANDIN === null;
const ARRANGEMENTS = ["FC", "LS"] as const;

let transport: Transport;

beforeAll(async () => {
  transport = await openCuda();
});

afterAll(async () => {
  expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0, inDoubt: 0 });
});

/** Layouts of a test, given back at its end. */
async function withLayouts<T>(
  specs: readonly Parameters<Transport["register"]>[0][],
  work: (...layouts: LocalLayout[]) => Promise<T>,
): Promise<T> {
  const layouts: LocalLayout[] = [];
  try {
    for (const spec of specs) layouts.push(await transport.register(spec));
    return await work(...layouts);
  } finally {
    for (const layout of layouts) await layout.unregister({ wait: true });
  }
}

describe("point to point: 4 blocks, [0, 1] to [2, 3]", () => {
  for (const from of KINDS)
    for (const to of KINDS)
      for (const source of ARRANGEMENTS)
        for (const destination of ARRANGEMENTS)
          test(`${from} ${source} to ${to} ${destination}`, () =>
            withLayouts(
              [specOf(from, source, { numBlocks: 4 }), specOf(to, destination, { numBlocks: 4 })],
              async (a, b) => {
                await verified(transport, a, [0, 1], b, [2, 3]);
                expect(await a.checksums([0, 1])).toEqual(await b.checksums([2, 3]));
              },
            ));
});

test("round trips: three kinds and arrangements each way, 216 in all", async () => {
  const cells = KINDS.flatMap((kind) => ARRANGEMENTS.map((arrangement) => ({ kind, arrangement })));
  const layouts: Record<string, LocalLayout[]> = {};
  for (const { kind, arrangement } of cells)
    layouts[`${kind} ${arrangement}`] = [
      await transport.register(specOf(kind, arrangement, { numBlocks: 4 })),
      await transport.register(specOf(kind, arrangement, { numBlocks: 4 })),
      await transport.register(specOf(kind, arrangement, { numBlocks: 4 })),
    ];
  const pick = (cell: { kind: string; arrangement: string }, role: number): LocalLayout =>
    layouts[`${cell.kind} ${cell.arrangement}`]?.[role] as LocalLayout; // made above
  let trips = 0;
  for (const first of cells)
    for (const middle of cells)
      for (const last of cells) {
        const [source, between, destination] = [pick(first, 0), pick(middle, 1), pick(last, 2)];
        await source.fill({ random: trips + 1 });
        await destination.fill(0xff);
        const guards = await destination.checksums([0, 1]);
        await transport.transfer({
          source,
          sourceBlocks: [0, 1],
          destination: between,
          destinationBlocks: [0, 1],
        });
        await transport.transfer({
          source: between,
          sourceBlocks: [0, 1],
          destination,
          destinationBlocks: [2, 3],
        });
        expect(await destination.checksums([2, 3])).toEqual(await source.checksums([0, 1]));
        expect(await destination.checksums([0, 1])).toEqual(guards);
        trips++;
      }
  for (const group of Object.values(layouts))
    for (const layout of group) await layout.unregister({ wait: true });
  expect(trips).toBe(216);
}, 240_000);

describe("every method forced in turn", () => {
  const shapes = [
    { name: "FC to FC, whole blocks", from: "FC", to: "FC", order: "nhd", blocks: [5, 1, 2], to_: [0, 3, 4] },
    { name: "LS to FC", from: "LS", to: "FC", order: "nhd", blocks: [4, 0], to_: [1, 5] },
    { name: "FC to LS2", from: "FC", to: "LS2", order: "nhd", blocks: [0, 1, 2, 3], to_: [2, 3, 4, 5] },
    { name: "NHD to HND", from: "LS", to: "LS", order: "hnd", blocks: [1, 3], to_: [0, 2] },
    { name: "NHD to universal", from: "FC", to: "FC", order: "universal-tp", blocks: [3, 1], to_: [2, 0] },
  ] as const;
  const pairs = [
    ["pinned", "device"],
    ["device", "pinned"],
    ["device", "device"],
    ["system", "device"],
    ["device", "system"],
  ] as const;
  const ran = new Map<string, number>();
  for (const method of METHODS)
    test(
      method,
      async () => {
        for (const [from, to] of pairs)
          for (const shape of shapes) {
            const config = { numBlocks: 6, numHeads: 4, headDim: 32, innerDim: undefined } as never;
            await withLayouts(
              [specOf(from, shape.from, config), specOf(to, shape.to, config, shape.order)],
              async (source, destination) => {
                const request = {
                  source,
                  sourceBlocks: shape.blocks,
                  destination,
                  destinationBlocks: shape.to_,
                };
                const candidate = transport
                  .explain(request)
                  .legs[0]?.hops[0]?.candidates.find((one) => one.method === method);
                if (candidate?.micros === Number.POSITIVE_INFINITY) {
                  expect(await failureOf(transport.transfer({ ...request, method }))).toMatchObject({
                    code: "ERR_KVF_NO_ROUTE",
                    settlement: "never-started",
                  });
                  return;
                }
                await verified(transport, source, shape.blocks, destination, shape.to_, { method });
                ran.set(method, (ran.get(method) ?? 0) + 1);
              },
            );
          }
        // Whatever cannot be refused everywhere: each method does some of these.
        expect(ran.get(method) ?? 0).toBeGreaterThan(method === "cuda/pitched" ? 1 : 5);
      },
      120_000,
    );
});

describe("orders and shapes", () => {
  const orders = ["nhd", "hnd", "universal-tp"] as const;
  for (const [from, to] of [
    ["device", "device"],
    ["device", "pinned"],
    ["pinned", "device"],
  ] as const)
    for (const source of ["FC", "LS", "LS2"] as const)
      for (const destination of ["FC", "LS", "LS2"] as const)
        test(`${from} ${source} to ${to} ${destination}, all orders`, async () => {
          for (const before of orders)
            for (const after of orders) {
              // Orders of a whole block exist where a block lies in one piece.
              if (before === "universal-tp" && source !== "FC") continue;
              if (after === "universal-tp" && destination !== "FC") continue;
              const config = { numBlocks: 5, numHeads: 4, headDim: 16, innerDim: undefined } as never;
              await withLayouts(
                [specOf(from, source, config, before), specOf(to, destination, config, after)],
                async (a, b) => void (await verified(transport, a, [4, 1, 2], b, [0, 3, 4])),
              );
            }
        });

  const heads = FULL ? [5, 16, 64, 128, 576] : [5, 64];
  const dtypes = ["fp8", "bf16", "f32", "f64"] as const;
  test("sizes of head and element", async () => {
    for (const headDim of heads)
      for (const dtype of dtypes) {
        const config = {
          numBlocks: 3,
          numHeads: 3,
          headDim,
          innerDim: undefined,
          pageSize: 4,
          dtype,
        } as never;
        await withLayouts(
          [
            specOf("device", "LS", config),
            specOf("device", "FC", config, "universal-tp"),
            specOf("pinned", "LS", config, "hnd"),
          ],
          async (a, b, c) => {
            await verified(transport, a, [0, 2, 1], b, [2, 1, 0]);
            await verified(transport, b, [2, 1, 0], c, [1, 0, 2]);
          },
        );
      }
  }, 120_000);
});

test("guards: neighbours of the destination keep their bytes, layer by layer as well", async () => {
  for (const [from, to] of [
    ["pinned", "device"],
    ["device", "pinned"],
    ["system", "device"],
  ] as const)
    for (const arrangement of ARRANGEMENTS)
      await withLayouts(
        [specOf(from, arrangement, { numBlocks: 6 }), specOf(to, arrangement, { numBlocks: 6 })],
        async (source, destination) => {
          await verified(transport, source, [0, 1], destination, [3, 4]);
          await verified(transport, source, [0, 1], destination, [3, 4], {
            layers: { start: 0, end: 1 },
          });
          await verified(transport, source, [0, 1], destination, [3, 4], { layers: { start: 1, end: 2 } });
        },
      );
});

test("layer 0 and then layer 1 is the whole block", () =>
  withLayouts(
    [specOf("device", "LS", { numBlocks: 4 }), specOf("pinned", "FC", { numBlocks: 4 })],
    async (source, destination) => {
      await source.fill({ random: 5 });
      for (const start of [0, 1])
        await transport.transfer({
          source,
          sourceBlocks: [0, 1],
          destination,
          destinationBlocks: [2, 3],
          layers: { start, end: start + 1 },
        });
      expect(await destination.checksums([2, 3])).toEqual(await source.checksums([0, 1]));
    },
  ));

test("large block counts", async () => {
  const small = { innerDim: FULL ? 32 : 8, pageSize: 4 };
  for (const numBlocks of FULL ? [1024, 2048, 4096, 8192, 16_384] : [1024, 4096])
    await withLayouts(
      [specOf("pinned", "LS", { numBlocks, ...small }), specOf("device", "FC", { numBlocks, ...small })],
      async (source, destination) => {
        scribble(source, numBlocks);
        const ids = Uint32Array.from({ length: numBlocks }, (_unused, index) => index);
        const places = ids.toReversed();
        await transport.transfer({
          source,
          sourceBlocks: ids,
          destination,
          destinationBlocks: places,
        });
        expect(await destination.checksums(places)).toEqual(await source.checksums(ids));
      },
    );
}, 240_000);

test("blocks of a GPU are read, written, filled and hashed like those of the heap", () =>
  withLayouts(
    [specOf("device", "LS2", { numBlocks: 3 }, "nhd"), specOf("system", "FC", { numBlocks: 3 })],
    async (gpu, heap) => {
      const block = new Uint8Array(gpu.config.blockBytes).map((_unused, index) => (index * 7) ^ (index >> 8));
      await gpu.write(1, block);
      await heap.write(1, block);
      expect(await gpu.read(1)).toEqual(await heap.read(1));
      expect(await gpu.read(1)).toEqual(block);
      for (const pattern of ["sequential", 0x5a, { random: 3 }] as const) {
        await gpu.fill(pattern);
        await heap.fill(pattern);
        expect(await gpu.checksums([0, 1, 2])).toEqual(await heap.checksums([0, 1, 2]));
      }
    },
  ));

test("a bundle lies in several kinds of memory", async () => {
  const config = { numBlocks: 4, numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 16 } as const;
  const scales = { ...config, outerDim: 1, innerDim: 1, dtype: "f32" } as const;
  const engine = await transport.register({
    components: {
      kv: { config, arrangement: "layer-separate/block-first", memory: { kind: "device" } },
      scales: { config: scales, memory: { kind: "device" } },
    },
  });
  const pool = await transport.register({
    components: {
      kv: { config, memory: { kind: "pinned" } },
      scales: { config: scales, memory: { kind: "system" } },
    },
  });
  for (const component of Object.values(engine.components)) await component.fill({ random: 9 });
  const result = await transport.transfer({
    source: engine,
    sourceBlocks: [0, 3],
    destination: pool,
    destinationBlocks: [2, 1],
  });
  expect(result.settlement).toBe("done");
  for (const name of ["kv", "scales"])
    expect(await pool.components[name]?.checksums([2, 1])).toEqual(
      (await engine.components[name]?.checksums([0, 3])) ?? [],
    );
  for (const layout of [engine, pool]) await layout.unregister();
});

test("what is slow is said, and what was passed over has a time or a reason", () =>
  withLayouts(
    [
      specOf("system", "FC", { numBlocks: 4 }),
      specOf("device", "FC", { numBlocks: 4 }),
      specOf("pinned", "LS", { numBlocks: 4 }),
    ],
    async (heap, gpu, pinned) => {
      const slow = transport.explain({
        source: heap,
        sourceBlocks: [0],
        destination: gpu,
        destinationBlocks: [0],
      });
      expect(slow.warnings.join(" ")).toContain("not pinned");
      const fast = transport.explain({
        source: gpu,
        sourceBlocks: [0, 2],
        destination: pinned,
        destinationBlocks: [1, 3],
      });
      expect(fast.warnings).toEqual([]);
      const hop = fast.legs[0]?.hops[0];
      expect(hop?.candidates.map((candidate) => candidate.method).toSorted()).toEqual(METHODS.toSorted());
      for (const candidate of hop?.candidates ?? []) expect(candidate.reason).toMatch(/^[A-Z].*\.$/);
      expect(hop?.predictedMicros).toBe(Math.min(...(hop?.candidates ?? []).map(({ micros }) => micros)));
    },
  ));

test("memory that the caller owns is checked with the driver and used where it lies", () =>
  withLayouts(
    [
      specOf("device", "FC", { numBlocks: 4 }),
      specOf("pinned", "FC", { numBlocks: 4 }),
      specOf("system", "FC", { numBlocks: 4 }),
    ],
    async (gpu, pinned, heap) => {
      const regions = gpu.regions;
      const adopted = await transport.register({
        ...specOf({ kind: "external", storage: { device: 0 }, regions }, "FC", { numBlocks: 4 }),
      });
      await verified(transport, pinned, [0, 1], adopted, [2, 3]);
      expect(regionsOf(gpu)).toEqual(regionsOf(adopted));
      await adopted.unregister();
      const refused = [
        { storage: { device: 0 } as const, regions: heap.regions },
        { storage: { device: 0 } as const, regions: pinned.regions },
        { storage: "pinned" as const, regions: heap.regions },
        { storage: "pinned" as const, regions: gpu.regions },
        // Longer than the allocation.
        {
          storage: { device: 0 } as const,
          regions: gpu.regions.map(({ address, size }) => ({ address: address + size - 4096, size: size })),
        },
      ];
      for (const { storage, regions: given } of refused) {
        const registering = transport.register(
          specOf({ kind: "external", storage, regions: given }, "FC", { numBlocks: 4 }),
        );
        await expect(registering).rejects.toMatchObject({ code: "ERR_KVF_INVALID_CONFIG" });
      }
      const again = await transport.register(
        specOf({ kind: "external", storage: "pinned", regions: pinned.regions }, "FC", { numBlocks: 4 }),
      );
      await verified(transport, gpu, [3, 0], again, [1, 2]);
      await again.unregister();
    },
  ));

test("both allocators of pinned memory, and a device that there is not", async () => {
  for (const allocator of ["shared", "driver"] as const)
    await withLayouts(
      [
        specOf({ kind: "pinned", allocator }, "FC", { numBlocks: 4 }),
        specOf("device", "LS", { numBlocks: 4 }),
      ],
      async (pinned, gpu) => {
        await verified(transport, pinned, [0, 3], gpu, [1, 2]);
        // The same bytes seen by the host.
        expect(pinned.bytes[0]?.byteLength).toBe(pinned.config.totalBytes);
      },
    );
  const missing = transport.register(specOf({ kind: "device", device: 63 }, "FC", { numBlocks: 1 }));
  await expect(missing).rejects.toMatchObject({ code: "ERR_KVF_NO_CUDA", details: { device: 63 } });
  const huge = transport.register(specOf("device", "FC", { numBlocks: 2 ** 31 }));
  await expect(huge).rejects.toMatchObject({ code: "ERR_KVF_OUT_OF_MEMORY" });
});
