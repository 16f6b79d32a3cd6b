import type { KvferryError, Settlement } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { BlockGroups, Leases } from "./leases.ts";
import type { EngineEffects, Task } from "./task.ts";
import type { SettledTransfer, Transfer } from "./transfer.ts";

/** What the end of a run reaches. */
export interface EndingHost {
  readonly effects: EngineEffects;
  readonly leases: Leases;
  /** The outcome is known, and its owner is about to be told. */
  concluded(inDoubt: boolean): void;
  /** Nobody can touch the destination of a run that ended in doubt any more. */
  quiet(): void;
}

/** How a run fails. */
export interface Failure {
  readonly error: KvferryError;
  /** What the transfer rejects with. */
  readonly reason: unknown;
  /** Bytes of the destination may have been written. */
  readonly touched: boolean;
  /** Somebody may still write them. */
  readonly inDoubt: boolean;
  /** Every byte is where it was to go, but what was checked does not hold. */
  readonly done: boolean;
}

/** The one settlement of a run: what its owner is told, and when the leases end or blocks leave quarantine. */
export class RunEnding {
  readonly #host: EndingHost;
  readonly #transfer: Transfer;
  readonly #task: Task;
  readonly #startedAt: number;
  #concluded = false;
  #quiet = false;
  #quarantined: BlockGroups | undefined;

  constructor(host: EndingHost, transfer: Transfer, task: Task) {
    this.#host = host;
    this.#transfer = transfer;
    this.#task = task;
    this.#startedAt = host.effects.clock.now();
  }

  /** Whether the outcome is known. */
  get concluded(): boolean {
    return this.#concluded;
  }

  /** @param hops - All that ran. */
  succeed(hops: readonly Hop[]): void {
    const { plan, notification, deliver } = this.#task;
    if (notification !== null && deliver !== null) deliver(notification);
    this.#conclude(false);
    this.#quiet = true;
    this.#releaseLeases();
    const durationMicros = this.#micros();
    this.#transfer.finish(
      {
        settlement: "done",
        bytes: plan.bytes,
        descriptors: hops.reduce((sum, hop) => sum + hop.descriptorsAfter, 0),
        hops: hops.length,
        coverage: plan.coverage,
        durationMicros,
      },
      plan.bytes,
    );
    this.#report("done", plan.bytes, durationMicros, null);
  }

  /** @param bytes - How many were moved. */
  fail(
    { error, reason, touched, inDoubt, done }: Failure,
    bytes: { readonly done: number; readonly total: number },
  ): void {
    const settlement: Settlement = done ? "done" : touched || inDoubt ? "in-doubt" : "never-started";
    error.settlement = settlement;
    this.#conclude(inDoubt);
    if (inDoubt) {
      const { destination } = this.#task.plan;
      const { effects, leases } = this.#host;
      this.#quarantined = this.#task.destinationBlocks();
      leases.quarantine(destination, this.#quarantined, error.message, effects.wallClock());
      effects.quarantine("begin", destination, this.#quarantined, error.message);
    } else {
      this.#quiet = true;
      this.#releaseLeases();
    }
    this.#transfer.fail(reason, bytes);
    if (!inDoubt)
      this.#transfer.settle(
        done
          ? { settlement, proof: "completed" }
          : touched
            ? { settlement, proof: "backend-ended" }
            : { settlement, proof: "never-started" },
      );
    this.#report(settlement, bytes.done, this.#micros(), error);
  }

  /** Nobody can touch the destination any more. */
  proven(proof: SettledTransfer["proof"]): void {
    if (this.#quiet) return;
    this.#quiet = true;
    this.#host.quiet();
    if (this.#quarantined !== undefined) {
      const { destination } = this.#task.plan;
      this.#host.leases.lift(destination, this.#quarantined);
      this.#host.effects.quarantine("end", destination, this.#quarantined, proof);
    }
    this.#releaseLeases();
    this.#transfer.settle({ settlement: "in-doubt", proof });
  }

  #conclude(inDoubt: boolean): void {
    this.#concluded = true;
    this.#host.concluded(inDoubt);
  }

  #report(settlement: Settlement, bytes: number, durationMicros: number, error: KvferryError | null): void {
    const { plan } = this.#task;
    this.#host.effects.report({ id: this.#transfer.id, plan, settlement, bytes, durationMicros, error });
  }

  #releaseLeases(): void {
    this.#host.leases.release(this.#task.plan.source);
    this.#host.leases.release(this.#task.plan.destination);
  }

  #micros(): number {
    return (this.#host.effects.clock.now() - this.#startedAt) * 1000;
  }
}
