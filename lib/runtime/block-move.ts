import { KvferryError } from "../core/errors.ts";
import { planPrepared } from "../core/planner.ts";
import { prepareRecords } from "../core/prepare.ts";
import type { HopOutcome } from "./executor.ts";
import type { Leases } from "./leases.ts";
import type { Planning } from "./planning.ts";
import type { Session } from "./session.ts";
import type { MoveRequest } from "./side-sums.ts";
import type { TransportState } from "./state.ts";

/** Blocks move at once and to their end: no transfer is made of it, and nobody asks whether they are good. */
export function blockMove(
  session: Session,
  state: TransportState,
  leases: Leases,
  planning: Planning,
): MoveRequest {
  return async (source, destination, blocks) => {
    state.demandOpen("read");
    const prepared = prepareRecords(
      source,
      destination,
      {
        source: source.handle,
        destination: destination.handle,
        partial: true,
        ...(blocks.layers === undefined ? undefined : { layers: blocks.layers }),
        ...(blocks.tokens === undefined ? undefined : { tokens: blocks.tokens }),
        ...(blocks.components === undefined ? undefined : { components: blocks.components }),
      },
      session.profile,
      planning.environment,
    );
    const plan = planPrepared(prepared, blocks.source, blocks.destination);
    leases.acquire(source.handle);
    leases.acquire(destination.handle);
    try {
      for (const leg of plan.legs) {
        for (const hop of leg.hops) {
          const executor = session.executors.get(hop.executor);
          if (executor === undefined)
            throw new KvferryError(
              "NO_ROUTE",
              "read",
              `nothing here can run a ${hop.executor} hop`,
              "Run `kvferry doctor`.",
              { executor: hop.executor },
            );
          const { promise, resolve } = Promise.withResolvers<HopOutcome>();
          executor.start(hop, { notification: null, watch: false }, resolve);
          const outcome = await promise;
          if (!outcome.ok) {
            const error = outcome.error ?? new KvferryError("IO", "read", "the copy failed", "Try again.");
            if (outcome.inDoubt) error.settlement = "in-doubt";
            throw error;
          }
        }
      }
    } finally {
      leases.release(source.handle);
      leases.release(destination.handle);
    }
  };
}
