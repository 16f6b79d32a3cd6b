// Run by standin.test.ts in a process of its own, with stand-ins for NIXL and for a driver of two GPUs: scattered pieces
// from a GPU to another worker's go through staging memory on both GPUs, or through host memory where that is not to be had.
import { afterEach, describe, expect, test } from "bun:test";
import {
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type OpenOptions,
  type Peer,
  type TransferRequest,
} from "../../index.ts";
import type { Executor } from "../../lib/runtime/executor.ts";
import { resolveOptions } from "../../lib/runtime/options.ts";
import { openSession, type Session } from "../../lib/runtime/session.ts";
import { tell } from "../cuda/harness.ts";
import { refused } from "./helpers/refusal.ts";
import { OPTIONS, settled, standin } from "./helpers/standin.ts";
import { freshWorker, until } from "./helpers/transports.ts";

afterEach(() => {
  standin("reset");
  tell("FAIL", "");
});

/** Rows of 64 bytes where the orders differ: a block has 96 of them. */
const CONFIG: LayoutConfig = {
  numBlocks: 64,
  numLayers: 3,
  outerDim: 2,
  pageSize: 4,
  numHeads: 4,
  headDim: 32,
};
const BLOCK = 3 * 2 * 4 * 4 * 32 * 2;
/** Host chunks differ from those on a GPU in size: 12 blocks are 3 parts on a GPU, 6 through the host. */
const STAGING = {
  sendBytes: 4 * BLOCK,
  receiveBytes: 4 * BLOCK,
  chunkBytes: 2 * BLOCK,
  deviceBytes: 16 * BLOCK,
  deviceChunkBytes: 4 * BLOCK,
};
const FROM = Array.from({ length: 12 }, (_unused, index) => (index * 14) % 60);
const TO = Array.from({ length: 12 }, (_unused, index) => ((index * 22) % 60) + 1);

/** A hop by NIXL: kind and device of both its ends. */
type Ends = readonly [number, number, number, number];

interface Worker {
  readonly transport: Transport;
  readonly session: Session;
  /** Hops by NIXL since it was emptied. */
  readonly moved: Ends[];
}

async function open(options: Partial<OpenOptions>): Promise<Worker> {
  const session = await openSession(
    resolveOptions(
      {
        ...OPTIONS,
        cuda: {},
        capabilities: { gpuRdma: true },
        staging: STAGING,
        workerId: freshWorker(),
        ...options,
      },
      {},
    ),
  );
  const moved: Ends[] = [];
  const executors = session.executors as Map<string, Executor>;
  const nixl = executors.get("nixl") as Executor; // the stand-in is there
  executors.set("nixl", {
    start(hop, context, done) {
      for (const { srcMemory, dstMemory } of hop.programs)
        moved.push([srcMemory.kind, srcMemory.device, dstMemory.kind, dstMemory.device]);
      return nixl.start(hop, context, done);
    },
  });
  return { transport: Transport.over(session), session, moved };
}

interface Met extends AsyncDisposable {
  readonly a: Worker;
  readonly b: Worker;
  readonly here: LocalLayout;
  readonly there: LocalLayout;
  readonly peer: Peer;
  readonly push: TransferRequest;
  readonly pull: TransferRequest;
}

function spec(name: string, device: number, more: object = {}): LayoutSpec {
  return {
    name,
    config: CONFIG,
    arrangement: "layer-separate/block-first",
    memory: { kind: "device", device },
    ...more,
  };
}

/** A worker on GPU 0 and one on GPU 1. */
async function meet(theirs: Partial<OpenOptions> = {}, layout: object = { order: "hnd" }): Promise<Met> {
  const [a, b] = [await open({}), await open(theirs)];
  const here = await a.transport.register(spec("here", 0));
  const there = await b.transport.register(spec("there", 1, layout));
  await Promise.all([here.fill({ random: 1 }), there.fill({ random: 2 })]);
  const peer = await a.transport.importMetadata(await b.transport.exportMetadata());
  await b.transport.importMetadata(await a.transport.exportMetadata());
  await settled();
  const remote = peer.layout("there");
  const blocks = { sourceBlocks: FROM, destinationBlocks: TO, method: "staged/slab" };
  return {
    a,
    b,
    here,
    there,
    peer,
    push: { ...blocks, source: here, destination: remote },
    pull: { ...blocks, source: remote, destination: here },
    async [Symbol.asyncDispose]() {
      standin("reset");
      tell("FAIL", "");
      await a.transport.close();
      await b.transport.close();
    },
  };
}

const lent = ({ transport }: Worker): unknown => transport.dump().staging;
const NOTHING = { lent: 0, doubtful: 0 };
/** What NIXL moves when the chunks lie on the GPUs, for a push by `a` and for a pull by `a`, which `b` writes. */
const ON_GPUS = { push: [1, 0, 1, 1], pull: [1, 1, 1, 0] } as const;
const ON_HOSTS = [0, 0, 0, 0];

