import { KvferryError } from "../core/errors.ts";
import type { LayoutRecord } from "../core/layout.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { CopyProgram } from "../core/program.ts";
import { betweenChunks, executorBeside } from "../core/staging.ts";
import type { RunProgram } from "./assisted-run.ts";
import type { Clock } from "./deadlines.ts";
import type { HopOutcome } from "./executor.ts";
import type { Leases } from "./leases.ts";
import { checkedProgram, namedByOffset, refusal } from "./staged-check.ts";
import { IN_DOUBT, NO_WAY, writeStaging, type StagedOperation, type StagingWord } from "./staged-protocol.ts";
import type { SendStaging } from "./staging-client.ts";
import type { Chunk, ChunkSource } from "./staging-pool.ts";

/** What the far side of staged transfers needs. */
export interface StagingServerParts {
  readonly clock: Clock;
  readonly leases: Leases;
  /** Whether words of peers are awaited. */
  readonly waiting: (on: boolean) => void;
  readonly send: SendStaging;
  /** Throws for a handle that is not of a layout of this process. */
  readonly layout: (handle: LayoutHandle) => LayoutRecord;
  /** Chunks for a component's transfers with a peer. */
  readonly chunks: (device: number | null, agent: string) => ChunkSource;
  /** Chunks from which it writes to a peer. */
  readonly sendChunks: (device: number | null, agent: string) => ChunkSource;
  readonly runProgram: RunProgram;
  /** Writes to a peer's memory through NIXL. */
  readonly write: (agent: string, program: CopyProgram, done: (outcome: HopOutcome) => void) => void;
  /** Whether hashes of the file's blocks are kept, which only its owner can keep right. */
  readonly keepsSums: (file: number) => boolean;
  /** How long a peer may take between two words. */
  readonly deadlineMillis: number;
}

/** Requests of one peer that wait or run at most; a peer that asks for more is refused. */
const MOST_REQUESTS = 1_024;

/** Who may still touch a chunk: nobody, the peer that it was lent to, or a copy of this process. */
type Toucher = "peer" | "here" | null;

interface Orphan {
  readonly agent: string;
  readonly source: ChunkSource;
  readonly chunk: Chunk;
}

interface Request {
  readonly agent: string;
  readonly id: number;
  readonly operation: StagedOperation;
  /** Of the peer's chunk, for a fetch. */
  readonly address: number;
  readonly record: LayoutRecord;
  readonly program: CopyProgram;
  readonly source: ChunkSource;
  chunk: Chunk | undefined;
  /** The peer wants it no more, or is gone. */
  cancelled: boolean;
  /** Gets a chunk, has one and waits for the peer, or moves bytes. */
  state: "waiting" | "lent" | "moving";
  stopTimer: (() => void) | undefined;
  /** Takes back the wish for a chunk. */
  unwish: (() => void) | undefined;
}

/**
 * The far side of staged transfers: lends chunks to peers, and moves what they put there or want.
 *
 * Every row of what a peer asks for is checked to lie in the layout that it names. A peer that falls silent while it
 * may touch a chunk costs that chunk its place until it is heard of, not the pool.
 */
export class StagingServer {
  readonly #parts: StagingServerParts;
  readonly #requests: Map<string, Request> = new Map();
  readonly #counts: Map<string, number> = new Map();
  /** Chunks that a peer which was lost may still touch, by the request that had them. */
  readonly #orphans: Map<string, Orphan> = new Map();
  /** Who waits until nothing is moved for a peer any more. */
  readonly #waiters: Map<string, PromiseWithResolvers<void>> = new Map();
  /** Told of peers that keep a chunk for too long: somebody may be able to prove that they are gone. */
  onOverdue: ((agent: string) => void) | undefined;

  constructor(parts: StagingServerParts) {
    this.#parts = parts;
  }

  /** Requests that have not ended. */
  get pending(): number {
    return this.#requests.size;
  }

  /** Chunks that peers may still touch, and that are kept for that reason alone. */
  get doubtful(): number {
    return this.#orphans.size;
  }

