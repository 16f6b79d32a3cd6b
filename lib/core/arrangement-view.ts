import type { Arrangement, EnginePreset, Order, OrderAxis, RegionScheme } from "./arrangement.ts";
import type { PresetAxis, ResolvedOrder } from "./axes.ts";
import { axisSize, ENGINE_AXES, isEnginePreset, ORDERS, requireSameOrder, resolveOrder } from "./axes.ts";
import type { ResolvedConfig } from "./config.ts";
import { KvferryError } from "./errors.ts";
import { stridedArrangement } from "./strided-arrangement.ts";
import { viewOf, type StridedView } from "./view.ts";

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
        return stridedArrangement(config, arrangement, order, operation, alias);
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
