import type { Settlement } from "../core/errors.ts";

/** What an awaited transfer gives. */
export interface TransferResult {
  readonly settlement: "done";
  /** Bytes that were moved. */
  readonly bytes: number;
  /** Contiguous runs that were moved, after merging. */
  readonly descriptors: number;
  readonly hops: number;
  /** Covered part of the destination blocks, 0 to 1. */
  readonly coverage: number;
  readonly durationMicros: number;
}

/** How a transfer ended for good. */
export interface SettledTransfer {
  readonly settlement: Settlement;
  /** What proves that nobody touches the destination any more; `closed` when the transport ended first. */
  readonly proof:
    | "completed"
    | "never-started"
    /** The library reported the end of what was still running. */
    | "backend-ended"
    /** The peer said that all its work on the blocks has ended. */
    | "acknowledged"
    /** The peer's process has ended, and nothing of it is on its way. */
    | "peer-gone"
    /** This transport's own agent was closed with nothing left running. */
    | "agent-closed"
    | "closed";
}

/** Where a transfer is. */
export type TransferState = "waiting" | "running" | "done" | "failed";

/** What the engine does for a transfer's owner. */
export interface TransferControl {
  cancel(reason: unknown): void;
  progress(): { readonly done: number; readonly total: number };
}

/**
 * A transfer: awaitable, cancellable, observable.
 *
 * Made by `Transport.transfer`. It holds its layouts until it is settled; dropping it changes nothing.
 */
export class Transfer implements PromiseLike<TransferResult> {
  /** Rises by one with every transfer of a transport. */
  readonly id: number;
  readonly #result: Promise<TransferResult>;
  #resolve!: (result: TransferResult) => void; // assigned by the promise constructors below
  #reject!: (reason: unknown) => void; // likewise
  #settledValue: SettledTransfer | undefined;
  // Made only when somebody asks: most transfers are just awaited.
  #settledPromise: PromiseWithResolvers<SettledTransfer> | undefined;
  #state: TransferState = "waiting";
  #control: TransferControl | undefined;
  #finalBytes: { done: number; total: number } = { done: 0, total: 0 };
  readonly #layers: number[] = [];
  #layerWaiters: (() => void)[] = [];
  #layersAsked = false;
  readonly #layerwise: boolean;
  #failure: unknown;

  /** @internal */
  constructor(id: number, layerwise: boolean) {
    this.id = id;
    this.#layerwise = layerwise;
    this.#result = new Promise<TransferResult>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // A transfer that nobody awaits must not end the process; its failure is told by the `transfer` event.
    this.#result.catch(() => undefined);
  }

  /** Resolves once nobody can touch the destination any more; never rejects. */
  get settled(): Promise<SettledTransfer> {
    if (this.#settledPromise === undefined) {
      this.#settledPromise = Promise.withResolvers<SettledTransfer>();
      if (this.#settledValue !== undefined) this.#settledPromise.resolve(this.#settledValue);
    }
    return this.#settledPromise.promise;
  }

  get state(): TransferState {
    return this.#state;
  }

  /** Bytes done and bytes in all. */
  get progress(): { readonly done: number; readonly total: number } {
    return this.#control?.progress() ?? this.#finalBytes;
  }

  // oxlint-disable-next-line unicorn/no-thenable -- being awaitable is the contract
  then<A = TransferResult, B = never>(
    onDone?: ((result: TransferResult) => A | PromiseLike<A>) | null,
    onFailed?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.then(onDone, onFailed);
  }

  catch<B = never>(onFailed?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<TransferResult | B> {
    return this.#result.catch(onFailed);
  }

  finally(onEnd?: (() => void) | null): Promise<TransferResult> {
    return this.#result.finally(onEnd);
  }

  /**
   * Stops the transfer: queued work never starts, running work stops at its next chunk where the route allows it.
   * The transfer then rejects; its `settlement` says what is known about the destination.
   */
  cancel(reason?: unknown): void {
    this.#control?.cancel(reason);
  }

  /**
   * Each layer of a layer-wise transfer as it becomes readable, in the order of the plan.
   *
   * @throws The transfer's failure after the layers that arrived before it.
   */
  async *layers(): AsyncGenerator<number, void, undefined> {
    this.#layersAsked = true;
    if (!this.#layerwise) throw new TypeError("layers() needs a transfer with `layerwise`");
    let at = 0;
    for (;;) {
      while (at < this.#layers.length) {
        const layer = this.#layers[at++];
        if (layer !== undefined) yield layer;
      }
      if (this.#state === "done") return;
      if (this.#state === "failed") throw this.#failure;
      await new Promise<void>((resolve) => this.#layerWaiters.push(resolve));
    }
  }

  /** @internal */
  attach(control: TransferControl, state: "waiting" | "running"): void {
    this.#control = control;
    this.#state = state;
  }

  /** @internal */
  layerArrived(layer: number): void {
    this.#layers.push(layer);
    this.#wakeLayers();
  }

  /** @internal */
  finish(result: TransferResult, totalBytes: number): void {
    this.#state = "done";
    this.#finalBytes = { done: totalBytes, total: totalBytes };
    this.#control = undefined;
    this.#resolve(result);
    this.settle({ settlement: "done", proof: "completed" });
    this.#wakeLayers();
  }

  /** @internal The transfer failed; `settle` follows when its end is proven. */
  fail(reason: unknown, bytes: { done: number; total: number }): void {
    this.#state = "failed";
    this.#failure = reason;
    this.#finalBytes = bytes;
    this.#control = undefined;
    this.#reject(reason);
    this.#wakeLayers();
  }

  /** @internal */
  settle(settled: SettledTransfer): void {
    this.#settledValue ??= settled;
    this.#settledPromise?.resolve(this.#settledValue);
  }

  #wakeLayers(): void {
    if (!this.#layersAsked) return;
    const waiters = this.#layerWaiters;
    this.#layerWaiters = [];
    for (const waiter of waiters) waiter();
  }
}
