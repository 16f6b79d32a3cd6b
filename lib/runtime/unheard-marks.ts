import type { LayoutHandle } from "../core/handle.ts";
import type { BlockGroups } from "./leases.ts";

/**
 * Blocks that a peer found bad after a push that nobody awaited yet. Whoever comes to await it is told then, once;
 * blocks that are written again meanwhile are not mentioned any more.
 */
export class UnheardMarks {
  readonly #marks: Map<string, Map<LayoutHandle, Map<string, Set<number>>>> = new Map();

  add(wireName: string, layout: LayoutHandle, group: string, ids: Iterable<number>): void {
    for (const id of ids) {
      const layouts = this.#marks.get(wireName) ?? new Map<LayoutHandle, Map<string, Set<number>>>();
      this.#marks.set(wireName, layouts);
      const groups = layouts.get(layout) ?? new Map<string, Set<number>>();
      layouts.set(layout, groups);
      groups.set(group, (groups.get(group) ?? new Set<number>()).add(id));
    }
  }

  /** Those of the given blocks that the peer has marked, by block-id space. They are heard now. */
  take(wireName: string, layout: LayoutHandle, blocks: BlockGroups): Map<string, Uint32Array> {
    const taken = new Map<string, Uint32Array>();
    const groups = this.#marks.get(wireName)?.get(layout);
    if (groups === undefined) return taken;
    for (const [group, ids] of blocks) {
      const found = ids.filter((id) => groups.get(group)?.has(id));
      if (found.length > 0) taken.set(group, found);
    }
    this.#drop(wireName, layout, taken);
    return taken;
  }

  /** They were written again, whoever had marked them. */
  mended(layout: LayoutHandle, group: string, ids: Iterable<number>): void {
    const blocks = new Map([[group, Uint32Array.from(ids)]]);
    for (const wireName of this.#marks.keys()) this.#drop(wireName, layout, blocks);
  }

  /** The peer is gone, and its pushes with it. */
  forget(wireName: string): void {
    this.#marks.delete(wireName);
  }

  #drop(wireName: string, layout: LayoutHandle, blocks: BlockGroups): void {
    const layouts = this.#marks.get(wireName);
    const groups = layouts?.get(layout);
    if (layouts === undefined || groups === undefined) return;
    for (const [group, ids] of blocks) {
      const known = groups.get(group);
      for (const id of ids) known?.delete(id);
      if (known?.size === 0) groups.delete(group);
    }
    if (groups.size === 0) layouts.delete(layout);
    if (layouts.size === 0) this.#marks.delete(wireName);
  }
}
