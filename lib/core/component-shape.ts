import type { Arrangement, Order } from "./arrangement.ts";
import { resolveArrangement } from "./arrangement-view.ts";
import type { ResolvedOrder } from "./axes.ts";
import { resolveOrder } from "./axes.ts";
import type { ResolvedConfig } from "./config.ts";
import type { ComponentShape } from "./layout.ts";

/** What a component's shape is made from. */
export interface ShapeParts {
  readonly name: string;
  readonly config: ResolvedConfig;
  readonly arrangement: Arrangement;
  /** Undefined: what the arrangement says, else `nhd`. */
  readonly order: Order | undefined;
  readonly group: string;
  readonly wholeBlocks: boolean;
  readonly alias: boolean;
}

/**
 * The shape of a component: everything but its memory.
 *
 * Shapes of equal parts that follow each other closely are one object, so thousands of layouts of one model share it.
 *
 * @param operation - Named in errors.
 * @returns Frozen.
 * @throws KvferryError `INVALID_CONFIG` as `arrangementView` does.
 */
export function resolveShape(parts: ShapeParts, operation: string): ComponentShape {
  const { name, config, arrangement, group, wholeBlocks, alias } = parts;
  const order = parts.order === undefined ? undefined : resolveOrder(parts.order, operation);
  for (const entry of recent) {
    const { shape } = entry;
    if (
      shape.config === config &&
      shape.arrangement === arrangement &&
      entry.order === order &&
      shape.name === name &&
      shape.group === group &&
      shape.wholeBlocks === wholeBlocks &&
      shape.alias === alias
    )
      return shape;
  }
  const resolved = resolveArrangement(config, arrangement, order, operation, alias);
  const shape: ComponentShape = Object.freeze({
    name,
    config,
    arrangement: resolved.arrangement,
    order: resolved.order,
    view: resolved.view,
    group,
    wholeBlocks,
    alias,
  });
  recent[next] = { order, shape };
  next = (next + 1) % RECENT;
  return shape;
}

// Holds frozen values only, strides of an arrangement as a copy of its own, so a match cannot be told from computing anew.
const RECENT = 8;
const recent: { readonly order: ResolvedOrder | undefined; readonly shape: ComponentShape }[] = [];
let next = 0;
