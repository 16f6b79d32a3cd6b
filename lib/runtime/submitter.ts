import { KvferryError } from "../core/errors.ts";
import type { LayoutRecord } from "../core/layout.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { BlockSelection } from "../core/request.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { planPrepared } from "../core/planner.ts";
import { prepareRecords } from "../core/prepare.ts";
import { BlockIo } from "./block-io.ts";
import { BounceLedger, checkedBounce, type BounceBlocks } from "./bounce.ts";
import {
  closeOrder,
  deviceOfPlan,
  hasOrder,
  orderedPlan,
  resolveOrder,
  type CudaOrder,
} from "./cuda-order.ts";
import type { Engine } from "./engine.ts";
import type { Task } from "./task.ts";
import type { EventHub } from "./events.ts";
import type { HopOutcome } from "./executor.ts";
import { groupsOf } from "./groups.ts";
import { payloadBytes } from "./notifications.ts";
import { Integrity, NO_STEPS, type IntegritySteps, type SideGroups } from "./integrity.ts";
import type { MoveRequest } from "./side-sums.ts";
import type { Leases } from "./leases.ts";
import type { Messenger } from "./messenger.ts";
import type { MetricsBook } from "./metrics.ts";
import type { Planning } from "./planning.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";
import {
  agentOf,
  blockGroups,
  deadlineOf,
  handleOf,
  notificationOf,
  planRequest,
  type TransferOptions,
  type TransferRequest,
} from "./submit.ts";
import { Transfer } from "./transfer.ts";

/** Turns requests into running transfers. */
export class Submitter {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #engine: Engine;
  readonly #leases: Leases;
  readonly #planning: Planning;
  readonly #messenger: Messenger;
  readonly #events: EventHub;
  readonly #metrics: MetricsBook;
  /** Which blocks are bad, and how that is found out. */
  readonly integrity: Integrity;
  readonly #bounces: BounceLedger = new BounceLedger();
  #lastId = 0;

  constructor(
    session: Session,
    state: TransportState,
    engine: Engine,
    leases: Leases,
    planning: Planning,
    messenger: Messenger,
    events: EventHub,
    metrics: MetricsBook,
  ) {
    this.#session = session;
    this.#state = state;
    this.#engine = engine;
    this.#leases = leases;
    this.#planning = planning;
    this.#messenger = messenger;
    this.#events = events;
    this.#metrics = metrics;
    this.integrity = new Integrity(
      new BlockIo(session.context, leases, this.moveUnchecked, session.stages),
      this.moveUnchecked,
      session.sums,
    );
  }

