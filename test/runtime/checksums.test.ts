// `checksum: true`: exactly the bytes that a transfer wrote are compared, between neighbours too, and the words by which
// peers compare are read as they were written or not at all.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { LayoutConfig, LocalLayout, TransferRequest, Transport } from "../../index.ts";
import type { LayoutHandle } from "../../lib/core/handle.ts";
import type { LayoutRecord } from "../../lib/core/layout.ts";
import { KvferryError } from "../../lib/core/errors.ts";
import { SumServer } from "../../lib/runtime/sum-server.ts";
import { readSumWord, writeSumWord, type SumWord } from "../../lib/runtime/sum-words.ts";
import { refused } from "./helpers/refusal.ts";
import { nixlTest, openLocal, openNeighbours, openPair, systemSpec, until } from "./helpers/transports.ts";

const CONFIG: LayoutConfig = {
  numBlocks: 8,
  numLayers: 3,
  outerDim: 2,
  pageSize: 4,
  numHeads: 4,
  headDim: 4,
};

// ---- which bytes ----

const sides = fc.record({
  pageSize: fc.constantFrom(2, 4, 8),
  heads: fc.constantFrom([0, 4], [0, 2], [2, 2], [1, 3]),
  layers: fc.constantFrom(undefined, [0, 1, 2], [2, 0], [1]),
  order: fc.constantFrom("nhd", "hnd", "universal-tp"),
});

interface Held {
  readonly pageSize: number;
  readonly heads: readonly number[];
  readonly layers: readonly number[] | undefined;
}

function shard(side: Held): LayoutConfig {
  const [start = 0, count = 4] = side.heads;
  return {
    ...CONFIG,
    numBlocks: 32 / side.pageSize,
    pageSize: side.pageSize,
    numHeads: count,
    headWindow: { start, total: 4 },
    ...(side.layers === undefined ? {} : { layers: side.layers, numLayers: side.layers.length }),
  };
}

test("a byte that changes in the destination is found if the transfer wrote it, and only then", async () => {
  await using transport = await openLocal();
  let found = 0;
  let passed = 0;
  await fc.assert(
    fc.asyncProperty(
      sides,
      sides,
      fc.option(
        fc.record({
          from: fc.nat({ max: 7 }),
          to: fc.nat({ max: 7 }),
          count: fc.integer({ min: 1, max: 8 }),
        }),
      ),
      fc.nat(),
      // Most bytes are not written: those that are have their turn all the same.
      fc.boolean(),
      async (from, to, tokens, place, wanted) => {
        const source = await transport.register(systemSpec("source", shard(from), { order: from.order }));
        const target = await transport.register(systemSpec("target", shard(to), { order: to.order }));
        await using _source = source;
        await using _target = target;
        const ids = (pageSize: number): number[] =>
          Array.from({ length: 16 / pageSize }, (_unused, index) => (index * 3) % (32 / pageSize));
        const request: TransferRequest = {
          source,
          sourceBlocks: ids(from.pageSize),
          destination: target,
          destinationBlocks: ids(to.pageSize),
          partial: true,
          ...(tokens === null
            ? {}
            : { tokens: { sourceStart: tokens.from, destinationStart: tokens.to, count: tokens.count } }),
        };
        const region = target.bytes[0];
        if (region === undefined) throw new Error("no memory");
        // What is written, found without any sums: ones into zeros.
        await source.fill(0xff);
        await target.fill(0);
        try {
          await transport.transfer(request);
        } catch (error) {
          if (error instanceof KvferryError && error.code === "ERR_KVF_INCOMPATIBLE_LAYOUTS") return;
          throw error;
        }
        const written = region.map((byte) => (byte === 0xff ? 1 : 0));
        const places = Array.from(written.keys()).filter((index) => written[index] === (wanted ? 1 : 0));
        const at = places[place % places.length] ?? place % region.length;
        await source.fill({ random: place });
        const spoil = (layer: number): string => {
          if (layer === Math.max(...moved)) region[at] = (region[at] ?? 0) ^ 0x10;
          return "layer";
        };
        const held = (side: Held): readonly number[] => side.layers ?? [0, 1, 2];
        const moved = held(from).filter((layer) => held(to).includes(layer));
        const transfer = transport.transfer({
          ...request,
          checksum: true,
          layerwise: { every: 1, notify: spoil },
        });
        if (written[at] === 1) {
          const error = await refused("CHECKSUM", transfer);
          const block = Math.floor(at / target.config.blockBytes);
          expect(error).toMatchObject({ settlement: "done", details: { blocks: [block], count: 1 } });
          found++;
        } else {
          expect(await transfer).toMatchObject({ settlement: "done" });
          passed++;
        }
      },
    ),
    { numRuns: 120 },
  );
  // Both happened, or the property says nothing.
  expect(found).toBeGreaterThan(10);
  expect(passed).toBeGreaterThan(10);
});

