import { toArrayBuffer } from "bun:ffi";
import type { ErrorDetails, KvferryError } from "../core/errors.ts";
import { LEFT_BEHIND, type Completion, type CompletionHandler } from "./completion.ts";
import { connectDoorbell, type Doorbell } from "./doorbell.ts";
import { JobResults } from "./job-results.ts";
import type { NativeLibrary } from "./library.ts";
import { closedError, nativeError, slotsTaken } from "./native-error.ts";
import { KVF_OK } from "./symbols.ts";

const HEAD = 0;
const TAIL = 1;
const ARMED = 2;
const PROGRESS = 3;
const NOTIFICATIONS = 4;
const RING_START = 16;
const COMPLETION_WORDS = 8;
const RECORD_WORDS = 8;

/**
 * This JavaScript global's end of the native library: job slots, the completion ring and the doorbell.
 *
 * One for each `Transport`. Jobs keep the process alive while they run; an idle context does not.
 */
export class NativeContext {
  readonly library: NativeLibrary;
  readonly slots: number;
  readonly address: number;
  readonly #words: Int32Array;
  readonly #doubles: Float64Array;
  /** By slot; slots are handed out from the lowest. */
  readonly #handlers: (CompletionHandler | undefined)[] = [];
  /** Slots that were used and are free again; those from `#fresh` on never were: an open fills no list of them. */
  readonly #returned: number[] = [];
  #fresh = 0;
  #freeCount: number;
  readonly #mask: number;
  readonly #tableStart: number;
  readonly #doorbell: Doorbell;
  readonly #results: JobResults;
  #draining = false;
  #hastening = false;
  #hastenUntil = 0;
  #open = true;
  /** Whether somebody waits for something that is not a job. */
  #heldFromOutside = false;
  /** Called when watched slots made progress. */
  onProgress: (() => void) | undefined;
  /** Called when a notification queue is not empty. */
  onNotifications: (() => void) | undefined;
  /** Called on every turn while what is awaited from outside is looked for; at last with false: it wakes again. */
  onLook: ((here: boolean) => void) | undefined;

  private constructor(library: NativeLibrary, slots: number, address: number, shared: ArrayBuffer) {
    this.library = library;
    this.slots = slots;
    this.address = address;
    this.#words = new Int32Array(shared);
    this.#doubles = new Float64Array(shared);
    this.#mask = slots - 1;
    this.#tableStart = RING_START + slots * COMPLETION_WORDS;
    this.#freeCount = slots;
    this.#results = new JobResults(library, address);
    this.#doorbell = connectDoorbell(library, address, () => this.drain());
  }

  /**
   * Opens a context.
   *
   * @param slots - Jobs that can run at once, a power of two.
   * @throws KvferryError `OUT_OF_MEMORY` when its shared block cannot be had.
   */
  static open(library: NativeLibrary, slots = 4096): NativeContext {
    const out = new Float64Array(new ArrayBuffer(64));
    const status = library.kvf_context_open(slots, out);
    if (status !== KVF_OK) throw nativeError(library, status, "open", "the native context could not be made");
    const [address, shared, bytes] = [out[0] ?? 0, out[1] ?? 0, out[2] ?? 0];
    let context: NativeContext;
    try {
      context = new NativeContext(library, slots, address, toArrayBuffer(shared as never, 0, bytes));
    } catch (error) {
      library.kvf_context_close(address, 0, out);
      throw error;
    }
    // Arms the doorbell: nothing else would before the first ring.
    context.drain();
    return context;
  }

  /** Whether `close` was not called yet. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** Jobs that were submitted and have not completed. */
  get running(): number {
    return this.slots - this.#freeCount;
  }

  /** Free slots. */
  get available(): number {
    return this.#freeCount;
  }

