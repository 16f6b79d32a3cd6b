import type { ResolvedConfig } from "./config.ts";
import { incompatible, requireEqual } from "./incompatible.ts";

/** A range of model layers, end excluded. */
export interface LayerRange {
  readonly start: number;
  readonly end: number;
}

/** Layers that both sides hold, as each of them counts them. */
export interface CommonLayers {
  readonly model: readonly number[];
  readonly source: readonly number[];
  readonly destination: readonly number[];
  /** Layers of the destination within the asked range. */
  readonly asked: number;
}

/**
 * Intersects the layers of two components.
 *
 * @throws KvferryError `INCOMPATIBLE_LAYOUTS` when they are of models of different depth, or have none in common.
 */
export function intersectLayers(
  name: string,
  from: ResolvedConfig,
  to: ResolvedConfig,
  range: LayerRange | null,
): CommonLayers {
  if (from.modelLayers === null && to.modelLayers === null) {
    requireEqual(name, "numLayers", from.numLayers, to.numLayers, "layers");
    const start = range === null ? 0 : Math.min(range.start, from.numLayers);
    const end = range === null ? from.numLayers : Math.min(range.end, from.numLayers);
    const own = Array.from({ length: Math.max(0, end - start) }, (_, index) => start + index);
    return { model: own, source: own, destination: own, asked: own.length };
  }
  const fromTotal = from.modelLayers === null ? from.numLayers : from.modelLayerTotal;
  const toTotal = to.modelLayers === null ? to.numLayers : to.modelLayerTotal;
  if (fromTotal !== null && toTotal !== null)
    requireEqual(name, "layerWindow.total", fromTotal, toTotal, "layers of the model");
  const total = fromTotal ?? toTotal;
  for (const [side, config] of [
    ["source", from],
    ["destination", to],
  ] as const) {
    const beyond = total === null ? undefined : config.modelLayers?.find((layer) => layer >= total);
    if (beyond !== undefined) {
      throw incompatible(name, `the ${side} holds model layer ${beyond} of a model with ${total} layers`, {
        field: "layers",
        side,
        layer: beyond,
        total,
      });
    }
  }
  const indexInSource = new Map<number, number>();
  for (let index = 0; index < from.numLayers; index++)
    indexInSource.set(from.modelLayers?.[index] ?? index, index);
  const met: { readonly model: number; readonly source: number; readonly destination: number }[] = [];
  let asked = 0;
  let meets = false;
  for (let index = 0; index < to.numLayers; index++) {
    const model = to.modelLayers?.[index] ?? index;
    const at = indexInSource.get(model);
    if (at !== undefined) meets = true;
    if (range !== null && (model < range.start || model >= range.end)) continue;
    asked++;
    if (at !== undefined) met.push({ model, source: at, destination: index });
  }
  if (!meets) {
    throw incompatible(name, "the two sides hold different layers of the model", {
      field: "layers",
      source: from.modelLayers ?? [0, from.numLayers],
      destination: to.modelLayers ?? [0, to.numLayers],
    });
  }
  met.sort((left, right) => left.model - right.model);
  return {
    model: met.map((layer) => layer.model),
    source: met.map((layer) => layer.source),
    destination: met.map((layer) => layer.destination),
    asked,
  };
}

/**
 * One past the last layer that a request may name for this pair of components.
 *
 * The model's layer count where a side tells it, else one past the last layer that either side holds.
 */
export function layerLimit(from: ResolvedConfig, to: ResolvedConfig): number {
  return Math.max(sideLimit(from), sideLimit(to));
}

/** How many of a component's layers lie in a range. */
export function layersInRange(config: ResolvedConfig, range: LayerRange | null): number {
  if (range === null) return config.numLayers;
  if (config.modelLayers === null) return Math.max(0, Math.min(range.end, config.numLayers) - range.start);
  let count = 0;
  for (const layer of config.modelLayers) if (layer >= range.start && layer < range.end) count++;
  return count;
}

function sideLimit(config: ResolvedConfig): number {
  if (config.modelLayers === null) return config.numLayers;
  return config.modelLayerTotal ?? Math.max(...config.modelLayers) + 1;
}
