// A world for whole transports: one clock, processes that stop and die, memory that is watched, and NIXL as it behaves
// when things go wrong. Everything that happens is an event of a seeded schedule, so that a seed replays exactly.
import { drainMicrotasks } from "bun:jsc";
import type { Clock } from "../../lib/runtime/deadlines.ts";
import type { Random } from "../random.ts";

/** How peers reach each other's memory: by the kernel's copy between processes, or by messages over sockets. */
export type SimRoute = "cma" | "tcp";

interface Scheduled {
  readonly at: number;
  readonly order: number;
  /** Whose thread it runs on; null for the kernel and the network. */
  readonly process: SimProcess | null;
  readonly run: () => void;
  cancelled: boolean;
}

/** A process of the world. */
export class SimProcess {
  readonly id: number;
  readonly world: SimWorld;
  alive = true;
  stopped = false;
  /** Its parent has taken its exit status: no thread of it runs any more, no descriptor of it is open. */
  reaped = false;
  /** Milliseconds that it has spent stopped so far, and when the present stop began. */
  stoppedMillis = 0;
  stoppedAt = 0;
  readonly deferred: Scheduled[] = [];
  /** Pieces on their way that a dead process leaves to the kernel. */
  readonly inKernel: Set<SimLanding> = new Set();

  constructor(world: SimWorld, id: number) {
    this.world = world;
    this.id = id;
  }

  get clock(): Clock {
    return {
      now: () => this.world.now,
      after: (millis, callback) => this.world.schedule(this, millis, callback),
    };
  }
}

/** Bytes that are about to be copied. */
export interface SimLanding {
  readonly what: string;
  readonly source: number;
  readonly destination: number;
  readonly bytes: number;
  /** Whose work it is, and since when. */
  readonly by: SimProcess;
  readonly since: number;
  /** It is in a message already. */
  sent?: boolean;
}

/** A run of memory that somebody allocated. */
export interface SimRegion {
  readonly base: number;
  readonly bytes: number;
  readonly process: SimProcess;
  readonly name: string;
  freed: boolean;
}

/** The world. */
export class SimWorld {
  readonly random: Random;
  now = 1_000;
  readonly findings: string[] = [];
  /** What happened, when somebody wants to see it. */
  readonly trace: string[] | null;
  readonly processes: SimProcess[] = [];
  readonly regions: SimRegion[] = [];
  readonly #heap: Scheduled[] = [];
  #order = 0;
  #nextBase = 0x10000;
  /** Events that ran. */
  steps = 0;
  /** Asked just before bytes move; answers with what is wrong with it, or null. */
  mayBeFreed: (landing: SimLanding, region: SimRegion) => boolean = () => false;
  onLanding: (landing: SimLanding) => string | null = () => null;

  constructor(random: Random, traced: boolean) {
    this.random = random;
    this.trace = traced ? [] : null;
  }

  say(text: () => string): void {
    this.trace?.push(`${this.now.toFixed(1)} ${text()}`);
  }

  find(finding: string): void {
    if (this.findings.length < 5) this.findings.push(`at ${this.now.toFixed(1)} ms: ${finding}`);
    this.say(() => `FINDING ${finding}`);
  }

  spawn(): SimProcess {
    const process = new SimProcess(this, this.processes.length);
    this.processes.push(process);
    return process;
  }

  /** Runs something later; the returned function takes it back. */
  schedule(process: SimProcess | null, millis: number, run: () => void): () => void {
    const event: Scheduled = {
      at: this.now + Math.max(0, millis),
      order: this.#order++,
      process,
      run,
      cancelled: false,
    };
    this.#push(event);
    return () => {
      event.cancelled = true;
    };
  }

  /** Runs events until the given time, or until none is left. */
  runUntil(time: number): void {
    for (;;) {
      const next = this.#heap[0];
      if (next === undefined || next.at > time) break;
      this.#pop();
      if (next.cancelled) continue;
      this.now = Math.max(this.now, next.at);
      const { process } = next;
      if (process !== null && !process.alive) continue;
      if (process !== null && process.stopped) {
        process.deferred.push(next);
        continue;
      }
      this.steps++;
      this.act(next.run);
    }
    this.now = Math.max(this.now, time);
  }

