// Two devices of one process: memory of both, copies between them, components on different ones.
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Transport } from "../../index.ts";
import { openCuda, specOf, verified } from "./harness.ts";

let transport: Transport;

beforeAll(async () => {
  transport = await openCuda();
});

afterAll(async () => {
  expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0 });
});

const on = (device: number): { kind: "device"; device: number } => ({ kind: "device", device });

test("blocks go from one device to the other, and to pinned memory of both", async () => {
  const first = await transport.register(specOf(on(0), "LS", { numBlocks: 6 }));
  const second = await transport.register(specOf(on(1), "FC", { numBlocks: 6 }));
  const pool = await transport.register(specOf({ kind: "pinned", device: 1 }, "FC", { numBlocks: 6 }));
  for (const method of ["cuda/dma", "cuda/batch", "cuda/kernel"]) {
    await verified(transport, first, [5, 0, 2], second, [1, 4, 3], { method });
    await verified(transport, second, [5, 0, 2], first, [1, 4, 3], { method });
  }
  await verified(transport, first, [1], pool, [2]);
  await verified(transport, second, [1], pool, [2]);
  await verified(transport, pool, [0, 1], first, [5, 4]);
  for (const layout of [first, second, pool]) await layout.unregister();
});

test("the device of a copy is the one that holds the source", async () => {
  const first = await transport.register(specOf(on(0), "LS", { numBlocks: 2 }));
  const second = await transport.register(specOf(on(1), "LS", { numBlocks: 2 }));
  const { legs } = transport.explain({
    source: second,
    sourceBlocks: [0],
    destination: first,
    destinationBlocks: [1],
  });
  expect(legs[0]?.hops[0]?.executor).toBe("cuda");
  expect(legs[0]?.hops[0]?.candidates.find(({ method }) => method === "cuda/slab")?.micros).toBe(
    Number.POSITIVE_INFINITY,
  );
  await first.unregister();
  await second.unregister();
});

test("components on different devices move in one transfer, each on its own", async () => {
  const config = { numBlocks: 4, numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 16 } as const;
  const engine = await transport.register({
    components: { kv: { config, memory: on(0) }, indexer: { config, memory: on(1) } },
  });
  const pool = await transport.register({
    components: {
      kv: { config, memory: { kind: "pinned" } },
      indexer: { config, arrangement: "layer-separate/block-first", memory: { kind: "pinned" } },
    },
  });
  for (const component of Object.values(engine.components)) await component.fill({ random: 2 });
  const result = await transport.transfer({
    source: engine,
    sourceBlocks: [3, 0],
    destination: pool,
    destinationBlocks: [1, 2],
  });
  expect(result.hops).toBe(2);
  for (const name of ["kv", "indexer"])
    expect(await pool.components[name]?.checksums([1, 2])).toEqual(
      (await engine.components[name]?.checksums([3, 0])) ?? [],
    );
  await engine.unregister();
  await pool.unregister();
});
