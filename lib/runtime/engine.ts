import { KvferryError, type ErrorWord, type Settlement } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { ExecutorName, Hop, TransferPlan } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { Clock } from "./deadlines.ts";
import { Deadlines, type Expiring } from "./deadlines.ts";
import type { Executor, HopOutcome, RunningHop } from "./executor.ts";
import type { ChunkSource } from "./staging-pool.ts";
import { layerNeeds, type LayerNeed } from "./layer-progress.ts";
import type { BlockGroups, Leases } from "./leases.ts";
import type { SettledTransfer, Transfer, TransferControl } from "./transfer.ts";

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

/**
 * Runs planned transfers hop by hop and settles each exactly once: done, never-started or in-doubt.
 *
 * It holds a lease on both layouts until nobody can touch their memory; destination blocks of a transfer that ended
 * in doubt stay in quarantine until that is proven.
 */
export class Engine {
  readonly #effects: EngineEffects;
  readonly #leases: Leases;
  readonly #deadlines: Deadlines;
  readonly #running: Set<Run> = new Set();
  readonly #doubtful: Set<Run> = new Set();
  readonly #watched: Set<Run> = new Set();
  readonly #reached: Set<string> = new Set();
  #idleWaiters: (() => void)[] = [];
  /** Who waits for transfers to end for good, with those that they wait for. */
  readonly #barriers: Set<{ readonly open: Set<Run>; readonly resolve: () => void }> = new Set();
  /** Peers with whom no transfer may start now. */
  readonly #paused: Map<string, Set<Promise<void>>> = new Map();

  constructor(effects: EngineEffects, leases: Leases) {
    this.#effects = effects;
    this.#leases = leases;
    this.#deadlines = new Deadlines(effects.clock);
  }

  /** Transfers whose owner does not know their outcome yet. */
  get runningCount(): number {
    return this.#running.size;
  }

  /** Transfers that ended in doubt and are not proven quiet. */
  get doubtfulCount(): number {
    return this.#doubtful.size;
  }

  /** Starts a task for a transfer. Leases are taken here and given back when nobody can touch the memory. */
  run(transfer: Transfer, task: Task): void {
    this.#leases.acquire(task.plan.source);
    this.#leases.acquire(task.plan.destination);
    const run = new Run(this, transfer, task);
    this.#running.add(run);
    transfer.attach(run, "running");
    run.begin();
  }

