// When a GPU's work ends, and after what it begins: sleeps that are queued, callers' streams, events, layers.
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { LocalLayout, Transport } from "../../index.ts";
import { encodeHop } from "../../lib/core/encode.ts";
import { KVF_CUDA_METHOD_KERNEL } from "../../lib/native/symbols.ts";
import { copyProgram } from "../copy-program.ts";
import {
  answer,
  failureOf,
  native,
  openCuda,
  regionsOf,
  scribble,
  specOf,
  STANDIN,
  verified,
} from "./harness.ts";

/** The sleep that a GPU is asked for, microseconds. */
const SLEEP_MICROS = STANDIN === null ? 600_000 : 150_000;

let transport: Transport;
let gpu: LocalLayout;
let pinned: LocalLayout;
let heap: LocalLayout;
let stream: number;

const config = { numBlocks: 4, numLayers: 4 };

beforeAll(async () => {
  transport = await openCuda();
  gpu = await transport.register(specOf("device", "LS", config));
  pinned = await transport.register(specOf("pinned", "FC", config));
  heap = await transport.register(specOf("system", "FC", config));
  stream = answer((out) => native().kvf_cuda_test_stream(0, out));
});

afterAll(async () => {
  native().kvf_cuda_test_stream_close(0, stream);
  await transport.close();
});

function sleep(micros: number): void {
  answer(() => native().kvf_cuda_test_sleep(0, stream, micros));
}

function recordEvent(): number {
  return answer((out) => native().kvf_cuda_test_event(0, stream, null, out));
}

/** Fills a layout's blocks so that two fills can be told apart. */
async function sums(layout: LocalLayout, seed: number): Promise<string[]> {
  await layout.fill({ random: seed });
  return await layout.checksums([0, 1, 2, 3]);
}

const EVERY = [0, 1, 2, 3];

test("a transfer behind a sleeping stream is queued at once, and awaited to its end", async () => {
  // The first use of a stream makes it.
  await transport.transfer({
    source: gpu,
    sourceBlocks: [0],
    destination: pinned,
    destinationBlocks: [0],
    stream,
  });
  const wanted = await sums(gpu, 1);
  await pinned.fill(0);
  sleep(SLEEP_MICROS);
  const begun = performance.now();
  const transfer = transport.transfer({
    source: gpu,
    sourceBlocks: EVERY,
    destination: pinned,
    destinationBlocks: EVERY,
    stream,
  });
  const queued = performance.now() - begun;
  expect(transfer.state).toBe("running");
  // Its bytes are not there yet: it did not overtake the stream.
  expect(pinned.bytes[0]?.every((byte) => byte === 0)).toBe(true);
  await transfer;
  const awaited = performance.now() - begun;
  expect(await pinned.checksums(EVERY)).toEqual(wanted);
  expect(queued).toBeLessThan(awaited / 10);
  expect(awaited).toBeGreaterThanOrEqual((SLEEP_MICROS / 1000) * 0.8);
  process.stderr.write(`queued in ${queued.toFixed(3)} ms, awaited ${awaited.toFixed(1)} ms\n`);
});

test("every method waits for the caller's stream", async () => {
  for (const method of ["cuda/dma", "cuda/batch", "cuda/kernel", "cuda/slab", "cuda/bulk"]) {
    const wanted = await sums(gpu, 10);
    await pinned.fill(0);
    sleep(20_000);
    const transfer = transport.transfer({
      source: gpu,
      sourceBlocks: EVERY,
      destination: pinned,
      destinationBlocks: EVERY,
      stream,
      method,
    });
    expect(pinned.bytes[0]?.every((byte) => byte === 0)).toBe(true);
    await transfer;
    expect(await pinned.checksums(EVERY)).toEqual(wanted);
  }
});

test("work without an order is not held up by one that waits", async () => {
  sleep(SLEEP_MICROS);
  const late = transport.transfer({
    source: gpu,
    sourceBlocks: [0],
    destination: pinned,
    destinationBlocks: [0],
    stream,
  });
  const early = transport.transfer({
    source: gpu,
    sourceBlocks: [1],
    destination: pinned,
    destinationBlocks: [1],
  });
  await early;
  expect(late.state).toBe("running");
  await late;
});

