import type { AxisWindow, LayoutConfig, ResolvedConfig } from "./config.ts";
import type { Given } from "./config-fields.ts";
import {
  invalid,
  MAX_AXIS,
  MAX_BLOCKS,
  MAX_LAYERS,
  resolveAlignment,
  resolveElement,
  resolveHeads,
  resolveHeadWindow,
  resolveLayers,
  unknownField,
} from "./config-fields.ts";
import { checkedInteger, checkedProduct } from "./integers.ts";

export { MAX_AXIS, MAX_BLOCKS, MAX_LAYERS };

/**
 * Checks a layout config and fills in every default.
 *
 * Sizes are bytes; every product is checked to stay below 2^53. Configs that say the same give the same frozen
 * object where they follow each other closely, so layouts of one shape share it.
 *
 * @param operation - Named in errors, e.g. `register`.
 * @throws KvferryError `INVALID_CONFIG` with the field, the rule and what was found: unknown or missing fields,
 *   integers out of range, `innerDim` beside heads, contradicting element widths, heads that are not whole bytes,
 *   windows that end outside their total, repeated layers, sizes that pass 2^53 bytes.
 */
export function resolveConfig(config: LayoutConfig, operation: string): ResolvedConfig {
  // Checked by hand, not by a schema library: 65,535 registrations have about 2 microseconds each for everything,
  // and a schema parse of this object alone takes longer.
  if (typeof config !== "object" || config === null)
    throw invalid(operation, "config", "config must be an object", config);
  for (const key in config) if (!FIELDS.has(key)) throw unknownField(operation, "config", key);
  for (let index = 0; index < recent.length; index++) {
    const entry = recent[index];
    if (entry !== undefined && saysTheSame(config, entry.given)) return entry.resolved;
  }

  const given = copyOf(config);
  const resolved = resolveCopy(given, operation);
  recent[next] = { given, resolved };
  next = (next + 1) % RECENT;
  return resolved;
}

/**
 * The config that resolves to a given resolved one: what a caller would have written.
 *
 * @returns A new object; `resolveConfig` of it gives an equal value.
 */
export function configOf(resolved: ResolvedConfig): LayoutConfig {
  const heads = resolved.headsKnown
    ? { numHeads: resolved.numHeads, headDim: resolved.headDim }
    : { innerDim: resolved.innerDim };
  const width = resolved.dtype === null ? { dtypeBits: resolved.elementBits } : { dtype: resolved.dtype };
  const layers = resolved.modelLayers;
  const window =
    layers === null
      ? {}
      : resolved.modelLayerTotal === null
        ? { layers }
        : { layerWindow: { start: layers[0] ?? 0, total: resolved.modelLayerTotal } };
  return {
    numBlocks: resolved.numBlocks,
    numLayers: resolved.numLayers,
    outerDim: resolved.outerDim,
    pageSize: resolved.pageSize,
    ...heads,
    ...width,
    alignment: resolved.alignment,
    ...(resolved.headWindow === null ? {} : { headWindow: resolved.headWindow }),
    ...window,
  };
}

const FIELDS: ReadonlySet<string> = new Set<keyof LayoutConfig>([
  "numBlocks",
  "numLayers",
  "outerDim",
  "pageSize",
  "innerDim",
  "numHeads",
  "headDim",
  "dtypeWidthBytes",
  "dtypeBits",
  "dtype",
  "alignment",
  "headWindow",
  "layerWindow",
  "layers",
]);

// The last few distinct configs and what they resolved to. Matched by value, so it cannot be told from computing anew.
const RECENT = 8;
const recent: { readonly given: Given; readonly resolved: ResolvedConfig }[] = [];
let next = 0;

