import type { LocalLayout, Peer, Transport } from "../../index.ts";
import { fillSide, wrongRows } from "./demo-bytes.ts";
import { configOf, DEMO_CASES, layoutName, ownerOf } from "./demo-cases.ts";
import type { DemoCase, DemoPeerName } from "./demo-cases.ts";

/** What one process of the demo can be asked to do. Every result can travel between processes. */
export interface DemoAgent {
  /** Puts the starting bytes into the layout that this process has in a case. */
  fill(index: number): Promise<void>;
  /** This process's metadata package. */
  metadata(): Promise<Uint8Array>;
  /** Imports the other process's package. */
  meet(bytes: Uint8Array): Promise<void>;
  /** Runs a case, `repeats` times more for the clock, and gives the shortest time in microseconds. */
  transfer(index: number, repeats: number): Promise<number>;
  /** Waits until the notification of a case arrived from the other process. */
  notified(index: number): Promise<void>;
  /** Looks at every byte of this process's layout of a case. */
  verify(
    index: number,
  ): Promise<{ readonly rows: number; readonly wrong: number; readonly first: string | null }>;
  close(): Promise<void>;
}

/** How the two processes reach each other: NIXL's library and a secret that both know, or by mapping each other's memory. */
export type DemoDistance = { readonly nixl: string; readonly secret: Uint8Array } | "neighbour";

const WORKERS: Readonly<Record<DemoPeerName, bigint>> = { a: 1n, b: 2n };

/**
 * Opens a transport that has one way to the other process, NIXL or neighbours, and registers this process's layout of
 * every case.
 *
 * @throws KvferryError whatever `Transport.open` and `register` throw.
 */
export async function openDemoAgent(name: DemoPeerName, distance: DemoDistance): Promise<DemoAgent> {
  const kvferry = await import("../../index.ts");
  const transport: Transport = await kvferry.Transport.open({
    workerId: WORKERS[name],
    agentName: `demo-${name}`,
    nixl: distance === "neighbour" ? false : { library: distance.nixl, backends: { UCX: {} } },
    cuda: false,
    neighbours: distance === "neighbour",
    // What is moved is made up, and both processes end within seconds: UCX may use TCP.
    ...(distance === "neighbour" ? {} : { secret: distance.secret, trustedNetwork: true }),
  });
  const layouts: LocalLayout[] = [];
  for (const [index, one] of DEMO_CASES.entries())
    layouts.push(await registerSide(transport, name, index, one));
  const arrived = collectNotifications(transport);
  let peer: Peer | undefined;

  const ownLayout = (index: number): LocalLayout => required(layouts[index], `layout ${index}`);
  return {
    fill: async (index) => {
      const one = caseAt(index);
      const role = roleOf(one, name);
      fillSide(one, one[role], seedOf(index, role), ownLayout(index).bytes);
    },
    metadata: async () => await transport.exportMetadata(),
    meet: async (bytes) => {
      peer = await transport.importMetadata(bytes);
      const wanted = distance === "neighbour" ? "neighbour" : "remote";
      const other = peer.layouts.find((layout) => layout.distance !== wanted);
      if (other !== undefined)
        throw new Error(`layout ${other.name} of the peer is ${other.distance}, not ${wanted}`);
    },
    transfer: async (index, repeats) => {
      const one = caseAt(index);
      const theirs = required(peer, "peer").layout(layoutName(index));
      const push = one.direction === "push";
      const request = {
        source: push ? ownLayout(index) : theirs,
        sourceBlocks: one.source.blocks,
        destination: push ? theirs : ownLayout(index),
        destinationBlocks: one.destination.blocks,
        // Layers or heads of the destination that the case leaves alone on purpose.
        partial: true,
        ...(one.layers === undefined ? {} : { layers: one.layers }),
      };
      await transport.transfer({ ...request, notify: layoutName(index) });
      let best = Infinity;
      for (let count = 0; count < repeats; count += 1) {
        const started = Bun.nanoseconds();
        await transport.transfer(request);
        best = Math.min(best, (Bun.nanoseconds() - started) / 1_000);
      }
      return best;
    },
    notified: async (index) => await arrived(layoutName(index)),
    verify: async (index) => {
      const one = caseAt(index);
      const seeds = { source: seedOf(index, "source"), destination: seedOf(index, "destination") };
      return wrongRows(one, roleOf(one, name), seeds, ownLayout(index).bytes);
    },
    close: async () => {
      await transport.close();
    },
  };
}

async function registerSide(
  transport: Transport,
  name: DemoPeerName,
  index: number,
  one: DemoCase,
): Promise<LocalLayout> {
  const which = one[roleOf(one, name)];
  return await transport.register({
    name: layoutName(index),
    config: configOf(one, which),
    arrangement: which.arrangement,
    order: which.order,
    memory: { kind: "system" },
  });
}

/** Keeps what arrives, so that it does not matter whether the wait begins before or after the arrival. */
function collectNotifications(transport: Transport): (payload: string) => Promise<void> {
  const seen = new Set<string>();
  const waiting = new Map<string, () => void>();
  void (async () => {
    for await (const { payload } of transport.notifications()) {
      const text = new TextDecoder().decode(payload);
      seen.add(text);
      waiting.get(text)?.();
    }
  })();
  return async (payload) => {
    if (seen.has(payload)) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    waiting.set(payload, resolve);
    await promise;
  };
}

function roleOf(one: DemoCase, name: DemoPeerName): "source" | "destination" {
  return ownerOf(one, "source") === name ? "source" : "destination";
}

function seedOf(index: number, role: "source" | "destination"): number {
  return index * 2 + (role === "source" ? 1 : 2);
}

function caseAt(index: number): DemoCase {
  return required(DEMO_CASES[index], `case ${index}`);
}

function required<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new Error(`the demo has no ${what}`);
  return value;
}
