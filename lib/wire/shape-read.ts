import type { Arrangement, OrderAxis, RegionScheme, StridedArrangement } from "../core/arrangement.ts";
import { resolveArrangement } from "../core/arrangement-view.ts";
import { isEnginePreset, ORDER_AXES } from "../core/axes.ts";
import { DEFAULT_GROUP, MAX_NAME_LENGTH } from "../core/bundle.ts";
import type { LayoutConfig, ResolvedConfig } from "../core/config.ts";
import { resolveConfig } from "../core/config-resolve.ts";
import { isDTypeName } from "../core/dtype.ts";
import { OVERLAP_BUDGET, regionSet, stridedSetOverlapsItself } from "../core/overlap.ts";
import { unencodable } from "./bincode.ts";
import { malformed, mostListedLayers, refusedAs } from "./bounded.ts";
import { NO_WORD } from "./rows.ts";
import {
  DTYPES,
  ENGINES,
  FIRST_ENGINE,
  FIRST_SCHEME,
  NONE,
  PRESETS,
  SCHEMES,
  SHAPE_NUMBERS,
  SHAPE_WORDS,
} from "./shape-rows.ts";
import type { PackageShape } from "./shape-rows.ts";

/** The shape table of a package that is read. */
export interface ShapeColumns {
  readonly numbers: Float64Array;
  readonly words: Uint32Array;
  readonly layers: Uint32Array;
  readonly texts: readonly string[];
  /** Offset of the table, for errors. */
  readonly offset: number;
  /** Length of the package. */
  readonly bytes: number;
}

/**
 * Rebuilds all shapes of a package. Nothing derived travels: sizes, strides of presets and totals are computed anew
 * and checked on the way.
 *
 * @throws KvferryError `METADATA_MALFORMED` as configs and arrangements are refused, with the row.
 */
export function readShapes(columns: ShapeColumns): readonly PackageShape[] {
  const rows = columns.words.length / SHAPE_WORDS;
  const shapes: PackageShape[] = [];
  if (columns.layers.length > mostListedLayers(columns.bytes)) throw tooManyLayers(columns);
  let layersAt = 0;
  // Steps of the exact overlap check, shared by all strided shapes of the package.
  const budget = { steps: OVERLAP_BUDGET };
  for (let row = 0; row < rows; row++) {
    const given = columns.numbers[row * SHAPE_NUMBERS + 10] ?? NONE;
    const listed = given === NONE ? 0 : given;
    if (!(listed % 1 === 0 && listed >= 0 && listed <= columns.layers.length - layersAt))
      throw fewerLayers(columns, row, given);
    const layers = given === NONE ? null : Array.from(columns.layers.subarray(layersAt, layersAt + listed));
    layersAt += listed;
    shapes.push(
      refusedAs("kvferry", columns.offset, `shape ${row}`, () => readShape(columns, row, layers, budget)),
    );
  }
  if (layersAt !== columns.layers.length) throw spareLayers(columns, layersAt);
  return shapes;
}

// Refusals have functions of their own, which a package that is right never compiles.

function tooManyLayers({ layers, bytes, offset }: ShapeColumns): Error {
  const limit = mostListedLayers(bytes);
  return malformed(
    "kvferry",
    offset,
    `${layers.length} layers are listed, more than the ${limit} of a package of ${bytes} bytes`,
    { layers: layers.length, limit },
  );
}

function fewerLayers({ offset }: ShapeColumns, row: number, listed: number): Error {
  return malformed("kvferry", offset, `shape ${row} lists ${listed} layers, more than there are`, { row });
}

function spareLayers({ offset }: ShapeColumns, layersAt: number): Error {
  return malformed("kvferry", offset, "layers are listed that belong to no shape", { layersAt });
}

function readShape(
  columns: ShapeColumns,
  row: number,
  layers: readonly number[] | null,
  budget: { steps: number },
): PackageShape {
  const word = (index: number): number => columns.words[row * SHAPE_WORDS + index] ?? NO_WORD;
  const number = (index: number): number => columns.numbers[row * SHAPE_NUMBERS + index] ?? Number.NaN;
  const flags = word(5);
  if (flags > 3) throw unencodable("flags", "0 to 3", flags);
  const config = readConfig(number, word(2), layers);
  const alias = (flags & 2) !== 0;
  const given = readArrangement(word(3), number);
  // Rows that share bytes are looked for below, under a budget that the whole package shares.
  const resolved = resolveArrangement(config, given, readOrder(word(4)), "decodePackage", true);
  if (typeof given !== "string" && !alias) {
    const verdict = stridedSetOverlapsItself(regionSet(resolved.view, 0), budget.steps);
    budget.steps -= verdict.steps;
    if (verdict.overlaps) throw unencodable("strides", "such that no two rows share bytes", verdict.reason);
  }
  return {
    name: readName(columns.texts, word(0), "name"),
    config,
    arrangement: resolved.arrangement,
    order: resolved.order,
    view: resolved.view,
    group: readName(columns.texts, word(1), "group"),
    wholeBlocks: (flags & 1) !== 0,
    alias,
  };
}

