import type { LayoutRecord } from "../core/layout.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { BlockSelection } from "../core/request.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { BlockIo } from "./block-io.ts";
import { blockMove } from "./block-move.ts";
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
import { groupsOf } from "./groups.ts";
import type { IdLists } from "./id-lists.ts";
import { Integrity, NO_STEPS, type IntegritySteps, type SideGroups } from "./integrity.ts";
import type { Leases } from "./leases.ts";
import type { Messenger } from "./messenger.ts";
import type { MetricsBook } from "./metrics.ts";
import { NeverStarted } from "./never-started.ts";
import type { Planning } from "./planning.ts";
import type { Session } from "./session.ts";
import type { MoveRequest } from "./side-sums.ts";
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
import { TransferNotices } from "./transfer-notices.ts";
import { Transfer } from "./transfer.ts";
import { startWhenReady, type WaitingParts } from "./waiting-start.ts";

/** Turns requests into running transfers. */
export class Submitter {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #engine: Engine;
  readonly #leases: Leases;
  readonly #planning: Planning;
  readonly #messenger: Messenger;
  readonly #neverStarted: NeverStarted;
  readonly #notices: TransferNotices;
  /** Moves blocks without asking whether they are good. */
  readonly #move: MoveRequest;
  /** Which blocks are bad, and how that is found out. */
  readonly integrity: Integrity;
  readonly #bounces: BounceLedger = new BounceLedger();
  readonly #ids: IdLists;
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
    this.#ids = session.ids;
    this.#state = state;
    this.#engine = engine;
    this.#leases = leases;
    this.#planning = planning;
    this.#messenger = messenger;
    this.#neverStarted = new NeverStarted(events, metrics);
    this.#notices = new TransferNotices(planning, messenger, events);
    this.#move = blockMove(session, state, leases, planning);
    const io = new BlockIo(session.context, leases, this.#move, session.stages);
    this.integrity = new Integrity(io, this.#move, session.sums);
  }

  /** Plans and starts a request. Never throws: what is refused rejects. */
  transfer(request: TransferRequest): Transfer {
    const transfer = this.#make(request);
    try {
      const asked = planRequest(request, this.copyIds);
      this.#start(transfer, request, () => this.#planning.plan(asked), {
        source: asked.sourceBlocks,
        destination: asked.destinationBlocks,
      });
    } catch (error) {
      this.#neverStarted.refuse(transfer, error);
    }
    return transfer;
  }

  /** Starts a transfer whose plan somebody else makes. */
  planned(options: TransferOptions, blocks: TransferBlocks, plan: () => TransferPlan): Transfer {
    const transfer = this.#make(options);
    try {
      this.#start(transfer, options, plan, blocks);
    } catch (error) {
      this.#neverStarted.refuse(transfer, error);
    }
    return transfer;
  }

  /** Moves blocks between layouts that need not be registered, for reading and writing single blocks. */
  async move(source: LayoutRecord, destination: LayoutRecord, blocks: MovedBlocks): Promise<void> {
    await this.integrity.checkMove(source, blocks.source);
    await this.#move(source, destination, blocks);
    await this.integrity.afterMove(destination, blocks.destination, blocks.layers === undefined);
  }

  /** A list of ids as this keeps it. */
  readonly copyIds = (blocks: BlockSelection): BlockSelection => this.#ids.copy(blocks);

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
      this.#neverStarted.abort(transfer, signal.reason);
      return;
    }
    // Refuse what is invalid now; what has to wait is planned again, on the snapshot of then.
    const planned = plan();
    if (options.bounce !== undefined) this.#bounceOf(options.bounce, planned, blocks);
    if (this.integrity.bad.any)
      this.integrity.demandGood(planned.source, this.#groupsOf(planned, blocks, options).source);
    const order = hasOrder(options) ? this.#orderOf(options, planned) : null;
    const first = after === undefined || after.length === 0;
    if (
      first &&
      !(order instanceof Promise) &&
      this.#engine.paused(agentOf(planned), planned) === undefined
    ) {
      this.#launch(transfer, options, planned, deadlineMillis, blocks, order, plan);
      return;
    }
    const notification = notificationOf(options);
    const kept = notification === null ? options : { ...options, notify: notification };
    const parts: WaitingParts = {
      clock: this.#session.clock,
      state: this.#state,
      engine: this.#engine,
      messenger: this.#messenger,
      neverStarted: this.#neverStarted,
      closeOrder: (opened) => this.#closeOrder(opened),
    };
    void startWhenReady(parts, {
      transfer,
      after: after ?? [],
      ordering: order,
      signal,
      deadlineMillis,
      plan,
      launch: (then, left, given) => this.#launch(transfer, kept, then, left, blocks, given),
    });
  }

  #orderOf(options: TransferOptions, plan: TransferPlan): CudaOrder | Promise<CudaOrder> {
    const { cuda } = this.#session;
    return resolveOrder(options, cuda, deviceOfPlan(plan) ?? cuda.defaultDevice);
  }

  #launch(
    transfer: Transfer,
    options: TransferOptions,
    asked: TransferPlan,
    deadlineMillis: number,
    blocks: TransferBlocks,
    order: CudaOrder | null,
    rehearse?: () => TransferPlan,
  ): void {
    const plan = order === null ? asked : orderedPlan(asked, order);
    const agent = agentOf(plan);
    const given = notificationOf(options);
    // The layout as it was planned: an update of its peer may take it out before this ends.
    const { snapshot } = this.#planning;
    // Messages for layers go out by themselves: the last message must not overtake them on the hop's own way.
    const layerNotified = typeof options.layerwise === "object" && options.layerwise.notify !== undefined;
    // Whoever is told that the data is there must not be told before it was compared, and hears first what is good again.
    const said = options.checksum === true || this.integrity.bad.has(plan.destination);
    const byHop = agent !== null && !layerNotified && !said;
    const notification = given === null || !byHop ? given : this.#messenger.escape(agent, given);
    const groups = this.#groupsOf(plan, blocks, options, snapshot);
    const task: Task = {
      plan,
      destinationBlocks: groups.destination,
      ...this.#stepsOf(plan, groups, options),
      notification,
      deadlineMillis,
      agent: agent ?? this.#messenger.peerOf(snapshot, plan)?.wireName ?? null,
      deliver: notification === null || byHop ? null : this.#notices.sender(plan),
      onLayer: this.#notices.forLayers(options, plan),
      order,
      bounce:
        options.bounce === undefined
          ? null
          : this.#bounces.source(this.#bounceOf(options.bounce, plan, blocks)),
      ...(rehearse === undefined ? undefined : { rehearse }),
    };
    const lent = options.bounce === undefined ? null : handleOf(options.bounce.layout);
    if (lent !== null) this.#leases.acquire(lent);
    this.#engine.run(transfer, task);
    if (lent !== null) void transfer.settled.then(() => this.#leases.release(lent));
    if (order !== null && order.opened.length > 0) {
      void transfer.settled.then(() => this.#closeOrder(order));
    }
    // Checks look at the ids once more when the bytes are there, and what is in doubt keeps them.
    const alone = (task.before ?? null) === null && (task.after ?? null) === null;
    if (alone && (this.#ids.has(blocks.source) || this.#ids.has(blocks.destination)))
      void transfer.settled.then(({ settlement }) => {
        // Who waits for the end goes first.
        if (settlement === "done") queueMicrotask(() => this.#takeBack(blocks));
      });
    const { signal } = options;
    if (signal === undefined || transfer.state !== "running") return;
    const onAbort = (): void => transfer.cancel(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    const forget = (): void => signal.removeEventListener("abort", onAbort);
    transfer.then(forget, forget);
  }

  #takeBack({ source, destination }: TransferBlocks): void {
    this.#ids.giveBack(source);
    this.#ids.giveBack(destination);
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
