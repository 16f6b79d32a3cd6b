// How transfers run: many at once, prepared, layer by layer, and what is told about them.
import { describe, expect, test } from "bun:test";
import type { TransferEvent } from "../../index.ts";
import { randomOf } from "../random.ts";
import { largePair, ALL, LARGE } from "./helpers/large.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, pairTest, SMALL, systemSpec, until } from "./helpers/transports.ts";

describe("very many at once", () => {
  test("beyond maxInFlight are refused before they begin, and room comes back", async () => {
    await using transport = await openLocal({ maxInFlight: 64 });
    const { source, destination } = await largePair(transport);
    await source.fill({ random: 6 });
    const request = { source, destination, sourceBlocks: ALL, destinationBlocks: ALL };
    const transfers = Array.from({ length: 80 }, () => transport.transfer(request));
    const outcomes = await Promise.allSettled(transfers);
    const refusals = outcomes.filter((outcome) => outcome.status === "rejected");
    expect(refusals.length).toBeGreaterThanOrEqual(80 - 64);
    for (const { reason } of refusals) {
      const error = await refused("IN_USE", Promise.reject(reason));
      expect(error.settlement).toBe("never-started");
    }
    expect(outcomes.length - refusals.length).toBeGreaterThan(0);
    expect((await transport.transfer(request)).settlement).toBe("done");
    expect(await destination.checksums([0, 63])).toEqual(await source.checksums([0, 63]));
  }, 30_000);

  test("of every kind are all settled, exactly once each", async () => {
    await using transport = await openLocal();
    const config = { ...SMALL, numBlocks: 512 };
    const layouts = await Promise.all(
      ["a", "b", "c"].map((name) => transport.register(systemSpec(name, config))),
    );
    await Promise.all(layouts.map((layout, index) => layout.fill({ random: index })));
    let events = 0;
    transport.on("transfer", () => events++);
    const random = randomOf(8, 8);
    const transfers = Array.from({ length: 3000 }, (_unused, index) => {
      const [source, destination] = random.shuffled(layouts);
      if (source === undefined || destination === undefined) throw new Error("there are three layouts");
      const good = random.chance(0.9);
      const transfer = transport.transfer({
        source,
        destination,
        sourceBlocks: [good ? index % 512 : 512],
        destinationBlocks: [(index * 7) % 512],
      });
      if (random.chance(0.1)) transfer.cancel();
      return transfer;
    });
    const outcomes = await Promise.allSettled(transfers);
    const settled = await Promise.all(transfers.map((transfer) => transfer.settled));
    for (const [index, outcome] of outcomes.entries())
      expect(settled[index]?.settlement === "done").toBe(outcome.status === "fulfilled");
    await until("every event", () => events === 3000);
    expect(transfers.map(({ id }) => id)).toEqual(
      Array.from({ length: 3000 }, (_unused, index) => index + 1),
    );
  }, 30_000);
});

describe("prepared transfers", () => {
  test("run with other ids each time, many at once", async () => {
    await using transport = await openLocal();
    const config = { ...SMALL, numBlocks: 32 };
    const source = await transport.register(systemSpec("source", config));
    const destination = await transport.register({
      ...systemSpec("destination", config),
      arrangement: "layer-separate/block-first",
    });
    await source.fill({ random: 4 });
    const prepared = transport.prepare({ source, destination });
    await Promise.all(Array.from({ length: 32 }, (_unused, block) => prepared.run([31 - block], [block])));
    const ids = Array.from({ length: 32 }, (_unused, index) => index);
    expect(await destination.checksums(ids)).toEqual(await source.checksums(ids.toReversed()));
    await refused("BLOCK_OUT_OF_RANGE", prepared.run([32], [0]));
    await refused("LENGTH_MISMATCH", prepared.run([0, 1], [0]));
    await refused("DUPLICATE_BLOCK", prepared.run([0, 1], [0, 0]));
  });

  test("of layouts that are gone are refused as stale, at preparing and at running", async () => {
    await using transport = await openLocal();
    const source = await transport.register(systemSpec("source"));
    const destination = await transport.register(systemSpec("destination"));
    const prepared = transport.prepare({ source, destination });
    await prepared.run([0], [0]);
    // Other layouts come and go without harm.
    await (await transport.register(systemSpec("other"))).unregister();
    await prepared.run([0], [0]);
    await source.unregister();
    await refused("STALE_HANDLE", prepared.run([0], [0]));
    await refused("STALE_HANDLE", () => transport.prepare({ source, destination }));
  });
});

