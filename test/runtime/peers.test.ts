// Peers that grow, go, come back and lie about nothing: over the real NIXL, between transports of this process.
import { ptr } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import { handleGeneration, type LayoutSpec, type PeerEvent, type Transport } from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import {
  freshWorker,
  nixlTest,
  openLocal,
  openPair,
  openRemote,
  SMALL,
  systemSpec,
  until,
} from "./helpers/transports.ts";

const IDS = [0, 1, 2, 3];

/** A small layout in memory of the caller, so many bytes behind its beginning. */
function smallIn(memory: Uint8Array<ArrayBuffer>, offset: number): LayoutSpec {
  return {
    name: "there",
    config: SMALL,
    arrangement: "fully-contiguous",
    memory: {
      kind: "external",
      storage: "system",
      regions: [{ address: Number(ptr(memory)) + offset, size: 2048 }],
    },
  };
}

async function moves(transport: Transport, source: unknown, destination: unknown): Promise<void> {
  await transport.transfer({
    source: source as never,
    destination: destination as never,
    sourceBlocks: IDS,
    destinationBlocks: IDS,
  });
}

describe("an update", () => {
  nixlTest(
    "makes layouts reachable that were registered after the first export, while traffic goes on",
    async () => {
      await using pair = await openPair();
      const { a, b } = pair;
      const large = { ...SMALL, numBlocks: 512, innerDim: 4096 };
      const here = await a.register(systemSpec("here", large));
      const first = await b.register(systemSpec("first", large));
      await here.fill({ random: 3 });
      const peer = await pair.meet();
      const handle = peer.layout("first").handle;
      const remote = peer.layout("first");
      const all = Uint32Array.from({ length: 512 }, (_unused, index) => index);
      const traffic = Array.from({ length: 4 }, () =>
        a.transfer({ source: here, destination: remote, sourceBlocks: all, destinationBlocks: all }),
      );
      const added = await Promise.all(["second", "third"].map((name) => b.register(systemSpec(name, large))));
      await peer.update(await b.exportMetadata());
      await Promise.all(traffic);
      expect(await first.checksums([0, 511])).toEqual(await here.checksums([0, 511]));
      expect(peer.layouts.map((layout) => layout.name)).toEqual(["first", "second", "third"]);
      expect(peer.layout("first")).toBe(remote);
      expect(peer.layout("first").handle).toBe(handle);
      for (const layout of added) {
        await a.transfer({
          source: here,
          destination: peer.layout(layout.name),
          sourceBlocks: [7],
          destinationBlocks: [9],
        });
        expect(await layout.checksums([9])).toEqual(await here.checksums([7]));
      }
    },
  );

  nixlTest("finds memory that was registered anew under another layout, again and again", async () => {
    await using pair = await openPair();
    const { a, b } = pair;
    const here = await a.register(systemSpec("here"));
    const memory = new Uint8Array(new ArrayBuffer(8192));
    let there = await b.register(smallIn(memory, 0));
    const peer = await pair.meet();
    for (let round = 0; round < 12; round++) {
      const old = peer.layout("there");
      // Who imported it may still write there until it is told.
      const leaving = there.unregister({ wait: true });
      // Sometimes the same place, sometimes one that overlaps where it was.
      there = await b.register(smallIn(memory, (round % 3) * 1024));
      await peer.update(await b.exportMetadata());
      await leaving;
      await here.fill({ random: round });
      await moves(a, here, peer.layout("there"));
      expect(await there.checksums(IDS)).toEqual(await here.checksums(IDS));
      await refused(
        "STALE_HANDLE",
        a.transfer({ source: here, destination: old, sourceBlocks: [0], destinationBlocks: [0] }),
      );
    }
  });

  nixlTest("loses nothing that is said to the peer while NIXL is given its memory anew", async () => {
    await using pair = await openPair();
    const { a, b } = pair;
    const memory = new Uint8Array(new ArrayBuffer(8192));
    let there = await b.register(smallIn(memory, 0));
    const peer = await pair.meet();
    const heard: number[] = [];
    const reading = (async () => {
      for await (const { payload } of b.notifications())
        heard.push(Number(new TextDecoder().decode(payload)));
    })();
    let said = 0;
    let over = false;
    const talking = (async () => {
      while (!over) {
        await a.notify(peer, String(said++));
        await Bun.sleep(0);
      }
    })();
    for (let round = 1; round <= 12; round++) {
      const leaving = there.unregister({ wait: true });
      there = await b.register(smallIn(memory, (round % 3) * 1024));
      await peer.update(await b.exportMetadata());
      await leaving;
    }
    over = true;
    await talking;
    expect(said).toBeGreaterThan(12);
    await until("all of it is heard", () => heard.length >= said);
    // What was on its way for very long may be overtaken: NIXL has another way to the peer afterwards.
    expect(heard.toSorted((left, right) => left - right)).toEqual(
      Array.from({ length: said }, (_unused, index) => index),
    );
    await Promise.all([a.close(), b.close()]);
    await reading;
  });

  nixlTest(
    "with an older or the same package, of another worker or incarnation, is refused and changes nothing",
    async () => {
      await using pair = await openPair();
      const { a, b } = pair;
      await b.register(systemSpec("there"));
      const old = await b.exportMetadata();
      const peer = await pair.meet();
      const before = a.registry;
      await refused("METADATA_EXPIRED", peer.update(old));
      await using other = await openRemote();
      await refused("DUPLICATE_WORKER", peer.update(await other.exportMetadata()));
      await using again = await openRemote({ workerId: b.workerId });
      await refused("DUPLICATE_WORKER", peer.update(await again.exportMetadata()));
      expect(a.registry).toBe(before);
    },
  );

  nixlTest("of layouts in one memory, nested and overlapping, reaches every block of each", async () => {
    await using pair = await openPair();
    const { a, b } = pair;
    const memory = new Uint8Array(new ArrayBuffer(65_536));
    const spec = (name: string, first: number, numBlocks: number): LayoutSpec => ({
      name,
      config: { ...SMALL, numBlocks },
      arrangement: "fully-contiguous",
      memory: {
        kind: "external",
        storage: "system",
        regions: [{ address: Number(ptr(memory)) + first * 512, size: numBlocks * 512 }],
      },
    });
    const whole = await b.register(spec("whole", 0, 128));
    const peer = await pair.meet();
    const here = await a.register(systemSpec("here", { ...SMALL, numBlocks: 128 }));
    await here.fill({ random: 12 });
    for (const [name, first, blocks] of [
      ["inner", 16, 8],
      ["second", 60, 30],
      ["tail", 120, 8],
      ["twin", 0, 128],
    ] as const)
      await b.register(spec(name, first, blocks));
    await refused("INVALID_CONFIG", b.register(spec("around", 0, 128.5)));
    await peer.update(await b.exportMetadata());
    for (const layout of peer.layouts) {
      const blocks = layout.components["kv"]?.config.numBlocks ?? 0;
      for (let block = 0; block < blocks; block += 5)
        await a.transfer({
          source: here,
          destination: layout,
          sourceBlocks: [block],
          destinationBlocks: [block],
        });
      const ids = Array.from({ length: Math.ceil(blocks / 5) }, (_unused, index) => index * 5);
      expect(await b.localLayouts.find((own) => own.name === layout.name)?.checksums(ids)).toEqual(
        await here.checksums(ids),
      );
    }
    // The inner ones share a registration: unregistering any of them leaves it to the others.
    const leaving = b.localLayouts.slice(0, -1).map((layout) => layout.unregister({ wait: true }));
    await peer.update(await b.exportMetadata());
    await Promise.all(leaving);
    await a.transfer({
      source: here,
      destination: peer.layout("twin"),
      sourceBlocks: [1],
      destinationBlocks: [127],
    });
    expect(memory.subarray(127 * 512, 128 * 512).toHex()).toBe((await here.read(1)).toHex());
    await refused("STALE_HANDLE", whole.read(0));
  });

  nixlTest("a layout around one that is registered already is refused with what to do", async () => {
    await using a = await openRemote();
    const memory = new Uint8Array(new ArrayBuffer(8192));
    const address = Number(ptr(memory));
    const spec = (size: number): LayoutSpec => ({
      config: { ...SMALL, numBlocks: size / 512 },
      arrangement: "fully-contiguous",
      memory: { kind: "external", storage: "system", regions: [{ address, size }] },
    });
    const inner = await a.register(spec(2048));
    const error = await refused("INVALID_CONFIG", a.register(spec(8192)));
    expect(error.remedy).toContain("larger region first");
    await inner.unregister();
    const outer = await a.register(spec(8192));
    await a.register(spec(2048));
    expect(outer.record.layoutId).toBe(1);
  });
});

