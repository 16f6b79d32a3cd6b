import type { Order, StridedArrangement } from "./arrangement.ts";
import type { ResolvedArrangement } from "./arrangement-view.ts";
import { axisSize, ORDER_AXES, requireSameOrder, resolveOrder } from "./axes.ts";
import type { PresetAxis, ResolvedOrder } from "./axes.ts";
import type { ResolvedConfig } from "./config.ts";
import { KvferryError } from "./errors.ts";
import { checkedInteger, checkedProduct, checkedSum } from "./integers.ts";
import { regionSet, stridedSetOverlapsItself } from "./overlap.ts";
import { viewOf } from "./view.ts";

/**
 * Takes the strides of memory that an engine laid out its own way, and finds the order that they say.
 *
 * @param order - Only one that agrees with the strides on all axes longer than 1.
 * @param alias - Allows rows to share bytes.
 * @throws KvferryError `INVALID_CONFIG` that names the axis.
 */
export function stridedArrangement(
  config: ResolvedConfig,
  given: StridedArrangement,
  order: Order | undefined,
  operation: string,
  alias: boolean,
): ResolvedArrangement {
  for (const key in given)
    if (key !== "strides" && key !== "regions") throw badStride(operation, key, `unknown field ${key}`, key);
  const { regions, strides } = given;
  if (regions !== "one" && regions !== "per-layer" && regions !== "per-layer-and-outer")
    throw badStride(operation, "regions", "regions must be one, per-layer or per-layer-and-outer", regions);
  if (typeof strides !== "object" || strides === null)
    throw badStride(
      operation,
      "strides",
      "strides must be { block, layer, outer, page, head } in bytes",
      strides,
    );
  for (const key in strides)
    if (key !== "block" && !(ORDER_AXES as readonly string[]).includes(key))
      throw badStride(operation, key, `strides has an unknown axis ${JSON.stringify(key)}`, key);
  const selects = (axis: PresetAxis): boolean =>
    (axis === "layer" && regions !== "one") || (axis === "outer" && regions === "per-layer-and-outer");
  const strideOf = (axis: PresetAxis): number => {
    const found = axis === "head" && strides.head === undefined ? config.headBytes : strides[axis];
    const size = axisSize(config, axis);
    if (selects(axis)) {
      if (found !== undefined && found !== 0)
        throw badStride(operation, axis, `axis ${axis} selects the region and can have no stride`, found);
      return 0;
    }
    if (found === undefined && size === 1) return 0;
    if (found === undefined)
      throw badStride(operation, axis, `axis ${axis} of size ${size} needs a stride`, found);
    return checkedInteger(found, `strides.${axis}`, size > 1 ? 1 : 0, Number.MAX_SAFE_INTEGER, operation);
  };
  const own = {
    block: strideOf("block"),
    layer: strideOf("layer"),
    outer: strideOf("outer"),
    page: strideOf("page"),
    head: strideOf("head"),
  };
  let bytes = config.headBytes;
  for (const axis of ["block", ...ORDER_AXES] as const) {
    if (selects(axis)) continue;
    const reach = checkedProduct(operation, `the stride of ${axis}`, axisSize(config, axis) - 1, own[axis]);
    bytes = checkedSum(operation, "a region", bytes, reach);
  }
  const view = viewOf(config, regions, own, bytes, operation);
  if (!alias) {
    const result = stridedSetOverlapsItself(regionSet(view, 0));
    if (result.overlaps) throw sharedRows(operation, config, own, result.reason);
  }
  const sequence = orderOfStrides(config, own, selects);
  requireSameOrder(config, sequence, order, operation, "these strides");
  const copy: StridedArrangement = Object.freeze({ strides: Object.freeze({ ...strides }), regions });
  return { arrangement: copy, order: sequence, view };
}

/** Largest stride first; axes that select the region or have size 1 go in front, as in `nhd`. */
function orderOfStrides(
  config: ResolvedConfig,
  strides: Readonly<Record<PresetAxis, number>>,
  selects: (axis: PresetAxis) => boolean,
): ResolvedOrder {
  const free = ORDER_AXES.filter((axis) => selects(axis) || axisSize(config, axis) === 1);
  const strided = ORDER_AXES.filter((axis) => !free.includes(axis));
  return resolveOrder([...free, ...strided.toSorted((a, b) => strides[b] - strides[a])]);
}

/** Blames the first axis whose stride is smaller than what lies inside it: there the caller's number is most likely wrong. */
function sharedRows(
  operation: string,
  config: ResolvedConfig,
  strides: Readonly<Record<PresetAxis, number>>,
  reason: string,
): KvferryError {
  const axes = (["block", ...ORDER_AXES] as const)
    .filter((axis) => strides[axis] > 0 && axisSize(config, axis) > 1)
    .toSorted((a, b) => strides[a] - strides[b]);
  let inner = config.headBytes;
  for (const axis of axes) {
    if (strides[axis] < inner)
      return badStride(
        operation,
        axis,
        `the stride of ${axis} is ${strides[axis]} bytes, what lies inside it takes ${inner}: ${reason}`,
        strides[axis],
      );
    inner += (axisSize(config, axis) - 1) * strides[axis];
  }
  return badStride(operation, "strides", `rows of this arrangement share bytes: ${reason}`, strides);
}

function badStride(operation: string, axis: string, message: string, found: unknown): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    message,
    "Correct the strides; where bytes belong to more than one cell on purpose, say alias: true.",
    { field: axis, axis, found },
  );
}
