import { KvferryError } from "../core/errors.ts";
import type { ExecutorName, Hop } from "../core/plan.ts";
import type { MachineProfile } from "../core/profile.ts";
import type { CopyProgram } from "../core/program.ts";
import type { PlanEnvironment } from "../core/route.ts";
import type { StagePiece } from "../core/stage-piece.ts";
import { executorBeside, plannedHop, stagePieces } from "../core/staging.ts";
import { assistedHop } from "./assisted-hop.ts";
import type { DeviceStaging } from "./device-staging.ts";
import type { StagingClient } from "./staging-client.ts";
import type { NixlAgent } from "../native/agent.ts";
import type { Executor, HopContext, HopOutcome, RunningHop } from "./executor.ts";
import type { Chunk, ChunkSource, ChunkWaiter, StagingPool } from "./staging-pool.ts";

/** What the two-hop executor needs. */
export interface StagedParts {
  readonly pool: StagingPool;
  /** Staging memory that peers' NIXL may know. */
  readonly receive: StagingPool;
  /** Staging memory on GPUs, for transfers between GPU memory that NIXL moves by itself; null where there is none. */
  readonly devices: DeviceStaging | null;
  readonly executor: (name: ExecutorName) => Executor | undefined;
  readonly profile: () => MachineProfile;
  readonly environment: PlanEnvironment;
  /** NIXL's agent, or null. */
  readonly agent: NixlAgent | null;
  /** How peers are asked for help; set once there is a transport. */
  client: StagingClient | null;
  /** Whether words of peers are awaited; set likewise. */
  waiting: (on: boolean) => void;
  /** Whether the peer of that wire name can be asked; set likewise. */
  assists: (agent: string) => boolean;
  /** Somebody watches: a program was completed. */
  readonly progressed: () => void;
}

/** Chunks that one transfer holds at most: enough to keep both hops busy. */
const MOST_HELD = 8;

/**
 * Runs hops that need two: through chunks of staging memory, the next chunk being read while this one is written.
 *
 * A transfer never waits for a second chunk before it goes on with the first, so that many of them over few chunks
 * cannot lock up, and it asks for one at a time, so that they share alike.
 */
export function stagedExecutor(parts: StagedParts): Executor {
  return {
    start(hop: Hop, context: HopContext, done): RunningHop {
      const { agent } = hop;
      const ended = agent === null ? done : notifying(parts, agent, context, done);
      if (agent !== null && hop.components !== undefined) return assisted(parts, hop, agent, context, ended);
      const run = new StagedRun(parts, hop, context, ended);
      run.pump();
      return run;
    },
  };
}

class StagedRun implements RunningHop, ChunkWaiter {
  readonly #parts: StagedParts;
  readonly #hop: Hop;
  readonly #watch: boolean;
  readonly #done: (outcome: HopOutcome) => void;
  readonly #source: ChunkSource;
  readonly #pieces: Generator<readonly [number, StagePiece, CopyProgram], void>;
  readonly #bytesLeft: number[];
  #next: readonly [number, StagePiece, CopyProgram] | undefined;
  #complete = 0;
  #bytes = 0;
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

  constructor(
    parts: StagedParts,
    hop: Hop,
    { watch, bounce }: HopContext,
    done: (outcome: HopOutcome) => void,
  ) {
    this.#parts = parts;
    this.#hop = hop;
    this.#watch = watch;
    this.#done = done;
    this.#source =
      bounce ?? parts.pool.source(deviceOf(hop), hop.agent === null ? null : parts.agent, hop.agent);
    this.#bytesLeft = hop.programs.map((program) => program.bytes);
    this.#pieces = piecesOf(hop, this.#source.chunkBytes);
    this.#advance();
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
    this.#advance();
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
        this.#account(index, piece.bytes);
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
    return this.#complete;
  }

  bytesDone(): number {
    return this.#bytes;
  }

