import type { AxisWindow, DTypeName, LayoutConfig } from "./config.ts";
import { DEFAULT_ELEMENT_BITS, DTYPE_BITS, dtypeBits, isDTypeName } from "./dtype.ts";
import { KvferryError } from "./errors.ts";
import { checkedInteger } from "./integers.ts";

/** The largest block count: block ids are unsigned 32-bit numbers. */
export const MAX_BLOCKS = 0xffff_ffff;

/** The largest layer count, and one more than the largest model layer: bounds every list that has one entry a layer. */
export const MAX_LAYERS = 65_536;

/** The largest page size, head count and head width. */
export const MAX_AXIS = 0xffff_ffff;

/** What was given, with its nested values copied, so that a later change of the caller's object changes nothing here. */
export type Given = { readonly [Key in keyof LayoutConfig]: LayoutConfig[Key] | undefined };

/** Heads and their width; one head of `innerDim` elements when no heads were given. */
export function resolveHeads(
  given: Given,
  operation: string,
): { readonly numHeads: number; readonly headDim: number; readonly headsKnown: boolean } {
  if (given.innerDim !== undefined) {
    if (given.numHeads !== undefined || given.headDim !== undefined)
      throw invalid(operation, "innerDim", "innerDim stands beside numHeads or headDim", given.innerDim);
    return {
      numHeads: 1,
      headDim: checkedInteger(given.innerDim, "innerDim", 1, MAX_AXIS, operation),
      headsKnown: false,
    };
  }
  if (given.numHeads === undefined && given.headDim === undefined)
    throw invalid(operation, "innerDim", "neither innerDim nor numHeads and headDim were given", undefined);
  return {
    numHeads: checkedInteger(given.numHeads, "numHeads", 1, MAX_AXIS, operation),
    headDim: checkedInteger(given.headDim, "headDim", 1, MAX_AXIS, operation),
    headsKnown: true,
  };
}

/** Bits of an element, from whichever of the three fields were given; they must agree. */
export function resolveElement(
  given: Given,
  operation: string,
): { readonly elementBits: number; readonly dtype: DTypeName | null } {
  let elementBits: number | null = null;
  const { dtype } = given;
  if (dtype !== undefined) {
    if (!isDTypeName(dtype)) throw unknownType(dtype, operation);
    elementBits = dtypeBits(dtype);
  }
  if (given.dtypeBits !== undefined) {
    const bits = checkedInteger(given.dtypeBits, "dtypeBits", 1, 64, operation);
    if (elementBits !== null && bits !== elementBits)
      throw invalid(
        operation,
        "dtypeBits",
        `dtypeBits ${bits} contradicts dtype ${dtype} of ${elementBits} bits`,
        bits,
      );
    elementBits = bits;
  }
  if (given.dtypeWidthBytes !== undefined)
    elementBits = resolveWidth(given.dtypeWidthBytes, elementBits, dtype, operation);
  return { elementBits: elementBits ?? DEFAULT_ELEMENT_BITS, dtype: dtype ?? null };
}

function resolveWidth(
  given: number,
  elementBits: number | null,
  dtype: DTypeName | undefined,
  operation: string,
): number {
  const width = checkedInteger(given, "dtypeWidthBytes", 1, 8, operation);
  if (!isPowerOfTwo(width))
    throw invalid(
      operation,
      "dtypeWidthBytes",
      `dtypeWidthBytes must be 1, 2, 4 or 8, found ${width}`,
      width,
    );
  if (elementBits !== null && width * 8 !== elementBits)
    throw invalid(
      operation,
      "dtypeWidthBytes",
      `dtypeWidthBytes ${width} contradicts the ${elementBits} bits of ${dtype ?? "dtypeBits"}`,
      width,
    );
  return width * 8;
}

function unknownType(found: unknown, operation: string): KvferryError {
  return invalid(operation, "dtype", `dtype must be one of ${Object.keys(DTYPE_BITS).join(", ")}`, found);
}

/** A power of two, default 1. */
export function resolveAlignment(given: number | undefined, operation: string): number {
  if (given === undefined) return 1;
  const alignment = checkedInteger(given, "alignment", 1, 2 ** 52, operation);
  if (!isPowerOfTwo(alignment))
    throw invalid(operation, "alignment", `alignment must be a power of two, found ${alignment}`, alignment);
  return alignment;
}

