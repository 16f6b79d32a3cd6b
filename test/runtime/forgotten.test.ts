// A peer that is asked for bytes just while it forgets who asks: whichever message meets which step, what it was asked for
// ends, and the staging memory that it was to write to comes back.
import { expect, test } from "bun:test";
import { isKvferryError, type LocalLayout, type Peer, type Transport } from "../../index.ts";
import { loadExchange } from "../../lib/runtime/exchange.ts";
import { randomOf } from "../random.ts";
import { NO_FAULTS } from "../proof/sim-faults.ts";
import type { SimNetwork } from "../proof/sim-nixl.ts";
import { startWorker } from "../proof/sim-worker.ts";
import { SimWorld } from "../proof/sim-world.ts";

const CONFIG = { numBlocks: 4, numLayers: 1, outerDim: 1, pageSize: 2, innerDim: 8 } as const;
const BLOCKS = [0, 1, 2, 3];
const STAGING = { sendBytes: 64, receiveBytes: 64, chunkBytes: 32 };

/** What becomes of a pull that begins some time after its peer began to forget this worker, or before. */
function pulledWhileForgotten(
  millis: number,
  seed: number,
): { readonly outcome: string; readonly kept: number } {
  const world = new SimWorld(randomOf(seed, 0), false);
  const network: SimNetwork = {
    world,
    route: "tcp",
    faults: NO_FAULTS,
    agents: new Map(),
    inSockets: new Map(),
  };
  const workers = [1n, 2n].map((workerId, index) =>
    startWorker(network, { workerId, heartbeatMs: 0, deadlineMs: 600, staging: STAGING }, index === 0),
  );
  const [near, far] = workers.map(({ transport }) => transport) as [Transport, Transport];
  const [peers, layouts]: [Peer[], LocalLayout[]] = [[], []];
  const soon = (work: () => Promise<unknown>): void => {
    world.act(() => void work().catch((error: unknown) => world.find(String(error))));
    world.runUntil(world.now + 100);
  };
  for (const [transport, name, kind] of [
    [near, "near", "system"],
    [far, "far", "disk"],
  ] as const)
    soon(async () =>
      layouts.push(
        await transport.register({
          name,
          config: CONFIG,
          arrangement: "fully-contiguous",
          memory: { kind },
        }),
      ),
    );
  soon(async () => peers.push(await near.importMetadata(await far.exportMetadata())));
  soon(async () => peers.push(await far.importMetadata(await near.exportMetadata())));
  const [there, here] = peers as [Peer, Peer];
  const [destination] = layouts as [LocalLayout];
  let outcome = "none";
  const forget = (): void => void here.forget();
  const pull = (): void => {
    const request = { source: there.layout("far"), sourceBlocks: BLOCKS, destination };
    near.transfer({ ...request, destinationBlocks: BLOCKS }).then(
      () => (outcome = "done"),
      (error: unknown) => (outcome = isKvferryError(error) ? error.code : String(error)),
    );
  };
  const [first, second] = millis < 0 ? [pull, forget] : [forget, pull];
  world.act(first);
  world.runUntil(world.now + Math.abs(millis));
  world.act(second);
  world.runUntil(world.now + 5_000);
  const kept = near.dump().staging.lent;
  for (const { transport } of workers) transport.closeNow();
  expect(world.findings).toEqual([]);
  return { outcome, kept };
}

test("a pull from a peer that forgets this worker meanwhile ends, and keeps no staging memory", async () => {
  await loadExchange();
  const outcomes = new Set<string>();
  for (let seed = 1; seed <= 12; seed++)
    for (let millis = -20; millis < 12; millis += 0.5) {
      const { outcome, kept } = pulledWhileForgotten(millis, seed);
      outcomes.add(outcome);
      expect([millis, seed, kept]).toEqual([millis, seed, 0]);
    }
  // All of it was met: bytes that still came, and a peer that says no.
  expect(outcomes).toEqual(new Set(["done", "ERR_KVF_NO_ROUTE"]));
});
