import { KvferryError, type ErrorWord } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { IN_DOUBT, writeStaging, type StagedProgram, type StagingWord } from "./staged-protocol.ts";

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
  /** Gives up; only while nothing of this process touches the peer's chunk. */
  cancel(error: KvferryError): void;
}

/** Sends a word to a peer, by its wire name; throws or rejects when there is no such peer that understands it. */
export type SendStaging = (agent: string, body: Uint8Array<ArrayBuffer>) => Promise<void>;

interface Pending {
  readonly agent: string;
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
  #lastId = 0;

  constructor(send: SendStaging) {
    this.#send = send;
  }

  /** Requests that have no answer yet. */
  get pending(): number {
    return this.#pending.size;
  }

  ask(
    agent: string,
    operation: "write" | "read",
    layout: LayoutHandle,
    component: string,
    program: StagedProgram,
  ): StagingRequest {
    // Numbers are of 32 bits on the wire, and used again.
    do this.#lastId = (this.#lastId + 1) >>> 0;
    while (this.#pending.has(this.#lastId));
    const id = this.#lastId;
    const pending: Pending = {
      agent,
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
      this.#send(agent, writeStaging(word)).catch((error: unknown) => this.#fail(id, asError(error)));
    };
    say({ word: "ask", id, operation, layout, component, program });
    return {
      id,
      credit: pending.credit.promise,
      ended: pending.ended.promise,
      get answered() {
        return pending.answered;
      },
      moved: () => say({ word: "moved", id }),
      cancel: (error) => {
        // Also to a peer that was lost and came back: it may keep a chunk for this.
        if (pending.closed) return;
        pending.closed = true;
        say({ word: "cancel", id });
        this.#fail(id, error);
      },
    };
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
      pending.credit.resolve(word.address);
    } else {
      pending.answered = word.word !== "refused" || word.code !== IN_DOUBT;
      pending.closed = true;
    }
    if (word.word === "ended") {
      this.#pending.delete(word.id);
      pending.ended.resolve();
    }
    if (word.word === "refused") this.#fail(word.id, refusal(word.code, word.message));
  }

  /** The peer has forgotten this worker: what it lent to it is over, and it moves nothing for it. */
  released(agent: string): void {
    for (const [id, pending] of this.#pending) {
      if (pending.agent !== agent) continue;
      // What it said before it forgot has come before: other requests it has not seen yet.
      if (pending.credited) pending.answered = true;
      this.#fail(id, refusal("NO_ROUTE", "it has forgotten this worker"));
    }
  }

  /** The peer is gone: nothing is answered any more. */
  lost(agent: string): void {
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

  #fail(id: number, error: KvferryError): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    pending.credit.reject(error);
    pending.ended.reject(error);
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
  const word = (WORDS.has(code) ? code : "IO") as ErrorWord; // one of the set
  return new KvferryError(
    word,
    "transfer",
    `the peer says: ${message}`,
    "See the message for what the peer reported.",
    { code },
  );
}

function asError(error: unknown): KvferryError {
  if (error instanceof KvferryError) return error;
  return new KvferryError(
    "IO",
    "transfer",
    `a message could not be sent: ${String(error)}`,
    "See the cause.",
    {},
    error,
  );
}
