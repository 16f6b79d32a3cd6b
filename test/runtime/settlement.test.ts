// Every transfer has one outcome, within its deadline and a bound, whatever becomes of its bytes. Time is simulated.
import { describe, expect, test } from "bun:test";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { RemoteLayout } from "../../lib/runtime/remote-layout.ts";
import type { SimFaults } from "../proof/sim-faults.ts";
import { HANG_MILLIS } from "../proof/sim-nixl.ts";
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

test("a push through a peer's staging memory that is forgotten on its way ends by proof: the peer, told with the data, says that all is in place", async () => {
  const pair = await simPair({ deadlineMs: 60_000 });
  const { a, b, world } = pair;
  const file = await pair.settle(
    b.transport.register({ ...SIM_SHAPE, name: "file", memory: { kind: "disk" } }),
  );
  await pair.settle(pair.peers.b.update(await pair.settle(b.transport.exportMetadata())));
  await pair.settle(a.transport.notify(pair.peers.b, "hello"));
  const [source] = a.transport.localLayouts;
  if (source === undefined) throw new Error("no layout");
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
  // The last bytes are in the peer's chunk, it was told so with them, and has not answered yet.
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
  expect(await bytesOf(file, 2)).toEqual(await bytesOf(source, 1));
  expect([a.staging.send.lent, b.staging.receive.lent]).toEqual([0, 0]);
  expect(world.findings).toEqual([]);

  async function bytesOf(layout: LocalLayout, block: number): Promise<Uint8Array> {
    const base = layout.record.components[0]?.regionAddresses[0] ?? 0;
    return world.bytesAt(base + block * layout.config.blockBytes, layout.config.blockBytes);
  }
});

interface HangingRoute {
  readonly name: string;
  /** "here" is this worker's memory, "file" its file; "far" and "far file" are the peer's. */
  readonly from: "here" | "file" | "far" | "far file";
  readonly to: "there" | "file" | "far" | "far file";
  readonly executor: "host" | "file" | "nixl" | "staged";
  readonly holds: Partial<SimFaults>;
  /** Holds only once the peer's staging memory has the bytes. */
  readonly late?: true;
  readonly settlement: "in-doubt" | "never-started";
}

const WIRE = { hang: 1 };
const COPY = { hangCopy: 1 };
const ROUTES: readonly HangingRoute[] = [
  {
    name: "memory to memory",
    from: "here",
    to: "there",
    executor: "host",
    holds: COPY,
    settlement: "in-doubt",
  },
  {
    name: "memory to a file",
    from: "here",
    to: "file",
    executor: "file",
    holds: COPY,
    settlement: "in-doubt",
  },
  {
    name: "a file to memory",
    from: "file",
    to: "there",
    executor: "file",
    holds: COPY,
    settlement: "in-doubt",
  },
  { name: "a push", from: "here", to: "far", executor: "nixl", holds: WIRE, settlement: "in-doubt" },
  { name: "a pull", from: "far", to: "there", executor: "nixl", holds: WIRE, settlement: "in-doubt" },
  {
    name: "two hops, the far one held",
    from: "file",
    to: "far",
    executor: "staged",
    holds: WIRE,
    settlement: "in-doubt",
  },
  {
    name: "two hops, the near one held",
    from: "file",
    to: "far",
    executor: "staged",
    holds: COPY,
    settlement: "in-doubt",
  },
  {
    name: "a push by the peer's staging",
    from: "here",
    to: "far file",
    executor: "staged",
    holds: WIRE,
    settlement: "in-doubt",
  },
  {
    name: "a push that the peer puts in place",
    from: "here",
    to: "far file",
    executor: "staged",
    holds: COPY,
    late: true,
    settlement: "in-doubt",
  },
  // The peer writes to staging memory of this worker: the destination is touched only once it is there.
  {
    name: "a pull by the peer's staging",
    from: "far file",
    to: "there",
    executor: "staged",
    holds: WIRE,
    settlement: "never-started",
  },
  // Nothing of this worker is touched before the peer has read it.
  {
    name: "a pull that the peer has to read",
    from: "far file",
    to: "there",
    executor: "staged",
    holds: COPY,
    settlement: "never-started",
  },
];