describe("an import of a package whose layout was given back meanwhile", () => {
  nixlTest(
    "is told so before the first byte: nothing is written to memory that its owner has again",
    async () => {
      await using pair = await openPair();
      const { a, b } = pair;
      const memory = new Uint8Array(new ArrayBuffer(2048));
      const there = await b.register(smallIn(memory, 0));
      await b.register(systemSpec("stays"));
      const early = await b.exportMetadata();
      // Nobody is known who could touch it: the memory is the caller's again.
      await there.unregister();
      memory.fill(0xa5);
      const here = await a.register(systemSpec("here"));
      await here.fill({ random: 5 });
      const peer = await a.importMetadata(early);
      await refused(
        "STALE_HANDLE",
        a.transfer({
          source: here,
          destination: peer.layout("there"),
          sourceBlocks: IDS,
          destinationBlocks: IDS,
        }),
      );
      await moves(a, here, peer.layout("stays"));
      expect(memory.every((byte) => byte === 0xa5)).toBe(true);
      expect(peer.layouts.map(({ name }) => name)).toEqual(["stays"]);
    },
  );
});

describe("a peer that is forgotten", () => {
  nixlTest("leaves stale layouts, refuses messages, tells `lost`, and can be imported again", async () => {
    await using pair = await openPair();
    const { a, b } = pair;
    const here = await a.register(systemSpec("here"));
    await b.register(systemSpec("there"));
    const events: PeerEvent["change"][] = [];
    a.on("peer", ({ change }) => events.push(change));
    const peer = await pair.meet();
    const layout = peer.layout("there");
    await moves(a, here, layout);
    await peer.forget();
    await peer.forget();
    expect(await peer.lost).toEqual({ reason: "forgotten" });
    expect(a.peer(b.workerId)).toBeUndefined();
    expect(a.remoteLayouts).toEqual([]);
    await refused(
      "STALE_HANDLE",
      a.transfer({ source: here, destination: layout, sourceBlocks: [0], destinationBlocks: [0] }),
    );
    await refused("STALE_HANDLE", () => a.layout(layout.handle));
    await refused("PEER_LOST", a.notify(peer, "x"));
    await refused("PEER_LOST", () => a.expect({ layout: here, blocks: [0], from: peer, tag: "x" }));
    const again = await pair.meet();
    expect(again).not.toBe(peer);
    await moves(a, here, again.layout("there"));
    await refused("PEER_LOST", a.notify(peer, "x"));
    expect(events).toEqual(["imported", "forgotten", "imported"]);
  });

  nixlTest("does not disturb transfers with another one", async () => {
    await using pair = await openPair();
    await using other = await openRemote();
    const { a } = pair;
    const large = { ...SMALL, numBlocks: 256, innerDim: 4096 };
    const here = await a.register(systemSpec("here", large));
    await pair.b.register(systemSpec("there"));
    const target = await other.register(systemSpec("target", large));
    await here.fill({ random: 3 });
    const peer = await pair.meet();
    const second = await a.importMetadata(await other.exportMetadata());
    const ids = Uint32Array.from({ length: 256 }, (_unused, index) => index);
    const request = {
      source: here,
      destination: second.layout("target"),
      sourceBlocks: ids,
      destinationBlocks: ids,
    };
    const running = [a.transfer(request), a.transfer(request)];
    await peer.forget();
    await Promise.all(running);
    expect(await target.checksums([0, 255])).toEqual(await here.checksums([0, 255]));
  });
});

