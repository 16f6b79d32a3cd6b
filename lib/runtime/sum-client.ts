import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { SumShape, SumSide } from "../core/sum-shape.ts";
import type { Clock } from "./deadlines.ts";
import type { BlockGroups } from "./leases.ts";
import { peerRefusal } from "./peer-refusal.ts";
import { MOST_SUM_IDS, writeSumWord, type SumWord } from "./sum-words.ts";

/** Sends a word to a peer, by its wire name; rejects when it cannot be told. */
export type SendSums = (agent: string, body: Uint8Array<ArrayBuffer>) => Promise<void>;

interface Pending {
  readonly agent: string;
  readonly answer: PromiseWithResolvers<Uint8Array>;
  readonly stopTimer: () => void;
}

/** The near side's questions to peers for sums of what is theirs. */
export class SumClient {
  readonly #send: SendSums;
  readonly #clock: Clock;
  readonly #waiting: (on: boolean) => void;
  readonly #deadlineMillis: number;
  readonly #pending: Map<number, Pending> = new Map();
  #lastId = 0;

  constructor(send: SendSums, clock: Clock, waiting: (on: boolean) => void, deadlineMillis: number) {
    this.#send = send;
    this.#clock = clock;
    this.#waiting = waiting;
    this.#deadlineMillis = deadlineMillis;
  }

  /** Questions that have no answer yet. */
  get pending(): number {
    return this.#pending.size;
  }

  /**
   * Resolves when the peer has the layout and those blocks may be read.
   *
   * @throws KvferryError `CHECKSUM`, `STALE_HANDLE` and others as the peer says, `TIMEOUT`, `PEER_LOST`.
   */
  async ready(agent: string, layout: LayoutHandle, blocks: BlockGroups): Promise<void> {
    if (blocks.size === 0)
      await this.#ask(agent, (id) => ({ word: "ready", id, layout, group: "", blocks: new Uint32Array() }));
    for (const [group, ids] of blocks)
      for (let at = 0; at === 0 || at < ids.length; at += MOST_SUM_IDS)
        await this.#ask(agent, (id) => ({
          word: "ready",
          id,
          layout,
          group,
          blocks: ids.subarray(at, at + MOST_SUM_IDS),
        }));
  }

  /** The peer's sums of its side of a window. */
  sums(
    agent: string,
    layout: LayoutHandle,
    component: string,
    shape: SumShape,
    side: SumSide,
    count: number,
  ): Promise<Uint8Array> {
    return this.#ask(agent, (id) => ({ word: "ask", id, layout, component, shape, side, count }));
  }

  /** Takes a peer's answer. */
  answer(agent: string, word: Extract<SumWord, { word: "sums" | "refused" }>): void {
    const pending = this.#pending.get(word.id);
    if (pending === undefined || pending.agent !== agent) return;
    if (word.word === "sums") this.#end(word.id, (answer) => answer.resolve(word.sums));
    else this.#end(word.id, (answer) => answer.reject(refusal(word.code, word.message)));
  }

  /** The peer is gone: nothing is answered any more. */
  lost(agent: string): void {
    for (const [id, pending] of this.#pending)
      if (pending.agent === agent)
        this.#end(id, (answer) =>
          answer.reject(
            new KvferryError(
              "PEER_LOST",
              "transfer",
              `peer ${agent} is gone before both ends were compared`,
              "Import its metadata again when it is back.",
              { agent },
            ),
          ),
        );
  }

  #ask(agent: string, word: (id: number) => SumWord): Promise<Uint8Array> {
    const id = ++this.#lastId;
    const answer = Promise.withResolvers<Uint8Array>();
    const stopTimer = this.#clock.after(this.#deadlineMillis, () => {
      this.#end(id, (late) => late.reject(silent(agent, this.#deadlineMillis)));
    });
    this.#pending.set(id, { agent, answer, stopTimer });
    if (this.#pending.size === 1) this.#waiting(true);
    this.#send(agent, writeSumWord(word(id))).catch((error: unknown) =>
      this.#end(id, (failed) => failed.reject(error)),
    );
    return answer.promise;
  }

  #end(id: number, say: (answer: PromiseWithResolvers<Uint8Array>) => void): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    pending.stopTimer();
    if (this.#pending.size === 0) this.#waiting(false);
    say(pending.answer);
  }
}

const WORDS: ReadonlySet<string> = new Set([
  "ACCESS",
  "CHECKSUM",
  "CLOSED",
  "IN_USE",
  "INVALID_CONFIG",
  "IO",
  "NO_ROUTE",
  "OUT_OF_MEMORY",
  "STALE_HANDLE",
  "UNKNOWN_HANDLE",
]);

function refusal(code: string, message: string): KvferryError {
  return peerRefusal(WORDS, code, message);
}

function silent(agent: string, millis: number): KvferryError {
  return new KvferryError(
    "TIMEOUT",
    "transfer",
    `peer ${agent} did not say within ${millis} ms what it holds`,
    "Check that the peer runs, and has imported this worker's metadata or can reach it.",
    { agent, millis },
  );
}
