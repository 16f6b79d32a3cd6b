// The words of staged transfers: what is written is read back, damaged bytes are no words, and a peer that asks for bytes
// outside the layout, or falls silent, gets nothing and costs nothing.
import { expect, test } from "bun:test";
import fc from "fast-check";
import { KvferryError } from "../../lib/core/errors.ts";
import { makeHandle, type LayoutHandle } from "../../lib/core/handle.ts";
import type { LayoutRecord } from "../../lib/core/layout.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import type { RunProgram } from "../../lib/runtime/assisted-run.ts";
import { Leases } from "../../lib/runtime/leases.ts";
import {
  everyRow,
  readStaging,
  startsOfRows,
  writeStaging,
  type StagingWord,
} from "../../lib/runtime/staged-protocol.ts";
import { countOf } from "../../lib/runtime/number-lists.ts";
import { StagingClient } from "../../lib/runtime/staging-client.ts";
import { StagingServer } from "../../lib/runtime/staging-server.ts";
import type { HopOutcome } from "../../lib/runtime/executor.ts";
import type { Chunk, ChunkSource, ChunkWaiter } from "../../lib/runtime/chunks.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, systemSpec } from "./helpers/transports.ts";

const numbers = fc.array(fc.integer({ min: 0, max: 2 ** 40 }), { minLength: 1, maxLength: 20 });
const asks: fc.Arbitrary<StagingWord> = fc
  .record({
    id: fc.nat(),
    operation: fc.constantFrom("read" as const, "write" as const, "fetch" as const),
    address: fc.integer({ min: 1, max: 2 ** 52 }),
    layout: fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }),
    component: fc.string({ maxLength: 20, unit: "grapheme" }),
    bases: numbers,
    pairs: numbers,
    count: fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 6 }),
    rowBytes: fc.integer({ min: 1, max: 4096 }),
    device: fc.option(fc.integer({ min: 0, max: 254 })),
    ids: fc.boolean(),
  })
  .map(({ id, operation, address, layout, component, bases, pairs, count, rowBytes, device, ids }) => ({
    word: "ask",
    id,
    operation,
    address: operation === "fetch" ? address : 0,
    ...(device === null ? undefined : { device }),
    layout: layout as LayoutHandle,
    component,
    program: {
      stageBase: Float64Array.from(bases),
      farBase: Float64Array.from(bases.toReversed()),
      stageOffset: ids ? { first: 0, step: rowBytes, count: pairs.length } : Float64Array.from(pairs),
      farOffset: ids
        ? { unit: rowBytes, times: Uint32Array.from(pairs, (pair) => pair % 2 ** 32) }
        : Float64Array.from(pairs.toReversed()),
      count,
      stageStride: count.map((times) => times * 3),
      farStride: count.map((times) => -times),
      rowBytes,
      bytes: count.reduce((product, times) => product * times, bases.length * pairs.length * rowBytes),
    },
  }));
const others: fc.Arbitrary<StagingWord> = fc.oneof(
  fc.record({
    word: fc.constant("credit" as const),
    id: fc.nat(),
    address: fc.integer({ min: 1, max: 2 ** 47 }),
  }),
  fc.record({
    word: fc.constant("credit" as const),
    id: fc.nat(),
    address: fc.integer({ min: 1, max: 2 ** 47 }),
    device: fc.integer({ min: 0, max: 254 }),
  }),
  fc.record({ word: fc.constantFrom("moved", "ended", "cancel"), id: fc.nat() }),
  fc.record({
    word: fc.constant("refused" as const),
    id: fc.nat(),
    code: fc.constantFrom("IO", "ACCESS"),
    message: fc.string({ maxLength: 50 }).filter((text) => !text.includes("\n")),
  }),
) as fc.Arbitrary<StagingWord>;

test("every word is read as it was written", () => {
  fc.assert(
    fc.property(fc.oneof(asks, others), (word) => {
      expect(readStaging(writeStaging(word))).toEqual(word);
    }),
  );
});

