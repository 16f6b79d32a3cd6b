// A kernel that faults ends its device's context for good: one process for each such case.
import { expect, test } from "bun:test";
import { answer, failureOf, native, openCuda, specOf, verified } from "./harness.ts";

test("a fault settles what runs in doubt, refuses what comes, and leaves the process and host routes alive", async () => {
  const transport = await openCuda();
  const gpu = await transport.register(specOf("device", "LS", { numBlocks: 4 }));
  const pinned = await transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
  const heap = await transport.register(specOf("system", "FC", { numBlocks: 4 }));
  const other = await transport.register(specOf("system", "LS", { numBlocks: 4 }));
  const one = (block: number): Parameters<typeof transport.transfer>[0] => ({
    source: gpu,
    sourceBlocks: [block],
    destination: pinned,
    destinationBlocks: [block],
  });
  const stream = answer((out) => native().kvf_cuda_test_stream(0, out));
  // Queues that wait for streams are made when they are first needed, which a busy device holds up.
  await Promise.all([0, 1, 2].map((block) => transport.transfer({ ...one(block), stream })));

  answer(() => native().kvf_cuda_test_sleep(0, stream, 100_000));
  answer(() => native().kvf_cuda_test_fault(0, stream));
  const running = [0, 1, 2].map((block) => transport.transfer({ ...one(block), stream }));
  for (const transfer of running)
    expect(await failureOf(transfer)).toMatchObject({ code: "ERR_KVF_CUDA", settlement: "in-doubt" });
  expect(
    pinned
      .quarantinedBlocks()
      .map(({ block }) => block)
      .toSorted(),
  ).toEqual([0, 1, 2]);

  const later = await failureOf(
    transport.transfer({ source: gpu, sourceBlocks: [0], destination: pinned, destinationBlocks: [3] }),
  );
  expect(later).toMatchObject({ code: "ERR_KVF_CUDA", settlement: "never-started" });
  expect(later.message).toContain("lost");
  const refused = transport.register(specOf("device", "FC", { numBlocks: 1 }));
  await expect(refused).rejects.toMatchObject({ code: "ERR_KVF_CUDA" });

  await verified(transport, heap, [0, 3], other, [1, 2]);
  await verified(transport, other, [0], heap, [2]);
  await gpu.unregister({ wait: false }).catch(() => undefined);
  const report = await transport.close();
  expect(report.layouts).toContain(pinned.name);
}, 60_000);
