// Two hops through staging memory: bytes, the caller's own bounce blocks, many transfers over few chunks, and failures
// that leave nothing held.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import type { LayoutConfig, LayoutSpec, LocalLayout, Transport } from "../../index.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import { plannedHop, stagePieces } from "../../lib/core/staging.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import { KvferryError } from "../../lib/core/errors.ts";
import type { Executor, HopOutcome, RunningHop } from "../../lib/runtime/executor.ts";
import { stagedExecutor } from "../../lib/runtime/staged-executor.ts";
import type { Chunk, ChunkSource, ChunkWaiter } from "../../lib/runtime/chunks.ts";
import type { StagingPool } from "../../lib/runtime/staging-pool.ts";
import { copyProgram, oneRun } from "../copy-program.ts";
import { buildCudaStandin } from "../standin/build.ts";
import { refused } from "./helpers/refusal.ts";
import { nixlTest, openLocal, openPair, systemSpec } from "./helpers/transports.ts";

const CONFIG: LayoutConfig = { numBlocks: 16, numLayers: 4, outerDim: 2, pageSize: 8, innerDim: 64 };
const BLOCK = 4 * 2 * 8 * 64 * 2;
const STANDIN = join(import.meta.dir, "..", "..", "cshim", "build", "standin", "libcuda.so.1");
const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-staging-"));
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

/** Two chunks of two blocks. */
const TWO_CHUNKS = { sendBytes: 4 * BLOCK, receiveBytes: 4 * BLOCK, chunkBytes: 2 * BLOCK };
const ARRANGEMENTS = ["fully-contiguous", "layer-separate/block-first"] as const;

function spec(name: string, kind: "disk" | "device" | "pinned", more: object = {}): LayoutSpec {
  return { name, config: CONFIG, arrangement: "fully-contiguous", memory: { kind }, ...more };
}

async function demandSame(
  from: LocalLayout,
  fromBlocks: readonly number[],
  to: LocalLayout,
  toBlocks: readonly number[],
): Promise<void> {
  expect(await to.checksums(toBlocks)).toEqual(await from.checksums(fromBlocks));
}

// ---- pieces ----

/** Bytes of a program's rows, in order: source and destination address of each byte. */
function bytesOf(program: CopyProgram): [number, number][] {
  const moved: [number, number][] = [];
  const walk = (loop: number, source: number, destination: number): void => {
    const count = program.count[loop];
    if (count === undefined) {
      for (let at = 0; at < program.rowBytes; at++) moved.push([source + at, destination + at]);
      return;
    }
    for (let index = 0; index < count; index++)
      walk(
        loop + 1,
        source + index * (program.srcStride[loop] ?? 0),
        destination + index * (program.dstStride[loop] ?? 0),
      );
  };
  program.srcBase.forEach((base, at) => {
    for (let pair = 0; pair < program.pairs; pair++)
      for (let step = 0; step < (program.run?.[pair] ?? 1); step++)
        walk(
          0,
          base + (program.srcOffset[pair] ?? 0) + step * program.srcRunStride,
          (program.dstBase[at] ?? 0) + (program.dstOffset[pair] ?? 0) + step * program.dstRunStride,
        );
  });
  return moved;
}

const programs: fc.Arbitrary<CopyProgram> = fc
  .record({
    bases: fc.integer({ min: 1, max: 4 }),
    runs: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 4 }),
    withRuns: fc.boolean(),
    count: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 3 }),
    swap: fc.boolean(),
    rowBytes: fc.integer({ min: 1, max: 6 }),
    kinds: fc.constantFrom([1, 2], [2, 1], [2, 2], [0, 1]),
  })
  .map(({ bases, runs, withRuns, count, swap, rowBytes, kinds }) => {
    const packed = (order: readonly number[]): number[] => {
      const strides = count.map(() => 0);
      let next = rowBytes;
      for (const index of order) {
        strides[index] = next;
        next *= count[index] ?? 1;
      }
      return strides;
    };
    const order = count.map((_count, index) => index);
    const unit = rowBytes * count.reduce((product, times) => product * times, 1);
    const [srcStride, dstStride] = [packed(order.toReversed()), packed(swap ? order : order.toReversed())];
    const offsets = Float64Array.from(runs, (_run, pair) => pair * 4 * unit);
    return copyProgram({
      srcBase: Float64Array.from({ length: bases }, (_unused, base) => base * 4000),
      dstBase: Float64Array.from({ length: bases }, (_unused, base) => 50_000 + (bases - base) * 4000),
      srcOffset: offsets,
      dstOffset: offsets.toReversed(),
      run: withRuns ? Uint32Array.from(runs) : null,
      srcRunStride: withRuns ? unit : 0,
      dstRunStride: withRuns ? unit : 0,
      count,
      srcStride,
      dstStride,
      rowBytes,
      srcMemory: { kind: kinds[0] as 0 | 1 | 2, device: 0 },
      dstMemory: { kind: kinds[1] as 0 | 1 | 2, device: 0 },
    });
  });

