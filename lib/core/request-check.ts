import { refusal } from "./refuse.ts";
import type { BlockList, BlockSelection, PlanRequest } from "./request.ts";
import type { LayerRange } from "./intersect-layers.ts";
import type { LayoutRecord } from "./layout.ts";

/** Layers that complete together in a layer-wise plan; null when the plan is not layer-wise. */
export type LayerStep = number | null;

/** A range of tokens in two streams. */
export type TokenRange = NonNullable<PlanRequest["tokens"]>;

/**
 * Checks a range of layers against the last layer that the layouts can name.
 *
 * @param limit - One past the last layer.
 * @throws KvferryError `LAYER_RANGE` for what is not whole, negative, inverted, empty or past the end.
 */
export function checkedLayers(range: PlanRequest["layers"], limit: number): LayerRange | null {
  if (range === undefined) return null;
  const { start, end } = (range as LayerRange | null) ?? { start: Number.NaN, end: Number.NaN };
  if (
    !Number.isSafeInteger(start) ||
    !Number.isSafeInteger(end) ||
    start < 0 ||
    end <= start ||
    end > limit
  ) {
    throw refusal(
      "LAYER_RANGE",
      `layers ${String(start)} to ${String(end)} (end excluded) are not a range within 0 to ${limit}`,
      `Give whole numbers with 0 <= start < end <= ${limit}; leave layers out for all.`,
      { start, end, limit },
    );
  }
  return { start, end };
}

/**
 * Reads the layer-wise option.
 *
 * @throws KvferryError `LAYER_RANGE` when `every` is not a positive whole number.
 */
export function checkedLayerStep(layerwise: PlanRequest["layerwise"]): LayerStep {
  if (layerwise === undefined || layerwise === false) return null;
  if (layerwise === true) return 1;
  const every = (layerwise as { readonly every: number } | null)?.every ?? Number.NaN;
  if (!Number.isSafeInteger(every) || every < 1) {
    throw refusal(
      "LAYER_RANGE",
      `layerwise.every must be a whole number from 1, found ${String(every)}`,
      "Say how many layers make one step, or use `layerwise: true` for one.",
      { every },
    );
  }
  return every;
}

/**
 * Checks the shape of a token range; that it ends inside the streams is checked with the id lists.
 *
 * @throws KvferryError `LENGTH_MISMATCH` for what is not whole or negative.
 */
export function checkedTokens(tokens: PlanRequest["tokens"]): TokenRange | null {
  if (tokens === undefined) return null;
  const none = { sourceStart: Number.NaN, destinationStart: Number.NaN, count: Number.NaN };
  const { sourceStart, destinationStart, count } = (tokens as TokenRange | null) ?? none;
  for (const [field, value] of [
    ["sourceStart", sourceStart],
    ["destinationStart", destinationStart],
    ["count", count],
  ] as const) {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw refusal(
        "LENGTH_MISMATCH",
        `tokens.${field} must be a whole number from 0, found ${String(value)}`,
        "Give starts and count in tokens, from the beginning of each list's first block.",
        { field, found: value },
      );
    }
  }
  return { sourceStart, destinationStart, count };
}

/**
 * The id list of one block-id space.
 *
 * @param needed - All spaces that the request needs on this side.
 * @throws KvferryError `LENGTH_MISMATCH` when one plain list is given for several spaces, or a space has no list.
 */
export function listOf(
  selection: BlockSelection,
  group: string,
  needed: readonly { readonly name: string }[],
  side: "source" | "destination",
): BlockList {
  if (isList(selection) && needed.length < 2) return selection;
  const groups = needed.map((space) => space.name);
  if (isList(selection)) {
    throw refusal(
      "LENGTH_MISMATCH",
      `the ${side} has ${groups.length} block-id spaces and one list`,
      `Give ${side}Blocks as an object with a list for each of ${groups.join(", ")}.`,
      { side, groups },
    );
  }
  const list =
    typeof selection === "object" && selection !== null && Object.hasOwn(selection, group)
      ? selection[group]
      : undefined;
  if (list === undefined) {
    throw refusal(
      "LENGTH_MISMATCH",
      `${side} blocks have no list for the block-id space ${JSON.stringify(group)}`,
      `Give ${side}Blocks as a list, or as an object with a list for each of ${groups.join(", ")}.`,
      { side, group, groups },
    );
  }
  return list;
}

/**
 * Refuses lists for block-id spaces that no component of the layout has, moved or not.
 *
 * @throws KvferryError `LENGTH_MISMATCH` with the unknown name.
 */
export function checkGroups(
  selection: BlockSelection,
  layout: LayoutRecord,
  side: "source" | "destination",
): void {
  if (isList(selection) || typeof selection !== "object" || selection === null) return;
  const known = layout.components.map((component) => component.shape.group);
  for (const group of Object.keys(selection)) {
    if (known.includes(group)) continue;
    throw refusal(
      "LENGTH_MISMATCH",
      `the ${side} layout has no block-id space ${JSON.stringify(group)}`,
      `Name only ${known.join(", ")} in ${side}Blocks.`,
      { side, group, groups: known },
    );
  }
}

/** Tells a list from an object of lists. */
export function isList(selection: BlockSelection): selection is BlockList {
  return selection instanceof Uint32Array || Array.isArray(selection);
}
