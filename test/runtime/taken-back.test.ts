// Memory that is not the transport's own is let go the moment its layout is gone: nobody who could know of the layout, by
// whatever package and in whatever order packages and words come, writes to it afterwards.
import { expect, test } from "bun:test";
import { isKvferryError, type LocalLayout, type Peer, type Transfer } from "../../index.ts";
import { Importers } from "../../lib/runtime/importers.ts";
import type { LayoutHandle } from "../../lib/core/handle.ts";
import { decodePackage } from "../../lib/wire/index.ts";
import type { SimWorker } from "../proof/sim-worker.ts";
import type { SimRegion } from "../proof/sim-world.ts";
import { SIM_SHAPE, simPair, type SimPair } from "./helpers/simulated.ts";

const BYTES = 512;
const BLOCKS = [0, 1, 2, 3, 4, 5, 6, 7];

interface Adopted {
  readonly layout: LocalLayout;
  readonly region: SimRegion;
}

/** Registers a layout over memory of the caller's. */
async function adopt(
  { world, settle }: SimPair,
  { process, transport }: SimWorker,
  name: string,
): Promise<Adopted> {
  const region = world.allocate(process, BYTES, name);
  const memory = {
    kind: "external",
    storage: "system",
    regions: [{ address: region.base, size: BYTES }],
  } as const;
  return { layout: await settle(transport.register({ ...SIM_SHAPE, name, memory })), region };
}

/** Unregisters; from that moment on bytes that land there are a finding. */
async function takeBack({ layout, region }: Adopted, wait = true): Promise<void> {
  await layout.unregister({ wait });
  region.freed = true;
}

const push = ({ a }: SimPair, peer: Peer, name: string, options: { deadlineMs?: number } = {}): Transfer =>
  a.transport.transfer({
    source: a.transport.localLayouts[0] as LocalLayout, // registered by the pair
    sourceBlocks: BLOCKS,
    destination: peer.layout(name),
    destinationBlocks: BLOCKS,
    ...options,
  });

const codeOf = (work: PromiseLike<unknown>): Promise<string> =>
  Promise.resolve(work).then(
    () => "done",
    (error: unknown) => (isKvferryError(error) ? error.code : String(error)),
  );

function close({ a, b, world }: SimPair): void {
  for (const { transport } of [a, b]) transport.closeNow();
  expect(world.findings).toEqual([]);
}

test("a package that was ready after a later one counts as the earlier one that it is", () => {
  const importers = new Importers({
    now: () => 0,
    after: () => () => undefined,
    sleep: () => Promise.resolve(),
  });
  const handle = 7n as LayoutHandle; // any
  importers.noteExport([handle], 12, "kvferry");
  importers.noteExport([handle], 11, "kvferry");
  const importer = importers.noteImport("early", {
    sequence: 11,
    process: null,
    connection: new Uint8Array(0),
  });
  expect(importers.holders(handle)).toEqual([importer as NonNullable<typeof importer>]);
  importers.forget(handle);
  expect([10, 11, 12, 13].map((sequence) => importers.goneSince(sequence).length)).toEqual([0, 1, 1, 0]);
});

test("whoever imports the earlier of two packages that were made at once is asked before memory is let go", async () => {
  const pair = await simPair();
  const { a, b, settle, pass, peers } = pair;
  const adopted = await adopt(pair, b, "adopted");
  // A package of some layouts takes longer than one of all, which is asked for later.
  const early = b.transport.exportMetadata({ layouts: [adopted.layout] });
  const late = b.transport.exportMetadata();
  const [first] = [await settle(early), await settle(late)];
  await settle(peers.b.forget());
  pass(20_000);
  const peer = await settle(a.transport.importMetadata(first));
  pass(100);
  await settle(takeBack(adopted));
  expect(peer.layouts).toEqual([]);
  close(pair);
});

test("what was taken back before a package with it was taken in is not written to", async () => {
  const pair = await simPair();
  const { b, settle, pass, peers } = pair;
  const adopted = await adopt(pair, b, "adopted");
  const newer = await settle(b.transport.exportMetadata());
  // So long ago that its importers are not thought to be just taking it in, and are not asked.
  pass(20_000);
  await settle(takeBack(adopted));
  // At once: the peer's word that it is gone is on its way.
  const pushed = peers.b
    .update(newer)
    .then(() => ["adopted", "layout"].map((name) => codeOf(push(pair, peers.b, name))));
  const [toAdopted, toOther] = (await settle(pushed)) as [Promise<string>, Promise<string>]; // as made above
  expect(await settle(toAdopted)).toBe("ERR_KVF_STALE_HANDLE");
  expect(await settle(toOther)).toBe("done");
  close(pair);
});