  /**
   * Submits a job.
   *
   * @param start - Calls the library with the slot and returns its status; the job has not begun when that is negative.
   * @param handler - Is told how it ended; never called when `start` failed.
   * @param watch - Ring the doorbell whenever the job completes a program.
   * @returns The slot.
   * @throws KvferryError with the library's reason when `start` failed, `IN_USE` when every slot is taken.
   */
  submit(
    operation: string,
    start: (slot: number) => number,
    handler: CompletionHandler,
    watch = false,
  ): number {
    if (!this.#open) throw closedError(operation);
    if (this.#freeCount === 0) throw slotsTaken(operation, this.slots);
    this.#freeCount--;
    const slot = this.#returned.pop() ?? this.#fresh++;
    this.#handlers[slot] = handler;
    // Before the job begins: it may end, or complete its first program, before this thread goes on.
    Atomics.store(this.#words, this.#tableStart + slot * RECORD_WORDS + 1, watch ? 1 : 0);
    let status: number | undefined;
    try {
      status = start(slot);
    } finally {
      if (status === undefined || status < 0) {
        this.#handlers[slot] = undefined;
        this.#giveBack(slot);
      }
    }
    if (status < 0) throw nativeError(this.library, status, operation, "the native library refused the job");
    if (this.#freeCount === this.slots - 1) this.#doorbell.hold(true);
    return slot;
  }

  /**
   * Submits a job and awaits its completion.
   *
   * @param result - Reads the job's byte result or error text while the slot is still its own.
   * @throws KvferryError with the library's status and text when the job failed.
   */
  job<T>(
    operation: string,
    start: (slot: number) => number,
    result: (completion: Completion, slot: number) => T,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.submit(operation, start, (completion, slot) => {
        if (completion.status < 0) reject(this.failure(operation, completion, slot));
        // What a job answers with is gone together with the context.
        else if (!this.#open) reject(closedError(operation));
        else resolve(result(completion, slot));
      });
    });
  }

  readonly #look = (): void => {
    if (this.#open && this.#heldFromOutside) guarded(() => this.onLook?.(true));
    if (!this.#draining && this.#open && this.#isAwaited()) {
      // The doorbell stays unarmed meanwhile: nobody has to be woken.
      Atomics.store(this.#words, ARMED, 0);
      this.#draining = true;
      try {
        if (this.#pendingWork()) this.#drainOnce();
      } finally {
        this.#draining = false;
      }
    }
    if (this.#open && this.#isAwaited() && Bun.nanoseconds() < this.#hastenUntil) {
      setImmediate(this.#look);
      return;
    }
    this.#hastening = false;
    if (this.#open) guarded(() => this.onLook?.(false));
    this.drain();
  };

  /** Takes every completion that is on the ring and tells the handlers. Runs on its own when the doorbell rings. */
  drain(): void {
    // A late ring of a closed context: its ring may belong to another one by now.
    if (this.#draining || !this.#open) return;
    this.#draining = true;
    try {
      do {
        this.#drainOnce();
        // Re-arm, then look once more: a completion written in between would not have rung.
        Atomics.store(this.#words, ARMED, 1);
      } while (this.#pendingWork());
    } finally {
      this.#draining = false;
    }
    if (this.#freeCount === this.slots) this.#doorbell.hold(this.#heldFromOutside);
  }

  /**
   * Looks at the ring on every turn of the event loop for so long, instead of sleeping until the doorbell rings.
   *
   * Waking a sleeping thread takes tens of microseconds on many machines, as long as a small copy. Nothing is held up
   * by it, and it ends when no job runs and nothing else is awaited.
   *
   * @param micros - From now.
   */
  hasten(micros: number): void {
    const until = Bun.nanoseconds() + micros * 1000;
    if (until > this.#hastenUntil) this.#hastenUntil = until;
    if (this.#hastening || !this.#open) return;
    this.#hastening = true;
    setImmediate(this.#look);
  }

  /** Programs that a running job has completed. */
  programsDone(slot: number): number {
    if (!this.#open) return 0;
    return Atomics.load(this.#words, this.#tableStart + slot * RECORD_WORDS);
  }

  /** Bytes that a running job has moved. */
  bytesDone(slot: number): number {
    if (!this.#open) return 0;
    return this.#doubles[(this.#tableStart + slot * RECORD_WORDS + 4) >> 1] ?? 0;
  }

  /** Asks a running job to stop at its next chunk. */
  cancel(slot: number): void {
    if (this.#open) this.library.kvf_slot_cancel(this.address, slot);
  }

  /** A copy of the byte result of the slot's last job; only inside its handler. */
  resultBytes(slot: number): Uint8Array<ArrayBuffer> {
    return this.#results.bytes(slot);
  }

  /** The error for a completion that failed; only inside its handler. */
  failure(operation: string, completion: Completion, slot: number, details: ErrorDetails = {}): KvferryError {
    return this.#results.failure(operation, completion, slot, this.#open, details);
  }

  /**
   * Holds the process while somebody waits for something that is not a job (notifications).
   * Pairs of calls; an idle context does not hold the process.
   */
  holdProcess(on: boolean): void {
    this.#heldFromOutside = on;
    this.#doorbell.hold(on || this.#freeCount < this.slots);
  }

  /**
   * Closes the context: stops jobs, waits at most `millis`, joins threads. Synchronous; nothing is called back after it.
   * Jobs that did not end by then are told that they ended in doubt.
   *
   * @returns Jobs that are stuck in a call and were left to themselves; their memory stays.
   */
  close(millis: number): number {
    if (!this.#open) return 0;
    this.drain();
    this.#open = false;
    const out = new Float64Array(new ArrayBuffer(64));
    const status = this.library.kvf_context_close(this.address, millis, out);
    this.#drainOnce();
    this.#doorbell.close();
    for (const [slot, handler] of this.#handlers.entries()) {
      if (handler === undefined) continue;
      this.#handlers[slot] = undefined;
      guarded(() => handler(LEFT_BEHIND, slot));
    }
    return status < 0 ? 0 : (out[0] ?? 0);
  }

  /** Whether somebody waits for what comes: a job, or something that is not one. */
  #isAwaited(): boolean {
    return this.#freeCount < this.slots || this.#heldFromOutside;
  }

  #giveBack(slot: number): void {
    this.#returned.push(slot);
    this.#freeCount++;
  }

  #pendingWork(): boolean {
    const words = this.#words;
    return (
      Atomics.load(words, HEAD) !== Atomics.load(words, TAIL) ||
      Atomics.load(words, PROGRESS) !== 0 ||
      Atomics.load(words, NOTIFICATIONS) !== 0
    );
  }

  #drainOnce(): void {
    const words = this.#words;
    let tail = Atomics.load(words, TAIL);
    while (tail !== Atomics.load(words, HEAD)) {
      const entry = RING_START + (tail & this.#mask) * COMPLETION_WORDS;
      const slot = words[entry] ?? 0;
      const half = (entry + 4) >> 1;
      const completion: Completion = {
        status: words[entry + 1] ?? 0,
        flags: words[entry + 2] ?? 0,
        value: this.#doubles[half] ?? 0,
        micros: this.#doubles[half + 1] ?? 0,
      };
      tail = (tail + 1) | 0;
      Atomics.store(words, TAIL, tail);
      const handler = this.#handlers[slot];
      this.#handlers[slot] = undefined;
      if (handler !== undefined) guarded(() => handler(completion, slot));
      this.#giveBack(slot);
    }
    if (Atomics.exchange(words, PROGRESS, 0) !== 0) guarded(() => this.onProgress?.());
    if (Atomics.exchange(words, NOTIFICATIONS, 0) !== 0) guarded(() => this.onNotifications?.());
  }
}

/** A mistake in what is called must neither stop the drain nor leak a slot. */
function guarded(work: () => void): void {
  try {
    work();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