// ---- neighbours ----

describe.each(["push", "pull"] as const)("between neighbours: %s", (direction) => {
  test("a byte that changes is found in its block, which is bad at its owner too until it is written again", async () => {
    await using pair = await openNeighbours();
    const { a, b } = pair;
    const own = await a.register(systemSpec("own", CONFIG, { arrangement: "layer-separate/block-second" }));
    const theirs = await b.register(systemSpec("theirs", CONFIG, { order: "hnd" }));
    const { b: peer } = await pair.meetBoth();
    const push = direction === "push";
    const [source, target] = push ? [own, theirs] : [theirs, own];
    await source.fill({ random: 3 });
    const remote = peer.layout("theirs");
    expect(remote.distance).toBe("neighbour");
    const request: TransferRequest = {
      source: push ? own : remote,
      sourceBlocks: [1, 4, 2],
      destination: push ? remote : own,
      destinationBlocks: [7, 0, 5],
      checksum: true,
    };
    expect(await a.transfer(request)).toMatchObject({ settlement: "done" });
    const { address } = target.address(5, 2, 1);
    const index = target.components["kv"]?.regions.findIndex(
      (region) => address >= region.address && address < region.address + region.size,
    );
    const bytes = target.bytes[index ?? 0];
    const at = address - (target.components["kv"]?.regions[index ?? 0]?.address ?? 0);
    const spoil = async (more: object = {}): Promise<KvferryError> =>
      await refused(
        "CHECKSUM",
        a.transfer({
          ...request,
          ...more,
          layerwise: {
            every: 1,
            notify: (layer) => {
              if (layer === 2 && bytes !== undefined) bytes[at] = (bytes[at] ?? 0) ^ 1;
              return `layer ${layer}`;
            },
          },
        }),
      );
    expect(await spoil()).toMatchObject({ settlement: "done", details: { blocks: [5] } });
    const other = await (push ? b : a).register(systemSpec("other", CONFIG));
    const owner = push ? b : a;
    const read = (): PromiseLike<unknown> =>
      owner.transfer({ source: target, sourceBlocks: [5], destination: other, destinationBlocks: [0] });
    await bad(read);
    await a.transfer({ ...request, checksum: false });
    await good(read);
    await spoil();
    await bad(read);
    // By its owner.
    await target.fill({ random: 9 });
    await read();
    if (!push) return;
    const back = await a.register(systemSpec("back", CONFIG));
    await good(() =>
      a.transfer({ source: remote, sourceBlocks: [5], destination: back, destinationBlocks: [0] }),
    );
    // Who expects the blocks is told.
    const from = b.peer(a.workerId);
    if (from === undefined) throw new Error("no such peer");
    const arrival = b.expect({ layout: theirs, blocks: [7, 0, 5], from, tag: "all" });
    await spoil({ notify: "all" });
    expect(await refused("CHECKSUM", arrival)).toMatchObject({ details: { blocks: [5] } });
    expect(await arrival.settled).toEqual({ settlement: "done", proof: "completed" });
    expect(theirs.quarantinedBlocks()).toEqual([]);
    // So is who expects them only after the word of it came: at once, and once for each such push.
    await a.transfer({ ...request, checksum: false });
    await good(read);
    await spoil({ notify: "late" });
    await bad(read);
    const late = { layout: theirs, blocks: [5, 7], from, tag: "late" };
    expect(await refused("CHECKSUM", b.expect(late))).toMatchObject({ details: { blocks: [5] } });
    const again = b.expect(late);
    await a.transfer({ ...request, notify: "late" });
    expect((await again).settlement).toBe("done");
    await good(read);
    // Blocks that were written since are not mentioned.
    await spoil();
    await bad(read);
    await target.fill({ random: 9 });
    const third = b.expect({ ...late, tag: "third" });
    await a.transfer({ ...request, notify: "third" });
    expect((await third).settlement).toBe("done");
  });
});

