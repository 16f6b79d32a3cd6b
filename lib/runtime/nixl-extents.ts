import type { NixlAgent, NixlRegion } from "../native/agent.ts";
import type { NixlPart } from "./layout-memory.ts";

/** What NIXL holds registered for a layout; given back with {@link NixlExtents.release}. */
export interface NixlHold {
  readonly extents: readonly Extent[];
}

interface Extent {
  readonly memory: number;
  readonly region: NixlRegion;
  users: number;
  /** Settles when NIXL has answered. */
  ready: Promise<void>;
  /** The extent that took its place because it holds it whole. */
  replacedBy: Extent | undefined;
}

/**
 * Keeps NIXL's registrations from nesting: layouts that lie in memory that is registered already share that
 * registration.
 *
 * NIXL looks a descriptor up in the registration that begins nearest before it, so that a registration inside another
 * one hides whatever lies behind it in the outer one (seen with NIXL 1.5.1: creating a request answers -2).
 */
export class NixlExtents {
  readonly #agent: NixlAgent;
  /** By memory type and device: extents in the order of their addresses, none inside another. */
  readonly #spaces: Map<string, Extent[]> = new Map();

  constructor(agent: NixlAgent) {
    this.#agent = agent;
  }

  /**
   * Registers what is not registered yet. All or nothing.
   *
   * @throws KvferryError `NIXL` with what NIXL answered.
   */
  async acquire(parts: readonly NixlPart[]): Promise<NixlHold> {
    const extents: Extent[] = [];
    const waiting: Promise<void>[] = [];
    for (const part of parts) {
      const fresh: Extent[] = [];
      for (const region of part.regions) extents.push(this.#take(part.memory, region, fresh));
      const used = fresh.filter((extent) => extent.replacedBy === undefined);
      if (used.length === 0) continue;
      // One call for all regions of a part: NIXL takes them all or none.
      const ready = this.#agent.register(
        part.memory,
        used.map((extent) => extent.region),
      );
      ready.catch(() => undefined);
      for (const extent of used) extent.ready = ready;
    }
    for (const extent of extents) if (!waiting.includes(extent.ready)) waiting.push(extent.ready);
    const outcomes = await Promise.allSettled(waiting);
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed === undefined) return { extents };
    await this.release({ extents }).catch(() => undefined);
    throw failed.reason;
  }

  /** Gives a hold back: what nobody else uses is deregistered. */
  async release(hold: NixlHold): Promise<void> {
    const idle: Extent[] = [];
    for (const held of hold.extents) {
      const extent = present(held);
      if (--extent.users > 0) continue;
      this.#remove(extent);
      idle.push(extent);
    }
    const failures: unknown[] = [];
    await Promise.all(
      idle.map(async (extent) => {
        try {
          await extent.ready;
        } catch {
          return; // it never was registered
        }
        await this.#agent.deregister(extent.memory, [extent.region]).catch((error: unknown) => failures.push(error));
      }),
    );
    if (failures.length > 0) throw failures[0];
  }

  /** The extent that holds a region: one that is there, or a new one, which is put into `fresh`. */
  #take(memory: number, region: NixlRegion, fresh: Extent[]): Extent {
    const space = this.#space(memory, region.device);
    const at = firstAfter(space, region.address);
    const before = space[at - 1];
    const end = region.address + region.bytes;
    if (before !== undefined && before.region.address + before.region.bytes >= end) {
      before.users++;
      return before;
    }
    const extent: Extent = { memory, region, users: 1, ready: SETTLED, replacedBy: undefined };
    // Those that begin where this one does, or later, and lie in it.
    const from = before !== undefined && before.region.address === region.address ? at - 1 : at;
    let to = from;
    for (let inner = space[to]; inner !== undefined; inner = space[++to])
      if (inner.region.address + inner.region.bytes > end) break;
    const inside = space.splice(from, to - from, extent);
    fresh.push(extent);
    for (const inner of inside) this.#replace(inner, extent, fresh);
    return extent;
  }

  /** The users of a registration that lies in a new one go over to that; the old one goes once the new one stands. */
  #replace(inner: Extent, outer: Extent, fresh: readonly Extent[]): void {
    outer.users += inner.users;
    inner.replacedBy = outer;
    if (fresh.includes(inner)) return;
    const registered = inner.ready;
    queueMicrotask(() => {
      void (async () => {
        try {
          await registered;
          await outer.ready;
        } catch {
          return;
        }
        await this.#agent.deregister(inner.memory, [inner.region]).catch(() => undefined);
      })();
    });
  }

  #remove(extent: Extent): void {
    const space = this.#space(extent.memory, extent.region.device);
    const at = firstAfter(space, extent.region.address) - 1;
    if (space[at] === extent) space.splice(at, 1);
  }

  #space(memory: number, device: number): Extent[] {
    const key = `${memory}/${device}`;
    const found = this.#spaces.get(key);
    if (found !== undefined) return found;
    const made: Extent[] = [];
    this.#spaces.set(key, made);
    return made;
  }
}

const SETTLED: Promise<void> = Promise.resolve();

function present(extent: Extent): Extent {
  let at = extent;
  while (at.replacedBy !== undefined) at = at.replacedBy;
  return at;
}

/** Index of the first extent that begins after an address. */
function firstAfter(space: readonly Extent[], address: number): number {
  let low = 0;
  let high = space.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((space[middle]?.region.address ?? 0) <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}
