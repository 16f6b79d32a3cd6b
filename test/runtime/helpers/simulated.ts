// Two transports in a simulated world, where a test can put any message on the wire.
import { loadExchange } from "../../../lib/runtime/exchange.ts";
import type { Peer } from "../../../lib/runtime/peer.ts";
import type { OpenOptions } from "../../../lib/runtime/options.ts";
import { NO_FAULTS, type SimFaults } from "../../proof/sim-faults.ts";
import type { SimNetwork } from "../../proof/sim-nixl.ts";
import { startWorker, type SimWorker } from "../../proof/sim-worker.ts";
import { SimWorld } from "../../proof/sim-world.ts";
import { randomOf } from "../../random.ts";

/** A world with two workers that have imported each other. */
export interface SimPair {
  readonly world: SimWorld;
  readonly a: SimWorker;
  readonly b: SimWorker;
  /** `b` as `a` sees it, and `a` as `b` does. */
  readonly peers: { readonly b: Peer; readonly a: Peer };
  /** What goes wrong from now on, and nothing else. */
  befall(faults: Partial<SimFaults>): void;
  /** Lets so much simulated time pass. */
  pass(millis: number): void;
  /** Lets time pass until a promise has settled. */
  settle<T>(promise: PromiseLike<T>): Promise<T>;
}

/** What every layout of such a world looks like. */
export const SIM_SHAPE = {
  config: { numBlocks: 8, numLayers: 2, outerDim: 1, pageSize: 2, innerDim: 8 },
  arrangement: "fully-contiguous",
} as const;

/** Opens two workers without heartbeats, with one layout each, and lets them meet. */
export async function simPair(
  options: Partial<OpenOptions> = {},
  faults: Partial<SimFaults> = {},
): Promise<SimPair> {
  await loadExchange();
  const world = new SimWorld(randomOf(1, 1), false);
  const network: SimNetwork = {
    world,
    route: "tcp",
    faults: { ...NO_FAULTS, ...faults },
    agents: new Map(),
    inSockets: new Map(),
  };
  const [a, b] = ([1n, 2n] as const).map((workerId, index) =>
    startWorker(network, { heartbeatMs: 0, trustedNetwork: true, ...options, workerId }, index === 0),
  ) as [SimWorker, SimWorker]; // two were started
  const settle = async <T>(promise: PromiseLike<T>): Promise<T> => {
    let open = true;
    const done = (): void => {
      open = false;
    };
    promise.then(done, done);
    for (let turn = 0; open && turn < 1_000; turn++) {
      world.runUntil(world.now + 10);
      await Promise.resolve();
    }
    return await promise;
  };
  for (const { transport } of [a, b])
    await settle(transport.register({ ...SIM_SHAPE, name: "layout", memory: { kind: "system" } }));
  const fromA = await settle(a.transport.exportMetadata());
  const fromB = await settle(b.transport.exportMetadata());
  const peers = {
    b: await settle(a.transport.importMetadata(fromB)),
    a: await settle(b.transport.importMetadata(fromA)),
  };
  world.runUntil(world.now + 100);
  const befall = (next: Partial<SimFaults>): void => {
    Object.assign(network.faults, NO_FAULTS, next);
  };
  const pass = (millis: number): void => {
    // What a test began outside of the world goes on before its time does.
    world.act(() => undefined);
    world.runUntil(world.now + millis);
  };
  return { world, a, b, peers, befall, pass, settle };
}
