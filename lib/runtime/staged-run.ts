import { asKvferryError, type KvferryError } from "../core/errors.ts";
import type { ExecutorName, Hop } from "../core/plan.ts";
import type { CopyProgram } from "../core/program.ts";
import { executorBeside } from "../core/staging.ts";
import type { RunProgram } from "./assisted-run.ts";
import type { HopOutcome, RunningHop } from "./executor.ts";
import { HopPieces, type HopPiece } from "./hop-pieces.ts";
import { stopped } from "./run-errors.ts";
import type { Chunk, ChunkSource, ChunkWaiter } from "./chunks.ts";

/** Chunks that one transfer holds at most: enough to keep both hops busy. */
const MOST_HELD = 8;

/**
 * A hop that needs two: through chunks of staging memory, the next chunk being read while this one is written.
 *
 * A transfer never waits for a second chunk before it goes on with the first, so that many of them over few chunks
 * cannot lock up, and it asks for one at a time, so that they share alike.
 */
export class StagedRun implements RunningHop, ChunkWaiter {
  readonly #hop: Hop;
  readonly #watch: boolean;
  readonly #source: ChunkSource;
  readonly #runProgram: RunProgram;
  readonly #progressed: () => void;
  readonly #done: (outcome: HopOutcome) => void;
  readonly #pieces: HopPieces;
  #next: HopPiece | undefined;
  readonly #held: Map<Chunk, RunningHop | undefined> = new Map();
  #waiting = false;
  #stopped = false;
  #cancelled = false;
  #touched = false;
  #inDoubt = false;
  #error: KvferryError | null = null;
  #ended = false;
  /** Chunks that something may still touch. */
  readonly #doubtful: Chunk[] = [];

  /** @param source - Of the chunks that it goes through. */
  constructor(
    hop: Hop,
    watch: boolean,
    source: ChunkSource,
    runProgram: RunProgram,
    progressed: () => void,
    done: (outcome: HopOutcome) => void,
  ) {
    this.#hop = hop;
    this.#watch = watch;
    this.#source = source;
    this.#runProgram = runProgram;
    this.#progressed = progressed;
    this.#done = done;
    this.#pieces = new HopPieces(hop, source.chunkBytes);
    this.#next = this.#pieces.next();
  }

  /** Asks for the next chunk when there is something to do with it. */
  pump(): void {
    if (this.#ended || this.#waiting) return;
    const most = Math.max(1, Math.min(MOST_HELD, this.#source.count));
    if (!this.#stopped && this.#next !== undefined && this.#held.size < most) {
      this.#waiting = true;
      this.#source.request(this);
      return;
    }
    if (this.#held.size === 0 && (this.#stopped || this.#next === undefined)) this.#end();
  }

  grant(chunk: Chunk): void {
    this.#waiting = false;
    const next = this.#next;
    if (this.#stopped || next === undefined) {
      this.#source.release(chunk);
      this.pump();
      return;
    }
    this.#next = this.#pieces.next();
    this.#held.set(chunk, undefined);
    const [index, piece, program] = next;
    const [inward, outward] = piece.hops(chunk.address);
    const { op, agent } = this.#hop;
    const first = agent !== null && op === "read" ? "nixl" : executorBeside(program.srcMemory);
    const second = agent !== null && op === "write" ? "nixl" : executorBeside(program.dstMemory);
    this.#run(chunk, first, inward, () => {
      this.#touched = true;
      this.#run(chunk, second, outward, () => {
        this.#release(chunk);
        if (this.#pieces.account(index, piece.bytes) && this.#watch) this.#progressed();
      });
    });
    this.pump();
  }

  refuse(error: KvferryError): void {
    this.#waiting = false;
    this.#fail(error);
    this.pump();
  }

  cancel(): void {
    this.#cancelled = true;
    this.#stop();
    if (!this.#ended) this.pump();
  }

  abandon(): void {
    for (const [chunk, running] of this.#held) {
      running?.abandon();
      this.#source.giveUp(chunk);
    }
  }

  programsDone(): number {
    return this.#pieces.programsDone;
  }

  bytesDone(): number {
    return this.#pieces.bytesDone;
  }

  quiet(): void {
    for (const chunk of this.#doubtful.splice(0)) this.#source.release(chunk);
  }

  #run(chunk: Chunk, name: ExecutorName, program: CopyProgram, then: () => void): void {
    let finished = false;
    const ended = (outcome: HopOutcome): void => {
      finished = true;
      if (this.#held.has(chunk)) this.#held.set(chunk, undefined);
      if (outcome.ok && !this.#stopped) {
        then();
      } else {
        if (outcome.inDoubt) this.#inDoubt = true;
        // Before the chunk goes back: it may be lent to this transfer again at once, which must not go on.
        if (!outcome.ok) this.#fail(this.#cancelled ? null : outcome.error);
        this.#release(chunk, outcome.inDoubt);
      }
      this.pump();
    };
    try {
      const running = this.#runProgram(name, name === "nixl" ? this.#hop.op : "copy", program, ended);
      if (!finished) this.#held.set(chunk, running);
    } catch (error) {
      this.#fail(asKvferryError(error));
      this.#release(chunk);
      this.pump();
    }
  }

  /** A chunk that somebody may still write to is not lent again. */
  #release(chunk: Chunk, doubtful = false): void {
    this.#held.delete(chunk);
    if (!doubtful) {
      this.#source.release(chunk);
      return;
    }
    this.#doubtful.push(chunk);
    this.#source.giveUp(chunk);
  }

  #fail(error: KvferryError | null): void {
    this.#error ??= error;
    this.#stop();
  }

  #stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    if (this.#waiting) {
      this.#source.cancel(this);
      this.#waiting = false;
    }
    for (const running of this.#held.values()) running?.cancel();
  }

  #end(): void {
    this.#ended = true;
    const ok = !this.#stopped;
    this.#done({
      ok,
      cancelled: this.#cancelled,
      touched: this.#touched,
      inDoubt: this.#inDoubt,
      bytes: this.#pieces.bytesDone,
      error: ok ? null : (this.#error ?? stopped({ method: this.#hop.method })),
    });
  }
}
