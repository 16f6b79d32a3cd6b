// Messages between neighbours by rings in shared memory: after the data, in order, whatever does not fit, and nothing of
// them left once a neighbour is gone; a neighbour that writes nonsense into them loses the connection and nothing else.
import { describe, expect, test } from "bun:test";
import { toArrayBuffer } from "bun:ffi";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { Transport, type LayoutConfig, type RemoteLayout } from "../../index.ts";
import { decodePackage } from "../../lib/wire/index.ts";
import { freshNonce, NEIGHBOUR_VERSION } from "../../lib/runtime/neighbour-words.ts";
import { forged, hostAt, Impostor } from "./helpers/impostor.ts";
import { NeighbourProcess, openDescriptors } from "./helpers/neighbour-process.ts";
import { freshWorker, openNeighbours, systemSpec, until } from "./helpers/transports.ts";

const BLOCKS: LayoutConfig = { numBlocks: 32, numLayers: 4, outerDim: 2, pageSize: 16, innerDim: 512 };
const MILLIS = 60_000;
/** Bytes of records that a ring holds. */
const RING = 262_144;
/** Where the records begin. */
const FIRST = 4_096;

function openNear(): Promise<Transport> {
  return Transport.open({ workerId: freshWorker(), nixl: false, cuda: false });
}

/** A ring that a process has mapped. */
interface MappedRing {
  readonly start: number;
  readonly inode: string;
}

function ringsOf(pid: number | "self"): MappedRing[] {
  return readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .filter((line) => line.includes("/memfd:kvf-ring"))
    .map((line) => {
      const [range = "", , , , inode = ""] = line.split(/\s+/);
      return { start: Number.parseInt(range, 16), inode };
    });
}

/** A process and this one that have imported each other. */
async function meet(here: Transport, far: NeighbourProcess) {
  await far.call({ do: "open", options: {} });
  await far.call({ do: "register", specs: [systemSpec("pool", BLOCKS)] });
  const peer = await here.importMetadata(await far.call<Uint8Array>({ do: "export" }));
  await far.call({ do: "import", bytes: await here.exportMetadata() });
  return peer;
}

/** Message k of a sequence: a length and bytes that follow from k; some are longer than a ring. */
function message(k: number): Uint8Array<ArrayBuffer> {
  const mixed = Math.imul(k, 2654435761) >>> 8;
  const length = k % 40 === 7 ? 3 * RING + (mixed % 1000) : k % 9 === 2 ? mixed % 30_000 : mixed % 60;
  const bytes = new Uint8Array(4 + length).fill(k * 7 + 1);
  new DataView(bytes.buffer).setUint32(0, k, true);
  return bytes;
}

describe("between two processes", () => {
  test(
    "a frozen neighbour's ring fills up; all comes in order once it thaws, also what is longer than the ring",
    async () => {
      await using here = await openNear();
      await using far = new NeighbourProcess();
      const peer = await meet(here, far);
      const count = 300;
      far.signal("SIGSTOP");
      let sent = 0;
      const sending = (async () => {
        for (let k = 0; k < count; k++) {
          await here.notify(peer, message(k));
          sent = k + 1;
        }
      })();
      await until("a window is under way", () => sent > 20);
      await Bun.sleep(20);
      expect(sent).toBeLessThan(count);
      far.signal("SIGCONT");
      const heard = far.call<{ length: number; digest: string }[]>({ do: "hear", count });
      await sending;
      expect(await heard).toEqual(
        Array.from({ length: count }, (_unused, k) => {
          const bytes = message(k);
          return { length: bytes.byteLength, digest: Bun.hash(bytes).toString() };
        }),
      );
    },
    MILLIS,
  );

  test(
    "messages of a transfer and of each of its layers come when the bytes are there",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own", BLOCKS));
      await using far = new NeighbourProcess();
      const pool = (await meet(here, far)).layout("pool");
      for (let round = 0; round < 4; round++) {
        const blocks = Array.from({ length: 32 }, (_unused, block) => block);
        for (const block of blocks) await own.fill(1 + round * 32 + block, { blocks: [block] });
        // Each message says where it finds which byte.
        const looked = far.call<number>({ do: "look", layout: "pool", count: 32 * 5 });
        for (const block of blocks)
          await here.transfer({
            source: own,
            destination: pool,
            sourceBlocks: [block],
            destinationBlocks: [block],
            layerwise: { every: 1, notify: (layer) => `${block} ${layer} ${1 + round * 32 + block}` },
            notify: `${block} 3 ${1 + round * 32 + block}`,
          });
        expect(await looked).toBe(32 * 5);
      }
    },
    MILLIS,
  );

  test(
    "rings are mapped while both are there, without a descriptor, and gone after each way of leaving",
    async () => {
      await using here = await openNear();
      // The first of them warms up: the rendezvous, and what the engine opens once.
      let idle = Infinity;
      for (const way of ["kill", "forget", "close", "kill"] as const) {
        await using far = new NeighbourProcess();
        const peer = await meet(here, far);
        // Two connections, for either process imported the other one.
        await until("rings are mapped", () => ringsOf("self").length === 4 && ringsOf(far.pid).length === 4);
        expect(ringsOf("self").map(inodeOf).toSorted()).toEqual(ringsOf(far.pid).map(inodeOf).toSorted());
        await until("their files are closed", () => openRings("self") + openRings(far.pid) === 0);
        if (way === "forget") {
          await peer.forget();
          await far.call({ do: "forget" });
          await until("rings are unmapped there", () => ringsOf(far.pid).length === 0);
        } else if (way === "close") await far.call({ do: "close" });
        else await far.kill();
        await until("rings are unmapped", () => ringsOf("self").length === 0);
        await far[Symbol.asyncDispose]();
        await until("descriptors are closed", () => openDescriptors("self") <= idle);
        idle = Math.min(idle, openDescriptors("self"));
      }
    },
    MILLIS,
  );
});