test("the pieces of a program move exactly its bytes, each inside its chunk", () => {
  fc.assert(
    fc.property(programs, fc.integer({ min: 1, max: 200 }), (program, chunkBytes) => {
      const moved = new Map<number, number>();
      for (const piece of stagePieces(program, chunkBytes)) {
        expect(piece.bytes).toBeLessThanOrEqual(chunkBytes);
        const [inward, outward] = piece.hops(0);
        expect(inward.bytes).toBe(piece.bytes);
        expect(outward.rows * outward.rowBytes * 1).toBe(piece.bytes);
        const stage = new Map<number, number>();
        for (const [from, to] of bytesOf(inward)) {
          expect(to).toBeGreaterThanOrEqual(0);
          expect(to).toBeLessThan(piece.bytes);
          expect(stage.has(to)).toBe(false);
          stage.set(to, from);
        }
        for (const [from, to] of bytesOf(outward)) {
          expect(moved.has(to)).toBe(false);
          moved.set(to, stage.get(from) ?? Number.NaN);
        }
      }
      expect(moved).toEqual(new Map(bytesOf(program).map(([from, to]) => [to, from])));
    }),
    { numRuns: 150 },
  );
});

// ---- two hops ----

test.each(ARRANGEMENTS.flatMap((from) => ARRANGEMENTS.map((to) => [from, to] as const)))(
  "file to file through two chunks, layer by layer: %s to %s",
  async (from, to) => {
    await using transport = await openLocal({ staging: TWO_CHUNKS });
    const source = await transport.register(spec("source", "disk", { arrangement: from }));
    const target = await transport.register(spec("target", "disk", { arrangement: to }));
    await source.fill({ random: 1 });
    await target.fill(0);
    const ids = [3, 4, 5, 11, 2, 9, 15];
    const to9 = ids.map((_id, index) => 14 - index);
    const transfer = transport.transfer({
      source,
      sourceBlocks: ids,
      destination: target,
      destinationBlocks: to9,
      layerwise: true,
    });
    const layers: number[] = [];
    for await (const layer of transfer.layers()) {
      layers.push(layer);
      const { done, total } = transfer.progress;
      expect(total).toBe(ids.length * BLOCK);
      expect(done).toBeGreaterThanOrEqual((total / 4) * layers.length);
      expect(done).toBeLessThanOrEqual(total);
    }
    expect(layers).toEqual([0, 1, 2, 3]);
    expect(await transfer).toMatchObject({ settlement: "done", bytes: ids.length * BLOCK });
    expect(transfer.progress).toEqual({ done: ids.length * BLOCK, total: ids.length * BLOCK });
    await demandSame(source, ids, target, to9);
    expect(new Set(await target.read(0))).toEqual(new Set([0]));
  },
);

