import type { KvferryError, Settlement } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { ExecutorName, TransferPlan } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { Clock } from "./deadlines.ts";
import type { Executor } from "./executor.ts";
import type { BlockGroups } from "./leases.ts";
import type { ChunkSource } from "./chunks.ts";

/** After its deadline a transfer is asked to stop; this much later it is settled whatever it does. */
export const SETTLE_BOUND_MILLIS = 250;

/** A planned transfer, ready to run. */
export interface Task {
  readonly plan: TransferPlan;
  /** The destination's blocks, by block-id space: what goes into quarantine when the end is in doubt. */
  readonly destinationBlocks: () => BlockGroups;
  readonly notification: Uint8Array | null;
  readonly deadlineMillis: number;
  /** Wire name of the peer that takes part; null for local transfers. */
  readonly agent: string | null;
  /** Delivers the notification after the last hop; null when that hop itself carries it. */
  readonly deliver: ((payload: Uint8Array) => void) | null;
  /** Called for each layer that became readable. */
  readonly onLayer: ((layer: number) => void) | null;
  /** GPU work that comes first. */
  readonly order?: CudaOrder | null;
  /** Staging memory that the caller lends. */
  readonly bounce?: ChunkSource | null;
  /** Plans the same once more, so that what planning needs is in the processor's caches; changes nothing. */
  readonly rehearse?: () => void;
  /** What is checked before the first hop and after the last one; an error fails the transfer. */
  readonly before?: (() => Promise<KvferryError | null>) | null;
  readonly after?: (() => Promise<KvferryError | null>) | null;
}

/** What the engine needs from the world; a simulation gives its own. */
export interface EngineEffects {
  readonly clock: Clock;
  readonly executor: (name: ExecutorName) => Executor | undefined;
  /** Told once for each transfer, when its outcome is known to its owner. */
  readonly report: (ended: EndedTransfer) => void;
  readonly quarantine: (
    change: "begin" | "end",
    layout: LayoutHandle,
    blocks: BlockGroups,
    reason: string,
  ) => void;
  /** Path of an open file by its number, for errors. */
  readonly fileName?: (file: number) => string | undefined;
  /** Milliseconds since 1970, for people. */
  readonly wallClock: () => number;
}

/** A transfer whose outcome is known. */
export interface EndedTransfer {
  readonly id: number;
  readonly plan: TransferPlan;
  readonly settlement: Settlement;
  readonly bytes: number;
  readonly durationMicros: number;
  readonly error: KvferryError | null;
}
