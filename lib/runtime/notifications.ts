import { KvferryError } from "../core/errors.ts";

/** A message from a peer. */
export interface Notification {
  /** The sender's agent name, as users see it. */
  readonly from: string;
  readonly payload: Uint8Array<ArrayBuffer>;
}

/** Options of `transport.notifications`. */
export interface NotificationOptions {
  /** Ends the iteration; messages stay queued for the next iterator. */
  readonly signal?: AbortSignal;
}

/** Bytes of messages that wait for somebody to read them; more stay with a sender that can be held back. */
export const QUEUE_LIMIT_BYTES: number = 16 * 2 ** 20;

/** Bytes of unread messages from senders that cannot be held back; what comes beyond is dropped. */
export const QUEUE_MOST_BYTES: number = 4 * QUEUE_LIMIT_BYTES;

interface Waiter {
  readonly wake: (notification: Notification | null) => void;
}

/**
 * A bounded queue that any number of iterators share: each message goes to one of them, in order of arrival.
 */
export class NotificationQueue {
  #queue: Notification[] = [];
  #head = 0;
  #bytes = 0;
  #waiters: Waiter[] = [];
  #closed = false;
  readonly #onWaiting: (waiting: boolean) => void;
  #handled: ((notification: Notification) => boolean)[] = [];

  /** @param onWaiting - Told when somebody begins or ceases to wait. */
  constructor(onWaiting: (waiting: boolean) => void) {
    this.#onWaiting = onWaiting;
  }

  /** Whether another message would pass the limit: leave it with the native queue. */
  get full(): boolean {
    return this.#bytes >= QUEUE_LIMIT_BYTES;
  }

  /** Whether another message must be dropped. Somebody who awaits a certain message still gets it. */
  get overfull(): boolean {
    return this.#bytes >= QUEUE_MOST_BYTES && !this.intercepted;
  }

  /** Whether somebody may take messages out of turn: then a full queue must not keep them with the native one. */
  get intercepted(): boolean {
    return this.#handled.length > 0;
  }

  /** Lets a handler take messages before they are queued; the returned function takes it off. */
  intercept(handler: (notification: Notification) => boolean): () => void {
    this.#handled.push(handler);
    return () => {
      this.#handled = this.#handled.filter((other) => other !== handler);
    };
  }

  push(notification: Notification): void {
    if (this.#handled.some((handler) => handler(notification))) return;
    const waiter = this.#waiters.shift();
    if (waiter !== undefined) {
      if (this.#waiters.length === 0) this.#onWaiting(false);
      waiter.wake(notification);
      return;
    }
    this.#queue.push(notification);
    this.#bytes += notification.payload.byteLength + 64;
  }

  /** Looks through what is queued for a message that `match` accepts and takes it out. */
  takeMatching(match: (notification: Notification) => boolean): Notification | undefined {
    for (let index = this.#head; index < this.#queue.length; index++) {
      const queued = this.#queue[index];
      if (queued === undefined || !match(queued)) continue;
      this.#queue.splice(index, 1);
      this.#bytes -= queued.payload.byteLength + 64;
      return queued;
    }
    return undefined;
  }

  /** Ends every iterator. What is queued is dropped. */
  close(): void {
    this.#closed = true;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.wake(null);
    if (waiters.length > 0) this.#onWaiting(false);
  }

  async *iterate(options: NotificationOptions): AsyncGenerator<Notification, void, undefined> {
    const { signal } = options;
    while (!this.#closed && signal?.aborted !== true) {
      const next = this.#take() ?? (await this.#wait(signal));
      if (next === null) return;
      yield next;
    }
  }

  #take(): Notification | undefined {
    const next = this.#queue[this.#head];
    if (next === undefined) return undefined;
    this.#head++;
    this.#bytes -= next.payload.byteLength + 64;
    if (this.#head === this.#queue.length || (this.#head > 1024 && this.#head * 2 > this.#queue.length)) {
      this.#queue = this.#queue.slice(this.#head);
      this.#head = 0;
    }
    return next;
  }

  #wait(signal: AbortSignal | undefined): Promise<Notification | null> {
    return new Promise((resolve) => {
      const onAbort = (): void => {
        this.#waiters = this.#waiters.filter((other) => other !== waiter);
        if (this.#waiters.length === 0) this.#onWaiting(false);
        resolve(null);
      };
      const waiter: Waiter = {
        wake(notification) {
          signal?.removeEventListener("abort", onAbort);
          resolve(notification);
        },
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#waiters.push(waiter);
      if (this.#waiters.length === 1) this.#onWaiting(true);
    });
  }
}

/** The bytes of a notification that a caller gave as bytes or text. */
export function payloadBytes(payload: Uint8Array | string): Uint8Array<ArrayBuffer> {
  if (typeof payload === "string") return new TextEncoder().encode(payload);
  if (payload instanceof Uint8Array) return payload.slice();
  throw new KvferryError(
    "INVALID_CONFIG",
    "notify",
    "a notification is bytes or a string",
    "Give a Uint8Array or a string.",
    { found: typeof payload },
  );
}