test.each(
  (["device", "disk"] as const).flatMap((kind) =>
    ARRANGEMENTS.flatMap((from) => ARRANGEMENTS.map((to) => [kind, from, to] as const)),
  ),
)("5 blocks from %s go in reverse through 3 bounce blocks: %s to %s", async (kind, from, to) => {
  await buildCudaStandin(STANDIN);
  await using transport = await openLocal({ cuda: { library: STANDIN } });
  const other = kind === "device" ? "disk" : "device";
  const source = await transport.register(spec("source", kind, { arrangement: from }));
  const target = await transport.register(spec("target", other, { arrangement: to }));
  const bounce = await transport.register(spec("bounce", "pinned"));
  await source.fill({ random: 5 });
  await target.fill(0);
  await bounce.fill(0xee);
  const blocks = [0, 1, 2, 3, 4];
  await transport.transfer({
    source,
    sourceBlocks: blocks,
    destination: target,
    destinationBlocks: blocks.toReversed(),
    bounce: { layout: bounce, blocks: [0, 1, 2] },
  });
  await demandSame(source, blocks, target, blocks.toReversed());
  const guard = new Set([0xee]);
  for (let block = 3; block < 16; block++) expect(new Set(await bounce.read(block))).toEqual(guard);
  expect(new Set(await bounce.read(0))).not.toEqual(guard);
});

test("bounce blocks are checked like any list, and two transfers that were lent the same do not mix", async () => {
  await using transport = await openLocal();
  const source = await transport.register(spec("source", "disk"));
  const target = await transport.register(spec("target", "disk"));
  const bounce = await transport.register(
    systemSpec("bounce", CONFIG, { arrangement: "layer-separate/block-second" }),
  );
  await source.fill({ random: 6 });
  const request = { source, sourceBlocks: [1, 2], destination: target, destinationBlocks: [3, 4] };
  const lend = (blocks: number[], layout: LocalLayout = bounce) =>
    transport.transfer({ ...request, bounce: { layout, blocks } });
  await refused("LENGTH_MISMATCH", lend([]));
  await refused("BLOCK_OUT_OF_RANGE", lend([16]));
  await refused("DUPLICATE_BLOCK", lend([2, 2]));
  await refused("INCOMPATIBLE_LAYOUTS", lend([0], source));
  const own = await transport.register(systemSpec("own", CONFIG));
  await refused(
    "OVERLAP",
    transport.transfer({ ...request, source: own, bounce: { layout: own, blocks: [5, 2] } }),
  );
  await Promise.all(
    Array.from({ length: 8 }, (_unused, index) =>
      transport.transfer({
        source,
        sourceBlocks: [index],
        destination: target,
        destinationBlocks: [8 + index],
        bounce: { layout: bounce, blocks: [7] },
      }),
    ),
  );
  await demandSame(source, [0, 1, 2, 3, 4, 5, 6, 7], target, [8, 9, 10, 11, 12, 13, 14, 15]);
  await bounce.unregister();
});

const ROW_BYTES = 64;

/** Programs of one row each, a layer after the other: from a file to a GPU. */
function layerPrograms(layers: number): CopyProgram[] {
  return Array.from({ length: layers }, (_unused, layer) =>
    oneRun(layer * ROW_BYTES, layer * ROW_BYTES, ROW_BYTES, {
      srcMemory: { kind: 2, device: 1 },
      dstMemory: { kind: 1, device: 0 },
      layers: { start: layer, end: layer + 1 },
    }),
  );
}

/** Chunks of a row; one that is given back is lent again at once. */
function rowChunks(count: number): ChunkSource {
  const free: Chunk[] = Array.from({ length: count }, (_unused, index) => ({
    address: (index + 1) * 4096,
    bytes: ROW_BYTES,
  }));
  const waiters: ChunkWaiter[] = [];
  const serve = (): void => {
    while (free.length > 0 && waiters.length > 0) waiters.shift()?.grant(free.pop() as Chunk);
  };
  return {
    chunkBytes: ROW_BYTES,
    count,
    pageable: false,
    device: null,
    request: (waiter) => (waiters.push(waiter), serve()),
    cancel: (waiter) => void waiters.splice(waiters.indexOf(waiter), 1),
    release: (chunk) => (free.push(chunk), serve()),
    giveUp: () => undefined,
  };
}

const RUNNING: RunningHop = { cancel() {}, abandon() {}, programsDone: () => 0, bytesDone: () => 0 };
const GOOD: HopOutcome = {
  ok: true,
  cancelled: false,
  touched: true,
  inDoubt: false,
  bytes: ROW_BYTES,
  error: null,
};