  /** Plans and starts a request. Never throws: what is refused rejects. */
  transfer(request: TransferRequest): Transfer {
    const transfer = this.#make(request);
    try {
      const asked = planRequest(request);
      this.#start(transfer, request, () => this.#planning.plan(asked), {
        source: asked.sourceBlocks,
        destination: asked.destinationBlocks,
      });
    } catch (error) {
      this.#refuse(transfer, error);
    }
    return transfer;
  }

  /** Starts a transfer whose plan somebody else makes. */
  planned(options: TransferOptions, blocks: TransferBlocks, plan: () => TransferPlan): Transfer {
    const transfer = this.#make(options);
    try {
      this.#start(transfer, options, plan, blocks);
    } catch (error) {
      this.#refuse(transfer, error);
    }
    return transfer;
  }

  /** Moves blocks between layouts that need not be registered, for reading and writing single blocks. */
  async move(source: LayoutRecord, destination: LayoutRecord, blocks: MovedBlocks): Promise<void> {
    await this.integrity.checkMove(source, blocks.source);
    await this.moveUnchecked(source, destination, blocks);
    await this.integrity.afterMove(destination, blocks.destination, blocks.layers === undefined);
  }

  /** The same without asking whether blocks are good. */
  readonly moveUnchecked: MoveRequest = async (source, destination, blocks) => {
    this.#state.demandOpen("read");
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
      this.#session.profile,
      this.#planning.environment,
    );
    const plan = planPrepared(prepared, blocks.source, blocks.destination);
    this.#leases.acquire(source.handle);
    this.#leases.acquire(destination.handle);
    try {
      for (const leg of plan.legs) {
        for (const hop of leg.hops) {
          const executor = this.#session.executors.get(hop.executor);
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
      this.#leases.release(source.handle);
      this.#leases.release(destination.handle);
    }
  };

  #make(options: TransferOptions): Transfer {
    // What was given may be no request at all: that is refused like everything else.
    const layerwise: unknown = (options as TransferOptions | undefined | null)?.layerwise;
    return new Transfer(++this.#lastId, layerwise !== undefined && layerwise !== false);
  }

  #start(
    transfer: Transfer,
    options: TransferOptions,
    plan: () => TransferPlan,
    blocks: TransferBlocks,
  ): void {
    this.#state.demandOpen("transfer");
    const deadlineMillis = deadlineOf(options, this.#session.options.deadlineMillis);
    const { signal, after } = options;
    if (signal?.aborted === true) {
      this.#abort(transfer, signal.reason);
      return;
    }
    // Refuse what is invalid now; what has to wait is planned again, on the snapshot of then.
    const planned = plan();
    if (options.bounce !== undefined) this.#bounceOf(options.bounce, planned, blocks);
    if (this.integrity.bad.any)
      this.integrity.demandGood(planned.source, this.#groupsOf(planned, blocks, options).source);
    const order = hasOrder(options) ? this.#orderOf(options, planned) : null;
    const first = after === undefined || after.length === 0;
    if (first && !(order instanceof Promise) && this.#engine.paused(agentOf(planned)) === undefined) {
      this.#launch(transfer, options, planned, deadlineMillis, blocks, order);
      return;
    }
    const notification = notificationOf(options);
    const kept = notification === null ? options : { ...options, notify: notification };
    void this.#startAfter(transfer, kept, plan, deadlineMillis, blocks, after ?? [], order);
  }

  #orderOf(options: TransferOptions, plan: TransferPlan): CudaOrder | Promise<CudaOrder> {
    const { cuda } = this.#session;
    return resolveOrder(options, cuda, deviceOfPlan(plan) ?? cuda.defaultDevice);
  }

  async #startAfter(
    transfer: Transfer,
    options: TransferOptions,
    plan: () => TransferPlan,
    deadlineMillis: number,
    blocks: TransferBlocks,
    after: readonly Transfer[],
    ordering: CudaOrder | Promise<CudaOrder> | null,
  ): Promise<void> {
    const { signal } = options;
    let launched = false;
    const { promise: stopped, resolve: stop } = Promise.withResolvers<Stop>();
    const onAbort = (): void => stop({ reason: signal?.reason, error: null });
    signal?.addEventListener("abort", onAbort, { once: true });
    const { clock } = this.#session;
    const cancelTimer = clock.after(deadlineMillis, () => {
      const error = new KvferryError(
        "TIMEOUT",
        "transfer",
        `the transfers before this one did not end within ${deadlineMillis} ms`,
        "Give it a longer deadlineMs.",
        { deadlineMillis },
      );
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
    this.#messenger.wait(true);
    try {
      const early = await Promise.race([this.#turn(ordering, after, plan), stopped]);
      // Both may have come in the same turn: then it still never starts.
      if (signal?.aborted === true) stopping ??= { reason: signal.reason, error: null };
      if ("reason" in early) stopping ??= early;
      if (stopping !== undefined || "reason" in early) {
        if (stopping === undefined) return;
        if (stopping.error === null) this.#abort(transfer, stopping.reason);
        else this.#neverStarted(transfer, stopping.reason, stopping.error);
        return;
      }
      const left = Math.max(1, deadlineMillis - (clock.now() - startedAt));
      launched = true;
      this.#launch(transfer, options, early.plan, left, blocks, early.order);
    } catch (error) {
      this.#refuse(transfer, error);
    } finally {
      if (!launched)
        void Promise.resolve(ordering).then(
          (order) => this.#closeOrder(order),
          () => undefined,
        );
      cancelTimer();
      signal?.removeEventListener("abort", onAbort);
      this.#messenger.wait(false);
    }
  }

  /** Waits for other transfers, and for a peer that is being renewed; the plan is one of then. */
  async #turn(
    ordering: CudaOrder | Promise<CudaOrder> | null,
    after: readonly Transfer[],
    plan: () => TransferPlan,
  ): Promise<{ readonly plan: TransferPlan; readonly order: CudaOrder | null }> {
    const [order] = await Promise.all([
      ordering,
      ...after.map((before) => before.then(() => undefined, wrapPredecessor)),
    ]);
    for (;;) {
      this.#state.demandOpen("transfer");
      const planned = plan();
      const paused = this.#engine.paused(agentOf(planned));
      if (paused === undefined) return { plan: planned, order };
      await paused;
    }
  }

  #launch(
    transfer: Transfer,
    options: TransferOptions,
    asked: TransferPlan,
    deadlineMillis: number,
    blocks: TransferBlocks,
    order: CudaOrder | null,
  ): void {
    const plan = order === null ? asked : orderedPlan(asked, order);
    const agent = agentOf(plan);
    const given = notificationOf(options);
    // The layout as it was planned: an update of its peer may take it out before this ends.
    const { snapshot } = this.#planning;
    // Messages for layers go out by themselves: the last message must not overtake them on the hop's own way.
    const layerNotified = typeof options.layerwise === "object" && options.layerwise.notify !== undefined;
    // Whoever is told that the data is there must not be told before it was compared.
    const byHop = agent !== null && !layerNotified && options.checksum !== true;
    const notification = given === null || !byHop ? given : this.#messenger.escape(agent, given);
    const groups = this.#groupsOf(plan, blocks, options, snapshot);
    const task: Task = {
      plan,
      destinationBlocks: groups.destination,
      ...this.#stepsOf(plan, groups, options),
      notification,
      deadlineMillis,
      agent: agent ?? this.#messenger.peerOf(snapshot, plan)?.wireName ?? null,
      deliver: notification === null || byHop ? null : this.#sender(plan),
      onLayer: this.#layerNotifier(options, plan),
      order,
      bounce:
        options.bounce === undefined
          ? null
          : this.#bounces.source(this.#bounceOf(options.bounce, plan, blocks)),
    };
    const lent = options.bounce === undefined ? null : handleOf(options.bounce.layout);
    if (lent !== null) this.#leases.acquire(lent);
    this.#engine.run(transfer, task);
    if (lent !== null) void transfer.settled.then(() => this.#leases.release(lent));
    if (order !== null && order.opened.length > 0) {
      void transfer.settled.then(() => this.#closeOrder(order));
    }
    const { signal } = options;
    if (signal === undefined || transfer.state !== "running") return;
    const onAbort = (): void => transfer.cancel(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    const forget = (): void => signal.removeEventListener("abort", onAbort);
    transfer.then(forget, forget);
  }

  /** Checks beside the hops, where both sides can be read here. */
  #stepsOf(plan: TransferPlan, groups: SideGroups, options: TransferOptions): IntegritySteps {
    if (options.checksum !== true && !this.integrity.concerned) return NO_STEPS;
    const source = this.#planning.record(plan.source, "transfer");
    const destination = this.#planning.record(plan.destination, "transfer");
    return this.integrity.steps(source, destination, plan, groups, options);
  }

  #groupsOf(
    plan: TransferPlan,
    blocks: TransferBlocks,
    options: TransferOptions,
    snapshot: RegistrySnapshot = this.#planning.snapshot,
  ): SideGroups {
    return {
      source: () => blockGroups(blocks.source, groupsOf(snapshot, plan.source, options.components)),
      destination: () =>
        blockGroups(blocks.destination, groupsOf(snapshot, plan.destination, options.components)),
    };
  }

  /** The blocks that the caller lends, checked like any other list. */
  #bounceOf(
    { layout, blocks }: NonNullable<TransferOptions["bounce"]>,
    plan: TransferPlan,
    moved: TransferBlocks,
  ): BounceBlocks {
    return checkedBounce(
      this.#planning.record(handleOf(layout), "transfer"),
      blocks as readonly number[],
      { plan, source: moved.source, destination: moved.destination },
      this.#leases,
    );
  }

  /** Lets go of the events that were opened for an order. */
  #closeOrder(order: CudaOrder | null): void {
    const { driver } = this.#session.cuda;
    if (order !== null && driver !== null) void closeOrder(order, driver);
  }

  /** How a notification goes out when no hop carries it: to the peer that takes part, else to ourselves. */
  #sender(plan: TransferPlan): (payload: Uint8Array | string) => void {
    const peer = this.#messenger.peerOf(this.#planning.snapshot, plan);
    if (peer === null) return (payload) => this.#messenger.deliverHere(payloadBytes(payload));
    return (payload) => {
      this.#messenger.notify(peer, payload).catch((error: unknown) => this.#undelivered(error));
    };
  }

  #layerNotifier(options: TransferOptions, plan: TransferPlan): ((layer: number) => void) | null {
    const { layerwise } = options;
    if (typeof layerwise !== "object" || layerwise.notify === undefined) return null;
    const { notify } = layerwise;
    const send = this.#sender(plan);
    return (layer) => {
      try {
        send(notify(layer));
      } catch (error) {
        // A mistake in a caller's function does not disturb the transfer.
        this.#undelivered(error);
      }
    };
  }

  #undelivered(error: unknown): void {
    this.#events.emit("warning", {
      code: "NOTIFICATION",
      message: `a notification was not delivered: ${error instanceof Error ? error.message : String(error)}`,
    });
  }

  #refuse(transfer: Transfer, reason: unknown): void {
    const error =
      reason instanceof KvferryError
        ? reason
        : new KvferryError(
            "INVALID_CONFIG",
            "transfer",
            reason instanceof Error ? reason.message : String(reason),
            "See the cause.",
            {},
            reason,
          );
    this.#neverStarted(transfer, error, error);
  }

  #abort(transfer: Transfer, reason: unknown): void {
    this.#neverStarted(
      transfer,
      reason,
      new KvferryError(
        "CLOSED",
        "transfer",
        "the transfer was aborted before it started",
        "Start it again if it is still wanted.",
        { id: transfer.id },
        reason,
      ),
    );
  }

  #neverStarted(transfer: Transfer, reason: unknown, error: KvferryError): void {
    error.settlement = "never-started";
    transfer.fail(reason, { done: 0, total: 0 });
    transfer.settle({ settlement: "never-started", proof: "never-started" });
    this.#metrics.refused(error.code);
    this.#events.emit("transfer", {
      id: transfer.id,
      route: "",
      settlement: "never-started",
      bytes: 0,
      descriptors: 0,
      durationMicros: 0,
      error,
    });
  }
}

/** What is read or written block by block. */
export interface MovedBlocks {
  readonly source: Uint32Array;
  readonly destination: Uint32Array;
  readonly layers: { readonly start: number; readonly end: number } | undefined;
}

/** The ids of both sides of a transfer, which nobody changes any more. */
export interface TransferBlocks {
  readonly source: BlockSelection;
  readonly destination: BlockSelection;
}

/** Why a waiting transfer never starts. Without an error: a signal or a caller gave a reason of its own. */
interface Stop {
  readonly reason: unknown;
  readonly error: KvferryError | null;
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
