import type { KvferryError } from "../core/errors.ts";
import type { HopOutcome, RunningHop } from "./executor.ts";
import { stopped } from "./run-errors.ts";

/** The hops of one program each that one assisted transfer runs, as promises. */
export class InnerHops {
  readonly #running: Set<RunningHop> = new Set();
  #inDoubt = false;
  #stopped: KvferryError | undefined;

  /** Whether one of them ended in doubt. */
  get inDoubt(): boolean {
    return this.#inDoubt;
  }

  /**
   * Runs a hop to its end; rejects when it failed, and when the transfer is stopped before it starts.
   *
   * @param start - Throws only when the hop never started.
   */
  run(start: (done: (outcome: HopOutcome) => void) => RunningHop): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (this.#stopped !== undefined) return Promise.reject(this.#stopped);
    // It may end before the call returns.
    const hop: { running?: RunningHop; ended: boolean } = { ended: false };
    const done = (outcome: HopOutcome): void => {
      hop.ended = true;
      if (hop.running !== undefined) this.#running.delete(hop.running);
      if (outcome.inDoubt) this.#inDoubt = true;
      if (outcome.ok) resolve();
      else reject(outcome.error ?? stopped());
    };
    hop.running = start(done);
    if (!hop.ended) this.#running.add(hop.running);
    return promise;
  }

  /** Asks those that run to stop; no other one starts. */
  stop(error: KvferryError): void {
    this.#stopped = error;
    for (const running of this.#running) running.cancel();
  }

  /** Leaves those that run to themselves. */
  abandon(): void {
    for (const running of this.#running) running.abandon();
  }
}
