import { refusal, type StagedWork } from "./staged-check.ts";
import type { StagedOperation } from "./staged-protocol.ts";
import type { Chunk, ChunkSource } from "./chunks.ts";

/** Requests of one peer that wait or run at most; a peer that asks for more is refused. */
const MOST_REQUESTS = 1_024;

/** What a peer asked the far side of a staged transfer for. */
export interface StagingRequest {
  readonly agent: string;
  readonly id: number;
  readonly operation: StagedOperation;
  /** Of the peer's chunk, for a fetch. */
  readonly address: number;
  /** Device of the peer's chunk; null for host memory. */
  readonly device: number | null;
  readonly work: StagedWork;
  chunk: Chunk | undefined;
  /** The peer wants it no more, or is gone. */
  cancelled: boolean;
  /** Gets a chunk, has one and waits for the peer, or moves bytes. */
  state: "waiting" | "lent" | "moving";
  stopTimer: (() => void) | undefined;
  /** Takes back the wish for a chunk. */
  unwish: (() => void) | undefined;
}

/** Who may still touch a chunk: nobody, the peer that it was lent to, or a copy of this process. */
export type Toucher = "peer" | "here" | null;

interface Orphan {
  readonly agent: string;
  readonly source: ChunkSource;
  readonly chunk: Chunk;
}

/** Requests of peers that have not ended, and the chunks that outlive theirs. */
export class StagingRequests {
  readonly #requests: Map<string, StagingRequest> = new Map();
  readonly #counts: Map<string, number> = new Map();
  /** Chunks that a peer which was lost may still touch, by the request that had them. */
  readonly #orphans: Map<string, Orphan> = new Map();
  /** Who waits until nothing is moved for a peer any more. */
  readonly #waiters: Map<string, PromiseWithResolvers<void>> = new Map();
  readonly #waiting: (on: boolean) => void;

  /** @param waiting - Told whether there are any. */
  constructor(waiting: (on: boolean) => void) {
    this.#waiting = waiting;
  }

  get size(): number {
    return this.#requests.size;
  }

  /** Chunks that peers may still touch, and that are kept for that reason alone. */
  get orphans(): number {
    return this.#orphans.size;
  }

  find(agent: string, id: number): StagingRequest | undefined {
    return this.#requests.get(keyOf(agent, id));
  }

  /** Those of a peer, also while they end. */
  *of(agent: string): Iterable<StagingRequest> {
    for (const request of this.#requests.values()) if (request.agent === agent) yield request;
  }

  /** @throws KvferryError `INVALID_CONFIG` for a number in use, `IN_USE` when the peer has too many. */
  demandRoom(agent: string, id: number): void {
    if (this.#requests.has(keyOf(agent, id)))
      throw refusal("INVALID_CONFIG", "the request's number is in use");
    if ((this.#counts.get(agent) ?? 0) >= MOST_REQUESTS)
      throw refusal("IN_USE", `${MOST_REQUESTS} requests of this peer are under way`);
  }

  add(request: StagingRequest): void {
    const { agent } = request;
    this.#requests.set(keyOf(agent, request.id), request);
    this.#counts.set(agent, (this.#counts.get(agent) ?? 0) + 1);
    if (this.#requests.size === 1) this.#waiting(true);
  }

  /** Ends a request, once. @param toucher - Who may still touch its chunk. */
  end(request: StagingRequest, toucher: Toucher): void {
    const { agent, chunk } = request;
    const { source } = request.work;
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
    if (this.#requests.size === 0) this.#waiting(false);
  }

  /** @returns Resolves when a peer has none any more; null when that is so already. */
  whenNone(agent: string): Promise<void> | null {
    if (!this.#counts.has(agent)) return null;
    const waiter = this.#waiters.get(agent) ?? Promise.withResolvers<void>();
    this.#waiters.set(agent, waiter);
    return waiter.promise;
  }

  /** The peer touches the chunk of a request that has ended no more. */
  reclaim(agent: string, id: number): void {
    this.#reclaim(keyOf(agent, id));
  }

  /** The peer touches no chunk of this process any more. */
  reclaimAll(agent: string): void {
    for (const [key, orphan] of this.#orphans) if (orphan.agent === agent) this.#reclaim(key);
  }

  #reclaim(key: string): void {
    const orphan = this.#orphans.get(key);
    if (orphan === undefined) return;
    this.#orphans.delete(key);
    orphan.source.release(orphan.chunk);
  }
}

function keyOf(agent: string, id: number): string {
  return `${id}:${agent}`;
}