describe("a transfer that cannot end is settled in time, holds what may be touched, and is over by proof", () => {
  for (const route of ROUTES)
    for (const how of ["deadline", "cancel", "signal"] as const)
      test(`${route.name}, by ${how}`, async () => {
        const pair = await simPair({ deadlineMs: 60_000 });
        const { a, b, world } = pair;
        const disk = { ...SIM_SHAPE, memory: { kind: "disk" } } as const;
        const there = await pair.settle(
          a.transport.register({ ...SIM_SHAPE, name: "there", memory: { kind: "system" } }),
        );
        const file = await pair.settle(a.transport.register({ ...disk, name: "file" }));
        const farFile = await pair.settle(b.transport.register({ ...disk, name: "far file" }));
        await pair.settle(pair.peers.b.update(await pair.settle(b.transport.exportMetadata())));
        const [here] = a.transport.localLayouts;
        const [far] = b.transport.localLayouts;
        if (here === undefined || far === undefined) throw new Error("no layout");
        const owners = { here, there, file, far, "far file": farFile };
        const ends: Record<keyof typeof owners, LocalLayout | RemoteLayout> = {
          here,
          there,
          file,
          far: pair.peers.b.layout("layout"),
          "far file": pair.peers.b.layout("far file"),
        };
        const bytes = (layout: LocalLayout, block: number): Uint8Array =>
          world.bytesAt(
            (layout.record.components[0]?.regionAddresses[0] ?? 0) + block * layout.config.blockBytes,
            layout.config.blockBytes,
          );
        const controller = new AbortController();
        const request = {
          source: ends[route.from],
          destination: ends[route.to],
          sourceBlocks: [1],
          destinationBlocks: [2],
        };
        const hops = a.transport.explain(request).legs.flatMap((leg) => leg.hops);
        expect(hops.map(({ executor }) => executor)).toEqual([route.executor]);
        if (route.late === undefined) pair.befall(route.holds);
        else
          world.onLanding = (_landing, { destination }) => {
            if (world.regionOf(destination)?.process === b.process) pair.befall(route.holds);
            return null;
          };
        const deadlineMs = how === "deadline" ? 100 : 60_000;
        const transfer = a.transport.transfer({ ...request, deadlineMs, signal: controller.signal });
        const from = world.now;
        let failedAt = 0;
        let failure: unknown;
        let proof = "";
        transfer.catch((error: unknown) => {
          failedAt = world.now;
          failure = error;
        });
        void transfer.settled.then((settled) => {
          proof = settled.proof;
        });
        pair.pass(99);
        if (how === "deadline") expect(transfer.state).toBe("running");
        pair.pass(1);
        if (how === "cancel") world.act(() => transfer.cancel());
        if (how === "signal") world.act(() => controller.abort(new Error("enough")));
        pair.pass(SETTLE_BOUND_MILLIS + TIMER_MILLIS);
        expect(failedAt).toBeGreaterThanOrEqual(from + 100);
        expect(failedAt).toBeLessThanOrEqual(from + 100 + SETTLE_BOUND_MILLIS + TIMER_MILLIS);
        if (how === "signal") expect(failure).toMatchObject({ message: "enough" });
        else {
          const code = how === "deadline" ? "ERR_KVF_TIMEOUT" : "ERR_KVF_CLOSED";
          expect(failure).toMatchObject({ code, settlement: route.settlement });
        }
        // What stands in the way of a next transfer is gone, but not what may still be touched.
        pair.befall({});
        world.onLanding = () => null;
        const held = route.settlement === "in-doubt";
        const again = a.transport.transfer({ ...request, deadlineMs: 60_000 });
        if (held) {
          expect(proof).toBe("");
          expect(await pair.settle(again.catch((error: unknown) => error))).toMatchObject({
            code: "ERR_KVF_QUARANTINED",
            settlement: "never-started",
          });
          pair.pass(HANG_MILLIS + 5_000);
          expect(proof).toBe("backend-ended");
        } else expect(proof).toBe("never-started");
        expect(a.transport.metrics()["kvferry.blocks.quarantined"]).toBe(0);
        await pair.settle(held ? a.transport.transfer(request) : again);
        expect(bytes(owners[route.to], 2)).toEqual(bytes(owners[route.from], 1));
        pair.pass(HANG_MILLIS + 5_000);
        expect([a.staging.send.lent, b.staging.receive.lent]).toEqual([0, 0]);
        expect(world.findings).toEqual([]);
      });
});

test("close names the bytes of staging memory that a copy which does not come back may still touch, and only those", async () => {
  for (const hangs of [false, true]) {
    const pair = await simPair({ deadlineMs: 60_000 });
    const { a, b, world } = pair;
    await pair.settle(b.transport.register({ ...SIM_SHAPE, name: "file", memory: { kind: "disk" } }));
    await pair.settle(pair.peers.b.update(await pair.settle(b.transport.exportMetadata())));
    const [source] = a.transport.localLayouts;
    if (source === undefined) throw new Error("no layout");
    if (hangs) pair.befall({ hangCopy: 1 });
    const destination = pair.peers.b.layout("file");
    const transfer = a.transport.transfer({ source, destination, sourceBlocks: [1], destinationBlocks: [2] });
    const outcome = transfer.then(
      () => "done",
      (error: unknown) => (isKvferryError(error) ? error.settlement : "none"),
    );
    if (hangs) pair.pass(50);
    else await pair.settle(transfer);
    const report = await pair.settle(a.transport.close());
    const kept = world.regions
      .filter(({ process, staging, freed }) => process === a.process && staging && !freed)
      .reduce((sum, { bytes }) => sum + bytes, 0);
    expect([await outcome, report.stagingBytes ?? 0]).toEqual([hangs ? "in-doubt" : "done", kept]);
    expect([kept > 0, "stagingBytes" in report, report.stuck]).toEqual([hangs, hangs, hangs ? 1 : 0]);
    expect(world.findings).toEqual([]);
  }
});
