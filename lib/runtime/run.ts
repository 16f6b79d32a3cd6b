import { KvferryError, type Settlement } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { CudaOrder } from "./cuda-order.ts";
import type { Deadlines, Expiring } from "./deadlines.ts";
import type { HopOutcome, RunningHop } from "./executor.ts";
import { layerNeeds, type LayerNeed } from "./layer-progress.ts";
import type { BlockGroups, Leases } from "./leases.ts";
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

  constructor(host: RunHost, transfer: Transfer, task: Task) {
    this.#host = host;
    this.transfer = transfer;
    this.task = task;
    // Several legs (one for each destination) will be settled each on its own; today's plans have one.
    this.#hops = task.plan.legs.flatMap((leg) => leg.hops);
    this.#startedAt = host.effects.clock.now();
    this.#layerNeeds = task.plan.layers === null ? [] : layerNeeds(task.plan.layers, this.#hops);
  }

  begin(): void {
    if (this.task.plan.layers !== null) this.#host.watch(this);
    this.#next();
    // Something that ran inside may have asked it to stop: then its deadline is another one already.
    if (!this.#concluded && this.#stopping === undefined)
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
    this.#host.quiet(this);
    this.#doubtfulHop?.quiet?.();
    if (this.#quarantinedBlocks !== undefined) {
      this.#host.leases.lift(this.task.plan.destination, this.#quarantinedBlocks);
      this.#host.effects.quarantine("end", this.task.plan.destination, this.#quarantinedBlocks, proof);
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
      if (hop.agent !== null) this.#host.noteReached(hop.agent);
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
    const unreached = agent !== null && !this.#host.reached(agent) && this.progress().done === 0;
    const files = this.#files();
    return new KvferryError(
      "TIMEOUT",
      "transfer",
      `the transfer did not finish within ${deadlineMillis} ms${files.length > 0 ? `; it reads or writes ${files.join(", ")}` : ""}${unreached ? "; no byte has ever reached the peer" : ""}`,
      unreached
        ? "Check that the workers can reach each other and that their NIXL releases can connect (1.3 with later ones on one host: UCX_TLS=tcp,self, on machines with GPUs tcp,self,cuda)."
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
    const { fileName } = this.#host.effects;
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
    if (this.#bucket >= 0) this.#host.deadlines.remove(this.#bucket, this);
    this.#bucket = this.#host.deadlines.add(SETTLE_BOUND_MILLIS, this);
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
    this.#host.effects.report({
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
      this.#host.leases.quarantine(
        this.task.plan.destination,
        this.#quarantinedBlocks,
        error.message,
        this.#host.effects.wallClock(),
      );
      this.#host.effects.quarantine(
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
    this.#host.effects.report({
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
    if (this.#bucket >= 0) this.#host.deadlines.remove(this.#bucket, this);
    this.#host.concluded(this, inDoubt);
  }

  #releaseLeases(): void {
    this.#host.leases.release(this.task.plan.source);
    this.#host.leases.release(this.task.plan.destination);
  }

  #micros(): number {
    return (this.#host.effects.clock.now() - this.#startedAt) * 1000;
  }
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