/** Makes a block of a layout bad by a transfer of its owner. */
async function spoilAtHome(owner: Transport, target: LocalLayout, block: number): Promise<void> {
  await using source = await owner.register(systemSpec("spoiler", CONFIG));
  const [region] = target.components["kv"]?.regions ?? [];
  const at = target.address(block, 2, 1).address - (region?.address ?? 0);
  const bytes = target.bytes[0];
  const transfer = owner.transfer({
    source,
    sourceBlocks: [0],
    destination: target,
    destinationBlocks: [block],
    checksum: true,
    layerwise: {
      every: 1,
      notify: (layer) => {
        if (layer === 2 && bytes !== undefined) bytes[at] = (bytes[at] ?? 0) ^ 1;
        return `layer ${layer}`;
      },
    },
  });
  expect(await refused("CHECKSUM", transfer)).toMatchObject({ details: { blocks: [block] } });
}

const PARTS: readonly [string, Partial<TransferRequest>][] = [
  ["some layers", { layers: { start: 0, end: 2 } }],
  ["some tokens", { tokens: { sourceStart: 0, destinationStart: 0, count: 3 } }],
];

test("a part of a bad block that is written again does not make it good, the whole does", async () => {
  await using transport = await openLocal();
  const source = await transport.register(systemSpec("source", CONFIG));
  const target = await transport.register(systemSpec("target", CONFIG));
  await source.fill({ random: 8 });
  await spoilAtHome(transport, target, 5);
  const request = { source, sourceBlocks: [1], destination: target, destinationBlocks: [5] };
  const read = () =>
    transport.transfer({ source: target, sourceBlocks: [5], destination: source, destinationBlocks: [7] });
  for (const checksum of [false, true])
    for (const [, part] of PARTS) {
      await transport.transfer({ ...request, ...part, checksum });
      await refused("CHECKSUM", read());
    }
  await transport.transfer(request);
  await read();
  expect(await source.read(7)).toEqual(await source.read(1));
});

for (const [way, open, run] of [
  ["neighbours", openNeighbours, test],
  ["NIXL", openPair, nixlTest],
] as const)
  run(
    `what a peer pushes into bad blocks makes them good when it is the whole of them, and not for having arrived: ${way}`,
    async () => {
      await using pair = await open();
      const { a, b } = pair;
      const own = await a.register(systemSpec("own", CONFIG));
      const theirs = await b.register(systemSpec("theirs", CONFIG));
      const other = await b.register(systemSpec("other", CONFIG));
      const { b: peer, a: from } = await pair.meetBoth();
      const remote = peer.layout("theirs");
      await own.fill({ random: 3 });
      // Nobody but their owner knows that they are bad.
      await spoilAtHome(b, theirs, 5);
      await spoilAtHome(b, theirs, 2);
      const request: TransferRequest = {
        source: own,
        sourceBlocks: [1, 4],
        destination: remote,
        destinationBlocks: [5, 0],
      };
      const read = (block = 5): PromiseLike<unknown> =>
        b.transfer({ source: theirs, sourceBlocks: [block], destination: other, destinationBlocks: [block] });
      const expected = (tag: string): PromiseLike<unknown> =>
        b.expect({ layout: theirs, blocks: [5, 0], from, tag });
      for (const [name, part] of PARTS)
        for (const checksum of [false, true]) {
          const tag = `${name} ${checksum}`;
          const arrival = expected(tag);
          await a.transfer({ ...request, ...part, checksum, notify: tag });
          expect(await arrival).toMatchObject({ settlement: "done" });
          await refused("CHECKSUM", read());
        }
      // Who is awaited has been told by now that it is bad: whatever it writes whole, it says so.
      const back = await a.register(systemSpec("back", CONFIG));
      await bad(() =>
        a.transfer({ source: remote, sourceBlocks: [5], destination: back, destinationBlocks: [0] }),
      );
      await refused("CHECKSUM", read());
      const whole = expected("whole");
      await a.transfer({ ...request, notify: "whole" });
      expect(await whole).toMatchObject({ settlement: "done" });
      await good(read);
      expect(await other.read(5)).toEqual(await own.read(1));
      // The other one was not written.
      await refused("CHECKSUM", read(2));
      await good(() =>
        a.transfer({ source: remote, sourceBlocks: [5], destination: back, destinationBlocks: [0] }),
      );
    },
    30_000,
  );

