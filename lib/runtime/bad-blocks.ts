import type { LayoutHandle } from "../core/handle.ts";
import type { BlockGroups } from "./leases.ts";

/** Blocks that do not hold what they should, until they are written again. */
export class BadBlocks {
  readonly #bad: Map<LayoutHandle, Map<string, Set<number>>> = new Map();
  /** Told of blocks that were bad and are written again. */
  onGood: ((layout: LayoutHandle, group: string, ids: readonly number[]) => void) | undefined;

  get any(): boolean {
    return this.#bad.size > 0;
  }

  /** Whether any block of a layout is bad. */
  has(layout: LayoutHandle): boolean {
    return this.#bad.has(layout);
  }

  /** Those of the given blocks that are bad. */
  among(layout: LayoutHandle, group: string, ids: Uint32Array): number[] {
    const known = this.#bad.get(layout)?.get(group);
    return known === undefined ? [] : Array.from(ids).filter((id) => known.has(id));
  }

  mark(layout: LayoutHandle, group: string, ids: Iterable<number>): void {
    const groups = this.#bad.get(layout) ?? new Map<string, Set<number>>();
    this.#bad.set(layout, groups);
    const known = groups.get(group) ?? new Set<number>();
    groups.set(group, known);
    for (const id of ids) known.add(id);
  }

  /** They were written again. */
  clear(layout: LayoutHandle, blocks: BlockGroups): void {
    const groups = this.#bad.get(layout);
    if (groups === undefined) return;
    for (const [group, ids] of blocks) {
      const known = groups.get(group);
      if (known === undefined) continue;
      const good = Array.from(ids).filter((id) => known.delete(id));
      if (known.size === 0) groups.delete(group);
      if (groups.size === 0) this.#bad.delete(layout);
      if (good.length > 0) this.onGood?.(layout, group, good);
    }
  }

  /** Forgets what is known of a layout that is gone. */
  forget(layout: LayoutHandle): void {
    this.#bad.delete(layout);
  }
}