/** A transfer, its bytes, and guards around them. */
async function moves(met: Met, way: "push" | "pull", seed: number): Promise<void> {
  const [from, to] = way === "push" ? [met.here, met.there] : [met.there, met.here];
  await from.fill({ random: seed });
  await to.fill(0xee);
  met.a.moved.length = 0;
  met.b.moved.length = 0;
  const result = await met.a.transport.transfer(met[way]);
  expect(result).toMatchObject({ settlement: "done", bytes: FROM.length * BLOCK });
  expect(await to.checksums(TO)).toEqual(await from.checksums(FROM));
  const guard = new Set([0xee]);
  for (let block = 0; block < 64; block++)
    if (!TO.includes(block)) expect(new Set(await to.read(block))).toEqual(guard);
  await until("nothing is held", () => JSON.stringify([lent(met.a), lent(met.b)]) === HELD_NOT);
}

const HELD_NOT = JSON.stringify([NOTHING, NOTHING]);

describe.each(["push", "pull"] as const)("a %s between GPUs", (way) => {
  test.each([
    [{ order: "hnd" }],
    [{ order: "hnd", arrangement: "fully-contiguous" }],
    [{ arrangement: "layer-separate/block-second" }],
  ])("goes through chunks on both GPUs, each by one descriptor: %p", async (layout) => {
    await using met = await meet({}, layout);
    await moves(met, way, 3);
    const { a, b } = met;
    const [mover, other] = way === "push" ? [a, b] : [b, a];
    // Nobody moved anything through host memory, and no part was larger than a chunk.
    expect(new Set(mover.moved.map((ends) => ends.join()))).toEqual(new Set([ON_GPUS[way].join()]));
    expect(mover.moved.length).toBeGreaterThanOrEqual(3);
    expect(other.moved).toEqual([]);
    for (const { session } of [a, b])
      expect([session.staging.send.registration, session.staging.devices?.lent]).toEqual([null, 0]);
    await moves(met, way, 4);
  });

  test("layer by layer: each layer is readable in turn", async () => {
    await using met = await meet();
    const transfer = met.a.transport.transfer({ ...met[way], layerwise: true });
    const layers: number[] = [];
    for await (const layer of transfer.layers()) layers.push(layer);
    await transfer;
    expect(layers).toEqual([0, 1, 2]);
    const [from, to] = way === "push" ? [met.here, met.there] : [met.there, met.here];
    expect(await to.checksums(TO)).toEqual(await from.checksums(FROM));
  });

  test("goes through host memory when the peer keeps none on its GPU, and explain says so afterwards", async () => {
    await using met = await meet({ staging: { ...STAGING, deviceBytes: 0 } });
    expect(reasonOf(met, way)).toContain("memory of the GPUs at both ends");
    for (const seed of [3, 4]) {
      await moves(met, way, seed);
      const mover = way === "push" ? met.a : met.b;
      expect(mover.moved.length).toBeGreaterThanOrEqual(6);
      expect(new Set(mover.moved.map((ends) => ends.join()))).toEqual(new Set([ON_HOSTS.join()]));
    }
    expect(reasonOf(met, way)).toContain("through host memory: one end has no staging memory on its GPU");
  });

  test("goes through host memory when there is no room on the GPU that it is sent from", async () => {
    await using met = await meet();
    const { devices } = met.a.session.staging;
    // What is received into was made for the package; what is sent from is made now.
    tell("FAIL", "cuMemAlloc:1:2");
    await moves(met, way, 3);
    tell("FAIL", "");
    if (way === "push") expect(devices?.pool(0, "send")).toBeNull();
    await moves(met, way, 4);
    const mover = way === "push" ? met.a : met.b;
    expect(new Set(mover.moved.map((ends) => ends.join()))).toEqual(new Set([ON_HOSTS.join()]));
  });

  test("goes through host memory when NIXL does not know the other's chunk", async () => {
    await using met = await meet();
    standin("fail create_xfer_req 1 -2");
    await moves(met, way, 3);
    expect(met.a.session.staged?.client?.lendsDevices(met.peer.wireName)).toBe(false);
  });

  test("whose later part fails in NIXL fails by name, and leaves nothing held", async () => {
    await using met = await meet();
    await moves(met, way, 3);
    standin("fail create_xfer_req 2 -2");
    const error = await refused(way === "push" ? "NIXL" : "IO", met.a.transport.transfer(met[way]));
    expect(error.message.length).toBeGreaterThan(0);
    standin("reset");
    await moves(met, way, 4);
  });

  test("that is cancelled in the middle settles, leaves nothing held, and goes again", async () => {
    await using met = await meet();
    await moves(met, way, 3);
    standin("block post_xfer_req");
    const transfer = met.a.transport.transfer(met[way]);
    await until("a part is on its way", () => standin("blocked post_xfer_req") > 0);
    expect(met.a.transport.dump().staging.lent).toBeGreaterThan(0);
    const reason = new Error("enough");
    transfer.cancel(reason);
    standin("unblock post_xfer_req");
    expect(await transfer.catch((error: unknown) => error)).toBe(reason);
    await transfer.settled;
    standin("reset");
    await until("nothing is held", () => JSON.stringify([lent(met.a), lent(met.b)]) === HELD_NOT);
    await until("no block is quarantined", () => met.here.quarantinedBlocks().length === 0);
    await moves(met, way, 4);
  });

  test("that is stuck in NIXL ends at its deadline, and what may be touched is kept until there is proof", async () => {
    await using met = await meet();
    standin("mode stuck");
    const transfer = met.a.transport.transfer({ ...met[way], deadlineMs: 200 });
    const error = await refused("TIMEOUT", transfer);
    expect(error.settlement).toBe(way === "push" ? "in-doubt" : "never-started");
    expect(met.a.transport.dump().staging.lent).toBeGreaterThan(0);
    standin("mode inline");
    await until("no block is quarantined", () => met.here.quarantinedBlocks().length === 0);
    await until("nothing is held", () => JSON.stringify([lent(met.a), lent(met.b)]) === HELD_NOT);
    await moves(met, way, 4);
  });
});

