import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";

/** A block that nobody may use until it is proven that nobody writes to it. */
export interface QuarantinedBlock {
  readonly block: number;
  readonly group: string;
  readonly reason: string;
  /** Milliseconds since 1970. */
  readonly since: number;
}

/** Blocks of one layout, by block-id space. */
export type BlockGroups = ReadonlyMap<string, Uint32Array>;

interface Entry {
  readonly reason: string;
  readonly since: number;
  holders: number;
}

interface LayoutState {
  uses: number;
  waiters: (() => void)[];
  quarantine: Map<string, Map<number, Entry>> | undefined;
}

/**
 * Who uses which layout, and which blocks are in quarantine.
 *
 * A layout in use is never freed; a quarantined block is neither read nor written by new transfers.
 */
export class Leases {
  readonly #layouts: Map<LayoutHandle, LayoutState> = new Map();
  /** States that say nothing: kept, for the next transfer will use the same layouts. */
  #idle = 0;
  #quarantinedBlocks = 0;

  /** Takes a lease on a layout; every `acquire` needs one `release`. */
  acquire(handle: LayoutHandle): void {
    const state = this.#layouts.get(handle);
    if (state === undefined) this.#layouts.set(handle, { uses: 1, waiters: [], quarantine: undefined });
    else {
      if (isIdle(state)) this.#idle--;
      state.uses++;
    }
  }

  release(handle: LayoutHandle): void {
    const state = this.#layouts.get(handle);
    if (state === undefined || state.uses === 0) return;
    state.uses--;
    this.#tidy(state);
  }

  /** Transfers and neighbours that use a layout now. */
  uses(handle: LayoutHandle): number {
    return this.#layouts.get(handle)?.uses ?? 0;
  }

  /** Resolves when nothing uses the layout and none of its blocks is in quarantine. */
  idle(handle: LayoutHandle): Promise<void> {
    const state = this.#layouts.get(handle);
    if (state === undefined || isIdle(state)) return Promise.resolve();
    return new Promise((resolve) => state.waiters.push(resolve));
  }

  /** Whether anything is in quarantine at all: the common case asks no further. */
  get anyQuarantined(): boolean {
    return this.#quarantinedBlocks > 0;
  }

  /** Blocks in quarantine over all layouts. */
  get quarantinedCount(): number {
    return this.#quarantinedBlocks;
  }

  /** Puts blocks into quarantine; each call needs one `lift` with the same blocks. */
  quarantine(handle: LayoutHandle, blocks: BlockGroups, reason: string, since: number): void {
    let state = this.#layouts.get(handle);
    if (state === undefined) {
      state = { uses: 0, waiters: [], quarantine: undefined };
      this.#layouts.set(handle, state);
    } else if (isIdle(state)) this.#idle--;
    state.quarantine ??= new Map();
    for (const [group, ids] of blocks) {
      const entries: Map<number, Entry> = state.quarantine.get(group) ?? new Map();
      state.quarantine.set(group, entries);
      for (const block of ids) {
        const entry = entries.get(block);
        if (entry === undefined) {
          entries.set(block, { reason, since, holders: 1 });
          this.#quarantinedBlocks++;
        } else {
          entry.holders++;
        }
      }
    }
  }

  /** Lifts a quarantine: it is proven that nobody writes to the blocks for this reason any more. */
  lift(handle: LayoutHandle, blocks: BlockGroups): void {
    const state = this.#layouts.get(handle);
    if (state?.quarantine === undefined) return;
    for (const [group, ids] of blocks) {
      const entries = state.quarantine.get(group);
      if (entries === undefined) continue;
      for (const block of ids) {
        const entry = entries.get(block);
        if (entry === undefined || --entry.holders > 0) continue;
        entries.delete(block);
        this.#quarantinedBlocks--;
      }
      if (entries.size === 0) state.quarantine.delete(group);
    }
    if (state.quarantine.size === 0) state.quarantine = undefined;
    this.#tidy(state);
  }

  /** The quarantined blocks of a layout. */
  quarantined(handle: LayoutHandle): QuarantinedBlock[] {
    const found: QuarantinedBlock[] = [];
    const groups = this.#layouts.get(handle)?.quarantine;
    if (groups === undefined) return found;
    for (const [group, entries] of groups) {
      for (const [block, { reason, since }] of entries) found.push({ block, group, reason, since });
    }
    return found;
  }

  /** The quarantined blocks of one block-id space, or null when there are none. */
  quarantinedSet(handle: LayoutHandle, group: string): { has(block: number): boolean } | null {
    return this.#layouts.get(handle)?.quarantine?.get(group) ?? null;
  }

  /**
   * Refuses blocks that are in quarantine.
   *
   * @throws KvferryError `QUARANTINED` with the ids.
   */
  demandUsable(operation: string, handle: LayoutHandle, side: string, blocks: BlockGroups): void {
    if (this.#quarantinedBlocks === 0) return;
    const groups = this.#layouts.get(handle)?.quarantine;
    if (groups === undefined) return;
    for (const [group, ids] of blocks) {
      const entries = groups.get(group);
      if (entries === undefined) continue;
      const bad: number[] = [];
      for (const block of ids) if (entries.has(block)) bad.push(block);
      const first = bad[0];
      if (first === undefined) continue;
      throw new KvferryError(
        "QUARANTINED",
        operation,
        `${bad.length} ${side} blocks of ${formatHandle(handle)} are in quarantine, first ${first}: ${entries.get(first)?.reason ?? ""}`,
        "Use other blocks until the quarantine ends (event `quarantine`), or close the transport.",
        { side, group, blocks: bad.slice(0, 64), count: bad.length, layout: handle.toString() },
      );
    }
  }

  #tidy(state: LayoutState): void {
    if (!isIdle(state)) return;
    if (++this.#idle > MOST_IDLE) this.#sweep();
    if (state.waiters.length === 0) return;
    const { waiters } = state;
    state.waiters = [];
    for (const waiter of waiters) waiter();
  }

  #sweep(): void {
    for (const [handle, state] of this.#layouts) if (isIdle(state)) this.#layouts.delete(handle);
    this.#idle = 0;
  }
}

/** Layouts that are remembered without being used. */
const MOST_IDLE = 256;

function isIdle(state: LayoutState): boolean {
  return state.uses === 0 && state.quarantine === undefined;
}