test("damaged and cut words are read as nothing or as a whole word, never with an error", () => {
  fc.assert(
    fc.property(
      fc.oneof(asks, others),
      fc.nat(),
      fc.nat({ max: 255 }),
      fc.boolean(),
      (word, at, value, cut) => {
        const bytes = writeStaging(word);
        const damaged = cut ? bytes.subarray(0, at % bytes.length) : bytes;
        if (!cut) bytes[at % bytes.length] = value;
        const read = readStaging(damaged);
        if (read?.word !== "ask") return;
        const { program } = read;
        const rows = program.count.reduce(
          (product, times) => product * times,
          countOf(program.stageBase) * countOf(program.stageOffset),
        );
        expect(rows * program.rowBytes).toBe(program.bytes);
      },
    ),
  );
  expect(readStaging(new Uint8Array(0))).toBeNull();
});

/** A server over a real layout, with chunks and copies that the test sees. */
async function world(deadlineMillis = 50) {
  const transport = await openLocal();
  const layout = await transport.register(systemSpec("far"));
  const record: LayoutRecord = layout.record;
  const said: StagingWord[] = [];
  const ran: CopyProgram[] = [];
  const writes: {
    readonly agent: string;
    readonly program: CopyProgram;
    readonly done: (outcome: HopOutcome) => void;
  }[] = [];
  const free: Chunk[] = [{ address: 4096, bytes: 1024 }];
  const given: Chunk[] = [];
  const waiters: ChunkWaiter[] = [];
  const timers: (() => void)[] = [];
  const serve = (): void => {
    while (free.length > 0 && waiters.length > 0) waiters.shift()?.grant(free.pop() as Chunk);
  };
  const source: ChunkSource = {
    chunkBytes: 1024,
    count: 1,
    pageable: false,
    device: null,
    request: (waiter) => (waiters.push(waiter), serve()),
    cancel: (waiter) => void waiters.splice(waiters.indexOf(waiter), 1),
    release: (chunk) => (free.push(chunk), serve()),
    giveUp: (chunk) => void given.push(chunk),
  };
  const runProgram: RunProgram = (_executor, _op, program, done) => {
    ran.push(program);
    done({ ok: true, cancelled: false, touched: true, inDoubt: false, bytes: program.bytes, error: null });
    return { cancel() {}, abandon() {}, programsDone: () => 0, bytesDone: () => 0 };
  };
  const server = new StagingServer({
    clock: {
      now: () => 0,
      after: (_millis, call) => (timers.push(call), () => undefined),
      sleep: () => Promise.resolve(),
    },
    leases: new Leases(),
    withData: null,
    send: async (_agent, body) => {
      const word = readStaging(body);
      if (word !== null) said.push(word);
    },
    waiting: () => undefined,
    layout: (handle) => {
      if (handle !== record.handle) throw new Error("no such layout");
      return record;
    },
    chunks: () => source,
    sendChunks: () => source,
    deviceChunks: () => null,
    runProgram,
    write: (agent, program, _notification, done) => void writes.push({ agent, program, done }),
    keepsSums: () => false,
    deadlineMillis,
  });
  const base = layout.components["kv"]?.regions[0]?.address ?? 0;
  const ask = (id: number, change: object = {}, word: object = {}): StagingWord => ({
    word: "ask",
    id,
    operation: "write",
    address: 0,
    layout: record.handle,
    component: "kv",
    program: {
      stageBase: Float64Array.of(0),
      farBase: Float64Array.of(base),
      stageOffset: Float64Array.of(0, 512),
      farOffset: Float64Array.of(512, 0),
      count: [],
      stageStride: [],
      farStride: [],
      rowBytes: 512,
      bytes: 1024,
      ...change,
    },
    ...word,
  });
  return { transport, server, said, ran, writes, free, given, timers, ask, base };
}

