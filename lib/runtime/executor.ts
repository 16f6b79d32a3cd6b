import type { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { Hop } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { ChunkSource } from "./chunks.ts";

/** How a hop ended, as far as the native side can tell. */
export interface HopOutcome {
  /** All bytes are where they belong. */
  readonly ok: boolean;
  readonly cancelled: boolean;
  /** Destination bytes may have been written. */
  readonly touched: boolean;
  /** Somebody may still be writing destination bytes. */
  readonly inDoubt: boolean;
  readonly bytes: number;
  readonly error: KvferryError | null;
}

/** What a hop needs to know beside its programs. */
export interface HopContext {
  /** Delivered to the peer after the data; only on the last hop. */
  readonly notification: Uint8Array | null;
  /** Report every completed program. */
  readonly watch: boolean;
  /** GPU work that comes first; executors that know no GPU are given a hop that waits before theirs. */
  readonly order?: CudaOrder | null;
  /** Staging memory that the caller lends to hops that need two; else the managed pool. */
  readonly bounce?: ChunkSource | null;
  /** Goes over what the next transfer will need, shortly before this one is foreseen to end. */
  readonly rehearse?: (() => void) | undefined;
  /** The layouts of both sides, for hops that a peer has to help with. */
  readonly source?: LayoutHandle;
  readonly destination?: LayoutHandle;
}

/** A hop that runs. */
export interface RunningHop {
  /** Asks it to stop at its next chunk. */
  cancel(): void;
  /** Leaves it to itself: nobody waits any more, its end is still reported. */
  abandon(): void;
  programsDone(): number;
  bytesDone(): number;
  /** It ended in doubt, and now it is proven that nothing touches the memory any more that it had borrowed. */
  quiet?(): void;
}

/**
 * Runs hops of one kind. `done` is called exactly once, perhaps before `start` returns.
 * `start` throws only when the hop never started.
 */
export interface Executor {
  start(hop: Hop, context: HopContext, done: (outcome: HopOutcome) => void): RunningHop;
}
