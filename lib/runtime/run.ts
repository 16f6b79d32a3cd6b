import { asKvferryError, KvferryError } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { Deadlines, Expiring } from "./deadlines.ts";
import type { HopOutcome, RunningHop } from "./executor.ts";
import { layerNeeds, type LayerNeed } from "./layer-progress.ts";
import type { Leases } from "./leases.ts";
import { RunEnding } from "./run-ending.ts";
import { missingExecutor, missingReason, timedOut } from "./run-errors.ts";
import { SETTLE_BOUND_MILLIS, type EngineEffects, type Task } from "./task.ts";
import type { SettledTransfer, Transfer, TransferControl } from "./transfer.ts";

/** What a run needs of the engine that it belongs to. */
export interface RunHost {
  readonly effects: EngineEffects;
  readonly deadlines: Deadlines;
  readonly leases: Leases;
  /** Whether any bytes were ever moved to or from that peer. */
  reached(agent: string): boolean;
  noteReached(agent: string): void;
  /** The run wants to hear of progress. */
  watch(run: Run): void;
  /** The owner was told the outcome. */
  concluded(run: Run, inDoubt: boolean): void;
  /** Nobody can touch the destination of a run that ended in doubt any more. */
  quiet(run: Run): void;
}

/** One transfer on its way: hop after hop to exactly one settlement. */
export class Run implements TransferControl, Expiring {
  readonly #host: RunHost;
  readonly transfer: Transfer;
  readonly task: Task;
  readonly #hops: readonly Hop[];
  readonly #ending: RunEnding;
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
  #peerGone = false;

  constructor(host: RunHost, transfer: Transfer, task: Task) {
    this.#host = host;
    this.transfer = transfer;
    this.task = task;
    // Several legs (one for each destination) will be settled each on its own; today's plans have one.
    this.#hops = task.plan.legs.flatMap((leg) => leg.hops);
    const { effects, leases } = host;
    this.#ending = new RunEnding(
      {
        effects,
        leases,
        concluded: (inDoubt) => {
          if (this.#bucket >= 0) host.deadlines.remove(this.#bucket, this);
          host.concluded(this, inDoubt);
        },
        quiet: () => {
          host.quiet(this);
          this.#doubtfulHop?.quiet?.();
        },
      },
      transfer,
      task,
    );
    this.#layerNeeds = task.plan.layers === null ? [] : layerNeeds(task.plan.layers, this.#hops);
  }

  /** The hop that runs, or that ended the run; undefined when all of them were done. */
  get hop(): Hop | undefined {
    return this.#hops[this.#hopIndex];
  }

  begin(): void {
    if (this.task.plan.layers !== null) this.#host.watch(this);
    this.#next();
    // Something that ran inside may have asked it to stop: then its deadline is another one already.
    if (!this.#ending.concluded && this.#stopping === undefined)
      this.#bucket = this.#host.deadlines.add(this.task.deadlineMillis, this);
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
    if (this.#ending.concluded) return;
    if (this.#stopping !== undefined) {
      this.giveUp(this.#stopping.error, this.#stopping.reason);
      return;
    }
    const { agent } = this.task;
    const unreached = agent !== null && !this.#host.reached(agent) && this.progress().done === 0;
    const error = timedOut(this.transfer.id, this.task, unreached, this.#host.effects.fileName);
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
    if (this.#ending.concluded) return;
    // Some hops end at once when they are told to stop: for this reason then.
    this.#stopping ??= { error, reason };
    this.#hop?.cancel();
    if (this.#ending.concluded) return;
    this.#hop?.abandon();
    if (this.#ending.concluded) return;
    this.#fail(error, reason, this.#hop !== undefined);
  }

  /** Nobody can touch the destination any more. */
  proven(proof: SettledTransfer["proof"]): void {
    this.#ending.proven(proof);
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
      .catch((error: unknown) => asKvferryError(error))
      .then((error) => {
        if (this.#ending.concluded) return;
        // All hops ended, or none began: nobody writes, whatever the check found.
        if (error === null) this.#next();
        else this.#fail(error, error, false, error.settlement === "done");
      });
    return true;
  }

  #next(): void {
    while (!this.#ending.concluded) {
      const hop = this.#hops[this.#hopIndex];
      if (this.#hopIndex === 0 && this.#stopping === undefined && this.#checks("before")) return;
      if (hop === undefined) {
        if (this.#stopping === undefined && this.#checks("after")) return;
        if (this.#stopping !== undefined && this.task.after) {
          this.#fail(this.#stopping.error, this.#stopping.reason, false);
          return;
        }
        this.#ending.succeed(this.#hops);
        return;
      }
      if (this.#stopping !== undefined) {
        this.#fail(this.#stopping.error, this.#stopping.reason, false);
        return;
      }
      let ended: HopOutcome | undefined;
      let returned = false;
      try {
        const executor = this.#host.effects.executor(hop.executor);
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
            rehearse: last ? this.task.rehearse : undefined,
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
        const failure = asKvferryError(error);
        this.#fail(failure, failure, false);
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
    if (this.#ending.concluded) {
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
      if (hop.agent !== null) this.#host.noteReached(hop.agent);
      this.#bytesBefore += hop.bytes;
      this.#hopIndex++;
      if (this.task.plan.layers !== null) this.reportLayers();
      return true;
    }
    const stopping = this.#stopping;
    const error = stopping?.error ?? outcome.error ?? missingReason(hop);
    this.#fail(error, stopping === undefined ? error : stopping.reason, outcome.inDoubt);
    return false;
  }

  #layerComplete(need: LayerNeed): boolean {
    if (this.#hopIndex !== need.hop) return this.#hopIndex > need.hop;
    return (this.#hop?.programsDone() ?? 0) >= need.programs;
  }

  #stop(error: KvferryError, reason: unknown): void {
    if (this.#ending.concluded || this.#stopping !== undefined) return;
    this.#stopping = { error, reason };
    if (this.#bucket >= 0) this.#host.deadlines.remove(this.#bucket, this);
    this.#bucket = this.#host.deadlines.add(SETTLE_BOUND_MILLIS, this);
    this.#hop?.cancel();
  }

  #fail(error: KvferryError, reason: unknown, inDoubt: boolean, done = false): void {
    this.#ending.fail({ error, reason, touched: this.#touched, inDoubt, done }, this.progress());
  }
}
