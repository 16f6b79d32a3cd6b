import { KvferryError } from "../core/errors.ts";
import type { EventHub } from "./events.ts";
import type { MetricsBook } from "./metrics.ts";
import type { Transfer } from "./transfer.ts";

/** Ends transfers that never start. */
export class NeverStarted {
  readonly #events: EventHub;
  readonly #metrics: MetricsBook;

  constructor(events: EventHub, metrics: MetricsBook) {
    this.#events = events;
    this.#metrics = metrics;
  }

  /** What was asked for is refused. */
  refuse(transfer: Transfer, reason: unknown): void {
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
    this.end(transfer, error, error);
  }

  /** The caller's signal came first. */
  abort(transfer: Transfer, reason: unknown): void {
    this.end(
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

  /** @param reason - What the transfer rejects with. */
  end(transfer: Transfer, reason: unknown, error: KvferryError): void {
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