test("a layout that is taken back twice at once lets go of its memory when nobody touches it, for both who asked", async () => {
  const pair = await simPair();
  const { b, settle, pass, peers } = pair;
  const adopted = await adopt(pair, b, "adopted");
  await settle(peers.b.update(await settle(b.transport.exportMetadata())));
  pass(100);
  // On its way while both ask.
  const pushed = codeOf(push(pair, peers.b, "adopted"));
  await settle(Promise.all([takeBack(adopted), takeBack(adopted)]));
  expect(await settle(pushed)).toBe("done");
  close(pair);
});

test("memory of a peer that does not say that it knows its importer is not touched, however long that takes", async () => {
  const pair = await simPair();
  const { world, a, b, settle, pass, peers } = pair;
  const bytes = await settle(b.transport.exportMetadata());
  await settle(peers.b.forget());
  pass(1_000);
  world.stop(b.process);
  const peer = await settle(a.transport.importMetadata(bytes));
  const pushed = push(pair, peer, "layout", { deadlineMs: 5_000 });
  expect(await settle(codeOf(pushed))).toBe("ERR_KVF_TIMEOUT");
  expect((await pushed.settled).settlement).toBe("never-started");
  world.resume(b.process);
  pass(100);
  expect(await settle(codeOf(push(pair, peer, "layout")))).toBe("done");
  close(pair);
});

test("a word of an import that was lost is said again", async () => {
  const pair = await simPair();
  const { a, b, settle, pass, peers } = pair;
  const bytes = await settle(b.transport.exportMetadata());
  await settle(peers.b.forget());
  pass(1_000);
  const notify = b.agent.deliver.bind(b.agent);
  let lost = 0;
  b.agent.deliver = (target, payload) => {
    // Type 12 is the answer to the word of an import.
    if (payload[9] === 12 && lost++ === 0) return;
    notify(target, payload);
  };
  const peer = await settle(a.transport.importMetadata(bytes));
  expect(await settle(codeOf(push(pair, peer, "layout")))).toBe("done");
  expect(lost).toBe(2);
  close(pair);
});

test("a peer that is imported while it lets go of this worker stays reachable", async () => {
  for (let millis = 0; millis < 12; millis += 0.25) {
    const pair = await simPair();
    const { a, b, settle, pass, peers } = pair;
    const bytes = await settle(b.transport.exportMetadata());
    // Now NIXL knows it only for having imported this worker.
    await settle(peers.b.forget());
    pass(1_000);
    const forgetting = codeOf(peers.a.forget());
    pass(millis);
    const peer = await settle(a.transport.importMetadata(bytes));
    expect([millis, await settle(codeOf(push(pair, peer, "layout")))]).toEqual([millis, "done"]);
    expect(await settle(forgetting)).toBe("done");
    close(pair);
  }
});

test("memory in a package of Dynamo's is not let go: its importers say nothing back", async () => {
  const pair = await simPair();
  const { b, settle } = pair;
  const adopted = await adopt(pair, b, "adopted");
  await settle(b.transport.exportMetadata({ format: "dynamo-1.0" }));
  expect(await settle(codeOf(takeBack(adopted, false)))).toBe("ERR_KVF_IN_USE");
  close(pair);
});

test("layouts that are taken back while a package is made stand in it in no case", async () => {
  const pair = await simPair();
  const { b, settle } = pair;
  const layouts: Adopted[] = [];
  for (let count = 0; count < 12; count++) layouts.push(await adopt(pair, b, `adopted ${count}`));
  const metadata = b.agent.metadata.bind(b.agent);
  b.agent.metadata = async () => {
    const made = await metadata();
    const next = layouts.pop();
    if (next !== undefined) await takeBack(next);
    return made;
  };
  const bytes = await settle(b.transport.exportMetadata());
  const live = b.transport.localLayouts.map(({ name }) => name);
  expect(decodePackage(bytes).layouts.map(({ name }) => name)).toEqual(live);
  expect(live.length).toBeGreaterThan(1);
  close(pair);
});