function readConfig(
  number: (index: number) => number,
  dtype: number,
  layers: readonly number[] | null,
): ResolvedConfig {
  const total = number(11);
  const name = DTYPES[dtype];
  if (dtype !== NO_WORD && !isDTypeName(name)) throw unencodable("dtype", "a known element type", dtype);
  const config: { -readonly [Key in keyof LayoutConfig]: LayoutConfig[Key] } = {
    numBlocks: number(0),
    numLayers: number(1),
    outerDim: number(2) as 1 | 2, // checked there
    pageSize: number(3),
    alignment: number(7),
  };
  if (number(4) === NONE) config.innerDim = number(5);
  else {
    config.numHeads = number(4);
    config.headDim = number(5);
  }
  if (isDTypeName(name)) config.dtype = name;
  else config.dtypeBits = number(6);
  if (number(8) !== NONE) config.headWindow = { start: number(8), total: number(9) };
  if (layers !== null && total !== NONE) config.layerWindow = { start: layers[0] ?? NONE, total };
  else if (layers !== null) config.layers = layers;
  // A window of layers is sent as its list, so that nothing is longer in memory than it is on the wire.
  if (layers !== null && layers.length !== config.numLayers)
    throw unencodable("layers", `${config.numLayers} layers`, layers.length);
  const resolved = resolveConfig(config, "decodePackage");
  if (resolved.elementBits !== number(6)) throw unencodable("dtype", `an element of ${number(6)} bits`, name);
  if (total !== NONE && !isOneRun(layers))
    throw unencodable("layers", "one run of model layers where their total is given", total);
  if ((number(8) === NONE) !== (number(9) === NONE))
    throw unencodable("headWindow", "start and total", number(9));
  return resolved;
}

/** Tells whether there are layers and each is one more than the one before. */
function isOneRun(layers: readonly number[] | null): boolean {
  const first = layers?.[0] ?? NONE;
  return layers !== null && layers.every((layer, index) => layer === first + index);
}

function readArrangement(code: number, number: (index: number) => number): Arrangement {
  const preset = PRESETS[code] ?? ENGINES[code - FIRST_ENGINE];
  const regions = SCHEMES[code - FIRST_SCHEME];
  if (regions !== undefined) return readStrides(regions, number);
  for (let index = 12; index <= 16; index++)
    if (number(index) !== NONE) throw unencodable("strides", "left out beside a preset", number(index));
  if (preset === undefined || !(PRESETS.includes(preset as Arrangement) || isEnginePreset(preset)))
    throw unencodable("arrangement", "a known preset or strides", code);
  return preset as Arrangement;
}

function readStrides(regions: RegionScheme, number: (index: number) => number): StridedArrangement {
  const optional = (
    key: "layer" | "outer" | "head",
    index: number,
  ): Partial<StridedArrangement["strides"]> => (number(index) === NONE ? {} : { [key]: number(index) });
  const strides = { block: number(12), page: number(15) };
  return {
    strides: { ...strides, ...optional("layer", 13), ...optional("outer", 14), ...optional("head", 16) },
    regions,
  };
}

function readOrder(code: number): readonly OrderAxis[] {
  if (code > 0xff) throw unencodable("order", "four axes", code);
  return [orderAxis(code), orderAxis(code >> 2), orderAxis(code >> 4), orderAxis(code >> 6)];
}

function orderAxis(bits: number): OrderAxis {
  return ORDER_AXES[bits & 3] ?? "layer";
}

function readName(texts: readonly string[], index: number, what: string): string {
  const name = texts[index];
  if (name === undefined || name === "" || name.length > MAX_NAME_LENGTH)
    throw unencodable(what, `a string of 1 to ${MAX_NAME_LENGTH} characters`, name ?? index);
  // One object for the common word, whatever the number of packages.
  return name === DEFAULT_GROUP ? DEFAULT_GROUP : name;
}