  /** Looks at the progress of layer-wise transfers; called when the native side says that there is some. */
  progress(): void {
    for (const run of this.#watched) run.reportLayers();
  }

  /** Ends every transfer with a peer that is known to be gone; what it may still touch stays in quarantine. */
  failAgent(agent: string, error: KvferryError): void {
    this.#reached.delete(agent);
    for (const run of this.#running) if (run.task.agent === agent) giveUpWith(run, error);
  }

  /**
   * It is proven that nothing of this process touches the blocks of doubtful transfers any more: all native work has
   * ended.
   */
  proveQuiet(match: (agent: string | null) => boolean, proof: SettledTransfer["proof"]): void {
    for (const run of this.#doubtful) if (match(run.task.agent)) run.proven(proof);
  }

  /** A peer's process has ended: doubtful transfers with it are proven once their own native work has ended too. */
  agentGone(agent: string): void {
    for (const run of this.#doubtful) if (run.task.agent === agent) run.peerGone();
  }

  /** Settles what is still in doubt without proof: the transport is gone, and what it held stays held. */
  settleClosed(): void {
    for (const run of this.#doubtful) run.transfer.settle({ settlement: "in-doubt", proof: "closed" });
  }

  /** Whether a transfer that matches runs or is in doubt. */
  anyOpen(match: (task: Task) => boolean): boolean {
    for (const set of [this.#running, this.#doubtful])
      for (const run of set) if (match(run.task)) return true;
    return false;
  }

  /** Resolves when all transfers that match and exist now have ended for good: done, or proven quiet. */
  whenQuiet(match: (task: Task) => boolean): Promise<void> {
    const open = new Set<Run>();
    for (const set of [this.#running, this.#doubtful])
      for (const run of set) if (match(run.task)) open.add(run);
    if (open.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#barriers.add({ open, resolve }));
  }

  /** Cancels everything that runs. */
  cancelAll(error: KvferryError): void {
    for (const run of this.#running) run.cancel(copyOf(error));
  }

  /** Gives up on everything that still runs: it is settled now, in doubt where something may have been touched. */
  giveUpAll(error: KvferryError): void {
    for (const run of this.#running) giveUpWith(run, error);
  }

  /** Lets no transfer with a peer start until the returned function is called. */
  pause(agent: string): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    const pauses = this.#paused.get(agent) ?? new Set();
    this.#paused.set(agent, pauses.add(promise));
    return () => {
      pauses.delete(promise);
      if (pauses.size === 0 && this.#paused.get(agent) === pauses) this.#paused.delete(agent);
      resolve();
    };
  }

  /** Resolves when transfers with the peer may start again; undefined when they may now. */
  paused(agent: string | null): Promise<void> | undefined {
    if (agent === null || this.#paused.size === 0) return undefined;
    const [pause] = this.#paused.get(agent) ?? [];
    return pause;
  }

  /** Resolves when no outcome of a transfer with the peer is open. */
  async ended(agent: string): Promise<void> {
    const running = [...this.#running].filter((run) => run.task.agent === agent);
    await Promise.allSettled(running.map((run) => run.transfer));
  }

  /** Resolves when no transfer's outcome is open. */
  idle(): Promise<void> {
    return this.#running.size === 0
      ? Promise.resolve()
      : new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** Takes back every timer. */
  stop(): void {
    this.#deadlines.clear();
  }

  // ---- what a run does to the engine; for this file only ----

  get effects(): EngineEffects {
    return this.#effects;
  }

  get deadlines(): Deadlines {
    return this.#deadlines;
  }

  get leases(): Leases {
    return this.#leases;
  }

  /** Whether any bytes were ever moved to or from that peer. */
  reached(agent: string): boolean {
    return this.#reached.has(agent);
  }

  noteReached(agent: string): void {
    if (!this.#reached.has(agent)) this.#reached.add(agent);
  }

  watch(run: Run): void {
    this.#watched.add(run);
  }

  concluded(run: Run, inDoubt: boolean): void {
    this.#running.delete(run);
    this.#watched.delete(run);
    if (inDoubt) this.#doubtful.add(run);
    else if (this.#barriers.size > 0) this.#pass(run);
    if (this.#running.size > 0 || this.#idleWaiters.length === 0) return;
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const waiter of waiters) waiter();
  }

  quiet(run: Run): void {
    this.#doubtful.delete(run);
    if (this.#barriers.size > 0) this.#pass(run);
  }

  #pass(run: Run): void {
    for (const barrier of this.#barriers) {
      barrier.open.delete(run);
      if (barrier.open.size > 0) continue;
      this.#barriers.delete(barrier);
      barrier.resolve();
    }
  }
}

/** One transfer on its way. */
class Run implements TransferControl, Expiring {
  readonly engine: Engine;
  readonly transfer: Transfer;
  readonly task: Task;
  readonly #hops: readonly Hop[];
  readonly #startedAt: number;
  readonly #layerNeeds: readonly LayerNeed[];
  #hopIndex = 0;
  #hop: RunningHop | undefined;
  /** Ended in doubt: it keeps what it borrowed until there is proof. */
  #doubtfulHop: RunningHop | undefined;
  #bytesBefore = 0;
  #touched = false;
  #bucket = -1;
  #layersReported = 0;
  #stopping: { error: KvferryError; reason: unknown } | undefined;
  readonly #checked: Set<"before" | "after"> = new Set();
  #concluded = false;
  #quiet = false;
  #peerGone = false;
  #quarantinedBlocks: BlockGroups | undefined;

  constructor(engine: Engine, transfer: Transfer, task: Task) {
    this.engine = engine;
    this.transfer = transfer;
    this.task = task;
    // Several legs (one for each destination) will be settled each on its own; today's plans have one.
    this.#hops = task.plan.legs.flatMap((leg) => leg.hops);
    this.#startedAt = engine.effects.clock.now();
    this.#layerNeeds = task.plan.layers === null ? [] : layerNeeds(task.plan.layers, this.#hops);
  }

  begin(): void {
    if (this.task.plan.layers !== null) this.engine.watch(this);
    this.#next();
    // Something that ran inside may have asked it to stop: then its deadline is another one already.
    if (!this.#concluded && this.#stopping === undefined)
      this.#bucket = this.engine.deadlines.add(this.task.deadlineMillis, this);
  }

  cancel(reason: unknown): void {
    const error =
      reason instanceof KvferryError
        ? reason
        : new KvferryError(
            "CLOSED",
            "transfer",
            "the transfer was cancelled",
            "Start it again if it is still wanted.",
            { id: this.transfer.id },
            reason,
          );
    this.#stop(error, reason === undefined ? error : reason);
  }

  expire(): void {
    if (this.#concluded) return;
    if (this.#stopping !== undefined) {
      this.giveUp(this.#stopping.error, this.#stopping.reason);
      return;
    }
    const error = this.#timeout();
    this.#stop(error, error);
  }

  progress(): { readonly done: number; readonly total: number } {
    return { done: this.#bytesBefore + (this.#hop?.bytesDone() ?? 0), total: this.task.plan.bytes };
  }

  reportLayers(): void {
    for (;;) {
      const need = this.#layerNeeds[this.#layersReported];
      if (need === undefined || !this.#layerComplete(need)) return;
      this.#layersReported++;
      this.transfer.layerArrived(need.layer);
      this.task.onLayer?.(need.layer);
    }
  }

  /** Settles now, whatever the hop does; its memory stays leased until it ends. */
  giveUp(error: KvferryError, reason: unknown): void {
    if (this.#concluded) return;
    // Some hops end at once when they are told to stop: for this reason then.
    this.#stopping ??= { error, reason };
    this.#hop?.cancel();
    if (this.#concluded) return;
    this.#hop?.abandon();
    if (this.#concluded) return;
    this.#fail(error, reason, this.#hop !== undefined || this.#touched, this.#hop !== undefined);
  }

  /** Nobody can touch the destination any more. */
  proven(proof: SettledTransfer["proof"]): void {
    if (this.#quiet) return;
    this.#quiet = true;
    this.engine.quiet(this);
    this.#doubtfulHop?.quiet?.();
    if (this.#quarantinedBlocks !== undefined) {
      this.engine.leases.lift(this.task.plan.destination, this.#quarantinedBlocks);
      this.engine.effects.quarantine("end", this.task.plan.destination, this.#quarantinedBlocks, proof);
    }
    this.#releaseLeases();
    this.transfer.settle({ settlement: "in-doubt", proof });
  }

  /** The peer's process has ended: what is proven once nothing here runs for the transfer either. */
  peerGone(): void {
    this.#peerGone = true;
    if (this.#hop === undefined) this.proven("peer-gone");
  }

  /** Runs a check and goes on when it holds. @returns Whether there was one. */
  #checks(step: "before" | "after"): boolean {
    const check = this.task[step];
    if (check === undefined || check === null || this.#checked.has(step)) return false;
    this.#checked.add(step);
    check()
      .catch((error: unknown) => asError(error))
      .then((error) => {
        if (this.#concluded) return;
        // All hops ended, or none began: nobody writes, whatever the check found.
        if (error === null) this.#next();
        else this.#fail(error, error, this.#touched, false, error.settlement === "done");
      });
    return true;
  }

  #next(): void {
    while (!this.#concluded) {
      const hop = this.#hops[this.#hopIndex];
      if (this.#hopIndex === 0 && this.#stopping === undefined && this.#checks("before")) return;
      if (hop === undefined) {
        if (this.#stopping === undefined && this.#checks("after")) return;
        if (this.#stopping !== undefined && this.task.after) {
          this.#fail(this.#stopping.error, this.#stopping.reason, this.#touched, false);
          return;
        }
        this.#succeed();
        return;
      }
      if (this.#stopping !== undefined) {
        this.#fail(this.#stopping.error, this.#stopping.reason, this.#touched, false);
        return;
      }
      let ended: HopOutcome | undefined;
      let returned = false;
      try {
        const executor = this.engine.effects.executor(hop.executor);
        if (executor === undefined) throw missingExecutor(hop);
        const last = this.#hopIndex === this.#hops.length - 1;
        const running = executor.start(
          hop,
          {
            notification:
              last && hop.agent !== null && this.task.deliver === null ? this.task.notification : null,
            watch: this.task.plan.layers !== null,
            order: this.#orderOf(hop),
            bounce: this.task.bounce ?? null,
            source: this.task.plan.source,
            destination: this.task.plan.destination,
          },
          (outcome) => {
            if (!returned) ended = outcome;
            else this.#ended(hop, outcome);
          },
        );
        returned = true;
        if (ended === undefined) {
          this.#hop = running;
          return;
        }
        if ((ended as HopOutcome).inDoubt) this.#doubtfulHop = running; // set inside the call
      } catch (error) {
        const failure = asError(error);
        this.#fail(failure, failure, this.#touched, false);
        return;
      }
      if (!this.#hopDone(hop, ended)) return;
    }
  }

  /** The stream holds up the first hop only, events whichever hop moves their layers. */
  #orderOf(hop: Hop): CudaOrder | null {
    const { order } = this.task;
    if (order === undefined || order === null || hop.executor !== "cuda") return null;
    return this.#hopIndex === 0 ? order : { ...order, stream: 0 };
  }

  #ended(hop: Hop, outcome: HopOutcome): void {
    if (outcome.inDoubt) this.#doubtfulHop = this.#hop;
    this.#hop = undefined;
    if (this.#concluded) {
      // The owner was told already; this late end may be the proof that the quarantine waits for.
      if (!outcome.inDoubt) this.proven("backend-ended");
      else if (this.#peerGone) this.proven("peer-gone");
      return;
    }
    if (this.#hopDone(hop, outcome)) this.#next();
  }

  /** @returns Whether the next hop may start. */
  #hopDone(hop: Hop, outcome: HopOutcome): boolean {
    if (outcome.touched || outcome.ok) this.#touched = true;
    if (outcome.ok) {
      if (hop.agent !== null) this.engine.noteReached(hop.agent);
      this.#bytesBefore += hop.bytes;
      this.#hopIndex++;
      if (this.task.plan.layers !== null) this.reportLayers();
      return true;
    }
    const stopping = this.#stopping;
    const error = stopping?.error ?? outcome.error ?? missingReason(hop);
    this.#fail(error, stopping === undefined ? error : stopping.reason, this.#touched, outcome.inDoubt);
    return false;
  }

  #layerComplete(need: LayerNeed): boolean {
    if (this.#hopIndex !== need.hop) return this.#hopIndex > need.hop;
    return (this.#hop?.programsDone() ?? 0) >= need.programs;
  }

  #timeout(): KvferryError {
    const { agent, deadlineMillis, plan } = this.task;
    const unreached = agent !== null && !this.engine.reached(agent) && this.progress().done === 0;
    const files = this.#files();
    return new KvferryError(
      "TIMEOUT",
      "transfer",
      `the transfer did not finish within ${deadlineMillis} ms${files.length > 0 ? `; it reads or writes ${files.join(", ")}` : ""}${unreached ? "; no byte has ever reached the peer" : ""}`,
      unreached
        ? "Check that the workers can reach each other and that their NIXL releases can connect (1.3 with later ones on one host: UCX_TLS=tcp,self)."
        : "Give it a longer deadlineMs, or look at explain(request) for why it is slow.",
      {
        id: this.transfer.id,
        deadlineMillis,
        route: plan.route,
        agent,
        everReached: !unreached,
        ...(files.length > 0 ? { files } : undefined),
      },
    );
  }

  /** Paths of the files of this process that take part. */
  #files(): string[] {
    const { fileName } = this.engine.effects;
    const names = new Set<string>();
    for (const { hops } of this.task.plan.legs)
      for (const { programs } of hops)
        for (const { srcMemory, dstMemory } of programs)
          for (const { kind, device } of [srcMemory, dstMemory]) {
            const name = kind === 2 ? fileName?.(device) : undefined;
            if (name !== undefined) names.add(name);
          }
    return [...names];
  }

  #stop(error: KvferryError, reason: unknown): void {
    if (this.#concluded || this.#stopping !== undefined) return;
    this.#stopping = { error, reason };
    if (this.#bucket >= 0) this.engine.deadlines.remove(this.#bucket, this);
    this.#bucket = this.engine.deadlines.add(SETTLE_BOUND_MILLIS, this);
    this.#hop?.cancel();
  }

  #succeed(): void {
    const { plan, notification, deliver } = this.task;
    if (notification !== null && deliver !== null) deliver(notification);
    this.#conclude(false);
    this.#quiet = true;
    this.#releaseLeases();
    const durationMicros = this.#micros();
    this.transfer.finish(
      {
        settlement: "done",
        bytes: plan.bytes,
        descriptors: this.#hops.reduce((sum, hop) => sum + hop.descriptorsAfter, 0),
        hops: this.#hops.length,
        coverage: plan.coverage,
        durationMicros,
      },
      plan.bytes,
    );
    this.engine.effects.report({
      id: this.transfer.id,
      plan,
      settlement: "done",
      bytes: plan.bytes,
      durationMicros,
      error: null,
    });
  }

  /** @param done - Every byte is where it was to go, but what was checked does not hold. */
  #fail(error: KvferryError, reason: unknown, touched: boolean, inDoubt: boolean, done = false): void {
    const settlement: Settlement = done ? "done" : touched || inDoubt ? "in-doubt" : "never-started";
    const bytes = this.progress();
    error.settlement = settlement;
    this.#conclude(inDoubt);
    if (inDoubt) {
      this.#quarantinedBlocks = this.task.destinationBlocks();
      this.engine.leases.quarantine(
        this.task.plan.destination,
        this.#quarantinedBlocks,
        error.message,
        this.engine.effects.wallClock(),
      );
      this.engine.effects.quarantine(
        "begin",
        this.task.plan.destination,
        this.#quarantinedBlocks,
        error.message,
      );
    } else {
      this.#quiet = true;
      this.#releaseLeases();
    }
    this.transfer.fail(reason, bytes);
    if (!inDoubt)
      this.transfer.settle(
        done
          ? { settlement, proof: "completed" }
          : touched
            ? { settlement, proof: "backend-ended" }
            : { settlement, proof: "never-started" },
      );
    this.engine.effects.report({
      id: this.transfer.id,
      plan: this.task.plan,
      settlement,
      bytes: bytes.done,
      durationMicros: this.#micros(),
      error,
    });
  }

  #conclude(inDoubt: boolean): void {
    this.#concluded = true;
    if (this.#bucket >= 0) this.engine.deadlines.remove(this.#bucket, this);
    this.engine.concluded(this, inDoubt);
  }

  #releaseLeases(): void {
    this.engine.leases.release(this.task.plan.source);
    this.engine.leases.release(this.task.plan.destination);
  }

  #micros(): number {
    return (this.engine.effects.clock.now() - this.#startedAt) * 1000;
  }
}

/** Each transfer rejects with an error of its own: what is known about its destination stands in it. */
function giveUpWith(run: Run, error: KvferryError): void {
  const own = copyOf(error);
  run.giveUp(own, own);
}

function copyOf(error: KvferryError): KvferryError {
  const word = error.code.slice("ERR_KVF_".length) as ErrorWord; // how every code is made
  return new KvferryError(word, error.operation, error.message, error.remedy, error.details, error.cause);
}

function asError(error: unknown): KvferryError {
  if (error instanceof KvferryError) return error;
  return new KvferryError(
    "IO",
    "transfer",
    error instanceof Error ? error.message : String(error),
    "See the cause.",
    {},
    error,
  );
}

function missingExecutor(hop: Hop): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `nothing here can run a ${hop.executor} hop`,
    "Run `kvferry doctor` to see what this process has.",
    {
      executor: hop.executor,
      method: hop.method,
    },
  );
}

function missingReason(hop: Hop): KvferryError {
  return new KvferryError(
    "IO",
    "transfer",
    `the ${hop.executor} hop failed without a reason`,
    "Run it again with KVFERRY_LOG=debug.",
    {
      executor: hop.executor,
    },
  );
}
