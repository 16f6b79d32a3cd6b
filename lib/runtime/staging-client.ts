import { asKvferryError, KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { peerRefusal } from "./peer-refusal.ts";
import {
  IN_DOUBT,
  NO_WAY,
  writeStaging,
  type StagedOperation,
  type StagedProgram,
  type StagingWord,
} from "./staged-protocol.ts";

/** A request to a peer that is under way. */
export interface StagingRequest {
  readonly id: number;
  /** Resolves with the address of the peer's chunk. */
  readonly credit: Promise<number>;
  /** Resolves when the peer is done with the bytes. */
  readonly ended: Promise<void>;
  /** Whether the peer itself has said how it ended. */
  readonly answered: boolean;
  /** The chunk was written, or read. */
  moved(): void;
  /** The same as a message that NIXL is to bring after what it writes; null where it is to be said. */
  movedWithData(): Uint8Array | null;
  /** Gives up; only while nothing of this process touches the peer's chunk. */
  cancel(error: KvferryError): void;
}

/** A fetch that is under way: the peer writes to a chunk of this process. */
export interface FetchRequest {
  /** Resolves when the bytes are in the chunk. */
  readonly ended: Promise<void>;
  /** Gives up: nobody waits any more, though the peer may still write to the chunk. */
  stop(error: KvferryError): void;
  /** Calls when the peer touches the chunk no more, as it says or as is proven; at once where that is known now. */
  whenQuiet(call: () => void): void;
}

/** Sends a word to a peer, by its wire name; throws or rejects when there is no such peer that understands it. */
export type SendStaging = (agent: string, body: Uint8Array<ArrayBuffer>) => Promise<void>;

/** A word as a message that leaves together with data. */
export type WithData = (agent: string, word: Uint8Array<ArrayBuffer>) => Uint8Array;

interface Pending {
  readonly agent: string;
  readonly fetch: boolean;
  /** Device of the peer's chunk that was asked for; null for host memory. */
  readonly device: number | null;
  /** Nobody awaits it, but the peer may touch the chunk: told when it does not any more. */
  quiet: (() => void) | undefined;
  readonly credit: PromiseWithResolvers<number>;
  readonly ended: PromiseWithResolvers<void>;
  answered: boolean;
  credited: boolean;
  /** Nothing more needs to be said about it. */
  closed: boolean;
}

/** The near side's requests to peers for their staging memory. */
export class StagingClient {
  readonly #send: SendStaging;
  readonly #pending: Map<number, Pending> = new Map();
  /** Peers whose NIXL does not know this process's staging memory: they cannot write to it. */
  readonly #unknown: Set<string> = new Set();
  /** Whether chunks in GPU memory worked with a peer, both here and there; those that were not asked yet are left out. */
  readonly #devices: Map<string, boolean> = new Map();
  #lastId = 0;
  readonly #withData: WithData | null;

  /** @param withData - Null where words cannot leave with data. */
  constructor(send: SendStaging, withData: WithData | null = null) {
    this.#send = send;
    this.#withData = withData;
  }

  /** Requests that have no answer yet. */
  get pending(): number {
    return this.#pending.size;
  }

  /** Whether a peer may be asked to write what is to be read. */
  fetches(agent: string): boolean {
    return !this.#unknown.has(agent);
  }

  /** Whether chunks in GPU memory work with a peer; undefined before that was tried. */
  lendsDevices(agent: string): boolean | undefined {
    return this.#devices.get(agent);
  }

  /** Remembers whether chunks in GPU memory worked with a peer, until it is lost. */
  noteDevices(agent: string, work: boolean): void {
    this.#devices.set(agent, work);
  }

  /** Chunks of this process that peers may still write to, and that are kept for that reason alone. */
  get doubtful(): number {
    let count = 0;
    for (const { quiet } of this.#pending.values()) if (quiet !== undefined) count++;
    return count;
  }

  /**
   * Asks for a chunk of the peer's, to write to or to read from.
   *
   * @param device - Device over there in whose memory it must lie; null for host memory.
   */
  ask(
    agent: string,
    operation: "write" | "read",
    layout: LayoutHandle,
    component: string,
    program: StagedProgram,
    device: number | null = null,
  ): StagingRequest {
    const { id, pending, say } = this.#begin(agent, operation, layout, component, program, 0, device);
    return {
      id,
      credit: pending.credit.promise,
      ended: pending.ended.promise,
      get answered() {
        return pending.answered;
      },
      moved: () => say({ word: "moved", id }),
      movedWithData: () => this.#withData?.(agent, writeStaging({ word: "moved", id })) ?? null,
      cancel: (error) => {
        // Also to a peer that was lost and came back: it may keep a chunk for this.
        if (pending.closed) return;
        pending.closed = true;
        say({ word: "cancel", id });
        this.#fail(id, error);
      },
    };
  }

  /**
   * Asks the peer to write into a chunk of this process.
   *
   * @param address - Of the chunk, which nobody else may get before `whenQuiet` has called.
   * @param device - Device here in whose memory the chunk lies; null for host memory.
   */
  fetch(
    agent: string,
    layout: LayoutHandle,
    component: string,
    program: StagedProgram,
    address: number,
    device: number | null = null,
  ): FetchRequest {
    const { id, pending, say } = this.#begin(agent, "fetch", layout, component, program, address, device);
    return {
      ended: pending.ended.promise,
      stop: (error) => {
        if (pending.closed) return;
        say({ word: "cancel", id });
        pending.ended.reject(error);
      },
      whenQuiet: (call) => {
        if (this.#pending.get(id) === pending) pending.quiet = call;
        else call();
      },
    };
  }

  #begin(
    agent: string,
    operation: StagedOperation,
    layout: LayoutHandle,
    component: string,
    program: StagedProgram,
    address: number,
    device: number | null,
  ): { readonly id: number; readonly pending: Pending; readonly say: (word: StagingWord) => void } {
    // Numbers are of 32 bits on the wire, and used again.
    do this.#lastId = (this.#lastId + 1) >>> 0;
    while (this.#pending.has(this.#lastId));
    const id = this.#lastId;
    const pending: Pending = {
      agent,
      fetch: operation === "fetch",
      device,
      quiet: undefined,
      credit: Promise.withResolvers<number>(),
      ended: Promise.withResolvers<void>(),
      answered: false,
      credited: false,
      closed: false,
    };
    // Whoever gave up awaits neither.
    pending.credit.promise.catch(() => undefined);
    pending.ended.promise.catch(() => undefined);
    this.#pending.set(id, pending);
    const say = (word: StagingWord): void => {
      this.#send(agent, writeStaging(word)).catch((error: unknown) =>
        this.#fail(id, asKvferryError(error, "a message could not be sent")),
      );
    };
    const where = device === null ? undefined : { device };
    say({ word: "ask", id, operation, layout, component, program, address, ...where });
    return { id, pending, say };
  }

  /** Takes a peer's answer. */
  answer(agent: string, word: StagingWord): void {
    const pending = this.#pending.get(word.id);
    if (pending === undefined || pending.agent !== agent) {
      // A chunk for a request that was given up meanwhile.
      if (word.word === "credit")
        this.#send(agent, writeStaging({ word: "cancel", id: word.id })).catch(() => undefined);
      return;
    }
    if (word.word === "credit") {
      pending.credited = true;
      if ((word.device ?? null) === pending.device) pending.credit.resolve(word.address);
      // Whoever awaits it gives it back.
      else pending.credit.reject(refusal("NO_ROUTE", "it lends memory of another kind"));
    } else {
      pending.answered = word.word !== "refused" || word.code !== IN_DOUBT;
      pending.closed = true;
    }
    if (word.word === "ended") {
      this.#pending.delete(word.id);
      pending.ended.resolve();
      pending.quiet?.();
    }
    if (word.word !== "refused") return;
    if (word.code === NO_WAY && pending.device === null) this.#unknown.add(agent);
    this.#fail(word.id, refusal(word.code, word.message));
  }

  /** The peer has forgotten this worker: what it lent to it is over, and it moves nothing for it. */
  released(agent: string): void {
    for (const [id, pending] of this.#pending) {
      if (pending.agent !== agent) continue;
      // What it said before it forgot has come before: other requests it has not seen yet.
      // Nothing is moved for a worker that was forgotten.
      if (pending.credited || pending.fetch) pending.answered = true;
      this.#fail(id, refusal("NO_ROUTE", "it has forgotten this worker"));
    }
  }

  /** The peer is gone: nothing is answered any more. */
  lost(agent: string): void {
    this.#unknown.delete(agent);
    this.#devices.delete(agent);
    for (const [id, pending] of this.#pending)
      if (pending.agent === agent)
        this.#fail(
          id,
          new KvferryError(
            "PEER_LOST",
            "transfer",
            `peer ${agent} is gone`,
            "Import its metadata again when it is back.",
            { agent },
          ),
        );
  }

  /** It is proven that a peer touches nothing here any more. */
  proven(agent: string): void {
    for (const [id, pending] of this.#pending) {
      if (pending.agent !== agent || !pending.fetch) continue;
      pending.answered = true;
      this.#fail(id, refusal("NO_ROUTE", "it is gone"));
    }
  }

  #fail(id: number, error: KvferryError): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    pending.credit.reject(error);
    pending.ended.reject(error);
    // A peer that writes to a chunk here without having said how that ended is kept in mind.
    if (pending.fetch && !pending.answered) return;
    this.#pending.delete(id);
    pending.quiet?.();
  }
}

const WORDS: ReadonlySet<string> = new Set([
  "ACCESS",
  "CHECKSUM",
  "CLOSED",
  "CUDA",
  "IO",
  "INVALID_CONFIG",
  "NO_CUDA",
  "NO_ROUTE",
  "OUT_OF_MEMORY",
  "STALE_HANDLE",
  "TIMEOUT",
  "UNKNOWN_HANDLE",
]);

function refusal(code: string, message: string): KvferryError {
  return peerRefusal(WORDS, code, message);
}