test("bytes outside the layout or the chunk, other components and layouts are refused before anything is lent", async () => {
  const { transport, server, said, ran, free, ask, base } = await world();
  await using _closing = transport;
  const end = base + 2048;
  const bad: [object, object][] = [
    [{ farBase: Float64Array.of(base - 1) }, {}],
    [{ farBase: Float64Array.of(end - 512) }, {}],
    [{ farOffset: Float64Array.of(0, 2 ** 50) }, {}],
    [{ stageOffset: Float64Array.of(0, 513) }, {}],
    [{ stageOffset: Float64Array.of(-1, 512) }, {}],
    [{ count: [2], farStride: [4096], stageStride: [256], rowBytes: 256 }, {}],
    [{ bytes: 2048, rowBytes: 1024 }, {}],
    [{}, { component: "other" }],
    [{}, { layout: 12n }],
    // Its bytes lie on no GPU.
    [{}, { device: 0 }],
    [{}, { device: 3, operation: "fetch", address: 65_536 }],
  ];
  bad.forEach(([change, word], id) => server.take("peer", ask(id, change, word)));
  expect(said.map(({ word, id }) => [word, id])).toEqual(bad.map((_bad, id) => ["refused", id]));
  expect([ran.length, free.length, server.pending]).toEqual([0, 1, 0]);
});

test("a write is scattered when the peer says that it arrived, and its chunk serves the next", async () => {
  const { transport, server, said, ran, free, ask, base } = await world();
  await using _closing = transport;
  server.take("peer", ask(1));
  server.take("peer", ask(2));
  // Another peer has no request of that number: nothing is moved for it.
  server.take("other", { word: "moved", id: 1 });
  expect(said).toMatchObject([
    { word: "credit", id: 1, address: 4096 },
    { word: "refused", id: 1, code: "NO_ROUTE" },
  ]);
  expect(ran).toEqual([]);
  server.take("peer", { word: "moved", id: 1 });
  expect(said.slice(2)).toEqual([
    { word: "ended", id: 1 },
    { word: "credit", id: 2, address: 4096 },
  ]);
  expect(ran[0]).toMatchObject({ srcBase: Float64Array.of(4096), dstBase: Float64Array.of(base) });
  server.take("peer", { word: "cancel", id: 2 });
  expect([ran.length, free.length, server.pending]).toEqual([1, 1, 0]);
});

test("blocks by their ids are moved as their offsets are, and ids outside the layout are refused", async () => {
  const { transport, server, said, ran, free, ask, base } = await world();
  await using _closing = transport;
  const byIds = (...ids: number[]) => ({
    stageOffset: { first: 0, step: 512, count: 2 },
    farOffset: { unit: 512, times: Uint32Array.from(ids) },
  });
  [byIds(1, 4), byIds(4, 1), byIds(0, 2 ** 32 - 1)].forEach((change, id) =>
    server.take("peer", ask(id, change)),
  );
  // A chunk holds what the message says, wherever its pairs begin.
  server.take("peer", ask(3, { ...byIds(1, 0), stageOffset: { first: 1, step: 512, count: 2 } }));
  server.take("peer", ask(4, { ...byIds(1, 0), stageOffset: { first: 512, step: -1024, count: 2 } }));
  expect(said.map(({ word, id }) => [word, id])).toEqual([0, 1, 2, 3, 4].map((id) => ["refused", id]));
  const offsets = Float64Array.of(1536, 0);
  server.take("peer", ask(5, byIds(3, 0)));
  server.take("peer", { word: "moved", id: 5 });
  server.take("peer", ask(6, { farOffset: offsets }));
  server.take("peer", { word: "moved", id: 6 });
  server.take("peer", ask(7, { ...byIds(3, 0), stageOffset: { first: 512, step: -512, count: 2 } }));
  server.take("peer", { word: "moved", id: 7 });
  const sides = ran.map((program) => [
    program.srcBase,
    program.srcOffset,
    program.dstBase,
    program.dstOffset,
  ]);
  const plain = [Float64Array.of(4096), Float64Array.of(0, 512), Float64Array.of(base), offsets];
  expect(sides).toEqual([
    plain,
    plain,
    [plain[0], Float64Array.of(512, 0), plain[2], offsets],
  ] as typeof sides);
  expect(ran.map(({ blocks }) => blocks)).toEqual([
    {
      source: Uint32Array.of(0, 1),
      destination: Uint32Array.of(3, 0),
      sourceStride: 512,
      destinationStride: 512,
    },
    null,
    null,
  ]);
  expect([free.length, server.pending]).toEqual([1, 0]);
});