test("many transfers both ways at once over few chunks all end with the right bytes", async () => {
  await using met = await meet();
  const { a, b, here, there, peer } = met;
  const mine = b.transport.peers[0]?.layout("here");
  if (mine === undefined) throw new Error("b knows a");
  const ask = (from: number, to: number) => ({
    sourceBlocks: [from, from + 2],
    destinationBlocks: [to, to + 2],
    method: "staged/slab",
  });
  const all = Array.from({ length: 8 }, (_unused, index) => [
    a.transport.transfer({
      source: here,
      destination: peer.layout("there"),
      ...ask(4 * index, 32 + 4 * index),
    }),
    b.transport.transfer({
      source: there,
      destination: mine,
      ...ask(4 * index + 1, 33 + 4 * index),
    }),
  ]).flat();
  await Promise.all(all);
  for (let index = 0; index < 8; index++) {
    const [low, high] = [4 * index, 32 + 4 * index];
    expect(await there.checksums([high, high + 2])).toEqual(await here.checksums([low, low + 2]));
    expect(await here.checksums([high + 1, high + 3])).toEqual(await there.checksums([low + 1, low + 3]));
  }
  expect(new Set([...a.moved, ...b.moved].map((ends) => ends.join()))).toEqual(
    new Set([ON_GPUS.push.join(), ON_GPUS.pull.join()]),
  );
  await until("nothing is held", () => JSON.stringify([lent(a), lent(b)]) === HELD_NOT);
});

test("over TCP a peer whose host memory is read into a GPU writes it itself, into staging memory here", async () => {
  const before = process.env["UCX_TLS"];
  process.env["UCX_TLS"] = "tcp,self";
  try {
    const staged = { capabilities: { gpuRdma: false } };
    const [a, b] = [await open(staged), await open(staged)];
    await using opened = new AsyncDisposableStack();
    for (const { transport } of [a, b]) opened.defer(() => transport.close().then(() => undefined));
    const here = await a.transport.register(spec("here", 0));
    const there = await b.transport.register(spec("there", 0, { memory: { kind: "system" }, order: "hnd" }));
    // Whose GPU memory is known is known to have staging memory.
    await b.transport.register(spec("other", 1));
    await Promise.all([here.fill(0xee), there.fill({ random: 2 })]);
    const peer = await a.transport.importMetadata(await b.transport.exportMetadata());
    await b.transport.importMetadata(await a.transport.exportMetadata());
    await until("the peer is heard", () => a.session.staged?.assists(peer.wireName) === true);
    const pull = {
      source: peer.layout("there"),
      destination: here,
      sourceBlocks: FROM,
      destinationBlocks: TO,
    };
    const result = await a.transport.transfer(pull);
    expect(result).toMatchObject({ settlement: "done", bytes: FROM.length * BLOCK });
    expect(await here.checksums(TO)).toEqual(await there.checksums(FROM));
    for (let block = 0; block < 64; block++)
      if (!TO.includes(block)) expect(new Set(await here.read(block))).toEqual(new Set([0xee]));
    // Nothing was read: the owner wrote, from host memory to host memory.
    expect(a.moved).toEqual([]);
    expect(new Set(b.moved.map((ends) => ends.join()))).toEqual(new Set([ON_HOSTS.join()]));
    await until("nothing is held", () => JSON.stringify([lent(a), lent(b)]) === HELD_NOT);
  } finally {
    if (before === undefined) delete process.env["UCX_TLS"];
    else process.env["UCX_TLS"] = before;
  }
});

/** Why the slab is taken, in explain's words. */
function reasonOf(met: Met, way: "push" | "pull"): string {
  const [hop] = met.a.transport.explain(met[way]).legs[0]?.hops ?? [];
  return hop?.candidates.find(({ method }) => method === "staged/slab")?.reason ?? "";
}