describe("layers", () => {
  test("of a local transfer come in order, each when its bytes are there", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    await source.fill("sequential");
    const transfer = transport.transfer({
      source,
      destination,
      sourceBlocks: ALL,
      destinationBlocks: ALL,
      layerwise: true,
    });
    const seen: number[] = [];
    for await (const layer of transfer.layers()) {
      seen.push(layer);
      const want = (await source.read(63, { layers: { start: layer, end: layer + 1 } })).toHex();
      expect((await destination.read(63, { layers: { start: layer, end: layer + 1 } })).toHex()).toBe(want);
    }
    expect(seen).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect((await transfer).bytes).toBe(source.config.totalBytes);
  });

  pairTest(
    "of a push come in order here, and at the peer with their messages before the last one",
    async (open) => {
      await using pair = await open();
      const { a, b } = pair;
      const config = { ...LARGE, numBlocks: 8 };
      const own = await a.register(systemSpec("own", config));
      const other = await b.register({
        ...systemSpec("other", config),
        arrangement: "layer-separate/block-first",
      });
      await own.fill("sequential");
      const { b: there, a: here } = await pair.meetBoth();
      const ids = [0, 1, 2, 3, 4, 5, 6, 7];
      const arrival = b.expect({
        layout: other,
        blocks: ids,
        from: here,
        tag: "all",
        layerTag: (layer) => `layer ${layer}`,
      });
      const transfer = a.transfer({
        source: own,
        destination: there.layout("other"),
        sourceBlocks: ids,
        destinationBlocks: ids,
        layerwise: { every: 2, notify: (layer) => `layer ${layer}` },
        notify: "all",
      });
      const sent = (async () => {
        const layers: number[] = [];
        for await (const layer of transfer.layers()) layers.push(layer);
        return layers;
      })();
      const received: number[] = [];
      for await (const layer of arrival.layers()) {
        received.push(layer);
        const range = { layers: { start: layer, end: layer + 1 } };
        expect((await other.read(7, range)).toHex()).toBe((await own.read(7, range)).toHex());
      }
      expect(await sent).toEqual(ids);
      expect(received).toEqual(ids);
      expect(await arrival).toMatchObject({ settlement: "done", from: a.agentName });
      expect(await other.checksums(ids)).toEqual(await own.checksums(ids));
    },
  );

  test("need `layerwise`, and end with the transfer's failure", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    const request = { source: layout, destination: layout, sourceBlocks: [0], destinationBlocks: [1] };
    const plain = transport.transfer(request);
    await plain;
    expect(plain.layers().next()).rejects.toThrow(TypeError);
    const bad = transport.transfer({ ...request, sourceBlocks: [9], layerwise: true });
    await refused("BLOCK_OUT_OF_RANGE", bad.layers().next());
    const empty = transport.transfer({
      ...request,
      sourceBlocks: [],
      destinationBlocks: [],
      layerwise: true,
    });
    await empty;
    for await (const layer of empty.layers()) expect(layer).toBeGreaterThanOrEqual(0);
  });

  test("a mistake in a function that makes their messages is a warning and disturbs nothing", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const warnings: string[] = [];
    transport.on("warning", ({ message }) => warnings.push(message));
    const transfer = transport.transfer({
      source,
      destination,
      sourceBlocks: ALL,
      destinationBlocks: ALL,
      layerwise: {
        every: 1,
        notify: () => {
          throw new Error("my mistake");
        },
      },
    });
    expect((await transfer).settlement).toBe("done");
    expect(warnings).toHaveLength(8);
    expect(warnings[0]).toContain("my mistake");
  });
});