describe("within the rules", () => {
  test("a neighbour that speaks another version is refused with a reason", async () => {
    await using here = await openNear();
    await here.register(systemSpec("pool"));
    const { workerId, agentName, wireName, incarnation, host } = decodePackage(await here.exportMetadata());
    using other = new Impostor();
    const { connection } = other.sockets.connect(host?.rendezvous ?? "") ?? { connection: 0 };
    const to = { worker: workerId.toString(), agent: agentName, wire: wireName, incarnation };
    const from = { worker: "9", agent: "old", wire: "old#1", incarnation: 1 };
    const version = NEIGHBOUR_VERSION - 1;
    other.say(connection, { say: "hello", version, from, to, nonce: freshNonce(), keys: [] });
    expect((await other.hears()).word).toMatchObject({
      say: "refused",
      why: `The peer refused this process: it speaks version ${version}.`,
    });
  });

  test("nobody sends by a ring before it was let in", async () => {
    await using here = await openNear();
    await here.register(systemSpec("pool"));
    const { host } = decodePackage(await here.exportMetadata());
    using thief = new Impostor();
    const { connection } = thief.sockets.connect(host?.rendezvous ?? "") ?? { connection: 0 };
    expect(thief.sockets.ring(connection, true)).toBe(true);
    expect(await thief.next()).toEqual({ kind: "closed", connection, reason: "the other end closed" });
    expect(ringsOf("self")).toEqual([]);
  });

  test("nonsense in a ring costs its writer the connection, and nobody anything else", async () => {
    await using here = await openNear();
    await using good = await openNeighbours();
    const { b: friend } = await good.meetBoth();
    const others = new Set(ringsOf("self").map(({ start }) => start));
    const own = await here.register(systemSpec("own"));
    await using maker = await openNear();
    await maker.register(systemSpec("pool"));
    const made = await maker.exportMetadata();
    for (const scribble of SCRIBBLES) {
      using impostor = new Impostor();
      const rendezvous = impostor.listen();
      const importing = here.importMetadata(forged(made, () => ({ host: hostAt(rendezvous) })));
      const { connection, wanted } = await impostor.admit();
      impostor.say(connection, { say: "no", layouts: wanted, why: "Not today." });
      const peer = await importing;
      expect((peer.layouts[0] as RemoteLayout).distance).toBe("remote");
      const fresh = (): MappedRing[] => ringsOf("self").filter(({ start }) => !others.has(start));
      // Both ends of two rings.
      await until("rings are mapped", () => fresh().length === 4);
      for (const { start } of new Map(fresh().map((ring) => [ring.inode, ring])).values())
        scribble(new DataView(toArrayBuffer(start as never, 0, FIRST + RING))); // mapped here, by us
      // Whoever awaits messages and sends one looks for the answer.
      const over = new AbortController();
      const answer = here.notifications({ signal: over.signal }).next();
      await here.notify(peer, "anybody there?");
      expect((await peer.lost).reason).toBe("what arrived is no record");
      over.abort();
      expect((await answer).done).toBe(true);
      await until("rings are unmapped", () => fresh().length === 0);
    }
    await own.fill(3, { blocks: [0] });
    await here.transfer({ source: own, destination: own, sourceBlocks: [0], destinationBlocks: [1] });
    expect((await own.read(1))[0]).toBe(3);
    await good.a.notify(friend, "all well");
    for await (const { payload } of good.b.notifications({ signal: AbortSignal.timeout(20_000) })) {
      expect(new TextDecoder().decode(payload)).toBe("all well");
      break;
    }
  });
});

/** What a hostile neighbour writes into all of a ring's memory; what a good writer then writes itself is right again. */
const SCRIBBLES: readonly ((ring: DataView) => void)[] = [
  (ring) => ring.setBigUint64(0, 2n ** 63n, true),
  (ring) => ring.setBigUint64(0, ring.getBigUint64(0, true) + 4n, true),
  (ring) => {
    const head = ring.getBigUint64(0, true);
    // A record that reaches beyond what was written.
    ring.setBigUint64(FIRST + (Number(head) % RING), 1_000n, true);
    ring.setBigUint64(0, head + 16n, true);
  },
  (ring) => {
    const head = ring.getBigUint64(0, true);
    ring.setBigUint64(FIRST + (Number(head) % RING), 7n << 32n, true);
    ring.setBigUint64(0, head + 8n, true);
  },
];

function inodeOf({ inode }: MappedRing): string {
  return inode;
}

/** Files of rings that a process has open. */
function openRings(pid: number | "self"): number {
  return readdirSync(`/proc/${pid}/fd`).filter((descriptor) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${descriptor}`).includes("kvf-ring");
    } catch {
      return false; // what listed the descriptors was one of them
    }
  }).length;
}
