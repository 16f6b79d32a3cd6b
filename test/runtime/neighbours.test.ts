// Two processes of one host that map each other's memory, without NIXL: bytes, messages, order, and how memory is given
// back when a layout, a neighbour or a process goes.
import { describe, expect, test } from "bun:test";
import { Transport, type LayoutConfig, type LayoutSpec, type Peer } from "../../index.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { KVF_MEMORY_SHARED } from "../../lib/native/symbols.ts";
import type { Distances } from "./helpers/neighbour-calls.ts";
import { listedMappings, NeighbourProcess, openDescriptors } from "./helpers/neighbour-process.ts";
import { refused } from "./helpers/refusal.ts";
import {
  freshWorker,
  nixlTest,
  openNeighbours,
  openPair,
  SMALL,
  systemSpec,
  until,
} from "./helpers/transports.ts";

const LARGE: LayoutConfig = { numBlocks: 32, numLayers: 4, outerDim: 2, pageSize: 64, innerDim: 1024 };
const IDS = Array.from({ length: 32 }, (_unused, index) => index);
const MILLIS = 60_000;

function openNear(options: object = {}): Promise<Transport> {
  return Transport.open({ workerId: freshWorker(), nixl: false, cuda: false, ...options });
}

/** A neighbour with layouts of these specs, and what it exports. */
async function exporter(
  ...specs: readonly LayoutSpec[]
): Promise<{ far: NeighbourProcess; bytes: Uint8Array }> {
  const far = new NeighbourProcess();
  await far.call({ do: "open", options: {} });
  await far.call({ do: "register", specs });
  return { far, bytes: await far.call<Uint8Array>({ do: "export" }) };
}

function inodesOf(pid: number | "self"): Set<string> {
  return new Set(listedMappings(pid).map(({ inode }) => inode));
}