async function bad(read: () => PromiseLike<unknown>): Promise<void> {
  await turns(read, (failed) => failed);
  await refused("CHECKSUM", read);
}

async function good(read: () => PromiseLike<unknown>): Promise<void> {
  await turns(read, (failed) => !failed);
}

/** Tries again until it fails, or until it does not: words between processes take their time. */
async function turns(read: () => PromiseLike<unknown>, enough: (failed: boolean) => boolean): Promise<void> {
  for (let turn = 0; turn < 1_000; turn++) {
    const failed = await Promise.resolve(read()).then(
      () => false,
      () => true,
    );
    if (enough(failed)) return;
    await Bun.sleep(5);
  }
  throw new Error("the other side was not told");
}

test("a layout that may only be read cannot be marked by its readers", async () => {
  await using pair = await openNeighbours();
  const theirs = await pair.b.register(systemSpec("theirs", CONFIG, { access: "read" }));
  const into = await pair.a.register(systemSpec("into", CONFIG));
  await theirs.fill({ random: 4 });
  const { b } = await pair.meetBoth();
  await pair.a.transfer({
    source: b.layout("theirs"),
    sourceBlocks: [1],
    destination: into,
    destinationBlocks: [2],
    checksum: true,
  });
  expect(await into.read(2)).toEqual(await theirs.read(1));
});

nixlTest(
  "a peer that has not imported this worker sums its side too, over NIXL, both ways",
  async () => {
    await using pair = await openPair();
    const own = await pair.a.register(systemSpec("own", CONFIG));
    await pair.b.register(systemSpec("theirs", CONFIG, { order: "hnd" }));
    await own.fill({ random: 5 });
    const remote = (await pair.meet()).layout("theirs");
    const checksum = true;
    await pair.a.transfer({
      source: own,
      sourceBlocks: [1, 2],
      destination: remote,
      destinationBlocks: [7, 0],
      checksum,
    });
    await pair.a.transfer({
      source: remote,
      sourceBlocks: [7, 0],
      destination: own,
      destinationBlocks: [4, 5],
      checksum,
    });
    expect(await own.checksums([4, 5])).toEqual(await own.checksums([1, 2]));
  },
  30_000,
);

// ---- words ----

const ids = fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { maxLength: 30 });
const layouts = fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }).map((handle) => handle as LayoutHandle);
const texts = fc.string({ maxLength: 20, unit: "grapheme" });
const small = fc.integer({ min: 1, max: 2 ** 31 });
const words: fc.Arbitrary<SumWord> = fc.oneof(
  fc.record({
    word: fc.constant("ready" as const),
    id: fc.nat(),
    layout: layouts,
    group: texts,
    blocks: ids.map((list) => Uint32Array.from(list)),
  }),
  fc.record({
    word: fc.constant("mark" as const),
    id: fc.nat(),
    layout: layouts,
    group: texts,
    blocks: ids.filter((list) => list.length > 0).map((list) => Uint32Array.from(list)),
    bad: fc.boolean(),
  }),
  fc.record({
    word: fc.constant("ask" as const),
    id: fc.nat(),
    layout: layouts,
    component: texts,
    shape: fc.record({
      pageSize: small,
      layers: ids.filter((list) => list.length > 0),
      heads: fc.option(fc.record({ start: small, count: small, total: small })),
    }),
    side: fc.record({
      blocks: ids.filter((list) => list.length > 0).map((list) => Uint32Array.from(list)),
      tokens: fc.option(fc.record({ start: small, at: small, count: small })),
    }),
    count: fc.integer({ min: 1, max: 1_024 }),
  }),
  fc.record({
    word: fc.constant("sums" as const),
    id: fc.nat(),
    sums: fc.integer({ min: 0, max: 20 }).map((count) => new Uint8Array(count * 32).fill(count)),
  }),
  fc.record({
    word: fc.constant("refused" as const),
    id: fc.nat(),
    code: fc.constantFrom("CHECKSUM", "IO"),
    message: texts.filter((text) => !text.includes("\n")),
  }),
);

