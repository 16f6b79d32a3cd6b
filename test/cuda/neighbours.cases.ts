// Two processes that share a GPU, or use two, as neighbours: each maps the other's GPU memory and pinned pool. Every pair of memory
// kinds with a GPU in it, both ways; order after a stream; memory given back when a layout, a neighbour or a process goes.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";
import { Transport, type LocalLayout, type Peer } from "../../index.ts";
import { NativeContext } from "../../lib/native/context.ts";
import { CudaDriver } from "../../lib/native/cuda.ts";
import { openInFiles, SMALL_FILES } from "../runtime/helpers/in-files.ts";
import { listedMappings, NeighbourProcess, openDescriptors } from "../runtime/helpers/neighbour-process.ts";
import { refused } from "../runtime/helpers/refusal.ts";
import { until } from "../runtime/helpers/transports.ts";
import { answer, failureOf, fetchBytes, native, putBytes, specOf, STANDIN, tell } from "./harness.ts";

/** GPU of the other process's memory. */
const FAR_DEVICE = Number(process.env["KVF_CASES_FAR_DEVICE"] ?? 0);
const BLOCKS = 16;
const KINDS = ["device", "pinned", "system"] as const;
const SOURCE = [0, 3, 9, 4];
const PLACES = [15, 2, 7, 8];
const GUARDS = [1, 3, 14];
/** Kinds of the two sides: at least one is a GPU. */
const PAIRS = [
  ["device", "device"],
  ["device", "pinned"],
  ["device", "system"],
  ["pinned", "device"],
  ["system", "device"],
] as const;

let transport: Transport;
let far: NeighbourProcess;
let peer: Peer;
const layouts: Map<string, LocalLayout> = new Map();
let seed = 1;

function specs(device: number): ReturnType<typeof specOf>[] {
  return KINDS.flatMap((kind) =>
    (["FC", "LS"] as const).map((arrangement) => ({
      ...specOf(kind === "system" ? kind : { kind, device }, arrangement, { numBlocks: BLOCKS }),
      name: `${kind} ${arrangement}`,
    })),
  );
}

function openHere(): Promise<Transport> {
  return Transport.open({ workerId: 1n, nixl: false, cuda: {} });
}

async function openFar(workerId = 2): Promise<NeighbourProcess> {
  const process = new NeighbourProcess();
  await process.call({ do: "open", options: { cuda: {}, workerId } });
  return process;
}

beforeAll(async () => {
  [transport, far] = await Promise.all([openHere(), openFar()]);
  for (const spec of specs(0)) {
    const layout = await transport.register(spec);
    layouts.set(layout.name, layout);
  }
  await far.call({ do: "register", specs: specs(FAR_DEVICE) });
  peer = await transport.importMetadata(await far.call<Uint8Array>({ do: "export" }));
}, 120_000);

afterAll(async () => {
  await peer.forget();
  await far[Symbol.asyncDispose]();
  expect(await transport.close()).toEqual({ layouts: [], stuck: 0, inDoubt: 0 });
});

function own(name: string): LocalLayout {
  const layout = layouts.get(name);
  if (layout === undefined) throw new Error(`no layout ${name}`);
  return layout;
}

function sums(layout: string, blocks: readonly number[]): Promise<string[]> {
  return far.call<string[]>({ do: "sums", layout, blocks });
}

test("every layout is mapped, the pinned pool also pinned here", async () => {
  expect(peer.layouts.map(({ distance }) => distance)).toEqual(Array.from({ length: 6 }, () => "neighbour"));
  await until("the pool is pinned", () => peer.layout("pinned FC").storage.kind === "pinned", 30_000);
  expect(peer.layout("device FC").storage).toEqual({ kind: "device", device: FAR_DEVICE });
  expect(peer.layout("system FC").storage).toEqual({ kind: "system" });
  const { route } = transport.explain({
    source: own("device FC"),
    sourceBlocks: [0],
    destination: peer.layout("pinned FC"),
    destinationBlocks: [0],
  });
  expect(route).toBe("device -> pinned (neighbour)");
  // A newer package describes it as before, and it is as pinned as it was.
  await peer.update(await far.call<Uint8Array>({ do: "export" }));
  expect(peer.layout("pinned FC").storage).toEqual({ kind: "pinned", device: 0 });
});

