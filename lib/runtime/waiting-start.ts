import { KvferryError } from "../core/errors.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import type { Messenger } from "./messenger.ts";
import type { NeverStarted } from "./never-started.ts";
import type { TransportState } from "./state.ts";
import { agentOf } from "./submit.ts";
import type { Transfer } from "./transfer.ts";

/** What waiting works with. */
export interface WaitingParts {
  readonly clock: Clock;
  readonly state: TransportState;
  readonly engine: Engine;
  readonly messenger: Messenger;
  readonly neverStarted: NeverStarted;
  readonly closeOrder: (order: CudaOrder | null) => void;
}

/** A transfer that cannot start at once. */
export interface WaitingTransfer {
  readonly transfer: Transfer;
  readonly after: readonly Transfer[];
  readonly ordering: CudaOrder | Promise<CudaOrder> | null;
  readonly signal: AbortSignal | undefined;
  readonly deadlineMillis: number;
  readonly plan: () => TransferPlan;
  /** Starts it, with the milliseconds that are left. */
  readonly launch: (plan: TransferPlan, deadlineMillis: number, order: CudaOrder | null) => void;
}

/**
 * Starts a transfer once those before it are done, its order is known and its peer is ready; never when it is
 * cancelled or its time is over by then.
 */
export async function startWhenReady(parts: WaitingParts, waiting: WaitingTransfer): Promise<void> {
  const { clock, messenger, neverStarted } = parts;
  const { transfer, ordering, signal, deadlineMillis } = waiting;
  let launched = false;
  const { promise: stopped, resolve: stop } = Promise.withResolvers<Stop>();
  const onAbort = (): void => stop({ reason: signal?.reason, error: null });
  signal?.addEventListener("abort", onAbort, { once: true });
  const awaited: Awaited = { peer: null };
  const cancelTimer = clock.after(deadlineMillis, () => {
    const error = notReady(deadlineMillis, awaited);
    stop({ reason: error, error });
  });
  let stopping: Stop | undefined;
  transfer.attach(
    {
      cancel: (reason) => {
        stopping = stopOf(reason);
        stop(stopping);
      },
      progress: () => ({ done: 0, total: 0 }),
    },
    "waiting",
  );
  const startedAt = clock.now();
  // Somebody waits, perhaps for a peer's word: nothing else may hold the process until then.
  messenger.wait(true);
  try {
    const early = await Promise.race([turnOf(parts, waiting, awaited), stopped]);
    // Both may have come in the same turn: then it still never starts.
    if (signal?.aborted === true) stopping ??= { reason: signal.reason, error: null };
    if ("reason" in early) stopping ??= early;
    if (stopping !== undefined || "reason" in early) {
      if (stopping === undefined) return;
      if (stopping.error === null) neverStarted.abort(transfer, stopping.reason);
      else neverStarted.end(transfer, stopping.reason, stopping.error);
      return;
    }
    const left = Math.max(1, deadlineMillis - (clock.now() - startedAt));
    launched = true;
    waiting.launch(early.plan, left, early.order);
  } catch (error) {
    neverStarted.refuse(transfer, error);
  } finally {
    if (!launched)
      void Promise.resolve(ordering).then(
        (order) => parts.closeOrder(order),
        () => undefined,
      );
    cancelTimer();
    signal?.removeEventListener("abort", onAbort);
    messenger.wait(false);
  }
}

/** Why a waiting transfer never starts. Without an error: a signal or a caller gave a reason of its own. */
interface Stop {
  readonly reason: unknown;
  readonly error: KvferryError | null;
}

interface Turn {
  readonly plan: TransferPlan;
  readonly order: CudaOrder | null;
}

/** What a transfer waits for. */
interface Awaited {
  /** The agent of a peer that is not ready; null for other transfers and events. */
  peer: string | null;
}

/** Waits for other transfers, and for a peer that is not ready; the plan is one of then. */
async function turnOf(
  { state, engine }: WaitingParts,
  { ordering, after, plan }: WaitingTransfer,
  awaited: Awaited,
): Promise<Turn> {
  const [order] = await Promise.all([
    ordering,
    ...after.map((before) => before.then(() => undefined, wrapPredecessor)),
  ]);
  for (;;) {
    state.demandOpen("transfer");
    const planned = plan();
    const agent = agentOf(planned);
    const paused = engine.paused(agent, planned);
    if (paused === undefined) return { plan: planned, order };
    awaited.peer = agent;
    await paused;
  }
}

function notReady(deadlineMillis: number, { peer }: Awaited): KvferryError {
  return peer === null
    ? new KvferryError(
        "TIMEOUT",
        "transfer",
        `the transfers before this one did not end within ${deadlineMillis} ms`,
        "Give it a longer deadlineMs.",
        { deadlineMillis },
      )
    : new KvferryError(
        "TIMEOUT",
        "transfer",
        `peer ${peer} was not ready within ${deadlineMillis} ms: it did not say that it knows of its import, before which its memory is not touched, or is being updated`,
        "Check that it lives, that the workers can reach each other both ways, and that their NIXL releases can connect (1.3 with later ones on one host: UCX_TLS=tcp,self, on machines with GPUs tcp,self,cuda).",
        { deadlineMillis, agent: peer },
      );
}

function stopOf(reason: unknown): Stop {
  if (reason !== undefined) return { reason, error: reason instanceof KvferryError ? reason : null };
  const error = new KvferryError(
    "CLOSED",
    "transfer",
    "the transfer was cancelled",
    "Start it again if it is still wanted.",
  );
  return { reason: error, error };
}

function wrapPredecessor(cause: unknown): never {
  throw new KvferryError(
    "IN_USE",
    "transfer",
    "a transfer that must be done before this one failed",
    "See the cause; start both again.",
    {},
    cause,
  );
}
