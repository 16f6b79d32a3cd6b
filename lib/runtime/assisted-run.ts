import { asKvferryError, KvferryError } from "../core/errors.ts";
import type { ExecutorName, Hop } from "../core/plan.ts";
import type { CopyProgram } from "../core/program.ts";
import type { StagePiece } from "../core/stage-piece.ts";
import { betweenChunks, executorBeside, stageMemory } from "../core/staging.ts";
import type { HopContext, HopOutcome, RunningHop } from "./executor.ts";
import { HopPieces } from "./hop-pieces.ts";
import { InnerHops } from "./inner-hops.ts";
import { LentChunks } from "./lent-chunks.ts";
import { stopped } from "./run-errors.ts";
import { MOST_LISTED, stagedProgram } from "./staged-protocol.ts";
import type { FetchRequest, StagingClient, StagingRequest } from "./staging-client.ts";
import type { Chunk, ChunkSource } from "./chunks.ts";

/** Runs one program and tells how it ended. */
export type RunProgram = (
  executor: ExecutorName,
  op: Hop["op"],
  program: CopyProgram,
  done: (outcome: HopOutcome) => void,
  notification?: Uint8Array | null,
) => RunningHop;

/** Requests to the peer that one transfer has under way at most. */
const MOST_ASKED = 16;
/** The same between GPUs, where asking takes longer than moving: some wait over there for a chunk. */
const MOST_ASKED_ON_DEVICE = 32;
/** With so many it begins: each answer lets one more begin, for what is asked later is not to hold up what was answered. */
const FIRST_ASKED = 6;

/**
 * A hop that the peer has to help with: each part goes through a chunk here and a chunk there.
 *
 * The receiver's chunk is taken before the sender's, and a part that has both waits for nothing else, so that two peers
 * that stage towards each other cannot lock up. What is read the peer writes itself where its NIXL knows the chunk: a peer
 * that answers reads in software may not survive the end of the process that reads.
 *
 * Where the chunks here lie in GPU memory, so must the peer's.
 */
export class AssistedRun implements RunningHop {
  readonly #hop: Hop;
  readonly #agent: string;
  readonly #context: HopContext;
  readonly #source: ChunkSource;
  /** Chunks that peers' NIXL knows; null for none. */
  readonly #receive: ChunkSource | null;
  readonly #client: StagingClient;
  readonly #runProgram: RunProgram;
  readonly #progressed: () => void;
  readonly #pieces: HopPieces;
  readonly #inner: InnerHops = new InnerHops();
  readonly #requests: Map<StagingRequest, boolean> = new Map();
  readonly #fetches: Set<FetchRequest> = new Set();
  readonly #chunks: LentChunks = new LentChunks();
  /** Lanes that may still be opened, and those that are open. */
  #toOpen = 0;
  #lanes = 0;
  readonly #allEnded: PromiseWithResolvers<void> = Promise.withResolvers<void>();
  #touched = false;
  #placed = false;
  /** The peer may still be writing destination bytes. */
  #peerInDoubt = false;
  #cancelled = false;
  #error: KvferryError | undefined;

  constructor(
    hop: Hop,
    agent: string,
    context: HopContext,
    source: ChunkSource,
    receive: ChunkSource | null,
    client: StagingClient,
    runProgram: RunProgram,
    progressed: () => void,
  ) {
    this.#hop = hop;
    this.#agent = agent;
    this.#context = context;
    this.#source = source;
    this.#receive = receive;
    this.#client = client;
    this.#runProgram = runProgram;
    this.#progressed = progressed;
    const chunkBytes = Math.min(source.chunkBytes, receive?.chunkBytes ?? source.chunkBytes);
    this.#pieces = new HopPieces(hop, chunkBytes, MOST_LISTED);
  }

  /** Whether bytes may have been put in place at the destination. */
  get placed(): boolean {
    return this.#placed;
  }

  /**
   * Moves everything; never rejects.
   *
   * @param trial - Nothing else begins before the first part is in place.
   */
  async run(trial = false): Promise<HopOutcome> {
    if (trial) await this.#lane(1);
    const { count } = this.#source;
    const lanes = Math.max(
      1,
      this.#onDevice ? Math.min(MOST_ASKED_ON_DEVICE, 2 * count) : Math.min(MOST_ASKED, count),
    );
    this.#toOpen = lanes;
    for (let lane = 0; lane < FIRST_ASKED; lane++) this.#openLane();
    await this.#allEnded.promise;
    const ok = this.#error === undefined;
    return {
      ok,
      cancelled: this.#cancelled,
      touched: this.#touched,
      inDoubt: this.#inDoubt,
      bytes: this.#pieces.bytesDone,
      error: this.#error ?? null,
    };
  }