function twoHops(
  source: ChunkSource,
  programs: readonly CopyProgram[],
  executors: Record<string, Executor>,
  progressed: () => void,
  done: (outcome: HopOutcome) => void,
): RunningHop {
  const executor = stagedExecutor({
    pool: { source: () => source } as unknown as StagingPool, // what two hops of one process need of it
    receive: { source: () => source } as unknown as StagingPool, // likewise
    devices: null,
    executor: (name) => executors[name],
    profile: () => defaultProfile,
    environment: { executors: ["host", "file", "cuda"] },
    agent: null,
    client: null,
    waiting: () => undefined,
    assists: () => false,
    progressed,
  });
  const hop = plannedHop("staged", "copy", null, programs, false, defaultProfile, { executors: ["staged"] });
  return executor.start(hop, { notification: null, watch: true }, done);
}

test("layer 0 of two hops is readable, and counted, while nothing of the last layer has come through the second hop", async () => {
  const layers = 32;
  const programs = layerPrograms(layers);
  // Reading the file takes no time; each step of the second hop ends when the test says so.
  const second: (() => void)[] = [];
  const executors: Record<string, Executor> = {
    file: { start: (_hop, _context, done) => (done(GOOD), RUNNING) },
    cuda: { start: (_hop, _context, done) => (second.push(() => done(GOOD)), RUNNING) },
  };
  const seen: [number, number][] = [];
  let ended = false;
  const run: RunningHop = twoHops(
    rowChunks(2),
    programs,
    executors,
    () => seen.push([run.programsDone(), run.bytesDone()]),
    () => (ended = true),
  );
  // Two chunks: the second layer is read while the first is on its next hop, and no further.
  expect(second).toHaveLength(2);
  expect(run.programsDone()).toBe(0);
  for (let layer = 0; layer < layers; layer++) {
    expect(ended).toBe(false);
    second.shift()?.();
    expect([run.programsDone(), run.bytesDone()]).toEqual([layer + 1, (layer + 1) * ROW_BYTES]);
    expect(second.length).toBe(Math.min(2, layers - layer - 1));
  }
  expect(ended).toBe(true);
  expect(seen).toEqual(programs.map((_program, layer) => [layer + 1, (layer + 1) * ROW_BYTES]));
});

for (const fails of ["file", "cuda"] as const)
  test(`a part that fails at its ${fails} hop fails the transfer, though the chunk is free for its last part at once`, () => {
    const second: ((outcome: HopOutcome) => void)[] = [];
    const error = new KvferryError("IO", "transfer", "the device reports an error", "It is only a test.");
    const bad = { ...GOOD, ok: false, error };
    // The first part's hop ends when the test says so; all others end before their call returns.
    const later = (done: (outcome: HopOutcome) => void): RunningHop => (second.push(done), RUNNING);
    const started = { file: 0, cuda: 0 };
    const start =
      (name: "file" | "cuda"): Executor["start"] =>
      (_hop, _context, done) =>
        started[name]++ === 0 && name === fails ? later(done) : (done(GOOD), RUNNING);
    const executors = { file: { start: start("file") }, cuda: { start: start("cuda") } };
    const outcomes: HopOutcome[] = [];
    // Another transfer has one chunk of the two.
    const chunks = rowChunks(2);
    chunks.request({ grant: () => undefined, refuse: () => undefined });
    twoHops(
      chunks,
      layerPrograms(2),
      executors,
      () => undefined,
      (outcome) => outcomes.push(outcome),
    );
    second[0]?.(bad);
    expect(outcomes).toMatchObject([{ ok: false, error: { code: "ERR_KVF_IO" } }]);
    expect(started.cuda).toBe(fails === "file" ? 0 : 1);
  });

// ---- many over few ----