  quiet(): void {
    for (const chunk of this.#doubtful.splice(0)) this.#source.release(chunk);
  }

  #advance(): void {
    const { value, done } = this.#pieces.next();
    this.#next = done === true ? undefined : value;
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
      const { op, agent } = this.#hop;
      const running = startProgram(
        this.#parts,
        name,
        name === "nixl" ? op : "copy",
        name === "nixl" ? agent : null,
        program,
        this.#source.pageable,
        ended,
      );
      if (!finished) this.#held.set(chunk, running);
    } catch (error) {
      this.#fail(
        error instanceof KvferryError
          ? error
          : new KvferryError("IO", "transfer", String(error), "See the cause.", {}, error),
      );
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

  #account(index: number, bytes: number): void {
    this.#bytes += bytes;
    this.#bytesLeft[index] = (this.#bytesLeft[index] ?? 0) - bytes;
    const before = this.#complete;
    while (this.#complete < this.#bytesLeft.length && this.#bytesLeft[this.#complete] === 0) this.#complete++;
    if (this.#watch && this.#complete > before) this.#parts.progressed();
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
      bytes: this.#bytes,
      error: ok ? null : (this.#error ?? stopped(this.#hop)),
    });
  }
}

/**
 * Starts a hop of one program.
 *
 * @param notification - What NIXL brings the peer after the data.
 */
export function startProgram(
  parts: StagedParts,
  name: ExecutorName,
  op: Hop["op"],
  agent: string | null,
  program: CopyProgram,
  pageable: boolean,
  done: (outcome: HopOutcome) => void,
  notification: Uint8Array | null = null,
): RunningHop {
  const executor = parts.executor(name);
  if (executor === undefined) throw missing(name);
  const hop = plannedHop(name, op, agent, [program], pageable, parts.profile(), parts.environment);
  return executor.start(hop, { notification, watch: false }, done);
}

function assisted(
  parts: StagedParts,
  hop: Hop,
  agent: string,
  context: HopContext,
  done: (outcome: HopOutcome) => void,
): RunningHop {
  const { client } = parts;
  if (client === null) throw missing("nixl");
  return assistedHop(
    {
      ...parts,
      client,
      start: (name, op, program, pageable, ended, notification) =>
        startProgram(parts, name, op, name === "nixl" ? agent : null, program, pageable, ended, notification),
    },
    hop,
    agent,
    context,
    done,
  );
}

/** Sends the notification after the data: the hops inside carry none. */
function notifying(
  parts: StagedParts,
  agent: string,
  { notification }: HopContext,
  done: (outcome: HopOutcome) => void,
): (outcome: HopOutcome) => void {
  return (outcome) => {
    if (!outcome.ok || notification === null || parts.agent === null) {
      done(outcome);
      return;
    }
    parts.agent.notify(agent, new Uint8Array(notification)).then(
      () => done(outcome),
      (error: unknown) =>
        done({
          ...outcome,
          ok: false,
          error: error instanceof KvferryError ? error : (outcome.error ?? missing("nixl")),
        }),
    );
  };
}

function* piecesOf(
  hop: Hop,
  chunkBytes: number,
): Generator<readonly [number, StagePiece, CopyProgram], void> {
  for (const [index, program] of hop.programs.entries())
    for (const piece of stagePieces(program, chunkBytes)) yield [index, piece, program];
}

/** A GPU that takes part, or null. */
function deviceOf(hop: Hop): number | null {
  for (const { srcMemory, dstMemory } of hop.programs) {
    if (srcMemory.kind === 1) return srcMemory.device;
    if (dstMemory.kind === 1) return dstMemory.device;
  }
  return null;
}

function stopped(hop: Hop): KvferryError {
  return new KvferryError(
    "TIMEOUT",
    "transfer",
    "the copy was stopped",
    "The transfer was cancelled; start it again if it is still wanted.",
    { method: hop.method },
  );
}

function missing(name: ExecutorName): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `nothing here can run a ${name} hop`,
    "Run `kvferry doctor` to see what this process has.",
    { executor: name },
  );
}
