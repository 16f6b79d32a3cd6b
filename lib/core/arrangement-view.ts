import type {
  Arrangement,
  EnginePreset,
  Order,
  OrderAxis,
  RegionScheme,
  StridedArrangement,
} from "./arrangement.ts";
import type { PresetAxis, ResolvedOrder } from "./axes.ts";
import { ENGINE_AXES, isEnginePreset, ORDER_AXES, ORDERS, resolveOrder } from "./axes.ts";
import type { ResolvedConfig } from "./config.ts";
import { KvferryError } from "./errors.ts";
import { checkedInteger, checkedProduct, checkedSum } from "./integers.ts";
import { regionSet, stridedSetOverlapsItself } from "./overlap.ts";
import type { StridedView } from "./view.ts";

/** A checked arrangement: its order inside a block and the strides that follow. */
export interface ResolvedArrangement {
  /** A preset's name, or a frozen copy of the strides. */
  readonly arrangement: Arrangement;
  /** As given for presets that take an order, else what the strides say. */
  readonly order: ResolvedOrder;
  readonly view: StridedView;
}

/** What arrangements without an order of their own get. */
export const DEFAULT_ARRANGEMENT = "fully-contiguous" as const;

/**
 * The strides of a layout in memory, from its config, arrangement and order.
 *
 * With `row` the bytes of a head's elements, and everything row-major and dense:
 * - `fully-contiguous`: one region, `[block][the order's four axes][row]`.
 * - `layer-separate/block-first`: a region for each layer, `[block][outer, page, head in the order's sequence][row]`.
 * - `layer-separate/block-second`: a region for each layer, `[outer][block][page, head in the order's sequence][row]`.
 *   Wherever the order has `layer` it selects the region, and in the last form `outer` stays outermost.
 *
 * Engine presets, in bytes; `C = outerDim * row` holds a head's keys and values side by side (`outer` has stride
 * `row`), B, L, H, N count blocks, layers, heads and tokens of a block:
 *
 * | preset | regions | block | layer | head | page | outer |
 * | --- | --- | --- | --- | --- | --- | --- |
 * | `LBHNC` | per layer | H N C | - | N C | C | row |
 * | `LBNHC` | per layer | N H C | - | C | H C | row |
 * | `LHBNC` | per layer | N C | - | B N C | C | row |
 * | `BLHNC` | one | L H N C | H N C | N C | C | row |
 * | `BLNHC` | one | L N H C | N H C | C | H C | row |
 * | `BHLNC` | one | H L N C | N C | L N C | C | row |
 * | `NHD` | per layer | outerDim N H row | - | row | H row | N H row |
 * | `HND` | per layer | outerDim H N row | - | N row | row | H N row |
 * | `MLA` | per layer | N row | - | row | row | N row |
 *
 * Presets that begin with L have a region for each layer, as engines allocate them; the others one for the whole
 * tensor. `MLA` needs `outerDim` 1 and one head. Strided arrangements are taken as they are: `layer` may be left out
 * where it selects the region or has size 1, `outer` likewise, `head` defaults to `row` (heads side by side).
 *
 * @param order - For the first three a name or list, default `nhd`; engine presets and strides already say theirs,
 *   and only an order that agrees on all axes longer than 1 is accepted beside them.
 * @returns A frozen view; `regionBytes` is what each region must have at least.
 * @throws KvferryError `INVALID_CONFIG` that names the axis: unknown arrangements, strides missing, zero or negative
 *   where the axis is longer than 1, given where the axis selects the region, sizes past 2^53, rows that share bytes.
 */
export function arrangementView(
  config: ResolvedConfig,
  arrangement: Arrangement,
  order?: Order,
  operation = "register",
  alias = false,
): StridedView {
  return resolveArrangement(config, arrangement, order, operation, alias).view;
}

/**
 * As {@link arrangementView}, with the order inside a block and a frozen copy of the arrangement.
 *
 * @param alias - Allows rows of a strided arrangement to share bytes.
 */
