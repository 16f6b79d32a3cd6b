import { KvferryError } from "../core/errors.ts";
import type { CopyProgram } from "../core/program.ts";
import { betweenChunks, executorBeside, stageMemory } from "../core/staging.ts";
import type { RunProgram } from "./assisted-run.ts";
import type { Clock } from "./deadlines.ts";
import type { HopOutcome } from "./executor.ts";
import type { Leases } from "./leases.ts";
import { checkedAsk, refusal, type StagedOwner } from "./staged-check.ts";
import { IN_DOUBT, NO_WAY, writeStaging, type StagingWord } from "./staged-protocol.ts";
import type { SendStaging, WithData } from "./staging-client.ts";
import type { Chunk } from "./chunks.ts";
import { StagingRequests, type StagingRequest, type Toucher } from "./staging-requests.ts";

/** What the far side of staged transfers needs. */
export interface StagingServerParts extends StagedOwner {
  readonly clock: Clock;
  readonly leases: Leases;
  /** Whether words of peers are awaited. */
  readonly waiting: (on: boolean) => void;
  readonly send: SendStaging;
  /** Null where words cannot leave with data. */
  readonly withData: WithData | null;
  readonly runProgram: RunProgram;
  /** Writes to a peer's memory through NIXL, which brings it the notification afterwards. */
  readonly write: (
    agent: string,
    program: CopyProgram,
    notification: Uint8Array | null,
    done: (outcome: HopOutcome) => void,
  ) => void;
  /** How long a peer may take between two words. */
  readonly deadlineMillis: number;
}

/**
 * The far side of staged transfers: lends chunks to peers, and moves what they put there or want.
 *
 * Every row of what a peer asks for is checked to lie in the layout that it names. A peer that falls silent while it
 * may touch a chunk costs that chunk its place until it is heard of, not the pool.
 */
export class StagingServer {
  readonly #parts: StagingServerParts;
  readonly #requests: StagingRequests;
  /** Told of peers that keep a chunk for too long: somebody may be able to prove that they are gone. */
  onOverdue: ((agent: string) => void) | undefined;

  constructor(parts: StagingServerParts) {
    this.#parts = parts;
    this.#requests = new StagingRequests(parts.waiting);
  }

  /** Requests that have not ended. */
  get pending(): number {
    return this.#requests.size;
  }

  /** Chunks that peers may still touch, and that are kept for that reason alone. */
  get doubtful(): number {
    return this.#requests.orphans;
  }