test("the caller's stream waits for the transfer when it says so", async () => {
  const wanted = await sums(gpu, 20);
  const transfer = transport.transfer({
    source: gpu,
    sourceBlocks: EVERY,
    destination: pinned,
    destinationBlocks: EVERY,
    stream,
    streamWaits: true,
  });
  const event = recordEvent();
  // A copy that waits for what the stream did last comes after the transfer.
  await transport.transfer({
    source: heap,
    sourceBlocks: EVERY,
    destination: gpu,
    destinationBlocks: EVERY,
    waitEvents: [{ event }],
  });
  await transfer;
  expect(await pinned.checksums(EVERY)).toEqual(wanted);
});

test("events hold up the layers that they name, and layers are told as they come", async () => {
  await sums(gpu, 30);
  const events: { layer: number; event: number }[] = [];
  for (const layer of [1, 3]) {
    sleep(SLEEP_MICROS / 4);
    events.push({ layer, event: recordEvent() });
  }
  const transfer = transport.transfer({
    source: gpu,
    sourceBlocks: EVERY,
    destination: pinned,
    destinationBlocks: EVERY,
    layerwise: true,
    waitEvents: events,
  });
  const seen: { layer: number; done: boolean }[] = [];
  for await (const layer of transfer.layers()) {
    seen.push({ layer, done: transfer.state !== "running" });
    if (layer !== 0) continue;
    // Layer 0 is there while layer 1 still waits for its event.
    expect(await pinned.read(2, { layers: { start: 0, end: 1 } })).toEqual(
      await gpu.read(2, { layers: { start: 0, end: 1 } }),
    );
    expect(transfer.state).toBe("running");
  }
  await transfer;
  expect(seen.map(({ layer }) => layer)).toEqual([0, 1, 2, 3]);
  expect(seen.slice(0, 3).some(({ done }) => !done)).toBe(true);
  expect(await pinned.checksums(EVERY)).toEqual(await gpu.checksums(EVERY));
});

test("layer-wise transfers move the same bytes by every method", async () => {
  for (const method of ["cuda/dma", "cuda/batch", "cuda/kernel", "cuda/slab", "cuda/bulk"]) {
    await verified(transport, gpu, [3, 1], pinned, [0, 2], { layerwise: true, method });
    await verified(transport, pinned, [3, 1], gpu, [0, 2], { layerwise: { every: 2 }, method });
  }
});

test("host copies wait for a stream and for events as well", async () => {
  const other = await transport.register(specOf("system", "LS", config));
  await heap.fill({ random: 4 });
  await other.fill(0);
  sleep(SLEEP_MICROS / 4);
  const event = recordEvent();
  const transfer = transport.transfer({
    source: heap,
    sourceBlocks: EVERY,
    destination: other,
    destinationBlocks: EVERY,
    stream,
    waitEvents: [{ event }],
  });
  expect(transfer.state).toBe("running");
  expect(other.bytes[0]?.every((byte) => byte === 0)).toBe(true);
  await transfer;
  expect(await other.checksums(EVERY)).toEqual(await heap.checksums(EVERY));
  await other.unregister();
});

test("an order that cannot be one is refused before anything moves", async () => {
  const request = { source: gpu, sourceBlocks: [0], destination: pinned, destinationBlocks: [0] };
  for (const order of [
    { stream: -1 },
    { stream: 1.5 },
    { waitEvents: [{ event: 0 }] },
    { waitEvents: [{ event: new Uint8Array(63) }] },
    { waitEvents: [{ event: 4096, layer: -1 }] },
  ]) {
    expect(await failureOf(transport.transfer({ ...request, ...order }))).toMatchObject({
      code: "ERR_KVF_INVALID_CONFIG",
      settlement: "never-started",
    });
  }
});

