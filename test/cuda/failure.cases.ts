// What goes wrong on the way to a GPU, as the stand-in is told to: memory that cannot be had, calls that fail, copies
// that never end. Every failure leaves the process and the transport at work.
import { afterEach, beforeEach, expect, test } from "bun:test";
import type { LocalLayout, Transport } from "../../index.ts";
import { calls, failureOf, openCuda, specOf, tell, verified } from "./harness.ts";

const OUT_OF_MEMORY = 2;
const INVALID_VALUE = 1;

let transport: Transport;
let gpu: LocalLayout;
let pinned: LocalLayout;

beforeEach(async () => {
  transport = await openCuda();
  gpu = await transport.register(specOf("device", "LS", { numBlocks: 4 }));
  pinned = await transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
});

afterEach(async () => {
  tell("RELEASE", "");
  tell("FAIL", "");
  tell("DELAY", "0");
  await transport.close();
});

const request = (): Parameters<Transport["transfer"]>[0] => ({
  source: gpu,
  sourceBlocks: [0, 2],
  destination: pinned,
  destinationBlocks: [1, 3],
});

test("device memory that cannot be had is refused with the size, and leaves no layout behind", async () => {
  const before = transport.localLayouts.length;
  tell("FAIL", `cuMemAlloc:1:${OUT_OF_MEMORY}`);
  const refused = transport.register(specOf("device", "FC", { numBlocks: 4 }));
  await expect(refused).rejects.toMatchObject({
    code: "ERR_KVF_OUT_OF_MEMORY",
    operation: "register",
    details: { bytes: 4 * 16_384 },
  });
  expect(transport.localLayouts.length).toBe(before);
  const again = await transport.register(specOf("device", "FC", { numBlocks: 4 }));
  await verified(transport, again, [0], pinned, [0]);
});

test("pinned memory that cannot be registered is given back", async () => {
  const registered = calls("cuMemHostRegister");
  tell("FAIL", `cuMemHostRegister:1:${OUT_OF_MEMORY}`);
  const refused = transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
  await expect(refused).rejects.toMatchObject({ code: "ERR_KVF_OUT_OF_MEMORY" });
  expect(calls("cuMemHostRegister")).toBe(registered + 1);
  await transport.register(specOf("pinned", "FC", { numBlocks: 4 }));
});

test("a copy that the driver refuses never started, and the next one works", async () => {
  for (const [entry, method] of [
    ["cuMemcpyAsync", "cuda/dma"],
    ["cuMemcpyBatchAsync", "cuda/batch"],
    ["cuLaunchKernelEx", "cuda/kernel"],
  ] as const) {
    await transport.transfer({ ...request(), method });
    tell("FAIL", `${entry}:1:${INVALID_VALUE}`);
    expect(await failureOf(transport.transfer({ ...request(), method }))).toMatchObject({
      code: "ERR_KVF_CUDA",
      settlement: "never-started",
    });
    await verified(transport, gpu, [0, 2], pinned, [1, 3], { method });
  }
});

test("a copy that fails half way is in doubt only until its queued part is over", async () => {
  tell("FAIL", `cuMemcpyAsync:3:${INVALID_VALUE}`);
  const transfer = transport.transfer({ ...request(), method: "cuda/dma" });
  const failure = await failureOf(transfer);
  expect(failure).toMatchObject({ code: "ERR_KVF_CUDA", settlement: "in-doubt" });
  expect(await transfer.settled).toMatchObject({ settlement: "in-doubt", proof: "backend-ended" });
  expect(pinned.quarantinedBlocks()).toEqual([]);
  await verified(transport, gpu, [0, 2], pinned, [1, 3]);
});

test("a copy that never ends is settled at its deadline; its blocks are free once it is proven over", async () => {
  await transport.transfer(request());
  tell("HANG", "1");
  const transfer = transport.transfer({ ...request(), deadlineMs: 50 });
  const failure = await failureOf(transfer);
  expect(failure).toMatchObject({ code: "ERR_KVF_TIMEOUT", settlement: "in-doubt" });
  expect(pinned.quarantinedBlocks().map(({ block }) => block)).toEqual([1, 3]);
  expect(await failureOf(transport.transfer(request()))).toMatchObject({ code: "ERR_KVF_QUARANTINED" });
  await expect(pinned.unregister()).rejects.toMatchObject({ code: "ERR_KVF_IN_USE" });
  // Host routes go on.
  const heap = await transport.register(specOf("system", "FC", { numBlocks: 4 }));
  const other = await transport.register(specOf("system", "LS", { numBlocks: 4 }));
  await verified(transport, heap, [0], other, [3]);
  tell("RELEASE", "");
  expect(await transfer.settled).toMatchObject({ settlement: "in-doubt", proof: "backend-ended" });
  expect(pinned.quarantinedBlocks()).toEqual([]);
  await verified(transport, gpu, [0, 2], pinned, [1, 3]);
});

test("a copy that never ends does not hold up closing for good", async () => {
  await transport.transfer(request());
  tell("HANG", "1");
  const transfer = transport.transfer(request());
  const failed = failureOf(transfer);
  const report = await transport.close();
  expect(await failed).toMatchObject({ code: "ERR_KVF_CLOSED", settlement: "in-doubt" });
  // What may still be written stays allocated.
  expect(report.layouts.length).toBe(2);
  expect(report.inDoubt).toBe(1);
  tell("RELEASE", "");
}, 30_000);

test("an aborted transfer rejects with the signal's reason though its copy does not end", async () => {
  await transport.transfer(request());
  tell("HANG", "1");
  const abort = new AbortController();
  const transfer = transport.transfer({ ...request(), signal: abort.signal });
  abort.abort(new Error("enough"));
  await expect(transfer.then(() => "done")).rejects.toThrow("enough");
  expect(pinned.quarantinedBlocks().length).toBe(2);
  tell("RELEASE", "");
  expect((await transfer.settled).settlement).toBe("in-doubt");
  expect(pinned.quarantinedBlocks()).toEqual([]);
});

test("a driver that cannot be loaded is named, and host memory works without", async () => {
  const named = openCuda({ cuda: { device: 7 } });
  await expect(named).rejects.toMatchObject({ code: "ERR_KVF_NO_CUDA", details: { device: 7 } });
  await using without = await openCuda({ cuda: false });
  const refused = without.register(specOf("device", "FC", { numBlocks: 1 }));
  await expect(refused).rejects.toMatchObject({ code: "ERR_KVF_NO_CUDA" });
  const pinnedRefused = without.register(specOf("pinned", "FC", { numBlocks: 1 }));
  await expect(pinnedRefused).rejects.toMatchObject({ code: "ERR_KVF_NO_CUDA" });
  const heap = await without.register(specOf("system", "FC", { numBlocks: 2 }));
  const other = await without.register(specOf("system", "LS", { numBlocks: 2 }));
  await verified(without, heap, [0], other, [1]);
});