/** Which heads of the model these are, or null. */
export function resolveHeadWindow(
  given: AxisWindow | undefined,
  numHeads: number,
  headsKnown: boolean,
  operation: string,
): AxisWindow | null {
  if (given === undefined) return null;
  if (!headsKnown)
    throw invalid(
      operation,
      "headWindow",
      "headWindow needs numHeads and headDim instead of innerDim",
      given,
    );
  return resolveWindow(given, "headWindow", numHeads, MAX_AXIS, operation);
}

/** Which layers of the model these are, from the window or the list, or null. */
export function resolveLayers(
  given: Given,
  numLayers: number,
  operation: string,
): { readonly modelLayers: readonly number[] | null; readonly modelLayerTotal: number | null } {
  if (given.layerWindow === undefined && given.layers === undefined) return NO_LAYERS;
  return resolveGivenLayers(given, numLayers, operation);
}

const NO_LAYERS = Object.freeze({ modelLayers: null, modelLayerTotal: null });

function resolveGivenLayers(
  given: Given,
  numLayers: number,
  operation: string,
): { readonly modelLayers: readonly number[] | null; readonly modelLayerTotal: number | null } {
  if (given.layerWindow !== undefined) {
    if (given.layers !== undefined)
      throw invalid(operation, "layers", "layers stands beside layerWindow", given.layers);
    const window = resolveWindow(given.layerWindow, "layerWindow", numLayers, MAX_LAYERS, operation);
    // Lists are read-only by type: a frozen one becomes a hash table in JavaScriptCore.
    const modelLayers = Array.from({ length: numLayers }, (_, index) => window.start + index);
    return { modelLayers, modelLayerTotal: window.total };
  }
  if (!Array.isArray(given.layers))
    throw invalid(operation, "layers", "layers must be a list of model layers", given.layers);
  const layers: readonly number[] = given.layers;
  if (layers.length !== numLayers)
    throw invalid(
      operation,
      "layers",
      `layers lists ${layers.length} layers, numLayers is ${numLayers}`,
      layers.length,
    );
  checkLayers(layers, operation);
  return { modelLayers: [...layers], modelLayerTotal: null };
}

/** Lists come from peers too: one pass, and no object for each layer. */
function checkLayers(layers: readonly number[], operation: string): void {
  const seen = layers.length < FEW_LAYERS ? new Set<number>() : null;
  const bits = new Uint32Array(seen === null ? MAX_LAYERS / 32 : 0);
  for (let index = 0; index < layers.length; index++) {
    const layer = layers[index] as number; // or a hole, which is refused
    if (!(Number.isInteger(layer) && layer >= 0 && layer < MAX_LAYERS))
      checkedInteger(layer, `layers[${index}]`, 0, MAX_LAYERS - 1, operation);
    const word = bits[layer >> 5] ?? 0;
    const bit = 1 << (layer & 31);
    if (seen?.has(layer) === true || (word & bit) !== 0)
      throw invalid(operation, "layers", "layers lists a layer twice", layer);
    if (seen === null) bits[layer >> 5] = word | bit;
    else seen.add(layer);
  }
}

/** Longer lists are worth a table of all layers that there may be. */
const FEW_LAYERS = 256;

function resolveWindow(
  given: AxisWindow,
  field: string,
  own: number,
  maximum: number,
  operation: string,
): AxisWindow {
  if (typeof given !== "object" || given === null)
    throw invalid(operation, field, `${field} must be { start, total }`, given);
  for (const key in given) if (key !== "start" && key !== "total") throw unknownField(operation, field, key);
  const start = checkedInteger(given.start, `${field}.start`, 0, maximum, operation);
  const total = checkedInteger(given.total, `${field}.total`, 1, maximum, operation);
  if (start + own > total)
    throw invalid(operation, field, `${field} ends at ${start + own}, past its total of ${total}`, {
      start,
      total,
    });
  return Object.freeze({ start, total });
}

function isPowerOfTwo(value: number): boolean {
  let rest = value;
  while (rest > 1 && rest % 2 === 0) rest /= 2;
  return rest === 1;
}

/** Refuses a field by its name. */
export function unknownField(operation: string, where: string, key: string): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    `${where} has an unknown field ${JSON.stringify(key)}`,
    "Remove the field, or check its spelling.",
    { field: key, where },
  );
}

/** Refuses a field's value. */
export function invalid(operation: string, field: string, message: string, found: unknown): KvferryError {
  return new KvferryError("INVALID_CONFIG", operation, message, `Correct ${field} in the layout's config.`, {
    field,
    found: typeof found === "bigint" ? found.toString() : found,
  });
}
