// How transfers begin and end: with notifications, in chains, stopped by signals and deadlines.
import { describe, expect, test } from "bun:test";
import { largePair, ALL, LARGE, nextMessage } from "./helpers/large.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, pairTest, SMALL, systemSpec } from "./helpers/transports.ts";

describe("empty transfers", () => {
  test("are done with 0 bytes, and their notification is delivered here", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    const transfer = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [],
      destinationBlocks: [],
      notify: "empty",
    });
    const result = await transfer;
    expect(result).toMatchObject({ settlement: "done", bytes: 0, descriptors: 0 });
    expect(await transfer.settled).toEqual({ settlement: "done", proof: "completed" });
    expect(await nextMessage(transport)).toEqual({ from: transport.agentName, text: "empty" });
  });

  pairTest("to a peer are done with 0 bytes, and their notification is delivered there", async (open) => {
    await using pair = await open();
    const here = await pair.a.register(systemSpec("here"));
    await pair.b.register(systemSpec("there"));
    const peer = await pair.meet();
    await pair.a.transfer({
      source: here,
      destination: peer.layout("there"),
      sourceBlocks: new Uint32Array(0),
      destinationBlocks: [],
      notify: new Uint8Array([1, 2, 3]),
    });
    expect(await nextMessage(pair.b)).toEqual({ from: pair.a.agentName, text: "\x01\x02\x03" });
  });
});

describe("notifications with data", () => {
  test("of a local transfer come to the transport itself, after the data", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    await source.fill("sequential");
    const transfer = transport.transfer({
      source,
      destination,
      sourceBlocks: ALL,
      destinationBlocks: ALL,
      notify: "moved",
    });
    expect(await nextMessage(transport)).toEqual({ from: transport.agentName, text: "moved" });
    expect(await destination.checksums([0, 63])).toEqual(await source.checksums([0, 63]));
    await transfer;
  });

  for (const direction of ["push", "pull"] as const)
    pairTest(`of a ${direction} come to the peer when the data is there`, async (open) => {
      await using pair = await open();
      const { a, b } = pair;
      const own = await a.register(systemSpec("own", LARGE));
      const other = await b.register(systemSpec("other", LARGE));
      await (direction === "push" ? own : other).fill({ random: 5 });
      const peer = await pair.meet();
      const [source, destination] =
        direction === "push" ? [own, peer.layout("other")] : [peer.layout("other"), own];
      const transfer = a.transfer({
        source,
        destination,
        sourceBlocks: ALL,
        destinationBlocks: ALL,
        notify: new TextEncoder().encode("with data"),
      });
      expect(await nextMessage(b)).toEqual({ from: a.agentName, text: "with data" });
      if (direction === "push") expect(await other.checksums([0, 63])).toEqual(await own.checksums([0, 63]));
      await transfer;
      expect(await other.checksums(ALL)).toEqual(await own.checksums(ALL));
    });
});

describe("chains", () => {
  test("each link starts when the one before is done, and sees its bytes", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x", { ...SMALL, numBlocks: 16 }));
    await layout.fill("sequential");
    let last = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
    for (let block = 1; block < 15; block++) {
      last = transport.transfer({
        source: layout,
        destination: layout,
        sourceBlocks: [block],
        destinationBlocks: [block + 1],
        after: [last],
      });
      expect(last.state).toBe("waiting");
      expect(last.progress).toEqual({ done: 0, total: 0 });
    }
    await last;
    const sums = await layout.checksums(Array.from({ length: 16 }, (_unused, index) => index));
    expect(new Set(sums).size).toBe(1);
  });

  test("a link never starts when the one before failed, and says why", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    await layout.fill(9);
    const bad = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [9],
      destinationBlocks: [1],
    });
    const next = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
      after: [bad],
    });
    const error = await refused("IN_USE", next);
    expect((error.cause as { code: string }).code).toBe("ERR_KVF_BLOCK_OUT_OF_RANGE");
    expect(await next.settled).toEqual({ settlement: "never-started", proof: "never-started" });
  });

  test("an invalid link is refused at once, whatever it waits for", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const first = transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    const second = transport.transfer({
      source,
      destination,
      sourceBlocks: [64],
      destinationBlocks: [0],
      after: [first],
    });
    await refused("BLOCK_OUT_OF_RANGE", second);
    await first;
  });

  test("a layout that went while a link waited is stale then", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const small = await transport.register(systemSpec("small", { ...LARGE, numBlocks: 1 }));
    const first = transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    const second = transport.transfer({
      source: small,
      destination,
      sourceBlocks: [0],
      destinationBlocks: [0],
      after: [first],
    });
    await small.unregister();
    await refused("STALE_HANDLE", second);
    await first;
  });
});