  /** Runs something now, with all that follows from it at once. */
  act(run: () => void): void {
    try {
      run();
    } catch (error) {
      this.find(`thrown: ${Bun.inspect(error)}`);
    }
    drainMicrotasks();
  }

  allocate(process: SimProcess, bytes: number, name: string): SimRegion {
    const region: SimRegion = { base: this.#nextBase, bytes, process, name, freed: false };
    this.#nextBase += Math.ceil((bytes + 4096) / 4096) * 4096;
    this.regions.push(region);
    return region;
  }

  regionOf(address: number): SimRegion | undefined {
    return this.regions.find(({ base, bytes }) => address >= base && address < base + bytes);
  }

  /** Copies bytes: both ends must be memory that nobody has given back. */
  land(landing: SimLanding): void {
    const problem = this.onLanding(landing);
    if (problem !== null) this.find(`${landing.what}: ${problem}`);
    if (landing.sent !== true) this.#touch(landing, "source");
    this.#touch(landing, "destination");
  }

  /** Bytes go into a message: their source is not needed any more. */
  leave(landing: SimLanding): void {
    this.#touch(landing, "source");
    landing.sent = true;
  }

  #touch(landing: SimLanding, side: "source" | "destination"): void {
    const region = this.regionOf(landing[side]);
    if (region === undefined) this.find(`${landing.what}: ${side} ${landing[side]} is nobody's memory`);
    // What a dead process had is gone with it: touching it fails, and hurts nobody.
    else if (region.freed && region.process.alive && !this.mayBeFreed(landing, region))
      this.find(`${landing.what}: ${side} ${region.name} was freed already`);
  }

  stop(process: SimProcess): void {
    if (!process.alive || process.stopped) return;
    process.stopped = true;
    process.stoppedAt = this.now;
    this.say(() => `P${process.id} is stopped`);
  }

  resume(process: SimProcess): void {
    if (!process.stopped) return;
    process.stopped = false;
    process.stoppedMillis += this.now - process.stoppedAt;
    this.say(() => `P${process.id} goes on`);
    for (const event of process.deferred.splice(0))
      if (!event.cancelled) this.schedule(process, 0, event.run);
  }

  /** SIGKILL: its threads end; what the kernel is copying for it still lands before it can be reaped. */
  kill(process: SimProcess): void {
    if (!process.alive) return;
    process.alive = false;
    this.say(() => `P${process.id} is killed`);
    for (const landing of process.inKernel) if (this.random.chance(0.5)) this.land(landing);
    process.inKernel.clear();
    this.schedule(null, this.random.between(0, 50), () => {
      process.reaped = true;
      this.say(() => `P${process.id} is reaped`);
    });
  }

  /** How long a process was stopped since a moment at which it had been stopped for `before` ms. */
  stoppedSince(process: SimProcess, before: number): number {
    return process.stoppedMillis + (process.stopped ? this.now - process.stoppedAt : 0) - before;
  }

  #push(event: Scheduled): void {
    const heap = this.#heap;
    heap.push(event);
    let index = heap.length - 1;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!before(heap[index], heap[parent])) break;
      swap(heap, index, parent);
      index = parent;
    }
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return;
    heap[0] = last;
    let index = 0;
    for (;;) {
      const left = 2 * index + 1;
      const right = left + 1;
      let least = index;
      if (left < heap.length && before(heap[left], heap[least])) least = left;
      if (right < heap.length && before(heap[right], heap[least])) least = right;
      if (least === index) return;
      swap(heap, index, least);
      index = least;
    }
  }
}

function before(left: Scheduled | undefined, right: Scheduled | undefined): boolean {
  if (left === undefined || right === undefined) return false;
  return left.at < right.at || (left.at === right.at && left.order < right.order);
}

function swap(heap: Scheduled[], left: number, right: number): void {
  const held = heap[left];
  const other = heap[right];
  if (held === undefined || other === undefined) return;
  heap[left] = other;
  heap[right] = held;
}