  /** Takes a peer's word. */
  take(agent: string, word: StagingWord): void {
    if (word.word === "ask") {
      this.#ask(agent, word);
      return;
    }
    const request = this.#requests.find(agent, word.id);
    if (request === undefined) {
      // Said only when nothing over there touches the chunk.
      this.#requests.reclaim(agent, word.id);
      if (word.word === "moved")
        this.#say(agent, {
          word: "refused",
          id: word.id,
          ...told(refusal("NO_ROUTE", "the request was given up meanwhile")),
        });
      return;
    }
    if (word.word === "moved") this.#moved(request);
    if (word.word === "cancel") this.#cancel(request);
  }

  /** The peer is not heard of any more: what it may still touch is not lent again before that is proven. */
  lost(agent: string): void {
    for (const request of this.#requests.of(agent)) {
      // What moves ends by itself.
      if (request.state === "moving") request.cancelled = true;
      else if (request.state === "lent") this.#requests.end(request, "peer");
      else this.#refuse(request, refusal("NO_ROUTE", "it has forgotten this worker"));
    }
  }

  /**
   * It is proven that a peer touches nothing here any more: its chunks are lent again.
   *
   * @returns Resolves when what is moved for it here has ended too; null when nothing is.
   */
  release(agent: string): Promise<void> | null {
    const moving = this.leave(agent);
    this.#requests.reclaimAll(agent);
    return moving;
  }

  /** Begins nothing more for a peer. @returns Resolves when what is moved for it has ended; null when nothing is. */
  leave(agent: string): Promise<void> | null {
    this.lost(agent);
    return this.#requests.whenNone(agent);
  }

  #ask(agent: string, word: Extract<StagingWord, { word: "ask" }>): void {
    try {
      this.#requests.demandRoom(agent, word.id);
      const work = checkedAsk(this.#parts, agent, word);
      const { source } = work;
      const request: StagingRequest = {
        agent,
        id: word.id,
        operation: word.operation,
        address: word.address,
        device: word.device ?? null,
        work,
        chunk: undefined,
        cancelled: false,
        state: "waiting",
        stopTimer: undefined,
        unwish: undefined,
      };
      this.#requests.add(request);
      const waiter = {
        grant: (chunk: Chunk): void => this.#granted(request, chunk),
        refuse: (error: KvferryError): void => this.#refuse(request, error),
      };
      request.unwish = () => source.cancel(waiter);
      request.stopTimer = this.#parts.clock.after(this.#parts.deadlineMillis, () =>
        this.#refuse(request, refusal("TIMEOUT", "no staging memory became free in time")),
      );
      source.request(waiter);
    } catch (error) {
      this.#say(agent, { word: "refused", id: word.id, ...told(error) });
    }
  }

  #granted(request: StagingRequest, chunk: Chunk): void {
    request.chunk = chunk;
    request.unwish = undefined;
    request.stopTimer?.();
    if (request.operation === "write") {
      this.#lend(request, chunk);
      return;
    }
    request.state = "moving";
    this.#run(request, chunk, () =>
      request.operation === "fetch" ? this.#write(request, chunk) : this.#lend(request, chunk),
    );
  }

  /** Writes what was gathered to the peer's chunk. */
  #write(request: StagingRequest, chunk: Chunk): void {
    if (request.cancelled) {
      this.#refuse(request, unwanted());
      return;
    }
    const ended: StagingWord = { word: "ended", id: request.id };
    const notification = this.#parts.withData?.(request.agent, writeStaging(ended)) ?? null;
    const done = (outcome: HopOutcome): void => {
      if (outcome.ok) {
        if (notification === null) this.#say(request.agent, ended);
        this.#requests.end(request, null);
        return;
      }
      const error = outcome.error ?? refusal("IO", "the copy to the peer failed");
      // What never started was refused by NIXL: it does not know the chunk.
      const clean = !outcome.touched && !outcome.inDoubt;
      this.#refuse(request, error, clean ? null : "peer", clean ? NO_WAY : IN_DOUBT);
    };
    try {
      this.#parts.write(
        request.agent,
        betweenChunks(
          chunk.address,
          request.address,
          request.work.bytes,
          stageMemory(request.work.source.device),
          stageMemory(request.device),
        ),
        notification,
        done,
      );
    } catch (error) {
      this.#refuse(request, error);
    }
  }

  #lend(request: StagingRequest, chunk: Chunk): void {
    if (request.cancelled) {
      this.#refuse(request, unwanted());
      return;
    }
    request.state = "lent";
    request.stopTimer = this.#parts.clock.after(this.#parts.deadlineMillis, () => {
      // The peer may still touch it: another chunk takes its place, and it comes back if the peer is heard of.
      request.work.source.giveUp(chunk);
      this.onOverdue?.(request.agent);
    });
    const { device } = request.work.source;
    this.#say(request.agent, {
      word: "credit",
      id: request.id,
      address: chunk.address,
      ...(device === null ? undefined : { device }),
    });
  }

  #moved(request: StagingRequest): void {
    const { chunk } = request;
    if (request.state !== "lent" || chunk === undefined) return;
    request.stopTimer?.();
    if (request.operation === "read") {
      this.#say(request.agent, { word: "ended", id: request.id });
      this.#requests.end(request, null);
      return;
    }
    request.state = "moving";
    this.#run(request, chunk, () => {
      this.#say(request.agent, { word: "ended", id: request.id });
      this.#requests.end(request, null);
    });
  }

  #cancel(request: StagingRequest): void {
    // What moves ends by itself, and is then found to be wanted no more.
    request.cancelled = true;
    if (request.state === "moving") return;
    if (request.operation === "fetch") this.#refuse(request, unwanted());
    else this.#requests.end(request, null);
  }

  #run(request: StagingRequest, chunk: Chunk, then: () => void): void {
    const { record, memory, programAt } = request.work;
    const { handle } = record;
    const done = (outcome: HopOutcome): void => {
      this.#parts.leases.release(handle);
      if (outcome.ok) then();
      else
        this.#refuse(
          request,
          outcome.error ?? refusal("IO", "the copy failed"),
          outcome.inDoubt ? "here" : null,
        );
    };
    try {
      // It may have been taken back since the peer asked.
      this.#parts.layout(handle);
    } catch (error) {
      this.#refuse(request, error);
      return;
    }
    this.#parts.leases.acquire(handle);
    try {
      this.#parts.runProgram(executorBeside(memory), "copy", programAt(chunk.address), done);
    } catch (error) {
      this.#parts.leases.release(handle);
      this.#refuse(request, error);
    }
  }

  /** @param code - In place of the error's own. */
  #refuse(
    request: StagingRequest,
    error: unknown,
    toucher: Toucher = null,
    code: string | null = toucher === "here" ? IN_DOUBT : null,
  ): void {
    const words = told(error);
    this.#say(request.agent, {
      word: "refused",
      id: request.id,
      ...words,
      ...(code === null ? undefined : { code }),
    });
    this.#requests.end(request, toucher);
  }

  #say(agent: string, word: StagingWord): void {
    // A peer that cannot be told waits out its deadline, and so does its chunk here.
    this.#parts.send(agent, writeStaging(word)).catch(() => undefined);
  }
}

function unwanted(): KvferryError {
  return refusal("NO_ROUTE", "the request is wanted no more, or this worker was forgotten");
}

function told(error: unknown): { readonly code: string; readonly message: string } {
  if (error instanceof KvferryError)
    return { code: error.code.replace("ERR_KVF_", ""), message: error.message };
  return { code: "IO", message: String(error) };
}