describe("signals and cancelling", () => {
  test("a signal that is aborted already rejects with its own reason and moves nothing", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    await layout.fill(1, { blocks: [0] });
    const reason = { mine: true };
    const transfer = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
      signal: AbortSignal.abort(reason),
    });
    expect(await transfer.catch((error: unknown) => error)).toBe(reason);
    expect(await transfer.settled).toEqual({ settlement: "never-started", proof: "never-started" });
    expect((await layout.read(1)).every((byte) => byte === 0)).toBe(true);
  });

  for (const how of ["signal", "cancel", "cancel without a reason"] as const)
    test(`a link that waits and is stopped by ${how} never starts`, async () => {
      await using transport = await openLocal();
      const { source, destination } = await largePair(transport);
      await destination.fill(0xff, { blocks: [0] });
      const controller = new AbortController();
      const reason = new Error("changed my mind");
      const first = transport.transfer({
        source,
        destination,
        sourceBlocks: ALL.slice(1),
        destinationBlocks: ALL.slice(1),
      });
      const second = transport.transfer({
        source,
        destination,
        sourceBlocks: [0],
        destinationBlocks: [0],
        after: [first],
        signal: controller.signal,
      });
      if (how === "signal") controller.abort(reason);
      else second.cancel(how === "cancel" ? reason : undefined);
      if (how === "cancel without a reason") await refused("CLOSED", second);
      else expect(await second.catch((error: unknown) => error)).toBe(reason);
      expect(await second.settled).toEqual({ settlement: "never-started", proof: "never-started" });
      await first;
      expect((await destination.read(0)).every((byte) => byte === 0xff)).toBe(true);
    });

  test("a running copy stops, its end is proven, and the blocks can be used again", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    await source.fill({ random: 1 });
    let stopped = 0;
    for (let count = 0; count < 20; count++) {
      const controller = new AbortController();
      const transfer = transport.transfer({
        source,
        destination,
        sourceBlocks: ALL,
        destinationBlocks: ALL,
        signal: controller.signal,
      });
      expect(transfer.state).toBe("running");
      controller.abort("enough");
      const end = await transfer.then(
        () => "done",
        (reason: unknown) => reason,
      );
      expect(["done", "enough"]).toContain(end as string);
      const settled = await transfer.settled;
      if (end === "enough") {
        stopped++;
        expect(["backend-ended", "never-started"]).toContain(settled.proof);
      }
    }
    expect(stopped).toBeGreaterThan(0);
    expect(destination.quarantinedBlocks()).toEqual([]);
    await transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    expect(await destination.checksums(ALL)).toEqual(await source.checksums(ALL));
  });

  pairTest("a push to a peer stops at a piece, and the blocks can be used again", async (open) => {
    await using pair = await open();
    const { a, b } = pair;
    const own = await a.register(systemSpec("own", LARGE));
    const other = await b.register(systemSpec("other", LARGE));
    await own.fill({ random: 1 });
    const peer = await pair.meet();
    const request = {
      source: own,
      destination: peer.layout("other"),
      sourceBlocks: ALL,
      destinationBlocks: ALL,
    };
    await a.transfer(request);
    await own.fill({ random: 2 });
    for (let count = 0; count < 10; count++) {
      const transfer = a.transfer(request);
      setTimeout(() => transfer.cancel(), count);
      await transfer.catch(() => undefined);
      const { settlement, proof } = await transfer.settled;
      expect(settlement === "done" ? proof : "stopped").toBe(settlement === "done" ? "completed" : "stopped");
    }
    await a.transfer(request);
    expect(await other.checksums(ALL)).toEqual(await own.checksums(ALL));
  });

  test("cancelling what has ended changes nothing", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    const transfer = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
    await transfer;
    transfer.cancel(new Error("late"));
    expect(transfer.state).toBe("done");
    expect((await transfer).bytes).toBe(512);
  });
});

describe("deadlines", () => {
  test("a link that waits past its deadline never starts", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    const { source, destination } = await largePair(transport);
    const first = transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    const endless = Array.from({ length: 200 }).reduce<typeof first>(
      (before) =>
        transport.transfer({
          source,
          destination,
          sourceBlocks: ALL,
          destinationBlocks: ALL,
          after: [before],
        }),
      first,
    );
    const late = transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
      after: [endless],
      deadlineMs: 20,
    });
    const error = await refused("TIMEOUT", late);
    expect(error.settlement).toBe("never-started");
    endless.cancel();
  });
});
