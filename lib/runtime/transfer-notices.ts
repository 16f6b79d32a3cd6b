import type { TransferPlan } from "../core/plan.ts";
import type { EventHub } from "./events.ts";
import type { Messenger } from "./messenger.ts";
import { payloadBytes } from "./notifications.ts";
import type { Planning } from "./planning.ts";
import type { TransferOptions } from "./submit.ts";

/** The messages of transfers that no hop carries. */
export class TransferNotices {
  readonly #planning: Planning;
  readonly #messenger: Messenger;
  readonly #events: EventHub;

  constructor(planning: Planning, messenger: Messenger, events: EventHub) {
    this.#planning = planning;
    this.#messenger = messenger;
    this.#events = events;
  }

  /** How a notification goes out when no hop carries it: to the peer that takes part, else to ourselves. */
  sender(plan: TransferPlan): (payload: Uint8Array | string) => void {
    const peer = this.#messenger.peerOf(this.#planning.snapshot, plan);
    if (peer === null) return (payload) => this.#messenger.deliverHere(payloadBytes(payload));
    return (payload) => {
      this.#messenger.notify(peer, payload).catch((error: unknown) => this.#undelivered(error));
    };
  }

  /** What goes out for each layer; null when nothing does. */
  forLayers(options: TransferOptions, plan: TransferPlan): ((layer: number) => void) | null {
    const { layerwise } = options;
    if (typeof layerwise !== "object" || layerwise.notify === undefined) return null;
    const { notify } = layerwise;
    const send = this.sender(plan);
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
}