describe("between two processes", () => {
  test(
    "bytes go both ways as the definition says, and messages come after them",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own", LARGE));
      const { far, bytes } = await exporter(
        { ...systemSpec("pool", LARGE), arrangement: "layer-separate/block-second" } as LayoutSpec,
        systemSpec("small"),
      );
      await using _far = far;
      const peer = await here.importMetadata(bytes);
      expect(peer.layouts.map(({ distance }) => distance)).toEqual(["neighbour", "neighbour"]);
      const pool = peer.layout("pool");
      const request = {
        source: own,
        destination: pool,
        sourceBlocks: IDS,
        destinationBlocks: IDS.toReversed(),
      };
      expect(here.explain(request).route).toBe("system -> system (neighbour)");
      await own.fill({ random: 3 });
      const arrived = far.call<{ from: string; text: string }>({ do: "next" });
      const result = await here.transfer({ ...request, notify: "pushed" });
      expect(result).toMatchObject({ settlement: "done", bytes: 32 * 4 * 2 * 64 * 1024 * 2 });
      expect(await arrived).toEqual({ from: here.agentName, text: "pushed" });
      const sums = await own.checksums(IDS);
      expect(await far.call<string[]>({ do: "sums", layout: "pool", blocks: IDS.toReversed() })).toEqual(
        sums,
      );

      await far.call({ do: "fill", layout: "pool", seed: 8 });
      await here.transfer({ source: pool, destination: own, sourceBlocks: IDS, destinationBlocks: IDS });
      expect(await own.checksums(IDS)).toEqual(
        await far.call<string[]>({ do: "sums", layout: "pool", blocks: IDS }),
      );
    },
    MILLIS,
  );

  test(
    "what is exported to others, or not at all, is not handed out",
    async () => {
      await using here = await openNear();
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("given"), systemSpec("kept")] });
      const peer = await here.importMetadata(
        await far.call<Uint8Array>({ do: "export", layouts: ["given"] }),
      );
      expect(peer.layouts.map(({ name, distance }) => [name, distance])).toEqual([["given", "neighbour"]]);
      const mapped = inodesOf("self");
      const theirs = inodesOf(far.pid);
      expect([...mapped].filter((inode) => theirs.has(inode))).toHaveLength(1);
    },
    MILLIS,
  );

  test(
    "a layout for reading is mapped for reading only, and refused as a destination",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own"));
      const { far, bytes } = await exporter(systemSpec("shown", SMALL, { access: "read" }));
      await using _far = far;
      await far.call({ do: "fill", layout: "shown", seed: 2 });
      const peer = await here.importMetadata(bytes);
      const shown = peer.layout("shown");
      expect(shown.distance).toBe("neighbour");
      const rights = listedMappings("self")
        .filter(({ inode }) => inodesOf(far.pid).has(inode))
        .map((mapping) => mapping.rights);
      expect(rights).toEqual(["r--s"]);
      await here.transfer({
        source: shown,
        destination: own,
        sourceBlocks: [0, 1],
        destinationBlocks: [2, 3],
      });
      expect(await own.checksums([2, 3])).toEqual(
        await far.call<string[]>({ do: "sums", layout: "shown", blocks: [0, 1] }),
      );
      await refused(
        "ACCESS",
        here.transfer({ source: own, destination: shown, sourceBlocks: [0], destinationBlocks: [0] }),
      );
    },
    MILLIS,
  );

  test(
    "bundles whose components share memory, and files of the caller, are reached in every component",
    async () => {
      await using pair = await openNeighbours();
      const { a, b } = pair;
      const [address = 0, mapped = 0, file = -1] = shareableFile(1 << 20);
      const spec = (
        memory: LayoutSpec extends infer S ? Extract<S, { memory: unknown }>["memory"] : never,
      ): LayoutSpec => ({
        name: "bundle",
        components: {
          kv: { config: SMALL, memory },
          scales: {
            config: { ...SMALL, dtypeWidthBytes: 1 },
            memory: { kind: "shared", with: "kv", offset: 4096 },
          },
        },
      });
      const size = 4096 + 4 * 512;
      const theirs = await b.register(
        spec({ kind: "external-fd", regions: [{ fd: file, offset: 8192, size }] }),
      );
      openLibrary().kvf_memory_unmap(address, mapped, new Float64Array([file]), 1);
      const own = await a.register(spec({ kind: "system" }));
      const peer = await pair.meet();
      const remote = peer.layout("bundle");
      expect(remote.distance).toBe("neighbour");
      for (const name of ["kv", "scales"]) await own.components[name]?.fill({ random: 5 });
      await a.transfer({
        source: own,
        destination: remote,
        sourceBlocks: [0, 1, 2, 3],
        destinationBlocks: [3, 2, 1, 0],
      });
      for (const name of ["kv", "scales"])
        expect(await theirs.components[name]?.checksums([3, 2, 1, 0])).toEqual(
          await own.components[name]?.checksums([0, 1, 2, 3]),
        );
      await theirs.unregister();
      expect(() => peer.layout("bundle")).toThrow();
    },
    MILLIS,
  );

  test("memory that a caller owns is not handed over, and explain says so", async () => {
    await using pair = await openNeighbours();
    const { a, b } = pair;
    const own = await a.register(systemSpec("own"));
    const heap = new Uint8Array(new ArrayBuffer(4096));
    const { ptr } = await import("bun:ffi");
    await b.register({
      name: "heap",
      config: SMALL,
      memory: { kind: "external", storage: "system", regions: [{ address: Number(ptr(heap)), size: 4096 }] },
    });
    const peer = await pair.meet();
    expect(peer.layout("heap").distance).toBe("remote");
    const error = await refused(
      "NO_NIXL",
      a.transfer({
        source: own,
        destination: peer.layout("heap"),
        sourceBlocks: [0],
        destinationBlocks: [0],
      }),
    );
    expect(error.message).toContain("does not own this memory");
    expect(heap.every((byte) => byte === 0)).toBe(true);
  });

  nixlTest("where NIXL is the way, explain says why mapping was passed over", async () => {
    await using a = await Transport.open({ workerId: freshWorker(), nixl: {}, cuda: false });
    await using b = await Transport.open({
      workerId: freshWorker(),
      nixl: {},
      cuda: false,
      neighbours: false,
    });
    const own = await a.register(systemSpec("own"));
    await b.register(systemSpec("other"));
    const peer = await a.importMetadata(await b.exportMetadata());
    const { passedOver } = a.explain({
      source: own,
      destination: peer.layout("other"),
      sourceBlocks: [0],
      destinationBlocks: [0],
    });
    expect(passedOver).toContainEqual({
      route: "neighbour",
      reason: "The peer shares its memory with no process of its host.",
    });
  });

  nixlTest("with NIXL on both sides as well, the nearer way is taken, and bytes are right", async () => {
    await using pair = await openPair({ neighbours: true });
    const { a, b } = pair;
    const own = await a.register(systemSpec("own"));
    const other = await b.register(systemSpec("other"));
    await own.fill({ random: 6 });
    const peer = await pair.meet();
    expect(peer.layout("other").distance).toBe("neighbour");
    await a.transfer({
      source: own,
      destination: peer.layout("other"),
      sourceBlocks: [0, 1],
      destinationBlocks: [2, 3],
      notify: "x",
    });
    const next = await b.notifications({ signal: AbortSignal.timeout(10_000) }).next();
    expect(new TextDecoder().decode(next.value?.payload)).toBe("x");
    expect(await other.checksums([2, 3])).toEqual(await own.checksums([0, 1]));
  });

  test("with neighbours: false on either side nothing is mapped, and explain says why", async () => {
    for (const side of ["importer", "exporter"] as const) {
      await using a = await openNear({ neighbours: side !== "importer" });
      await using b = await openNear({ neighbours: side !== "exporter" });
      const own = await a.register(systemSpec("own"));
      await b.register(systemSpec("other"));
      const peer = await a.importMetadata(await b.exportMetadata());
      expect(peer.layout("other").distance).toBe("remote");
      const error = await refused(
        "NO_NIXL",
        a.transfer({
          source: own,
          destination: peer.layout("other"),
          sourceBlocks: [0],
          destinationBlocks: [0],
        }),
      );
      expect(error.message).toMatch(/neighbours: false|shares its memory with no process/);
    }
  });
});

