/** The clock and timers that the runtime uses; a test gives its own. */
export interface Clock {
  /** Monotonic milliseconds. */
  now(): number;
  /** Calls back once after `millis`; the returned function takes it back. Must not keep the process alive. */
  after(millis: number, callback: () => void): () => void;
  /** Resolves after `millis`. Keeps the process alive, unlike `after`. */
  sleep(millis: number): Promise<void>;
}

/** The clock of the process. */
export const systemClock: Clock = {
  now: () => performance.now(),
  after(millis, callback) {
    const timer = setTimeout(callback, millis);
    timer.unref();
    return () => clearTimeout(timer);
  },
  sleep: (millis) => Bun.sleep(millis),
};

/** The promise's value, or undefined when it takes longer. Failures count as done. */
export function within<T>(clock: Clock, millis: number, promise: Promise<T>): Promise<T | undefined> {
  return new Promise((resolve) => {
    const cancel = clock.after(millis, () => resolve(undefined));
    promise.then(
      (value) => {
        cancel();
        resolve(value);
      },
      () => {
        cancel();
        resolve(undefined);
      },
    );
  });
}

/** Deadlines that fall into the same 16 ms share one timer. */
const BUCKET_MILLIS = 16;

/** Something that wants to be told when its time is over. */
export interface Expiring {
  expire(): void;
}

/**
 * Many deadlines, few timers: adding and taking back one costs a set operation.
 *
 * A deadline fires at most {@link BUCKET_MILLIS} late, beside what the event loop adds.
 */
export class Deadlines {
  readonly #clock: Clock;
  readonly #buckets: Map<number, { waiting: Set<Expiring>; cancel: () => void }> = new Map();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** @returns The bucket, to take the deadline back with. */
  add(millis: number, waiting: Expiring): number {
    const now = this.#clock.now();
    const bucket = Math.ceil((now + Math.max(0, millis)) / BUCKET_MILLIS);
    const found = this.#buckets.get(bucket);
    if (found !== undefined) {
      found.waiting.add(waiting);
      return bucket;
    }
    const set = new Set<Expiring>([waiting]);
    const cancel = this.#clock.after(Math.max(0, bucket * BUCKET_MILLIS - now), () => this.#fire(bucket));
    this.#buckets.set(bucket, { waiting: set, cancel });
    return bucket;
  }

  /** Takes a deadline back; harmless when it has fired. */
  remove(bucket: number, waiting: Expiring): void {
    const found = this.#buckets.get(bucket);
    if (found === undefined) return;
    found.waiting.delete(waiting);
    // The timer stays for the next deadline of the bucket: clearing and making timers would cost more than one idle wake-up.
  }

  /** Takes every deadline back. */
  clear(): void {
    for (const { cancel } of this.#buckets.values()) cancel();
    this.#buckets.clear();
  }

  #fire(bucket: number): void {
    const found = this.#buckets.get(bucket);
    this.#buckets.delete(bucket);
    if (found !== undefined) for (const waiting of found.waiting) waiting.expire();
  }
}
