// Run by standin.test.ts in a process of its own: gathered and scattered transfers whose peer or NIXL fails.
import { afterEach, describe, expect, test } from "bun:test";
import { Transport, type LocalLayout, type Peer, type TransferRequest } from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { CONFIG, OPTIONS, settled, standin } from "./helpers/standin.ts";
import { freshWorker, systemSpec, until } from "./helpers/transports.ts";

afterEach(() => void standin("reset"));

const BLOCK = 4 * 2 * 16 * 64 * 2;
/** Two chunks of a block at each side: 8 blocks take turns. */
const STAGING = { sendBytes: 2 * BLOCK, receiveBytes: 2 * BLOCK, chunkBytes: BLOCK };
const ALL = [0, 1, 2, 3, 4, 5, 6, 7];

interface Met extends AsyncDisposable {
  readonly a: Transport;
  readonly b: Transport;
  readonly here: LocalLayout;
  readonly there: LocalLayout;
  readonly peer: Peer;
  readonly push: TransferRequest;
  readonly pull: TransferRequest;
}

async function meet(): Promise<Met> {
  const open = { ...OPTIONS, staging: STAGING };
  const a = await Transport.open({ ...open, workerId: freshWorker() });
  const b = await Transport.open({ ...open, workerId: freshWorker() });
  const here = await a.register(systemSpec("here", CONFIG));
  const there = await b.register(systemSpec("there", CONFIG, { arrangement: "layer-separate/block-first" }));
  // The stand-in's metadata cannot be read: with a file the package is known to name staging memory.
  await b.register({ ...systemSpec("file", CONFIG), memory: { kind: "disk" } });
  await Promise.all([here.fill({ random: 1 }), there.fill({ random: 2 })]);
  const peer = await a.importMetadata(await b.exportMetadata());
  await b.importMetadata(await a.exportMetadata());
  await settled();
  const remote = peer.layout("there");
  const blocks = { sourceBlocks: ALL, destinationBlocks: ALL, method: "staged/slab" };
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
      await a.close();
      await b.close();
    },
  };
}

/** Nothing is held at either side: both ways go as before. */
async function goesOn({ a, here, there, push, pull }: Met): Promise<void> {
  await here.fill({ random: 7 });
  await a.transfer(push);
  expect(await there.checksums(ALL)).toEqual(await here.checksums(ALL));
  await there.fill({ random: 8 });
  await a.transfer(pull);
  expect(await here.checksums(ALL)).toEqual(await there.checksums(ALL));
}

describe.each(["push", "pull"] as const)("a %s through slabs", (way) => {
  test("that is cancelled while it waits for the peer settles at once and leaves nothing held", async () => {
    await using met = await meet();
    standin("delay get_notifs 100000");
    const transfer = met.a.transfer(met[way]);
    const reason = new Error("enough");
    transfer.cancel(reason);
    expect(await transfer.catch((error: unknown) => error)).toBe(reason);
    expect(await transfer.settled).toMatchObject({ settlement: "never-started" });
    standin("reset");
    await goesOn(met);
  });

  test("whose peer is silent ends at its deadline, and goes again when the peer is back", async () => {
    await using met = await meet();
    standin("delay get_notifs 300000");
    const error = await refused("TIMEOUT", met.a.transfer({ ...met[way], deadlineMs: 100 }));
    expect(error.settlement).toBe("never-started");
    standin("reset");
    await goesOn(met);
  });

  test("that is stuck in NIXL ends at its deadline, and what it may still touch is kept until there is proof", async () => {
    await using met = await meet();
    standin("mode stuck");
    const transfer = met.a.transfer({ ...met[way], deadlineMs: 200 });
    const error = await refused("TIMEOUT", transfer);
    // What is pulled the peer writes to a chunk, which alone is kept: the destination was never touched.
    expect(error.settlement).toBe(way === "push" ? "in-doubt" : "never-started");
    standin("mode inline");
    expect((await transfer.settled).settlement).toBe(way === "push" ? "in-doubt" : "never-started");
    await until("no block is quarantined", () => met.here.quarantinedBlocks().length === 0);
    await goesOn(met);
  });

  test("whose peer dies ends with PEER_LOST or NIXL's word, and others go on", async () => {
    await using met = await meet();
    await using other = await meet();
    standin(`lose ${met.peer.wireName}`);
    const failure: unknown = await met.a.transfer(met[way]).catch((error: unknown) => error);
    expect(["ERR_KVF_PEER_LOST", "ERR_KVF_NIXL"]).toContain((failure as { code?: string }).code ?? "none");
    const { a, push, there, here } = other;
    await a.transfer(push);
    expect(await there.checksums(ALL)).toEqual(await here.checksums(ALL));
  });

  test("whose middle fails in NIXL fails by name, or goes the other way, and leaves nothing held", async () => {
    await using met = await meet();
    standin("fail create_xfer_req 3 -2");
    if (way === "push") await refused("NIXL", met.a.transfer(met[way]));
    else {
      // A peer whose NIXL does not take the write lends its chunks, and they are read.
      await met.a.transfer(met[way]);
      expect(await met.here.checksums(ALL)).toEqual(await met.there.checksums(ALL));
    }
    standin("reset");
    await goesOn(met);
  });
});