describe("a peer that comes back", () => {
  nixlTest(
    "under a higher incarnation replaces the old one; old handles are stale; prepared transfers rebuild",
    async () => {
      await using a = await openRemote();
      const workerId = freshWorker();
      const here = await a.register(systemSpec("here"));
      await here.fill({ random: 9 });
      const old = await openRemote({ workerId });
      await old.register(systemSpec("other"));
      await old.register(systemSpec("pool"));
      const before = await a.importMetadata(await old.exportMetadata());
      const prepared = a.prepare({ source: here, destination: before.layout("pool") });
      await prepared.run(IDS, IDS);
      const layout = before.layout("pool");

      const young = await openRemote({ workerId });
      // Another id, another arrangement, the same name.
      const pool = await young.register({
        ...systemSpec("pool"),
        arrangement: "layer-separate/block-first",
      } as LayoutSpec);
      const after = await a.importMetadata(await young.exportMetadata());
      expect(after.generation).toBeGreaterThan(before.generation);
      expect(handleGeneration(after.layout("pool").handle)).toBeGreaterThan(handleGeneration(layout.handle));
      expect((await before.lost).reason).toContain("incarnation");
      expect(a.peers).toEqual([after]);
      await refused(
        "STALE_HANDLE",
        a.transfer({ source: here, destination: layout, sourceBlocks: [0], destinationBlocks: [0] }),
      );
      await prepared.run(IDS, IDS);
      expect(await pool.checksums(IDS)).toEqual(await here.checksums(IDS));
      // What the old incarnation exported is a thing of the past.
      await refused("METADATA_EXPIRED", a.importMetadata(await old.exportMetadata()));
      await old.close();
      await young.close();
    },
  );

  nixlTest("without a layout of that name, a prepared transfer is refused as stale", async () => {
    await using a = await openRemote();
    const workerId = freshWorker();
    const here = await a.register(systemSpec("here"));
    await using old = await openRemote({ workerId });
    await old.register(systemSpec("pool"));
    const peer = await a.importMetadata(await old.exportMetadata());
    const prepared = a.prepare({ source: here, destination: peer.layout("pool") });
    await using young = await openRemote({ workerId });
    await young.register(systemSpec("pond"));
    await a.importMetadata(await young.exportMetadata());
    await refused("STALE_HANDLE", prepared.run([0], [0]));
  });
});

test("peers without NIXL can be imported, listed and forgotten", async () => {
  await using a = await openLocal();
  await using b = await openLocal();
  await b.register(systemSpec("there"));
  const peer = await a.importMetadata(await b.exportMetadata());
  expect(a.peer(b.workerId)).toBe(peer);
  expect(a.peer(Number(b.workerId))).toBe(peer);
  expect(a.peer(0.5)).toBeUndefined();
  expect(peer.layout("there").peer).toBe(peer);
  await refused("UNKNOWN_HANDLE", () => peer.layout("nowhere"));
  await b.register(systemSpec("more"));
  await peer.update(await b.exportMetadata());
  expect(peer.layouts).toHaveLength(2);
  await peer.forget();
  expect(a.peers).toEqual([]);
});