for (const direction of ["push", "pull"] as const)
  describe(direction, () => {
    for (const [mine, theirs] of PAIRS)
      for (const [here, there] of [
        ["FC", "FC"],
        ["LS", "FC"],
        ["LS", "LS"],
      ] as const)
        test(`${mine} ${here} and the neighbour's ${theirs} ${there}`, async () => {
          const [near, remote] = [own(`${mine} ${here}`), peer.layout(`${theirs} ${there}`)];
          seed += 2;
          await near.fill({ random: seed });
          await far.call({ do: "fill", layout: remote.name, seed: seed + 1 });
          const push = direction === "push";
          const guards = push ? await sums(remote.name, GUARDS) : await near.checksums(GUARDS);
          const result = await transport.transfer({
            source: push ? near : remote,
            sourceBlocks: SOURCE,
            destination: push ? remote : near,
            destinationBlocks: PLACES,
          });
          expect(result.bytes).toBe(4 * near.config.blockBytes);
          const [sent, arrived] = push
            ? [await near.checksums(SOURCE), await sums(remote.name, PLACES)]
            : [await sums(remote.name, SOURCE), await near.checksums(PLACES)];
          expect(arrived).toEqual(sent);
          expect(push ? await sums(remote.name, GUARDS) : await near.checksums(GUARDS)).toEqual(guards);
        }, 60_000);
  });

test("a copy to a neighbour waits for the caller's stream, and its message comes after the bytes", async () => {
  const near = own("device FC");
  const remote = peer.layout("device FC");
  await near.fill({ random: 99 });
  const stream = answer((out) => native().kvf_cuda_test_stream(0, out));
  answer(() => native().kvf_cuda_test_sleep(0, stream, 100_000));
  const arrived = far.call<{ readonly text: string }>({ do: "next" });
  const begun = performance.now();
  const transfer = transport.transfer({
    source: near,
    sourceBlocks: SOURCE,
    destination: remote,
    destinationBlocks: PLACES,
    stream,
    notify: "after the stream",
  });
  expect((await arrived).text).toBe("after the stream");
  expect(performance.now() - begun).toBeGreaterThan(90);
  expect(await sums(remote.name, PLACES)).toEqual(await near.checksums(SOURCE));
  await transfer;
  native().kvf_cuda_test_stream_close(0, stream);
}, 60_000);

// A real device cannot be told to hang.
describe.skipIf(STANDIN === null)("a copy that never ends", () => {
  for (const direction of ["push", "pull"] as const)
    for (const how of ["deadline", "cancel"] as const)
      test(`to or from a neighbour holds its blocks until it ends after all: ${direction}, ${how}`, async () => {
        const [near, remote] = [own("device LS"), peer.layout("device FC")];
        const push = direction === "push";
        seed += 2;
        await near.fill({ random: seed });
        await far.call({ do: "fill", layout: remote.name, seed: seed + 1 });
        const request = {
          source: push ? near : remote,
          sourceBlocks: SOURCE,
          destination: push ? remote : near,
          destinationBlocks: PLACES,
        };
        tell("HANG", "1");
        try {
          const transfer = transport.transfer({
            ...request,
            deadlineMs: how === "deadline" ? 50 : 600_000,
          });
          if (how === "cancel") transfer.cancel();
          const code = how === "deadline" ? "ERR_KVF_TIMEOUT" : "ERR_KVF_CLOSED";
          expect(await failureOf(transfer)).toMatchObject({ code, settlement: "in-doubt" });
          const again = await failureOf(transport.transfer(request));
          expect(again).toMatchObject({ code: "ERR_KVF_QUARANTINED", settlement: "never-started" });
          if (!push) expect(near.quarantinedBlocks().map(({ block }) => block)).toEqual(PLACES);
          tell("RELEASE", "");
          expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
        } finally {
          tell("RELEASE", "");
        }
        await transport.transfer(request);
        const [sent, arrived] = push
          ? [await near.checksums(SOURCE), await sums(remote.name, PLACES)]
          : [await sums(remote.name, SOURCE), await near.checksums(PLACES)];
        expect(arrived).toEqual(sent);
      }, 60_000);
});

test("layers come in order at the neighbour, each after its bytes", async () => {
  const near = own("device LS");
  const remote = peer.layout("pinned FC");
  const transfer = transport.transfer({
    source: near,
    sourceBlocks: SOURCE,
    destination: remote,
    destinationBlocks: PLACES,
    layerwise: { every: 1, notify: (layer) => `layer ${layer}` },
    notify: "all",
  });
  const texts: string[] = [];
  for (let count = 0; count < 3; count++)
    texts.push((await far.call<{ readonly text: string }>({ do: "next" })).text);
  expect(texts).toEqual(["layer 0", "layer 1", "all"]);
  await transfer;
  expect(await sums(remote.name, PLACES)).toEqual(await near.checksums(SOURCE));
}, 60_000);

