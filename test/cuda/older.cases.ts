// A driver without the batched copy, and a GPU without bulk copies: they are passed over and say why.
import { expect, test } from "bun:test";
import { calls, failureOf, openCuda, specOf, verified } from "./harness.ts";

test("methods that the driver or the GPU lacks are passed over with a reason", async () => {
  await using transport = await openCuda();
  const gpu = await transport.register(specOf("device", "LS", { numBlocks: 4 }));
  const pinned = await transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
  const request = { source: gpu, sourceBlocks: [0, 2], destination: pinned, destinationBlocks: [1, 3] };
  const candidates = transport.explain(request).legs[0]?.hops[0]?.candidates ?? [];
  const bulk = candidates.find(({ method }) => method === "cuda/bulk");
  expect(bulk?.micros).toBe(Number.POSITIVE_INFINITY);
  expect(bulk?.reason).toContain("9.0");
  expect(candidates.find(({ method }) => method === "cuda/batch")?.reason).toContain("no batched copy");
  expect(await failureOf(transport.transfer({ ...request, method: "cuda/bulk" }))).toMatchObject({
    code: "ERR_KVF_NO_ROUTE",
  });
});

test("a forced batch is a loop of copies there", async () => {
  await using transport = await openCuda();
  const gpu = await transport.register(specOf("device", "LS", { numBlocks: 4 }));
  const pinned = await transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
  await verified(transport, gpu, [3, 1], pinned, [0, 2], { method: "cuda/batch" });
  expect(calls("cuMemcpyBatchAsync")).toBe(0);
  await verified(transport, gpu, [3, 1], pinned, [0, 2]);
});
