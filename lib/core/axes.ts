import type { EnginePreset, Order, OrderAxis, OrderName } from "./arrangement.ts";
import type { ResolvedConfig } from "./config.ts";
import { KvferryError } from "./errors.ts";

/** The four axes inside a block, outermost first. */
export type ResolvedOrder = readonly [OrderAxis, OrderAxis, OrderAxis, OrderAxis];

/** The axes that an order permutes, in the logical order in which bytes of a block are read and written. */
export const ORDER_AXES: ResolvedOrder = Object.freeze(["layer", "outer", "page", "head"] as const);

/**
 * The named orders, outermost axis first; the elements of a head follow innermost.
 *
 * `nhd` and `hnd` are what attention kernels read. The universal ones put the heads (tensor parallel) or layers and
 * then heads (pipeline parallel) outermost, so that another degree of parallelism is one slice.
 */
export const ORDERS: Readonly<Record<OrderName, ResolvedOrder>> = Object.freeze({
  nhd: ORDER_AXES,
  hnd: Object.freeze(["layer", "outer", "head", "page"] as const),
  "universal-tp": Object.freeze(["head", "layer", "outer", "page"] as const),
  "universal-pp": Object.freeze(["layer", "head", "outer", "page"] as const),
});

/** What an engine's preset says about the axes, outermost first; `block` is among them, `outer` may be part of the content. */
export type PresetAxis = OrderAxis | "block";

/**
 * The engines' presets as sequences of axes, outermost first, row-major and dense.
 *
 * In the names of five letters, L is layer, B block, H head, N token and C content: keys and values of one head and
 * token side by side, so `outer` is the innermost axis and its stride is the bytes of one head. `NHD`, `HND` and
 * `MLA` are the per-layer tensors that attention libraries document: `[block][K/V][token][head]`,
 * `[block][K/V][head][token]` and `[block][token]` with one latent row for each token. Byte strides stand at
 * `arrangementView`.
 */
export const ENGINE_AXES: Readonly<Record<EnginePreset, readonly PresetAxis[]>> = Object.freeze({
  LBHNC: ["layer", "block", "head", "page", "outer"],
  LBNHC: ["layer", "block", "page", "head", "outer"],
  LHBNC: ["layer", "head", "block", "page", "outer"],
  BLHNC: ["block", "layer", "head", "page", "outer"],
  BLNHC: ["block", "layer", "page", "head", "outer"],
  BHLNC: ["block", "head", "layer", "page", "outer"],
  NHD: ["layer", "block", "outer", "page", "head"],
  HND: ["layer", "block", "outer", "head", "page"],
  MLA: ["layer", "block", "outer", "page", "head"],
});

/** Tells whether a value names an engine's preset. */
export function isEnginePreset(value: unknown): value is EnginePreset {
  return typeof value === "string" && Object.hasOwn(ENGINE_AXES, value);
}

/**
 * Turns an order into its four axes, outermost first.
 *
 * @param order - A name, or a list that holds each of `layer`, `outer`, `page`, `head` once.
 * @returns A frozen list; the same object for the same name.
 * @throws KvferryError `INVALID_CONFIG` for an unknown name, an unknown, missing or repeated axis.
 */
export function resolveOrder(order: Order, operation = "register"): ResolvedOrder {
  if (typeof order === "string") {
    if (Object.hasOwn(ORDERS, order)) return ORDERS[order];
    throw badOrder(`unknown order ${JSON.stringify(order)}`, operation, { found: order });
  }
  if (!Array.isArray(order)) throw badOrder(`an order is a name or a list of axes`, operation, {});
  for (let index = 0; index < NAMED_ORDERS.length; index++) {
    const known = NAMED_ORDERS[index];
    if (known !== undefined && (known as Order) === order) return known;
    if (known !== undefined && sameOrder(known, order as readonly OrderAxis[])) return known;
  }
  return resolveAxes(order as readonly OrderAxis[], operation);
}

/** An order without a name. */
function resolveAxes(order: readonly OrderAxis[], operation: string): ResolvedOrder {
  const axes = [...order];
  for (const axis of axes) {
    if (!ORDER_AXES.includes(axis))
      throw badOrder(`unknown axis ${JSON.stringify(axis)} in the order`, operation, { axis });
    if (axes.indexOf(axis) !== axes.lastIndexOf(axis))
      throw badOrder(`axis ${axis} stands twice in the order`, operation, { axis });
  }
  for (const axis of ORDER_AXES)
    if (!axes.includes(axis)) throw badOrder(`axis ${axis} is missing in the order`, operation, { axis });
  const [first, second, third, fourth] = axes as [OrderAxis, OrderAxis, OrderAxis, OrderAxis];
  return Object.freeze([first, second, third, fourth] as const);
}

/** The name of an order, or null when it has none. */
export function orderName(order: readonly OrderAxis[]): OrderName | null {
  for (const name of Object.keys(ORDERS) as OrderName[]) if (sameOrder(ORDERS[name], order)) return name;
  return null;
}

/** Tells whether two orders list the same axes in the same sequence. */
export function sameOrder(left: readonly OrderAxis[], right: readonly OrderAxis[]): boolean {
  if (left.length !== right.length) return false;
  for (let index = 0; index < left.length; index++) if (left[index] !== right[index]) return false;
  return true;
}

/** How long an axis is. */
export function axisSize(config: ResolvedConfig, axis: PresetAxis): number {
  switch (axis) {
    case "block":
      return config.numBlocks;
    case "layer":
      return config.numLayers;
    case "outer":
      return config.outerDim;
    case "page":
      return config.pageSize;
    case "head":
      return config.numHeads;
  }
}

/**
 * Accepts an order beside an arrangement that has its own only where both agree on all axes longer than 1.
 *
 * @param what - Of what the own order is.
 * @throws KvferryError `INVALID_CONFIG` for another order.
 */
export function requireSameOrder(
  config: ResolvedConfig,
  own: ResolvedOrder,
  order: Order | undefined,
  operation: string,
  what: string,
): void {
  if (order === undefined) return;
  const given = resolveOrder(order, operation);
  // Named orders are one object each: the plain case.
  if (given === own) return;
  const long = (axis: OrderAxis): boolean => axisSize(config, axis) > 1;
  const asked = given.filter(long).join(", ");
  const found = own.filter(long).join(", ");
  if (asked !== found)
    throw new KvferryError(
      "INVALID_CONFIG",
      operation,
      `${what} put the axes in the sequence ${found}, the order asks for ${asked}`,
      "Leave the order out, or use fully-contiguous or layer-separate, which take one.",
      { field: "order", found: asked, expected: found },
    );
}

const NAMED_ORDERS: readonly ResolvedOrder[] = Object.values(ORDERS);

function badOrder(message: string, operation: string, details: Record<string, unknown>): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    message,
    `Use one of ${Object.keys(ORDERS).join(", ")}, or a list of layer, outer, page and head, outermost first.`,
    { field: "order", ...details },
  );
}