/** A program of one word. */
const WORD = {
  stageBase: Float64Array.of(0),
  farBase: Float64Array.of(0),
  stageOffset: Float64Array.of(0),
  farOffset: Float64Array.of(0),
  count: [],
  stageStride: [],
  farStride: [],
  rowBytes: 8,
  bytes: 8,
};

const ENDED: HopOutcome = {
  ok: true,
  cancelled: false,
  touched: true,
  inDoubt: false,
  bytes: 1024,
  error: null,
};

test("what a peer fetches is gathered here and written to its chunk, and it hears when it is there", async () => {
  const { transport, server, said, ran, writes, free, ask, base } = await world();
  await using _closing = transport;
  server.take("peer", ask(1, {}, { operation: "fetch", address: 65_536 }));
  expect(ran[0]).toMatchObject({ srcBase: Float64Array.of(base), dstBase: Float64Array.of(4096) });
  expect(writes).toMatchObject([
    {
      agent: "peer",
      program: { srcBase: Float64Array.of(4096), dstBase: Float64Array.of(65_536), bytes: 1024 },
    },
  ]);
  // Until the write has ended the peer's chunk may be written to: nothing is said, whatever it wants.
  server.take("peer", { word: "cancel", id: 1 });
  expect([said.length, free.length, server.pending]).toEqual([0, 0, 1]);
  writes[0]?.done(ENDED);
  expect(said).toEqual([{ word: "ended", id: 1 }]);
  expect([free.length, server.pending]).toEqual([1, 0]);
});

test("a fetch that is wanted no more before it was written is refused in words, and nothing is written", async () => {
  const { transport, server, said, writes, ask } = await world();
  await using _closing = transport;
  server.take("peer", ask(1));
  server.take("peer", ask(2, {}, { operation: "fetch", address: 65_536 }));
  server.take("peer", { word: "cancel", id: 2 });
  expect(said.slice(1)).toMatchObject([{ word: "refused", id: 2, code: "NO_ROUTE" }]);
  server.take("peer", { word: "moved", id: 1 });
  expect([writes.length, server.pending]).toEqual([0, 0]);
});

test.each([
  ["a chunk that NIXL does not know", { touched: false, inDoubt: false }, "NO_WAY", 1],
  ["a write that failed half way", { touched: true, inDoubt: true }, "IN_DOUBT", 0],
])(
  "%s: the peer is told so, and the own chunk is lent again only when nothing can read it",
  async (...row) => {
    const [, outcome, code, left] = row;
    const { transport, server, said, writes, free, ask } = await world();
    await using _closing = transport;
    server.take("peer", ask(1, {}, { operation: "fetch", address: 65_536 }));
    writes[0]?.done({ ...ENDED, ok: false, ...outcome });
    expect(said).toMatchObject([{ word: "refused", id: 1, code }]);
    expect([free.length, server.pending]).toEqual([left, 0]);
    expect(server.release("peer")).toBeNull();
    expect(free.length).toBe(1);
  },
);

test("a chunk that a peer was asked to write to is kept until it has said that it is done, or is proven gone", async () => {
  const said: string[] = [];
  const client = new StagingClient(async (_agent, body) => {
    said.push(readStaging(body)?.word ?? "nothing");
  });
  const handle = makeHandle(2n, 0);
  const quiet: string[] = [];
  const enough = new KvferryError("CLOSED", "transfer", "enough", "Try again.");
  const late = client.fetch("peer", handle, "kv", WORD, 4096);
  late.stop(enough);
  expect(await late.ended.catch((error: unknown) => error)).toBe(enough);
  late.whenQuiet(() => quiet.push("late"));
  expect([client.pending, said, quiet]).toEqual([1, ["ask", "cancel"], []]);
  client.answer("peer", { word: "ended", id: 1 });
  expect([client.pending, quiet]).toEqual([0, ["late"]]);
  const unknown = client.fetch("peer", handle, "kv", WORD, 4096);
  client.answer("peer", { word: "refused", id: 2, code: "NO_WAY", message: "not known" });
  await refused("IO", unknown.ended);
  unknown.whenQuiet(() => quiet.push("unknown"));
  expect([quiet, client.fetches("peer"), client.fetches("other")]).toEqual([
    ["late", "unknown"],
    false,
    true,
  ]);
  const lost = client.fetch("other", handle, "kv", WORD, 4096);
  client.lost("other");
  await refused("PEER_LOST", lost.ended);
  lost.whenQuiet(() => quiet.push("lost"));
  // Nobody knows whether it still writes, until that is proven.
  client.proven("peer");
  expect([client.pending, quiet.length]).toEqual([1, 2]);
  client.proven("other");
  expect([client.pending, quiet]).toEqual([0, ["late", "unknown", "lost"]]);
});

