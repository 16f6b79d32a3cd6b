// A world for whole transports: one clock, processes that stop and die, memory that is watched, and NIXL as it behaves
// when things go wrong. Everything that happens is an event of a seeded schedule, so that a seed replays exactly.
import { drainMicrotasks } from "bun:jsc";
import type { Clock } from "../../lib/runtime/deadlines.ts";
import type { Random } from "../random.ts";

/** How peers reach each other's memory: by the kernel's copy between processes, or by messages over sockets. */
export type SimRoute = "cma" | "tcp";

interface Scheduled {
  at: number;
  order: number;
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
      sleep: (millis) => new Promise((resolve) => void this.world.schedule(this, millis, resolve)),
    };
  }
}

/** A run of bytes from one address to another. */
export interface SimRow {
  readonly source: number;
  readonly destination: number;
  readonly bytes: number;
}

/** Bytes that are about to be copied together. */
export interface SimLanding {
  readonly what: string;
  readonly rows: readonly SimRow[];
  /** Whose work it is, and since when. */
  readonly by: SimProcess;
  readonly since: number;
  /** Who carries it now: what is in the hands of a dead process lands no more. */
  carrier?: SimProcess;
  /** It is in a message already: the bytes of each row. */
  sent?: readonly Uint8Array[];
}

/** A run of memory that somebody allocated. */
export interface SimRegion {
  readonly base: number;
  readonly bytes: number;
  readonly process: SimProcess;
  readonly name: string;
  readonly data: Uint8Array;
  /** Chunks of it serve one transfer after the other. */
  readonly staging: boolean;
  /** Who wrote to staging memory last, by {@link GRAIN_BYTES} of addresses. */
  readonly writers: Map<number, SimProcess>;
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
  /** What was begun and has not landed. */
  readonly #open: Set<SimLanding> = new Set();
  /** Events that ran. */
  steps = 0;
  /** Asked just before bytes move; answers with what is wrong with it, or null. */
  onLanding: (landing: SimLanding, row: SimRow, origin: SimProcess) => string | null = () => null;

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

  allocate(process: SimProcess, bytes: number, name: string, staging = false): SimRegion {
    const region: SimRegion = {
      base: this.#nextBase,
      bytes,
      process,
      name,
      data: new Uint8Array(bytes),
      staging,
      writers: new Map(),
      freed: false,
    };
    this.#nextBase += Math.ceil((bytes + 4096) / 4096) * 4096;
    this.regions.push(region);
    return region;
  }

  /** Bytes that tell where they come from. */
  fill({ data, base }: SimRegion): void {
    for (let index = 0; index < data.length; index++) data[index] = ((base + index) * 0x9e3779b1) >>> 24;
  }

  /** The bytes at an address, as they are now. */
  bytesAt(address: number, bytes: number): Uint8Array {
    return bytesOf(this.regionOf(address), { source: address, destination: 0, bytes }).slice();
  }

  /** Regions lie one after the other. */
  regionOf(address: number): SimRegion | undefined {
    const { regions } = this;
    let low = 0;
    let high = regions.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((regions[middle]?.base ?? 0) <= address) low = middle;
      else high = middle;
    }
    const found = regions[low];
    return found !== undefined && address >= found.base && address < found.base + found.bytes
      ? found
      : undefined;
  }

  /** From now on the bytes may move: a chunk that they touch must not be touched by anything else. */
  begin(landing: SimLanding, carrier: SimProcess): void {
    landing.carrier = carrier;
    for (const row of landing.rows) {
      const [into, from] = [this.regionOf(row.destination), this.regionOf(row.source)];
      if (into?.staging === true) this.#demandOwn(landing, row.destination, row.bytes, true);
      if (from?.staging === true) this.#demandOwn(landing, row.source, row.bytes, false);
    }
    this.#open.add(landing);
  }

  #demandOwn(landing: SimLanding, at: number, bytes: number, writes: boolean): void {
    for (const other of this.#open) {
      if (other.carrier?.alive !== true) continue;
      for (const row of other.rows)
        if (
          meets(row.destination, row.bytes, at, bytes) ||
          (writes && other.sent === undefined && meets(row.source, row.bytes, at, bytes))
        ) {
          this.find(`${landing.what}: its chunk at ${at} may still be touched by ${other.what}`);
          return;
        }
    }
  }

  /** Nothing of it will move any more. */
  drop(landing: SimLanding): void {
    this.#open.delete(landing);
  }

  /** Copies bytes: both ends must be memory that nobody has given back. */
  land(landing: SimLanding): void {
    this.#open.delete(landing);
    for (const [index, row] of landing.rows.entries()) {
      const from = this.regionOf(row.source);
      const into = this.regionOf(row.destination);
      // A chunk's bytes are scattered for whoever put them there, or for who had asked for them.
      const origin =
        (from?.staging === true ? from.writers.get(grainOf(row.source)) : undefined) ?? landing.by;
      let problem = this.onLanding(landing, row, origin);
      if (problem !== null && origin !== landing.by) problem = this.onLanding(landing, row, landing.by);
      if (problem !== null) this.find(`${landing.what}: ${problem}`);
      if (landing.sent === undefined) this.#touch(landing, row.source, from);
      this.#touch(landing, row.destination, into);
      if (into?.staging === true)
        for (let grain = grainOf(row.destination); grain < grainOf(row.destination + row.bytes); grain++)
          into.writers.set(grain, landing.by);
      const bytes = landing.sent?.[index] ?? bytesOf(from, row);
      into?.data.set(bytes, row.destination - into.base);
    }
  }

  /** Bytes go into a message: their source is not needed any more. */
  leave(landing: SimLanding): void {
    for (const row of landing.rows) this.#touch(landing, row.source, this.regionOf(row.source));
    landing.sent = landing.rows.map((row) => bytesOf(this.regionOf(row.source), row).slice());
  }

  #touch(landing: SimLanding, address: number, region: SimRegion | undefined): void {
    if (region === undefined) this.find(`${landing.what}: ${address} is nobody's memory`);
    // What a dead process had is gone with it: touching it fails, and hurts nobody.
    else if (region.freed && region.process.alive)
      this.find(`${landing.what}: ${region.name} was freed already`);
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
    // The same events: what is taken back meanwhile must not happen after all.
    for (const event of process.deferred.splice(0)) {
      event.at = this.now;
      event.order = this.#order++;
      this.#push(event);
    }
  }

  /** SIGKILL: its threads end; what the kernel is copying for it still lands before it can be reaped. */
  kill(process: SimProcess): void {
    if (!process.alive) return;
    process.alive = false;
    this.say(() => `P${process.id} is killed`);
    for (const landing of process.inKernel)
      if (this.random.chance(0.5)) this.land(landing);
      else this.drop(landing);
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

/** Rows of the simulation are multiples of it. */
const GRAIN_BYTES = 32;

function grainOf(address: number): number {
  return Math.floor(address / GRAIN_BYTES);
}

function bytesOf(region: SimRegion | undefined, { source, bytes }: SimRow): Uint8Array {
  return region?.data.subarray(source - region.base, source - region.base + bytes) ?? new Uint8Array(bytes);
}

function meets(left: number, leftBytes: number, right: number, rightBytes: number): boolean {
  return left < right + rightBytes && right < left + leftBytes;
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