  /** Takes a peer's word. */
  take(agent: string, word: StagingWord): void {
    if (word.word === "ask") {
      this.#ask(agent, word);
      return;
    }
    const key = keyOf(agent, word.id);
    const request = this.#requests.get(key);
    if (request === undefined) {
      // Said only when nothing over there touches the chunk.
      this.#reclaim(key);
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
    for (const request of this.#requests.values()) {
      if (request.agent !== agent) continue;
      // What moves ends by itself.
      if (request.state === "moving") request.cancelled = true;
      else if (request.state === "lent") this.#end(request, "peer");
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
    for (const [key, orphan] of this.#orphans) if (orphan.agent === agent) this.#reclaim(key);
    return moving;
  }

  /** Begins nothing more for a peer. @returns Resolves when what is moved for it has ended; null when nothing is. */
  leave(agent: string): Promise<void> | null {
    this.lost(agent);
    if (!this.#counts.has(agent)) return null;
    const waiter = this.#waiters.get(agent) ?? Promise.withResolvers<void>();
    this.#waiters.set(agent, waiter);
    return waiter.promise;
  }

  #reclaim(key: string): void {
    const orphan = this.#orphans.get(key);
    if (orphan === undefined) return;
    this.#orphans.delete(key);
    orphan.source.release(orphan.chunk);
  }

  #ask(agent: string, word: Extract<StagingWord, { word: "ask" }>): void {
    const key = keyOf(agent, word.id);
    try {
      if (this.#requests.has(key)) throw refusal("INVALID_CONFIG", "the request's number is in use");
      if ((this.#counts.get(agent) ?? 0) >= MOST_REQUESTS)
        throw refusal("IN_USE", `${MOST_REQUESTS} requests of this peer are under way`);
      const record = this.#parts.layout(word.layout);
      if (word.operation === "write" && record.access !== "read-write")
        throw refusal("ACCESS", `layout ${record.name} may only be read`);
      const component = record.components.find(({ shape }) => shape.name === word.component);
      if (component === undefined)
        throw refusal("INVALID_CONFIG", `layout ${record.name} has no component ${word.component}`);
      if (component.attachment.kind === "file" && this.#parts.keepsSums(component.attachment.file))
        throw refusal(
          "NO_ROUTE",
          `layout ${record.name} keeps checksums, which only its own transfers keep right`,
        );
      const device = component.storage.kind === "device" ? component.storage.device : null;
      const { chunks, sendChunks } = this.#parts;
      const source = (word.operation === "fetch" ? sendChunks : chunks)(device, agent);
      const request: Request = {
        agent,
        id: word.id,
        operation: word.operation,
        address: word.address,
        record,
        program: checkedProgram(
          component,
          word.program,
          word.operation,
          source.chunkBytes,
          namedByOffset(record),
        ),
        source,
        chunk: undefined,
        cancelled: false,
        state: "waiting",
        stopTimer: undefined,
        unwish: undefined,
      };
      this.#requests.set(key, request);
      this.#counts.set(agent, (this.#counts.get(agent) ?? 0) + 1);
      if (this.#requests.size === 1) this.#parts.waiting(true);
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

  #granted(request: Request, chunk: Chunk): void {
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
  #write(request: Request, chunk: Chunk): void {
    if (request.cancelled) {
      this.#refuse(request, unwanted());
      return;
    }
    const done = (outcome: HopOutcome): void => {
      if (outcome.ok) {
        this.#say(request.agent, { word: "ended", id: request.id });
        this.#end(request);
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
        betweenChunks(chunk.address, request.address, request.program.bytes),
        done,
      );
    } catch (error) {
      this.#refuse(request, error);
    }
  }

  #lend(request: Request, chunk: Chunk): void {
    if (request.cancelled) {
      this.#refuse(request, unwanted());
      return;
    }
    request.state = "lent";
    request.stopTimer = this.#parts.clock.after(this.#parts.deadlineMillis, () => {
      // The peer may still touch it: another chunk takes its place, and it comes back if the peer is heard of.
      request.source.giveUp(chunk);
      this.onOverdue?.(request.agent);
    });
    this.#say(request.agent, { word: "credit", id: request.id, address: chunk.address });
  }

  #moved(request: Request): void {
    const { chunk } = request;
    if (request.state !== "lent" || chunk === undefined) return;
    request.stopTimer?.();
    if (request.operation === "read") {
      this.#say(request.agent, { word: "ended", id: request.id });
      this.#end(request);
      return;
    }
    request.state = "moving";
    this.#run(request, chunk, () => {
      this.#say(request.agent, { word: "ended", id: request.id });
      this.#end(request);
    });
  }

  #cancel(request: Request): void {
    // What moves ends by itself, and is then found to be wanted no more.
    request.cancelled = true;
    if (request.state === "moving") return;
    if (request.operation === "fetch") this.#refuse(request, unwanted());
    else this.#end(request);
  }

  #run(request: Request, chunk: Chunk, then: () => void): void {
    const { program, operation } = request;
    const at = (bases: Float64Array): Float64Array => bases.map((base) => base + chunk.address);
    const placed: CopyProgram =
      operation === "write"
        ? { ...program, srcBase: at(program.srcBase) }
        : { ...program, dstBase: at(program.dstBase) };
    const executor = executorBeside(operation === "write" ? program.dstMemory : program.srcMemory);
    const { handle } = request.record;
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
      this.#parts.runProgram(executor, "copy", placed, done);
    } catch (error) {
      this.#parts.leases.release(handle);
      this.#refuse(request, error);
    }
  }

  /** @param code - In place of the error's own. */
  #refuse(
    request: Request,
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
    this.#end(request, toucher);
  }

  /** @param toucher - Who may still touch the chunk. */
  #end(request: Request, toucher: Toucher = null): void {
    const { agent, chunk, source } = request;
    const key = keyOf(agent, request.id);
    if (!this.#requests.delete(key)) return;
    request.stopTimer?.();
    request.unwish?.();
    if (chunk !== undefined) {
      if (toucher === null) source.release(chunk);
      else source.giveUp(chunk);
      if (toucher === "peer") this.#orphans.set(key, { agent, source, chunk });
    }
    const left = (this.#counts.get(agent) ?? 1) - 1;
    if (left > 0) this.#counts.set(agent, left);
    else {
      this.#counts.delete(agent);
      this.#waiters.get(agent)?.resolve();
      this.#waiters.delete(agent);
    }
    if (this.#requests.size === 0) this.#parts.waiting(false);
  }

  #say(agent: string, word: StagingWord): void {
    // A peer that cannot be told waits out its deadline, and so does its chunk here.
    this.#parts.send(agent, writeStaging(word)).catch(() => undefined);
  }
}

function unwanted(): KvferryError {
  return refusal("NO_ROUTE", "the request is wanted no more, or this worker was forgotten");
}

function keyOf(agent: string, id: number): string {
  return `${id}:${agent}`;
}

function told(error: unknown): { readonly code: string; readonly message: string } {
  if (error instanceof KvferryError)
    return { code: error.code.replace("ERR_KVF_", ""), message: error.message };
  return { code: "IO", message: String(error) };
}