test("a peer that falls silent has its chunk replaced, not another's", async () => {
  const { transport, server, given, timers, free, ask } = await world();
  await using _closing = transport;
  server.take("peer", ask(1));
  expect(given).toEqual([]);
  for (const timer of timers) timer();
  expect(given).toEqual([{ address: 4096, bytes: 1024 }]);
  // Heard of at last.
  server.take("peer", { word: "moved", id: 1 });
  expect([free.length, server.pending]).toEqual([1, 0]);
});

test("a chunk that a lost peer may still touch is lent again once it says that it is done, or is proven gone", async () => {
  const { transport, server, said, ran, given, free, ask } = await world();
  await using _closing = transport;
  server.take("peer", ask(1));
  server.lost("peer");
  expect([given.length, free.length, server.pending]).toEqual([1, 0, 0]);
  server.take("peer", { word: "moved", id: 1 });
  expect(said.at(-1)).toMatchObject({ word: "refused", id: 1, code: "NO_ROUTE" });
  expect([ran.length, free.length]).toEqual([0, 1]);
  server.take("peer", ask(2));
  server.lost("peer");
  server.take("peer", ask(3));
  expect(server.release("other")).toBeNull();
  expect(free.length).toBe(0);
  // The chunk that comes back goes to nobody who is gone as well.
  expect(server.release("peer")).toBeNull();
  expect([free.length, server.pending]).toEqual([1, 0]);
  server.take("peer", { word: "moved", id: 2 });
  expect(free.length).toBe(1);
});

test("a peer that forgot this worker is told all the same when its chunk is touched no more, once", async () => {
  const said: string[] = [];
  const client = new StagingClient(async (_agent, body) => {
    said.push(readStaging(body)?.word ?? "nothing");
  });
  const lent = client.ask("peer", "write", makeHandle(2n, 0), "kv", WORD);
  const unseen = client.ask("peer", "write", makeHandle(2n, 0), "kv", WORD);
  client.answer("peer", { word: "credit", id: lent.id, address: 4096 });
  expect(await lent.credit).toBe(4096);
  client.released("other");
  client.released("peer");
  const error = await refused("NO_ROUTE", lent.ended);
  await refused("NO_ROUTE", unseen.credit);
  // What it lent it moves no more; what it has not seen yet it may still take up.
  expect([lent.answered, unseen.answered]).toEqual([true, false]);
  for (const request of [lent, lent, unseen]) request.cancel(error);
  expect(said).toEqual(["ask", "ask", "cancel", "cancel"]);
});

test("the lowest and the highest start of a row are those of all rows", () => {
  const strides = fc.integer({ min: -5_000, max: 5_000 });
  const loops = fc.array(fc.tuple(fc.integer({ min: 1, max: 4 }), strides), { maxLength: 4 });
  const places = fc.array(fc.integer({ min: -(2 ** 40), max: 2 ** 40 }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(places, places, loops, (base, offset, nest) => {
      const starts: number[] = [];
      const arguments_ = [
        Float64Array.from(base),
        Float64Array.from(offset),
        nest.map(([times]) => times),
        nest.map(([, stride]) => stride),
      ] as const;
      everyRow(...arguments_, (start) => starts.push(start) > 0);
      expect(startsOfRows(...arguments_)).toEqual({
        lowest: Math.min(...starts),
        highest: Math.max(...starts),
      });
    }),
  );
});