test("many transfers at once in all directions", async () => {
  const other = await transport.register(specOf("device", "FC", { numBlocks: 64, numLayers: 4 }));
  const pool = await transport.register(specOf("pinned", "LS", { numBlocks: 64, numLayers: 4 }));
  scribble(pool, 3);
  const ids = Array.from({ length: 64 }, (_unused, index) => index);
  await Promise.all(
    ids.map((id) =>
      transport.transfer({
        source: pool,
        sourceBlocks: [id],
        destination: other,
        destinationBlocks: [63 - id],
      }),
    ),
  );
  expect(await other.checksums(ids.toReversed())).toEqual(await pool.checksums(ids));
  const chained = transport.transfer({
    source: other,
    sourceBlocks: [0],
    destination: gpu,
    destinationBlocks: [1],
    after: [
      transport.transfer({ source: other, sourceBlocks: [5], destination: gpu, destinationBlocks: [0] }),
    ],
  });
  await chained;
  expect(await gpu.checksums([0, 1])).toEqual(await other.checksums([5, 0]));
  await pool.unregister();
  await other.unregister();
});

test("progress is bytes, and rises to all of them", async () => {
  const transfer = transport.transfer({
    source: gpu,
    sourceBlocks: EVERY,
    destination: pinned,
    destinationBlocks: EVERY,
    layerwise: true,
  });
  expect(transfer.progress.total).toBe(4 * gpu.config.blockBytes);
  await transfer;
  expect(transfer.progress).toEqual({ done: 4 * gpu.config.blockBytes, total: 4 * gpu.config.blockBytes });
});

test("a rehearsal of a copy changes no byte on either side, nor what the copies after it do", async () => {
  const [few, many] = [3, 2_000];
  const spec = (kind: "device" | "pinned") => specOf(kind, "FC", { numBlocks: many, numLayers: 1 });
  const [device, other, host] = [
    await transport.register(spec("device")),
    await transport.register(spec("device")),
    await transport.register(spec("pinned")),
  ];
  const memory = (layout: LocalLayout) =>
    ({ kind: layout.storage.kind === "device" ? 1 : 0, device: 0 }) as const;
  for (const [source, destination] of [
    [device, host],
    [host, device],
    [device, other],
  ] as const)
    for (const pairs of [few, many]) {
      // Rows of a page, in reversed order: so many lists that the library stages them, and so few that it does not.
      const { blockBytes } = source.config;
      const ids = Array.from({ length: pairs }, (_unused, index) => index);
      const program = copyProgram({
        srcBase: Float64Array.of(source.regions[0]?.address ?? 0),
        dstBase: Float64Array.of(destination.regions[0]?.address ?? 0),
        srcOffset: Float64Array.from(ids, (id) => id * blockBytes),
        dstOffset: Float64Array.from(ids, (id) => (many - 1 - id) * blockBytes),
        rowBytes: 4_096,
        srcMemory: memory(source),
        dstMemory: memory(destination),
      });
      // As of two components.
      const hop = encodeHop([program, program]);
      scribble(source, 5);
      scribble(destination, 6);
      const before = [...regionsOf(source), ...regionsOf(destination)];
      for (let time = 0; time < 3; time++)
        answer(() =>
          native().kvf_cuda_rehearse(0, hop, hop.length, KVF_CUDA_METHOD_KERNEL, 0, null, null, 0),
        );
      expect([...regionsOf(source), ...regionsOf(destination)]).toEqual(before);
      // The lists that were written for nothing lie where the next ones go.
      const moved = transport.transfer({
        source,
        sourceBlocks: ids,
        destination,
        destinationBlocks: ids.toReversed(),
        method: "cuda/kernel",
      });
      answer(() => native().kvf_cuda_rehearse(0, hop, hop.length, KVF_CUDA_METHOD_KERNEL, 0, null, null, 0));
      await moved;
      expect(await destination.checksums(ids.toReversed())).toEqual(await source.checksums(ids));
    }
  for (const layout of [device, other, host]) await layout.unregister();
});