describe("what is told about a transfer", () => {
  test("progress rises to the total, ids rise, events name every end", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const events: TransferEvent[] = [];
    const stop = transport.on("transfer", (event) => events.push(event));
    const first = transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    const total = source.config.totalBytes;
    expect(first.progress.total).toBe(total);
    let last = 0;
    while (first.state === "running") {
      expect(first.progress.done).toBeGreaterThanOrEqual(last);
      last = first.progress.done;
      await Bun.sleep(0);
    }
    expect(first.progress).toEqual({ done: total, total });
    const second = transport.transfer({ source, destination, sourceBlocks: [99], destinationBlocks: [0] });
    await refused("BLOCK_OUT_OF_RANGE", second);
    expect(second.id).toBe(first.id + 1);
    await until("both events", () => events.length === 2);
    expect(events).toMatchObject([
      { id: first.id, settlement: "done", bytes: total, error: null },
      { id: second.id, settlement: "never-started", bytes: 0 },
    ]);
    expect(events[1]?.error?.code).toBe("ERR_KVF_BLOCK_OUT_OF_RANGE");
    stop();
    await transport.transfer({ source, destination, sourceBlocks: [0], destinationBlocks: [0] });
    expect(events).toHaveLength(2);
  });

  test("a failure that nobody awaits ends nothing", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    let unhandled = 0;
    const count = (): void => void unhandled++;
    process.on("unhandledRejection", count);
    transport.transfer({ source: layout, destination: layout, sourceBlocks: [9], destinationBlocks: [0] });
    await Bun.sleep(20);
    process.off("unhandledRejection", count);
    expect(unhandled).toBe(0);
  });

  test("explain and transfer agree on bytes, descriptors and coverage", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const request = { source, destination, sourceBlocks: [3, 4, 9], destinationBlocks: [5, 6, 1] };
    const explained = transport.explain(request);
    const result = await transport.transfer(request);
    expect(result.bytes).toBe(explained.bytes);
    expect(result.coverage).toBe(explained.coverage);
    expect(result.descriptors).toBe(
      explained.legs.reduce(
        (sum, leg) => sum + leg.hops.reduce((all, hop) => all + hop.descriptorsAfter, 0),
        0,
      ),
    );
  });

  test("metrics count what happened", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    await transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
    expect(transport.metricsText()).toMatch(/^kvferry.*\s512$/m);
    for (const block of [999, 1_000]) {
      const request = { source: layout, destination: layout, sourceBlocks: [block], destinationBlocks: [1] };
      await refused("BLOCK_OUT_OF_RANGE", transport.transfer(request));
    }
    const signal = AbortSignal.abort(new Error("enough"));
    await transport
      .transfer({ source: layout, destination: layout, sourceBlocks: [0], destinationBlocks: [1], signal })
      .catch(() => undefined);
    const metrics = transport.metrics();
    expect(metrics["kvferry.transfers"]).toBe(4);
    expect(metrics["kvferry.transfer.failures"]).toEqual({
      ERR_KVF_BLOCK_OUT_OF_RANGE: 2,
      ERR_KVF_CLOSED: 1,
    });
    expect(metrics.routes.map(({ route, failures }) => [route, failures])).toEqual([
      ["system -> system", 0],
      ["none", 3],
    ]);
    expect(transport.metricsText()).toContain(
      'kvferry_transfer_failures_total{route="none",code="ERR_KVF_BLOCK_OUT_OF_RANGE"} 2\n',
    );
    expect(JSON.stringify(transport.dump())).toContain("worker-");
  });
});
