import { KvferryError } from "../core/errors.ts";
import type { NixlAgent, NixlRegion } from "../native/agent.ts";
import type { NixlPart } from "./layout-memory.ts";

/** What NIXL holds registered for a layout; given back with {@link NixlExtents.release}. */
export type NixlHold = readonly Extent[];

interface Extent {
  readonly memory: number;
  readonly region: NixlRegion;
  users: number;
  /** Settles when NIXL has answered. */
  ready: Promise<void>;
}

/**
 * Keeps NIXL's registrations from nesting: layouts in memory that is registered already share that registration.
 *
 * NIXL looks a descriptor up in the registration that begins nearest before it, so that a registration inside another
 * one hides whatever lies behind it in the outer one (NIXL 1.5.1 then answers -2 when a request is made).
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
   * @throws KvferryError `NIXL` with what NIXL answered, `INVALID_CONFIG` for a region around one that is registered.
   */
  async acquire(parts: readonly NixlPart[]): Promise<NixlHold> {
    const held: Extent[] = [];
    try {
      for (const memory of new Set(parts.map((part) => part.memory)))
        this.#takeAll(
          memory,
          parts.filter((part) => part.memory === memory).flatMap((part) => part.regions),
          held,
        );
      const outcomes = await Promise.allSettled(new Set(held.map((extent) => extent.ready)));
      for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
      return held;
    } catch (error) {
      await this.release(held).catch(() => undefined);
      throw error;
    }
  }

  /** Whether a region lies in one registration. */
  covers(memory: number, region: NixlRegion): boolean {
    const space = this.#space(memory, region.device);
    const before = space[firstAfter(space, region.address) - 1];
    return before !== undefined && endOf(before.region) >= endOf(region);
  }

  /** Gives a hold back: what nobody else uses is deregistered. */
  async release(hold: NixlHold): Promise<void> {
    const idle = hold.filter((extent) => --extent.users === 0);
    for (const extent of idle) this.#remove(extent);
    const memories = new Set(idle.map((extent) => extent.memory));
    const outcomes = await Promise.allSettled(
      Array.from(memories, (memory) =>
        this.#deregister(
          memory,
          idle.filter((extent) => extent.memory === memory),
        ),
      ),
    );
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** Takes a user's share in the extents of all regions, new ones registered by one call: NIXL takes them all or none. */
  #takeAll(memory: number, regions: readonly NixlRegion[], held: Extent[]): void {
    const fresh: Extent[] = [];
    // Of regions that begin together the largest comes first: the others lie in it.
    const ordered =
      regions.length === 1
        ? regions
        : regions.toSorted((a, b) => a.device - b.device || a.address - b.address || b.bytes - a.bytes);
    try {
      for (const region of ordered) held.push(this.#take(memory, region, fresh));
    } finally {
      if (fresh.length > 0) {
        const ready = this.#agent.register(
          memory,
          fresh.map((extent) => extent.region),
        );
        ready.catch(() => undefined);
        for (const extent of fresh) extent.ready = ready;
      }
    }
  }

  /** The extent that holds a region: one that is there, or a new one, which is put into `fresh` too. */
  #take(memory: number, region: NixlRegion, fresh: Extent[]): Extent {
    const space = this.#space(memory, region.device);
    const at = firstAfter(space, region.address);
    const before = space[at - 1];
    if (before !== undefined && endOf(before.region) >= endOf(region)) {
      before.users++;
      return before;
    }
    const inner = before?.region.address === region.address ? before : space[at];
    if (inner !== undefined && endOf(inner.region) <= endOf(region)) throw around(region, inner.region);
    const extent: Extent = { memory, region, users: 1, ready: SETTLED };
    space.splice(at, 0, extent);
    fresh.push(extent);
    return extent;
  }

  async #deregister(memory: number, extents: readonly Extent[]): Promise<void> {
    const outcomes = await Promise.allSettled(extents.map((extent) => extent.ready));
    const registered = extents.filter((_extent, index) => outcomes[index]?.status === "fulfilled");
    // An agent that was destroyed has let its registrations go by itself.
    if (registered.length > 0 && this.#agent.isOpen)
      await this.#agent.deregister(
        memory,
        registered.map((extent) => extent.region),
      );
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

function endOf(region: NixlRegion): number {
  return region.address + region.bytes;
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

function around(region: NixlRegion, inner: NixlRegion): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `the region of ${region.bytes} bytes at ${region.address} lies around one of ${inner.bytes} bytes at ${inner.address} that is registered with NIXL already`,
    "Register the layout over the larger region first; layouts inside it then share its registration.",
    { region, registered: inner },
  );
}