describe("messages", () => {
  test(
    "that nobody reads hold up their sender, not memory, and come in order when somebody reads",
    async () => {
      await using pair = await openNeighbours();
      const { a, b } = pair;
      const { b: there } = await pair.meetBoth();
      const payload = new Uint8Array(256 * 1024);
      let sent = 0;
      const count = 120;
      const sending = (async () => {
        for (let index = 0; index < count; index++) {
          payload[0] = index;
          await a.notify(there, payload);
          sent++;
        }
      })();
      await Bun.sleep(300);
      // 16 MiB are queued, then a window is under way.
      expect(sent).toBeLessThan(80);
      const order: number[] = [];
      for await (const message of b.notifications({ signal: AbortSignal.timeout(20_000) })) {
        expect(message.payload.byteLength).toBe(payload.byteLength);
        order.push(message.payload[0] ?? -1);
        if (order.length === count) break;
      }
      await sending;
      expect(order).toEqual(Array.from({ length: count }, (_unused, index) => index));
    },
    MILLIS,
  );

  test("of many megabytes arrive whole, longer ones are refused", async () => {
    await using pair = await openNeighbours();
    const { a, b } = pair;
    const { b: there } = await pair.meetBoth();
    const payload = new Uint8Array(5_000_011).map((_byte, index) => (index * 31) & 255);
    await a.notify(there, payload);
    for await (const message of b.notifications({ signal: AbortSignal.timeout(20_000) })) {
      expect(Buffer.compare(message.payload, payload)).toBe(0);
      break;
    }
    await refused("INVALID_CONFIG", a.notify(there, new Uint8Array(2 ** 24)));
  });
});