test("64 transfers over 2 chunks all end with the right bytes, one in ten cancelled and one in ten on a file that was cut", async () => {
  await using transport = await openLocal({ staging: TWO_CHUNKS });
  const path = join(FOLDER, "cut.bin");
  const source = await transport.register(spec("source", "disk"));
  const cut = await transport.register(spec("cut", "disk", { memory: { kind: "disk", path } }));
  await source.fill({ random: 7 });
  await cut.fill({ random: 8 });
  truncateSync(path, 4096);
  const all = Array.from({ length: 16 }, (_unused, index) => index);
  const targets = await Promise.all(all.slice(0, 8).map((index) => target(transport, `target ${index}`)));
  const work = Array.from({ length: 64 }, (_unused, index) => {
    const destination = targets[index % 8] ?? source;
    const blocks = [index >> 3, (index >> 3) + 8];
    const transfer = transport.transfer({
      source: index % 10 === 3 ? cut : source,
      sourceBlocks: blocks,
      destination,
      destinationBlocks: blocks,
    });
    if (index % 10 === 6) transfer.cancel();
    return { index, blocks, destination, transfer };
  });
  for (const { index, blocks, destination, transfer } of work) {
    if (index % 10 === 3) expect((await refused("IO", transfer)).message).toContain(path);
    else if (index % 10 === 6)
      await transfer.then(
        () => undefined,
        () => undefined,
      );
    else {
      await transfer;
      await demandSame(source, blocks, destination, blocks);
    }
  }
  // Nothing is held: the pool serves as before.
  const last = targets[0] ?? source;
  await transport.transfer({ source, sourceBlocks: all, destination: last, destinationBlocks: all });
  await demandSame(source, all, last, all);
  await source.unregister();
});

async function target(transport: Transport, name: string): Promise<LocalLayout> {
  return await transport.register(spec(name, "disk"));
}

test("64 transfers that share 2 chunks share them alike: none ends before all have had half of their turns", async () => {
  await using transport = await openLocal({ staging: TWO_CHUNKS });
  const source = await transport.register(spec("source", "disk"));
  const targets = await Promise.all(
    Array.from({ length: 64 }, (_unused, index) => target(transport, `t${index}`)),
  );
  await source.fill({ random: 9 });
  const all = Array.from({ length: 16 }, (_unused, index) => index);
  const transfers = targets.map((destination) =>
    transport.transfer({ source, sourceBlocks: all, destination, destinationBlocks: all }),
  );
  await Promise.race(transfers);
  for (const transfer of transfers) expect(transfer.progress.done).toBeGreaterThanOrEqual(8 * BLOCK);
  await Promise.all(transfers);
  for (const destination of targets) await demandSame(source, all, destination, all);
});

// ---- peers ----

nixlTest(
  "two peers that stage towards each other over 2 + 2 chunks all end",
  async () => {
    await using pair = await openPair({ staging: TWO_CHUNKS });
    const [diskA, diskB] = [
      await pair.a.register(spec("a", "disk")),
      await pair.b.register(spec("b", "disk")),
    ];
    const fromA = await pair.a.register(systemSpec("from a", CONFIG));
    const fromB = await pair.b.register(systemSpec("from b", CONFIG));
    await Promise.all([fromA.fill({ random: 1 }), fromB.fill({ random: 2 })]);
    const { a, b } = await pair.meetBoth();
    const work = Array.from({ length: 32 }, (_unused, index) => {
      const blocks = [index % 16];
      return [
        pair.a.transfer({
          source: fromA,
          sourceBlocks: blocks,
          destination: b.layout("b"),
          destinationBlocks: blocks,
        }),
        pair.b.transfer({
          source: fromB,
          sourceBlocks: blocks,
          destination: a.layout("a"),
          destinationBlocks: blocks,
        }),
      ];
    }).flat();
    await Promise.all(work);
    const all = Array.from({ length: 16 }, (_unused, index) => index);
    await demandSame(fromA, all, diskB, all);
    await demandSame(fromB, all, diskA, all);
  },
  60_000,
);

