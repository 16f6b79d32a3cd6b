// Notifications that go back and forth between neighbours.
import { dlopen, FFIType } from "bun:ffi";

import { Transport } from "../index.ts";
import type { OpenOptions } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import { SLOW_NIXL } from "./neighbour-moves.ts";
import { NeighbourPeer } from "./neighbour-peer.ts";
import { alternate } from "./processes.ts";
import { median } from "./statistics.ts";

/** Notifications of one sample. */
export const PINGS = 200;

/** Half a round trip, beside an eventfd's between two processes in C and beside NIXL's. */
export async function notifications(samples: number, library: string): Promise<Record<string, number[]>> {
  const { symbols } = dlopen(library, {
    bench_event_start: { args: [], returns: FFIType.i32 },
    bench_event_half_trip: { args: [], returns: FFIType.f64 },
    bench_event_stop: { args: [], returns: FFIType.void },
  });
  // Before there are threads that a fork would leave behind.
  if (symbols.bench_event_start() !== 0) throw new Error("the eventfd's process could not be started");
  try {
    const near = await pingPong({ nixl: false });
    const taken = await alternate(
      {
        ours: () => near.half(),
        limit: () => median(Array.from({ length: PINGS }, () => symbols.bench_event_half_trip())),
      },
      samples,
    );
    await near.close();
    if (findNixl() === null) return taken;
    // Not in turn with ours: while somebody waits, NIXL looks for messages without a pause.
    const far = await pingPong({ nixl: {}, neighbours: false });
    await far.half();
    taken[SLOW_NIXL] = [await far.half(), await far.half(), await far.half()];
    await far.close();
    return taken;
  } finally {
    symbols.bench_event_stop();
  }
}

/** Two transports in two processes that send each message back. */
async function pingPong(options: Partial<OpenOptions>): Promise<{
  readonly half: () => Promise<number>;
  readonly close: () => Promise<void>;
}> {
  const far = new NeighbourPeer();
  const here = await Transport.open({ workerId: 1n, cuda: false, ...options });
  const exported = await far.call<Uint8Array>({
    do: "open",
    options: { cuda: false, ...options },
    specs: [],
  });
  const peer = await here.importMetadata(exported);
  await far.call({ do: "echo", bytes: await here.exportMetadata() });
  const messages = here.notifications();
  return {
    async half() {
      const times: number[] = [];
      for (let count = 0; count < PINGS; count += 1) {
        const begun = Bun.nanoseconds();
        await here.notify(peer, "ping");
        await messages.next();
        times.push((Bun.nanoseconds() - begun) / 2_000);
      }
      return median(times);
    },
    async close() {
      await here.close();
      await far[Symbol.asyncDispose]();
    },
  };
}
