import { KvferryError, type ErrorWord } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { Hop, TransferPlan } from "../core/plan.ts";
import { Deadlines } from "./deadlines.ts";
import type { Leases } from "./leases.ts";
import { Run, type RunHost } from "./run.ts";
import type { EngineEffects, Task } from "./task.ts";
import type { SettledTransfer, Transfer } from "./transfer.ts";

/**
 * Runs planned transfers hop by hop and settles each exactly once: done, never-started or in-doubt.
 *
 * It holds a lease on both layouts until nobody can touch their memory; destination blocks of a transfer that ended
 * in doubt stay in quarantine until that is proven.
 */
export class Engine {
  readonly #leases: Leases;
  /** What the runs see of the engine. */
  readonly #host: RunHost;
  readonly #deadlines: Deadlines;
  readonly #running: Set<Run> = new Set();
  readonly #doubtful: Set<Run> = new Set();
  readonly #watched: Set<Run> = new Set();
  readonly #reached: Set<string> = new Set();
  #idleWaiters: (() => void)[] = [];
  /** Who waits for transfers to end for good, with those that they wait for. */
  readonly #barriers: Set<{ readonly open: Set<Run>; readonly resolve: () => void }> = new Set();
  /** Peers with whom no transfer may start now, or none with some of their layouts. */
  readonly #paused: Map<string, Set<Pause>> = new Map();

  constructor(effects: EngineEffects, leases: Leases) {
    this.#leases = leases;
    this.#deadlines = new Deadlines(effects.clock);
    this.#host = {
      effects,
      leases,
      deadlines: this.#deadlines,
      reached: (agent) => this.#reached.has(agent),
      noteReached: (agent) => this.noteReached(agent),
      watch: (run) => this.#watched.add(run),
      concluded: (run, inDoubt) => this.#concluded(run, inDoubt),
      quiet: (run) => {
        this.#doubtful.delete(run);
        if (this.#barriers.size > 0) this.#pass(run);
      },
    };
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
    const run = new Run(this.#host, transfer, task);
    this.#running.add(run);
    transfer.attach(run, "running");
    run.begin();
  }

  /** Looks at the progress of layer-wise transfers; called when the native side says that there is some. */
  progress(): void {
    for (const run of this.#watched) run.reportLayers();
  }

  /** Bytes have moved to or from that peer: later failures are not for want of a connection. */
  noteReached(agent: string): void {
    if (!this.#reached.has(agent)) this.#reached.add(agent);
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
  proveQuiet(match: (hop: Hop | undefined) => boolean, proof: SettledTransfer["proof"]): void {
    for (const run of this.#doubtful) if (match(run.hop)) run.proven(proof);
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

  /**
   * Lets no transfer with a peer start until the returned function is called.
   *
   * @param layouts - Only those to and from these of its layouts; null for all.
   */
  pause(agent: string, layouts: ReadonlySet<LayoutHandle> | null = null): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    const pause: Pause = { layouts, over: promise };
    const pauses = this.#paused.get(agent) ?? new Set();
    this.#paused.set(agent, pauses.add(pause));
    return () => {
      pauses.delete(pause);
      if (pauses.size === 0 && this.#paused.get(agent) === pauses) this.#paused.delete(agent);
      resolve();
    };
  }

  /** Resolves when a transfer with the peer may start again, or must look again; undefined when it may now. */
  paused(agent: string | null, { source, destination }: PlannedLayouts): Promise<void> | undefined {
    if (agent === null || this.#paused.size === 0) return undefined;
    for (const { layouts, over } of this.#paused.get(agent) ?? [])
      if (layouts === null || layouts.has(source) || layouts.has(destination)) return over;
    return undefined;
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

  #concluded(run: Run, inDoubt: boolean): void {
    this.#running.delete(run);
    this.#watched.delete(run);
    if (inDoubt) this.#doubtful.add(run);
    else if (this.#barriers.size > 0) this.#pass(run);
    if (this.#running.size > 0 || this.#idleWaiters.length === 0) return;
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const waiter of waiters) waiter();
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

/** Transfers with a peer wait. */
interface Pause {
  readonly layouts: ReadonlySet<LayoutHandle> | null;
  readonly over: Promise<void>;
}

/** The layouts of both sides. */
type PlannedLayouts = Pick<TransferPlan, "source" | "destination">;

/** Each transfer rejects with an error of its own: what is known about its destination stands in it. */
function giveUpWith(run: Run, error: KvferryError): void {
  const own = copyOf(error);
  run.giveUp(own, own);
}

function copyOf(error: KvferryError): KvferryError {
  const word = error.code.slice("ERR_KVF_".length) as ErrorWord; // how every code is made
  return new KvferryError(word, error.operation, error.message, error.remedy, error.details, error.cause);
}