test("GPU memory for reading is not handed over, pinned memory for reading is mapped for reading", async () => {
  const other = await openFar();
  await using _other = other;
  await other.call({
    do: "register",
    specs: (["device", "pinned"] as const).map((kind) => ({
      ...specOf(kind, "FC", { numBlocks: 4 }),
      name: kind,
      access: "read" as const,
    })),
  });
  await using importer = await Transport.open({ workerId: 3n, nixl: false, cuda: {} });
  const reading = await importer.importMetadata(await other.call<Uint8Array>({ do: "export" }));
  expect(reading.layout("device").distance).toBe("remote");
  expect(reading.layout("pinned").distance).toBe("neighbour");
  const into = await importer.register(specOf("device", "LS", { numBlocks: 4 }));
  await other.call({ do: "fill", layout: "pinned", seed: 12 });
  await importer.transfer({
    source: reading.layout("pinned"),
    sourceBlocks: [0, 1],
    destination: into,
    destinationBlocks: [2, 3],
  });
  expect(await into.checksums([2, 3])).toEqual(
    await other.call<string[]>({ do: "sums", layout: "pinned", blocks: [0, 1] }),
  );
}, 60_000);

describe("a pinned pool in several files", () => {
  /** Blocks of 300,000 bytes: some lie across the ends of files. */
  const ODD = { numBlocks: 41, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 150_000 } as const;
  const blocks = Array.from({ length: ODD.numBlocks }, (_unused, index) => index);

  test("is pinned as one at both ends, and every block arrives whole by every method", async () => {
    await using here = await openInFiles({ workerId: 31n, nixl: false, cuda: {} }, SMALL_FILES);
    await using other = new NeighbourProcess();
    await other.call({ do: "open", options: { cuda: {}, workerId: 32n }, cut: SMALL_FILES });
    await other.call({ do: "register", specs: [{ ...specOf("pinned", "FC", ODD), name: "pool" }] });
    const before = listedMappings("self").length;
    const remote = await here.importMetadata(await other.call<Uint8Array>({ do: "export" }));
    expect(listedMappings("self")).toHaveLength(before + 3);
    await until("the pool is pinned", () => remote.layout("pool").storage.kind === "pinned", 30_000);
    const gpu = await here.register(specOf("device", "FC", ODD));
    const pool = await here.register({ ...specOf("pinned", "FC", ODD), name: "own pool" });
    expect(listedMappings("self")).toHaveLength(before + 6);
    const sumsOf = (ids: readonly number[]): Promise<string[]> =>
      other.call<string[]>({ do: "sums", layout: "pool", blocks: ids });
    for (const [index, method] of ["cuda/dma", "cuda/batch", "cuda/kernel", "cuda/slab"].entries()) {
      const places = blocks.toReversed();
      await gpu.fill({ random: 100 + index });
      const sums = await gpu.checksums(blocks);
      const lists = { sourceBlocks: blocks, destinationBlocks: places, method };
      await here.transfer({ source: gpu, destination: remote.layout("pool"), ...lists });
      expect(await sumsOf(places)).toEqual(sums);
      await here.transfer({ source: gpu, destination: pool, ...lists });
      expect(await pool.checksums(places)).toEqual(sums);
      await other.call({ do: "fill", layout: "pool", seed: 200 + index });
      await here.transfer({ source: remote.layout("pool"), destination: gpu, ...lists });
      expect(await gpu.checksums(places)).toEqual(await sumsOf(blocks));
    }
  }, 60_000);

  // A real driver cannot be told to refuse.
  test.skipIf(STANDIN === null)(
    "lies in one where the driver does not register several at once",
    async () => {
      await using here = await openInFiles({ workerId: 33n, nixl: false, cuda: {} }, SMALL_FILES);
      const gpu = await here.register(specOf("device", "FC", ODD));
      const before = { mappings: listedMappings("self").length, descriptors: openDescriptors("self") };
      tell("FAIL", "cuMemHostRegister:1:1");
      const pool = await here.register(specOf("pinned", "FC", ODD));
      expect(listedMappings("self")).toHaveLength(before.mappings + 1);
      await gpu.fill({ random: 300 });
      await here.transfer({
        source: gpu,
        destination: pool,
        sourceBlocks: blocks,
        destinationBlocks: blocks,
      });
      expect(await pool.checksums(blocks)).toEqual(await gpu.checksums(blocks));
      await pool.unregister();
      // Without memory for it nothing is tried again, and nothing stays.
      tell("FAIL", "cuMemHostRegister:1:2");
      await refused("OUT_OF_MEMORY", here.register(specOf("pinned", "FC", ODD)));
      expect(listedMappings("self")).toHaveLength(before.mappings);
      expect(openDescriptors("self")).toBe(before.descriptors);
    },
  );
});

