import { KvferryError } from "../core/errors.ts";
import { notificationBytes } from "./neighbour-words.ts";

/** Bytes of messages that a neighbour may have under way before it waits for word that they were dealt with. */
export const MESSAGE_WINDOW: number = 2 ** 20;

/** Longest payload of a notification, in bytes. */
export const MAX_NOTIFICATION_BYTES: number = 16 * 2 ** 20 - 1;

interface Waiting {
  readonly payload: Uint8Array;
  readonly done: PromiseWithResolvers<void>;
}

/** Messages to one neighbour, in order: as many as it deals with are under way, the others wait here. */
export class Outbox {
  readonly #wireName: string;
  readonly #send: (bytes: Uint8Array<ArrayBuffer>) => boolean;
  readonly #waiting: Waiting[] = [];
  /** Bytes that the neighbour has not said it dealt with. */
  #underWay = 0;

  /** @param send - False when the neighbour is gone. */
  constructor(wireName: string, send: (bytes: Uint8Array<ArrayBuffer>) => boolean) {
    this.#wireName = wireName;
    this.#send = send;
  }

  /**
   * Sends a message. Resolves when it is on its way.
   *
   * @throws KvferryError `PEER_LOST` when the neighbour is gone, `INVALID_CONFIG` for a payload that is too long.
   */
  async post(payload: Uint8Array): Promise<void> {
    if (payload.byteLength > MAX_NOTIFICATION_BYTES)
      throw new KvferryError(
        "INVALID_CONFIG",
        "notify",
        `a notification of ${payload.byteLength} bytes passes the limit of ${MAX_NOTIFICATION_BYTES}`,
        "Send a reference, and the bytes as blocks of a layout.",
        { bytes: payload.byteLength, limit: MAX_NOTIFICATION_BYTES },
      );
    if (this.#waiting.length === 0 && this.#underWay < MESSAGE_WINDOW) {
      if (!this.#sendNow(payload)) throw goneNeighbour(this.#wireName);
      return;
    }
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ payload, done });
    await done.promise;
  }

  /** The neighbour dealt with so many bytes. */
  credited(bytes: number): void {
    this.#underWay = Math.max(0, this.#underWay - bytes);
    while (this.#underWay < MESSAGE_WINDOW) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      if (this.#sendNow(next.payload)) next.done.resolve();
      else next.done.reject(goneNeighbour(this.#wireName));
    }
  }

  /** Tells whoever waits that the neighbour is gone. */
  fail(): void {
    for (const { done } of this.#waiting.splice(0)) done.reject(goneNeighbour(this.#wireName));
  }

  #sendNow(payload: Uint8Array): boolean {
    this.#underWay += payload.byteLength;
    return this.#send(notificationBytes(payload));
  }
}

/** The error for a neighbour that is not there any more. */
export function goneNeighbour(wireName: string): KvferryError {
  return new KvferryError(
    "PEER_LOST",
    "notify",
    `neighbour ${wireName} is gone`,
    "Import its metadata again once it is back.",
    { wireName },
  );
}