nixlTest(
  "the same with one in ten cancelled and one in ten from a file that was cut: the others are right and nothing is held",
  async () => {
    await using pair = await openPair({ staging: TWO_CHUNKS });
    const sides = await Promise.all(
      [pair.a, pair.b].map(async (transport, index) => {
        const path = join(FOLDER, `cut ${index}.bin`);
        const from = await transport.register(systemSpec("from", CONFIG));
        const disk = await transport.register(spec("disk", "disk"));
        const cut = await transport.register(spec("cut", "disk", { memory: { kind: "disk", path } }));
        const into = await transport.register(systemSpec("into", CONFIG));
        await from.fill({ random: index });
        await cut.fill({ random: index });
        truncateSync(path, 4096);
        return { transport, from, disk, cut, into, path };
      }),
    );
    const { a, b } = await pair.meetBoth();
    const start = (side: number, index: number) => {
      const own = sides[side];
      const peer = side === 0 ? b : a;
      if (own === undefined) throw new Error("no such side");
      const blocks = [index % 16];
      const [sourceBlocks, destinationBlocks] = [blocks, blocks];
      const bad = index % 10 === 3;
      const transfer = bad
        ? own.transport.transfer({
            source: peer.layout("cut"),
            sourceBlocks: [15],
            destination: own.into,
            destinationBlocks,
          })
        : own.transport.transfer({
            source: own.from,
            sourceBlocks,
            destination: peer.layout("disk"),
            destinationBlocks,
          });
      const cancelled = index % 10 === 6;
      if (cancelled) transfer.cancel();
      return { bad, cancelled, transfer };
    };
    const round = (): ReturnType<typeof start>[] =>
      Array.from({ length: 32 }, (_unused, index) => [start(0, index), start(1, index)]).flat();
    for (const { bad, cancelled, transfer } of round()) {
      if (bad) await refused("IO", transfer);
      else if (cancelled)
        await transfer.then(
          () => undefined,
          () => undefined,
        );
      else await transfer;
      await transfer.settled;
    }
    // What was cancelled goes again; then every block is right, and nothing holds a layout.
    const all = Array.from({ length: 16 }, (_unused, index) => index);
    await Promise.all(
      sides.map(({ transport, from }, side) =>
        transport.transfer({
          source: from,
          sourceBlocks: all,
          destination: (side === 0 ? b : a).layout("disk"),
          destinationBlocks: all,
        }),
      ),
    );
    for (const [index, { transport, from }] of sides.entries()) {
      const far = sides[1 - index]?.disk;
      if (far === undefined) throw new Error("no other side");
      await demandSame(from, all, far, all);
      expect(transport.metrics()).toMatchObject({
        "kvferry.transfers.in_flight": 0,
        "kvferry.transfers.in_doubt": 0,
        "kvferry.blocks.quarantined": 0,
      });
      expect(transport.dump().jobsRunning).toBe(0);
    }
  },
  60_000,
);

nixlTest(
  "a peer's file is read layer by layer and a notification comes after the data",
  async () => {
    await using pair = await openPair({ staging: TWO_CHUNKS });
    const far = await pair.b.register(spec("far", "disk", { arrangement: "layer-separate/block-second" }));
    const near = await pair.a.register(systemSpec("near", CONFIG));
    await far.fill({ random: 3 });
    const { b } = await pair.meetBoth();
    const blocks = [1, 4, 9, 12, 3];
    const transfer = pair.a.transfer({
      source: b.layout("far"),
      sourceBlocks: blocks,
      destination: near,
      destinationBlocks: blocks,
      layerwise: true,
      notify: "read",
    });
    const layers: number[] = [];
    for await (const layer of transfer.layers()) layers.push(layer);
    expect(layers).toEqual([0, 1, 2, 3]);
    await transfer;
    await demandSame(far, blocks, near, blocks);
    const { value: note } = await pair.b.notifications().next();
    expect(new TextDecoder().decode(note?.payload)).toBe("read");
  },
  60_000,
);

nixlTest(
  "a peer that never imported this worker says so, and that costs no chunk",
  async () => {
    await using pair = await openPair({ staging: TWO_CHUNKS });
    const far = await pair.b.register(spec("far", "disk"));
    const near = await pair.a.register(systemSpec("near", CONFIG));
    await near.fill({ random: 4 });
    const b = await pair.meet();
    const request = {
      source: near,
      sourceBlocks: [1, 2, 3],
      destination: b.layout("far"),
      destinationBlocks: [1, 2, 3],
    };
    const unknown = pair.a.transfer(request);
    expect(await refused("NO_ROUTE", unknown)).toMatchObject({ settlement: "never-started" });
    await pair.b.importMetadata(await pair.a.exportMetadata());
    await pair.a.transfer(request);
    await demandSame(near, [1, 2, 3], far, [1, 2, 3]);
  },
  60_000,
);