describe("leaving", () => {
  test(
    "unregister waits until a neighbour unmapped, and its handle is stale there",
    async () => {
      await using here = await openNear();
      const pool = await here.register(systemSpec("pool", LARGE));
      await here.register(systemSpec("other"));
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("own", LARGE)] });
      expect(await far.call<Distances>({ do: "import", bytes: await here.exportMetadata() })).toEqual({
        pool: "neighbour",
        other: "neighbour",
      });
      // Of the two that it was given the larger one is the pool.
      const pool32 = listedMappings("self").find(
        ({ inode: each, bytes }) => bytes > 2 ** 20 && inodesOf(far.pid).has(each),
      );
      const inode = pool32?.inode;
      expect(inode).toBeDefined();
      await far.call({ do: "storm", move: { own: "own", peers: "pool", direction: "push", ids: IDS } });
      await pool.unregister();
      expect(inodesOf("self").has(inode ?? "")).toBe(false);
      // Of what it was given only the other layout is left.
      expect([...inodesOf(far.pid)].filter((each) => inodesOf("self").has(each))).toHaveLength(1);
      await expect(
        far.call({ do: "transfer", move: { own: "own", peers: "pool", direction: "push", ids: [0] } }),
      ).rejects.toThrow("exported no layout");
    },
    MILLIS,
  );

  test(
    "a frozen neighbour keeps the memory allocated; it is freed when the neighbour thaws or is gone",
    async () => {
      await using here = await openNear();
      const first = await here.register(systemSpec("first", LARGE));
      const second = await here.register(systemSpec("second", LARGE));
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "import", bytes: await here.exportMetadata() });
      await first.fill(9);
      far.signal("SIGSTOP");
      const others = inodesOf("self").size - 2;
      const error = await refused("IN_USE", first.unregister());
      expect(error.details["processes"]).toEqual([far.pid]);
      // Refused: the layout is as it was.
      expect((await first.read(0))[0]).toBe(9);
      const waiting = first.unregister({ wait: true });
      expect(await Promise.race([waiting, Bun.sleep(200).then(() => "waits")])).toBe("waits");
      expect(inodesOf("self").size).toBe(others + 2);
      far.signal("SIGCONT");
      await waiting;
      expect(inodesOf("self").size).toBe(others + 1);
      far.signal("SIGSTOP");
      const last = second.unregister({ wait: true });
      far.signal("SIGKILL");
      await last;
      expect(inodesOf("self").size).toBe(others);
    },
    MILLIS,
  );

  test(
    "close is bounded with a frozen neighbour, and says what it had to leave",
    async () => {
      const here = await openNear();
      await here.register(systemSpec("pool", LARGE));
      await here.register(systemSpec("unseen"));
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({
        do: "import",
        bytes: await here.exportMetadata({ layouts: [here.localLayouts[0] as never] }),
      });
      far.signal("SIGSTOP");
      const report = await here.close();
      far.signal("SIGCONT");
      expect(report).toEqual({ layouts: ["pool"], stuck: 0, inDoubt: 0 });
    },
    MILLIS,
  );

  test(
    "a neighbour that is killed in mid-transfer is lost, and its memory is unmapped here",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own", LARGE));
      const before = { mappings: listedMappings("self").length, descriptors: openDescriptors("self") };
      const { far, bytes } = await exporter(systemSpec("pool", LARGE));
      await using _far = far;
      const peer = await here.importMetadata(bytes);
      const pool = peer.layout("pool");
      const request = { source: own, destination: pool, sourceBlocks: IDS, destinationBlocks: IDS };
      await here.transfer(request);
      const running = [0, 1, 2, 3].map(() => here.transfer(request));
      await far.kill();
      const { reason } = await peer.lost;
      expect(reason).toMatch(/gone|closed/);
      for (const transfer of running) {
        await transfer.catch(() => undefined);
        // On a busy machine some may still wait for a thread when the other is found to be gone.
        expect(["completed", "backend-ended", "never-started"]).toContain((await transfer.settled).proof);
      }
      await until("the mapping is gone", () => listedMappings("self").length === before.mappings);
      await refused("STALE_HANDLE", here.transfer(request));
      await refused("PEER_LOST", here.notify(peer, "anybody?"));
      expect(own.quarantinedBlocks()).toEqual([]);
      await until("descriptors are closed", () => openDescriptors("self") <= before.descriptors + 3);
    },
    MILLIS,
  );

  test(
    "an importer that is killed gives everything back",
    async () => {
      const before = listedMappings("self");
      await using here = await openNear();
      const pool = await here.register(systemSpec("pool", LARGE));
      const far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("own", LARGE)] });
      await far.call({ do: "import", bytes: await here.exportMetadata() });
      await far.call({ do: "storm", move: { own: "own", peers: "pool", direction: "push", ids: IDS } });
      await far.kill();
      await pool.unregister({ wait: true });
      expect(listedMappings("self")).toEqual(before);
    },
    MILLIS,
  );

  test(
    "a push that is expected and never comes is proven over when its sender's process is gone",
    async () => {
      await using here = await openNear();
      const target = await here.register(systemSpec("target"));
      const far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("own")] });
      await far.call({ do: "import", bytes: await here.exportMetadata() });
      const from = await here.importMetadata(await far.call<Uint8Array>({ do: "export" }));
      const arrival = here.expect({ layout: target, blocks: [1, 2], from, tag: "never", deadlineMs: 50 });
      await refused("TIMEOUT", arrival);
      expect(target.quarantinedBlocks().map(({ block }) => block)).toEqual([1, 2]);
      await far.kill();
      expect(await arrival.settled).toEqual({ settlement: "in-doubt", proof: "peer-gone" });
      expect(target.quarantinedBlocks()).toEqual([]);
    },
    MILLIS,
  );

  test(
    "a neighbour that came back is a new generation: old handles are stale, prepared transfers go on",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own"));
      const first = await exporter(systemSpec("pool"));
      const peer = await here.importMetadata(first.bytes);
      const old = peer.layout("pool").handle;
      const prepared = here.prepare({ source: own, destination: peer.layout("pool") });
      await prepared.run([0], [0]);
      await first.far.kill();
      const again = await exporter(systemSpec("pool"));
      await using _far = again.far;
      const back = await here.importMetadata(again.bytes);
      expect(back.generation).toBeGreaterThan(peer.generation);
      await refused(
        "STALE_HANDLE",
        here.transfer({ source: own, destination: old, sourceBlocks: [0], destinationBlocks: [0] }),
      );
      await own.fill({ random: 77 });
      await prepared.run([1], [2]);
      expect(await again.far.call<string[]>({ do: "sums", layout: "pool", blocks: [2] })).toEqual(
        await own.checksums([1]),
      );
    },
    MILLIS,
  );

  test("forgetting unmaps at once, an update maps what is new and lets go of what is not there any more", async () => {
    const before = listedMappings("self").length;
    await using pair = await openNeighbours();
    const { a, b } = pair;
    const first = await b.register(systemSpec("first"));
    const peer: Peer = await pair.meet();
    const own = await a.register(systemSpec("own"));
    const second = await b.register(systemSpec("second"));
    await second.fill({ random: 1 });
    await peer.update(await b.exportMetadata({ layouts: [second] }));
    expect(peer.layouts.map(({ name, distance }) => [name, distance])).toEqual([["second", "neighbour"]]);
    // `first` is held by nobody any more, once that was said: without `wait` it is refused after a second.
    await first.unregister({ wait: true });
    await a.transfer({
      source: peer.layout("second"),
      destination: own,
      sourceBlocks: [1],
      destinationBlocks: [0],
    });
    expect(await own.checksums([0])).toEqual(await second.checksums([1]));
    // Its own two and one mapping of the other's.
    expect(listedMappings("self")).toHaveLength(before + 3);
    await peer.forget();
    expect(listedMappings("self")).toHaveLength(before + 2);
    await second.unregister({ wait: true });
  });
});

/** Address, bytes and descriptor of a file in memory. */
function shareableFile(bytes: number): number[] {
  const out = new Float64Array(new ArrayBuffer(32));
  if (openLibrary().kvf_memory_map(bytes, KVF_MEMORY_SHARED, 0, out) !== 0) throw new Error("no memory");
  return [...out];
}