test("two transports of one process reach each other's GPU memory as well", async () => {
  await using a = await Transport.open({ workerId: 11n, nixl: false, cuda: {} });
  await using b = await Transport.open({ workerId: 12n, nixl: false, cuda: {} });
  const near = await a.register(specOf("device", "FC", { numBlocks: 4 }));
  const theirs = await b.register({ ...specOf("device", "LS", { numBlocks: 4 }), name: "theirs" });
  const remote = (await a.importMetadata(await b.exportMetadata())).layout("theirs");
  expect(remote.distance).toBe("neighbour");
  await near.fill({ random: 44 });
  await a.transfer({
    source: near,
    sourceBlocks: [0, 1, 2],
    destination: remote,
    destinationBlocks: [3, 1, 0],
  });
  expect(await theirs.checksums([3, 1, 0])).toEqual(await near.checksums([0, 1, 2]));
  await theirs.unregister();
});

test("exportable memory is the same bytes wherever its descriptor is mapped, and is freed with the last mapping", async () => {
  const context = NativeContext.open(native());
  const driver = await CudaDriver.load(context, STANDIN);
  await driver.openDevice(0);
  const bytes = 3 * 2 ** 20;
  const before = freeMemory();
  const own = await driver.allocateExportable(0, bytes);
  const descriptor = await driver.exportDescriptor(own);
  const mapped = await driver.importDescriptor(0, descriptor, bytes);
  closeSync(descriptor);
  const wanted = crypto.getRandomValues(new Uint8Array(new ArrayBuffer(65_536)));
  putBytes(own + bytes - wanted.byteLength, wanted, "device");
  const found = (): Uint8Array => fetchBytes(mapped + bytes - wanted.byteLength, wanted.byteLength, "device");
  expect(found()).toEqual(wanted);
  await driver.free(0, own);
  expect(found()).toEqual(wanted);
  await driver.free(0, mapped);
  await expect(driver.free(0, mapped)).rejects.toThrow("not given by this library");
  await expect(driver.exportDescriptor(own)).rejects.toThrow("no exportable memory");
  const pipe = openSync("/dev/zero", "r");
  await expect(driver.importDescriptor(0, pipe, bytes)).rejects.toThrow("could not be imported");
  closeSync(pipe);
  expect(freeMemory()).toBeGreaterThan(before - bytes);
  await driver.closeDevice(0);
  expect(context.close(1_000)).toBe(0);
}, 60_000);

describe("leaving", () => {
  const LARGE = { numBlocks: 1024 } as const;

  test("GPU memory that a neighbour has open is freed when it let go, also when it was in the midst of copying", async () => {
    await using other = await openFar();
    const pool = await transport.register({ ...specOf("device", "FC", LARGE), name: "gpu pool" });
    await other.call({ do: "register", specs: [{ ...specOf("device", "LS", LARGE), name: "own" }] });
    await other.call({ do: "import", bytes: await transport.exportMetadata({ layouts: [pool] }) });
    const ids = Array.from({ length: 512 }, (_unused, index) => index);
    await other.call({ do: "storm", move: { own: "own", peers: "gpu pool", direction: "push", ids } });
    await pool.unregister();
    await expect(
      other.call({ do: "transfer", move: { own: "own", peers: "gpu pool", direction: "push", ids: [0] } }),
    ).rejects.toThrow("exported no layout");
  }, 60_000);

  test("a neighbour that is killed in mid-transfer leaves nothing behind", async () => {
    const before = { free: freeMemory(), mappings: listedMappings("self").length };
    for (let round = 0; round < 5; round++) {
      const other = await openFar(20 + round);
      await other.call({
        do: "register",
        specs: [
          { ...specOf("device", "FC", LARGE), name: "gpu" },
          { ...specOf("pinned", "FC", LARGE), name: "pool" },
        ],
      });
      const remote = await transport.importMetadata(await other.call<Uint8Array>({ do: "export" }));
      const near = await transport.register(specOf("device", "LS", LARGE));
      const ids = Array.from({ length: 1024 }, (_unused, index) => index);
      const running = ["gpu", "pool"].map((name) =>
        transport.transfer({
          source: near,
          sourceBlocks: ids,
          destination: remote.layout(name),
          destinationBlocks: ids,
        }),
      );
      await other.kill();
      await remote.lost;
      for (const transfer of running) {
        await transfer.catch(() => undefined);
        expect(["completed", "backend-ended", "peer-gone"]).toContain((await transfer.settled).proof);
      }
      await near.unregister({ wait: true });
    }
    await until("memory of the dead is free again", () => listedMappings("self").length === before.mappings);
    // The driver keeps a little for itself; five times 32 MiB of others' memory would show.
    if (STANDIN === null)
      await until("GPU memory is free again", () => freeMemory() > before.free - 32 * 2 ** 20, 20_000);
  }, 120_000);
});

function freeMemory(): number {
  const out = new Float64Array(new ArrayBuffer(16));
  native().kvf_cuda_memory_info(0, out);
  return out[0] ?? 0;
}