function resolveCopy(given: Given, operation: string): ResolvedConfig {
  const numBlocks = checkedInteger(given.numBlocks, "numBlocks", 1, MAX_BLOCKS, operation);
  const numLayers = checkedInteger(given.numLayers, "numLayers", 1, MAX_LAYERS, operation);
  const outerDim = checkedInteger(given.outerDim, "outerDim", 1, 2, operation) === 2 ? 2 : 1;
  const pageSize = checkedInteger(given.pageSize, "pageSize", 1, MAX_AXIS, operation);
  const { numHeads, headDim, headsKnown } = resolveHeads(given, operation);
  const { elementBits, dtype } = resolveElement(given, operation);
  const alignment = resolveAlignment(given.alignment, operation);
  const headWindow = resolveHeadWindow(given.headWindow, numHeads, headsKnown, operation);
  const { modelLayers, modelLayerTotal } = resolveLayers(given, numLayers, operation);

  const headBits = checkedProduct(operation, "the elements of a head", headDim, elementBits);
  if (headBits % 8 !== 0) throw partOfByte(given, headDim, elementBits, operation);
  const headBytes = headBits / 8;
  const tokenBytes = checkedProduct(operation, "a token", numHeads, headBytes);
  const cellBytes = checkedProduct(operation, "a cell", pageSize, tokenBytes);
  const blockBytes = checkedProduct(operation, "a block", numLayers, outerDim, cellBytes);
  const totalBytes = checkedProduct(operation, "the layout", numBlocks, blockBytes);
  return Object.freeze({
    numBlocks,
    numLayers,
    outerDim,
    pageSize,
    numHeads,
    headDim,
    innerDim: checkedProduct(operation, "the elements of a token", numHeads, headDim),
    headsKnown,
    elementBits,
    dtype,
    alignment,
    headWindow,
    modelLayers,
    modelLayerTotal,
    headBytes,
    tokenBytes,
    cellBytes,
    blockBytes,
    totalBytes,
  });
}

function partOfByte(given: Given, headDim: number, elementBits: number, operation: string): Error {
  return invalid(
    operation,
    given.numHeads === undefined ? "innerDim" : "headDim",
    `${headDim} elements of ${elementBits} bits are not a whole number of bytes`,
    headDim,
  );
}

function saysTheSame(config: LayoutConfig, given: Given): boolean {
  return (
    config.numBlocks === given.numBlocks &&
    config.numLayers === given.numLayers &&
    config.outerDim === given.outerDim &&
    config.pageSize === given.pageSize &&
    config.innerDim === given.innerDim &&
    config.numHeads === given.numHeads &&
    config.headDim === given.headDim &&
    config.dtypeWidthBytes === given.dtypeWidthBytes &&
    config.dtypeBits === given.dtypeBits &&
    config.dtype === given.dtype &&
    config.alignment === given.alignment &&
    sameWindow(config.headWindow, given.headWindow) &&
    sameWindow(config.layerWindow, given.layerWindow) &&
    sameList(config.layers, given.layers)
  );
}

function sameWindow(left: AxisWindow | undefined, right: AxisWindow | undefined): boolean {
  if (left === right) return true;
  if (typeof left !== "object" || left === null || typeof right !== "object" || right === null) return false;
  // A further field must be looked at, and refused.
  for (const key in left) if (key !== "start" && key !== "total") return false;
  return left.start === right.start && left.total === right.total;
}

function sameList(left: readonly number[] | undefined, right: readonly number[] | undefined): boolean {
  if (left === right) return left === undefined;
  if (!Array.isArray(left) || !Array.isArray(right) || left.length !== right.length) return false;
  for (let index = 0; index < left.length; index++) if (left[index] !== right[index]) return false;
  return true;
}

function copyOf(config: LayoutConfig): Given {
  const { headWindow, layerWindow, layers } = config;
  return {
    numBlocks: config.numBlocks,
    numLayers: config.numLayers,
    outerDim: config.outerDim,
    pageSize: config.pageSize,
    innerDim: config.innerDim,
    numHeads: config.numHeads,
    headDim: config.headDim,
    dtypeWidthBytes: config.dtypeWidthBytes,
    dtypeBits: config.dtypeBits,
    dtype: config.dtype,
    alignment: config.alignment,
    headWindow: typeof headWindow === "object" && headWindow !== null ? { ...headWindow } : headWindow,
    layerWindow: typeof layerWindow === "object" && layerWindow !== null ? { ...layerWindow } : layerWindow,
    layers: Array.isArray(layers) ? [...layers] : layers,
  };
}
