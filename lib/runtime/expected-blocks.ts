import { checkDistinct, checkedIds } from "../core/blocks.ts";
import { KvferryError } from "../core/errors.ts";
import type { LayoutRecord } from "../core/layout.ts";
import type { BlockSelection } from "../core/request.ts";
import { checkGroups, isList, listOf } from "../core/request-check.ts";
import type { BlockGroups } from "./leases.ts";

/**
 * Checks the blocks that a peer is expected to write, and copies them.
 *
 * @throws KvferryError `BLOCK_OUT_OF_RANGE`, `DUPLICATE_BLOCK`, `LENGTH_MISMATCH` for a block-id space that is missing or
 * that no component has.
 */
export function expectedBlocks(layout: LayoutRecord, selection: BlockSelection): BlockGroups {
  const limits = new Map<string, number>();
  for (const { shape } of layout.components)
    limits.set(
      shape.group,
      Math.min(limits.get(shape.group) ?? Number.POSITIVE_INFINITY, shape.config.numBlocks),
    );
  try {
    checkGroups(selection, layout, "destination");
    // A bundle may get only some of its spaces; a plain list names the only one.
    const wanted = isList(selection) ? [...limits.keys()] : Object.keys(selection ?? {});
    const needed = wanted.map((name) => ({ name }));
    const groups = new Map<string, Uint32Array>();
    for (const name of wanted) {
      const list = listOf(selection, name, needed, "destination");
      const ids = checkedIds(list, limits.get(name) ?? 0, "destination", name);
      checkDistinct(ids, "destination", name);
      groups.set(name, ids.slice());
    }
    return groups;
  } catch (error) {
    throw error instanceof KvferryError ? ofExpect(error) : error;
  }
}

/** The planner's own checks speak of transfers. */
function ofExpect(error: KvferryError): KvferryError {
  const word = error.code.slice("ERR_KVF_".length) as ConstructorParameters<typeof KvferryError>[0]; // how codes are made
  return new KvferryError(word, "expect", error.message, error.remedy, error.details);
}