export function resolveArrangement(
  config: ResolvedConfig,
  arrangement: Arrangement,
  order: Order | undefined,
  operation = "register",
  alias = false,
): ResolvedArrangement {
  switch (arrangement) {
    case "fully-contiguous": {
      const axes = order === undefined ? ORDERS.nhd : resolveOrder(order, operation);
      const sequence: readonly PresetAxis[] = ["block", axes[0], axes[1], axes[2], axes[3]];
      return { arrangement, order: axes, view: denseView(config, sequence, "one", operation) };
    }
    case "layer-separate/block-first":
    case "layer-separate/block-second":
      return layerSeparate(config, arrangement, order, operation);
    default:
      if (isEnginePreset(arrangement)) return enginePreset(config, arrangement, order, operation);
      if (typeof arrangement === "object" && arrangement !== null)
        return strided(config, arrangement, order, operation, alias);
      throw unknownArrangement(arrangement, operation);
  }
}

function unknownArrangement(found: unknown, operation: string): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    `unknown arrangement ${JSON.stringify(found)}`,
    `Use fully-contiguous, layer-separate/block-first, layer-separate/block-second, ${Object.keys(ENGINE_AXES).join(", ")}, or strides.`,
    { field: "arrangement", found },
  );
}

function layerSeparate(
  config: ResolvedConfig,
  arrangement: "layer-separate/block-first" | "layer-separate/block-second",
  order: Order | undefined,
  operation: string,
): ResolvedArrangement {
  const axes = order === undefined ? ORDERS.nhd : resolveOrder(order, operation);
  const inner: readonly PresetAxis[] = axes.filter((axis) => axis !== "layer");
  const sequence: readonly PresetAxis[] =
    arrangement === "layer-separate/block-first"
      ? ["block", ...inner]
      : ["outer", "block", ...inner.filter((axis) => axis !== "outer")];
  return { arrangement, order: axes, view: denseView(config, sequence, "per-layer", operation) };
}

/** Dense row-major strides for axes listed outermost first; axes that are not listed select the region. */
function denseView(
  config: ResolvedConfig,
  axes: readonly PresetAxis[],
  regionScheme: RegionScheme,
  operation: string,
): StridedView {
  const strides = { block: 0, layer: 0, outer: 0, page: 0, head: 0 };
  let bytes = config.headBytes;
  for (let index = axes.length - 1; index >= 0; index--) {
    const axis = axes[index];
    if (axis === undefined) continue;
    strides[axis] = bytes;
    // No check needed: every partial product divides totalBytes, which was checked.
    bytes *= axisSize(config, axis);
  }
  return viewOf(config, regionScheme, strides, bytes, operation);
}

function enginePreset(
  config: ResolvedConfig,
  preset: EnginePreset,
  order: Order | undefined,
  operation: string,
): ResolvedArrangement {
  if (preset === "MLA" && (config.outerDim !== 1 || config.numHeads !== 1))
    throw new KvferryError(
      "INVALID_CONFIG",
      operation,
      `MLA has one latent row for each token: outerDim and the heads must be 1, found ${config.outerDim} and ${config.numHeads}`,
      "Give the latent row as innerDim with outerDim 1, or use another arrangement.",
      {
        field: config.outerDim === 1 ? "numHeads" : "outerDim",
        outerDim: config.outerDim,
        numHeads: config.numHeads,
      },
    );
  const axes = ENGINE_AXES[preset];
  const inside = axes.filter((axis): axis is OrderAxis => axis !== "block");
  const own = resolveOrder(inside, operation);
  requireSameOrder(config, own, order, operation, preset);
  const perLayer = axes[0] === "layer";
  const view = denseView(config, perLayer ? axes.slice(1) : axes, perLayer ? "per-layer" : "one", operation);
  return { arrangement: preset, order: own, view };
}

function strided(
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

function requireSameOrder(
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

function axisSize(config: ResolvedConfig, axis: PresetAxis): number {
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

function viewOf(
  config: ResolvedConfig,
  regionScheme: RegionScheme,
  strides: Readonly<Record<PresetAxis, number>>,
  regionBytes: number,
  operation: string,
): StridedView {
  const regionCount =
    regionScheme === "one"
      ? 1
      : regionScheme === "per-layer"
        ? config.numLayers
        : config.numLayers * config.outerDim;
  checkedProduct(operation, "all regions", regionCount, regionBytes);
  return Object.freeze({
    regionScheme,
    regionCount,
    blocks: config.numBlocks,
    layers: config.numLayers,
    outers: config.outerDim,
    pages: config.pageSize,
    heads: config.numHeads,
    rowBytes: config.headBytes,
    strideBlock: strides.block,
    strideLayer: strides.layer,
    strideOuter: strides.outer,
    stridePage: strides.page,
    strideHead: strides.head,
    regionBytes,
  });
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
