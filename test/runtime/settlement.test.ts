// Every transfer has one outcome, within its deadline and a bound, whatever becomes of its bytes. Time is simulated.
import { expect, test } from "bun:test";
import { SETTLE_BOUND_MILLIS } from "../../lib/runtime/task.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import { SIM_SHAPE, simPair } from "./helpers/simulated.ts";

/** Deadlines share timers in steps of 16 ms; a transfer may meet two of them. */
const TIMER_MILLIS = 32;

for (const deadlineMs of [1, 20, 100, 1_000])
  test(`a push that hangs is in doubt within ${deadlineMs} ms and the bound, once, and its blocks are not used again`, async () => {
    const pair = await simPair({ deadlineMs: 60_000 }, { hang: 1 });
    const { a, b, world } = pair;
    const [source] = a.transport.localLayouts;
    const [far] = b.transport.localLayouts;
    const destination = pair.peers.b.layouts[0];
    if (source === undefined || far === undefined || destination === undefined) throw new Error("no layout");
    const outcomes: string[] = [];
    a.transport.on("transfer", ({ settlement }) => outcomes.push(settlement));
    const request = { source, destination, sourceBlocks: [1], destinationBlocks: [2], deadlineMs };
    const startedAt = world.now;
    const transfer = a.transport.transfer(request);
    let endedAt = 0;
    let settled = "";
    let failure: unknown;
    transfer.catch((error: unknown) => {
      endedAt = world.now;
      failure = error;
    });
    void transfer.settled.then(({ proof }) => {
      settled = proof;
    });
    pair.pass(deadlineMs + SETTLE_BOUND_MILLIS + TIMER_MILLIS);
    expect(endedAt).toBeGreaterThanOrEqual(startedAt + deadlineMs);
    expect(endedAt).toBeLessThanOrEqual(startedAt + deadlineMs + SETTLE_BOUND_MILLIS + TIMER_MILLIS);
    if (!isKvferryError(failure)) throw new Error("it did not fail");
    expect([failure.code, failure.settlement, settled]).toEqual(["ERR_KVF_TIMEOUT", "in-doubt", ""]);
    const again = await pair.settle(a.transport.transfer(request).catch((error: unknown) => error));
    expect(again).toMatchObject({ code: "ERR_KVF_QUARANTINED", settlement: "never-started" });
    // It comes back in the end: that is the proof, and the outcome stays what it was.
    pair.pass(25_000);
    expect(settled).toBe("backend-ended");
    expect(outcomes).toEqual(["in-doubt", "never-started"]);
    expect(a.transport.metrics()["kvferry.blocks.quarantined"]).toBe(0);
  });

test("a push through a peer's staging memory that is forgotten on its way ends by proof: the peer is not told to move anything", async () => {
  const pair = await simPair({ deadlineMs: 60_000 });
  const { a, b, world } = pair;
  const file = await pair.settle(
    b.transport.register({ ...SIM_SHAPE, name: "file", memory: { kind: "disk" } }),
  );
  await pair.settle(pair.peers.b.update(await pair.settle(b.transport.exportMetadata())));
  await pair.settle(a.transport.notify(pair.peers.b, "hello"));
  const [source] = a.transport.localLayouts;
  if (source === undefined) throw new Error("no layout");
  const before = await bytesOf(file, 2);
  const transfer = a.transport.transfer({
    source,
    destination: pair.peers.b.layout("file"),
    sourceBlocks: [1],
    destinationBlocks: [2],
  });
  let proof = "";
  void transfer.settled.then((settled) => {
    proof = settled.proof;
  });
  transfer.catch(() => undefined);
  // The last bytes are in the peer's chunk, and it was not told so yet.
  let forgotten: string | undefined;
  world.onLanding = ({ by }, { destination }) => {
    if (by === a.process && world.regionOf(destination)?.process === b.process)
      world.schedule(null, 0.15, () => {
        forgotten ??= `while ${transfer.state}`;
        void pair.peers.b.forget();
      });
    return null;
  };
  pair.pass(2_000);
  await Promise.resolve();
  expect([forgotten, transfer.state, proof]).toEqual(["while running", "failed", "backend-ended"]);
  expect(await bytesOf(file, 2)).toEqual(before);
  expect([a.staging.send.lent, b.staging.receive.lent]).toEqual([0, 0]);
  expect(world.findings).toEqual([]);

  async function bytesOf(layout: typeof file, block: number): Promise<Uint8Array> {
    const base = layout.record.components[0]?.regionAddresses[0] ?? 0;
    return world.bytesAt(base + block * layout.config.blockBytes, layout.config.blockBytes);
  }
});