  cancel(): void {
    if (this.#error !== undefined) return;
    this.#cancelled = true;
    this.#fail(stopped());
  }

  abandon(): void {
    this.#inner.abandon();
    // What the peer was told to move it still reports, or it is lost.
    this.#chunks.abandon();
  }

  programsDone(): number {
    return this.#pieces.programsDone;
  }

  bytesDone(): number {
    return this.#pieces.bytesDone;
  }

  quiet(): void {
    this.#chunks.quiet();
  }

  #openLane(): void {
    if (this.#toOpen === 0) return;
    this.#toOpen--;
    this.#lanes++;
    const ended = (): void => {
      if (--this.#lanes === 0) this.#allEnded.resolve();
    };
    this.#lane().then(ended, ended);
  }

  async #lane(parts: number = Number.POSITIVE_INFINITY): Promise<void> {
    for (let part = 0; part < parts; part++) {
      if (this.#error !== undefined) return;
      const next = this.#pieces.next();
      if (next === undefined) return;
      const [index, piece, program] = next;
      try {
        if (!this.#asksToWrite || !(await this.#fetch(index, piece, program)))
          await this.#move(index, piece, program);
      } catch (error) {
        this.#fail(asKvferryError(error));
        return;
      }
      if (this.#pieces.account(index, piece.bytes) && this.#context.watch) this.#progressed();
    }
  }

  get #asksToWrite(): boolean {
    if (this.#hop.op !== "read" || this.#receive === null) return false;
    return this.#onDevice || this.#client.fetches(this.#agent);
  }

  get #inDoubt(): boolean {
    return this.#inner.inDoubt || this.#peerInDoubt;
  }

  get #onDevice(): boolean {
    return this.#source.device !== null;
  }

  /** Has the peer write a part into a chunk of this process. @returns False when its NIXL does not know the chunk. */
  async #fetch(index: number, piece: StagePiece, program: CopyProgram): Promise<boolean> {
    const layout = this.#context.source;
    const source = this.#receive;
    if (layout === undefined || source === null) throw stopped();
    const chunk = await this.#chunks.take(source);
    // It may have been stopped between the grant and now.
    if (this.#error !== undefined) {
      this.#chunks.giveBack(source, chunk, false);
      throw this.#error;
    }
    const [, scatter] = piece.hops(chunk.address, stageMemory(source.device));
    const component = this.#hop.components?.[index] ?? "";
    const told = stagedProgram(piece, "source");
    const request = this.#client.fetch(this.#agent, layout, component, told, chunk.address, source.device);
    this.#fetches.add(request);
    try {
      await request.ended;
    } catch (error) {
      this.#fetches.delete(request);
      const knowsNot = this.#error === undefined && !this.#asksToWrite;
      // Before the chunk goes back: it may be lent to this transfer again at once, which must not go on.
      if (!knowsNot) this.#fail(asKvferryError(error));
      // The peer may be writing to the chunk, but nothing of the destination was touched: the chunk alone is kept.
      this.#chunks.giveBackAfter(source, chunk, (listener) => {
        request.whenQuiet(listener);
      });
      if (knowsNot) return false;
      throw error;
    }
    this.#fetches.delete(request);
    this.#openLane();
    let doubtful = false;
    try {
      if (this.#error !== undefined) throw this.#error;
      this.#touched = true;
      this.#placed = true;
      await this.#step(executorBeside(program.dstMemory), "copy", scatter);
    } catch (error) {
      doubtful = this.#inDoubt;
      this.#fail(asKvferryError(error));
      throw error;
    } finally {
      this.#chunks.giveBack(source, chunk, doubtful);
    }
    return true;
  }

  async #move(index: number, piece: StagePiece, program: CopyProgram): Promise<void> {
    const write = this.#hop.op === "write";
    const layout = write ? this.#context.destination : this.#context.source;
    if (layout === undefined) throw stopped();
    const theirs = write ? program.dstMemory : program.srcMemory;
    const request = this.#client.ask(
      this.#agent,
      write ? "write" : "read",
      layout,
      this.#hop.components?.[index] ?? "",
      stagedProgram(piece, write ? "destination" : "source"),
      this.#onDevice ? theirs.device : null,
    );
    this.#requests.set(request, true);
    let chunk: Chunk | undefined;
    let doubtful = false;
    let scattering = false;
    try {
      const far = await request.credit;
      this.#openLane();
      chunk = await this.#chunks.take(this.#source);
      const here = stageMemory(this.#source.device);
      const there = stageMemory(this.#onDevice ? theirs.device : null);
      const [gather, scatter] = piece.hops(chunk.address, here);
      const between = write
        ? betweenChunks(chunk.address, far, piece.bytes, here, there)
        : betweenChunks(far, chunk.address, piece.bytes, there, here);
      const near = executorBeside(write ? program.srcMemory : program.dstMemory);
      if (write) await this.#step(near, "copy", gather);
      // From here on the peer's chunk is touched: no cancelling before this ends.
      this.#requests.set(request, false);
      if (write) this.#touched = true;
      const notification = write ? request.movedWithData() : null;
      await this.#step("nixl", write ? "write" : "read", between, notification).catch((error: unknown) => {
        doubtful = this.#inDoubt;
        throw error;
      });
      // Stopped meanwhile: the peer is told so in the end, and does not touch the destination.
      if (write && notification === null && this.#error !== undefined) throw this.#error;
      this.#placed = true;
      if (notification === null) request.moved();
      if (!write) {
        this.#touched = true;
        await this.#step(near, "copy", scatter);
      }
      scattering = write;
      this.#chunks.giveBack(this.#source, chunk, false);
      chunk = undefined;
      await request.ended;
    } catch (error) {
      // The peer may be putting the bytes in place, and says no more whether it is done.
      if (scattering && !request.answered) this.#peerInDoubt = true;
      // A chunk over there that is in doubt is not given back: its owner waits out its deadline.
      if (!doubtful) request.cancel(asStop(error));
      this.#fail(asKvferryError(error));
      throw error;
    } finally {
      this.#requests.delete(request);
      if (chunk !== undefined) this.#chunks.giveBack(this.#source, chunk, doubtful);
    }
  }

  #step(
    executor: ExecutorName,
    op: Hop["op"],
    program: CopyProgram,
    notification: Uint8Array | null = null,
  ): Promise<void> {
    return this.#inner.run((done) => this.#runProgram(executor, op, program, done, notification));
  }

  #fail(error: KvferryError): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#inner.stop(error);
    this.#chunks.stop(error);
    for (const [request, cancellable] of this.#requests) if (cancellable) request.cancel(error);
    for (const request of this.#fetches) request.stop(error);
  }
}

function asStop(error: unknown): KvferryError {
  return error instanceof KvferryError ? error : stopped();
}