test("every word is read as it was written", () => {
  fc.assert(fc.property(words, (word) => expect(readSumWord(writeSumWord(word))).toEqual(word)));
});

test("damaged and cut words are read as nothing or within their bounds, never with an error", () => {
  fc.assert(
    fc.property(words, fc.nat(), fc.nat({ max: 255 }), fc.boolean(), (word, at, value, cut) => {
      const bytes = writeSumWord(word);
      const damaged = cut ? bytes.subarray(0, at % bytes.length) : bytes;
      if (!cut) bytes[at % bytes.length] = value;
      const read = readSumWord(damaged);
      if (read?.word === "ask") {
        expect(read.count).toBeGreaterThan(0);
        expect(read.count).toBeLessThanOrEqual(1_024);
        expect(read.shape.layers.length).toBeGreaterThan(0);
        expect(read.side.blocks.length).toBeGreaterThan(0);
      }
    }),
  );
  expect(readSumWord(new Uint8Array())).toBeNull();
});

// ---- a peer that asks for what it should not ----

test("what a peer asks for is bounded: no memory is taken for a shape that is none, and layouts are its owner's", async () => {
  await using transport = await openLocal();
  const layout: LocalLayout = await transport.register(systemSpec("far", CONFIG));
  const said: SumWord[] = [];
  let summed = 0;
  const server = new SumServer({
    send: async (_agent, body) => {
      const word = readSumWord(body);
      if (word !== null) said.push(word);
    },
    waiting: () => undefined,
    layout: (handle): LayoutRecord => {
      if (handle !== layout.handle) throw new KvferryError("UNKNOWN_HANDLE", "transfer", "no such", "None.");
      return layout.record;
    },
    demandGood: () => undefined,
    sums: async (_layout, _component, _shape, _side, count) => {
      summed++;
      return new Uint8Array(count * 32);
    },
  });
  const ask: Extract<SumWord, { word: "ask" }> = {
    word: "ask",
    id: 1,
    layout: layout.handle,
    component: "kv",
    shape: { pageSize: 4, layers: [0, 1, 2], heads: { start: 0, count: 4, total: 4 } },
    side: { blocks: Uint32Array.of(1), tokens: null },
    count: 1,
  };
  const wrong: Partial<typeof ask>[] = [
    { layout: 5n as LayoutHandle },
    { component: "other" },
    { shape: { ...ask.shape, pageSize: 2 ** 31 } },
    { shape: { ...ask.shape, layers: [1, 1] } },
    { shape: { ...ask.shape, heads: { start: 3, count: 4, total: 4 } } },
    { count: 1_024, shape: { ...ask.shape, pageSize: 2 ** 20 } },
  ];
  for (const change of wrong) server.take("peer", { ...ask, ...change });
  await until("all are refused", () => said.length === wrong.length);
  expect(said.map(({ word }) => word)).toEqual(wrong.map(() => "refused"));
  expect(summed).toBe(0);
  // More than it may ask at once is refused, and nothing is kept for a peer that is gone.
  said.length = 0;
  for (let id = 0; id < 1_030; id++) server.take("peer", { ...ask, id });
  server.lost("peer");
  await until("the one that ran has ended", () => server.pending === 0);
  expect(said.filter(({ word }) => word === "refused")).toHaveLength(6);
  expect(summed).toBe(1);
});
