import type { Arrangement, OrderAxis } from "../core/arrangement.ts";
import { ORDER_AXES } from "../core/axes.ts";
import type { PackageComponent } from "../core/package.ts";
import { unencodable } from "./bincode.ts";
import { textIndex } from "./columns.ts";
import type { TextTable } from "./columns.ts";
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

/** Shapes on their way into a package, each once. */
export interface ShapeTable {
  readonly numbers: number[];
  readonly words: number[];
  readonly layers: number[];
  readonly known: Map<object, PackageShape[]>;
  readonly indices: Map<PackageShape, number>;
  /** Rows by what they say. */
  readonly rows: Map<string, number>;
}

/** An empty table. */
export function newShapeTable(): ShapeTable {
  return { numbers: [], words: [], layers: [], known: new Map(), indices: new Map(), rows: new Map() };
}

/**
 * The row of a component's shape, added when it is new. Layouts of one spec share the parts of their shape, which is
 * seen at once; others are told apart by what their rows say.
 */
export function shapeIndex(table: ShapeTable, component: PackageComponent, texts: TextTable): number {
  const candidates = table.known.get(component.view);
  if (candidates !== undefined)
    for (const shape of candidates) if (sameShape(shape, component)) return table.indices.get(shape) ?? 0;
  const index = rowIndex(table, component, texts);
  table.indices.set(component, index);
  if (candidates === undefined) table.known.set(component.view, [component]);
  else candidates.push(component);
  return index;
}

function rowIndex(table: ShapeTable, component: PackageComponent, texts: TextTable): number {
  const index = table.rows.size;
  const layersAt = table.layers.length;
  writeShape(table, component, texts);
  const numbers = table.numbers.slice(index * SHAPE_NUMBERS);
  const words = table.words.slice(index * SHAPE_WORDS);
  const key = `${numbers.join()};${words.join()};${table.layers.slice(layersAt).join()}`;
  const known = table.rows.get(key);
  if (known === undefined) {
    table.rows.set(key, index);
    return index;
  }
  table.numbers.length = index * SHAPE_NUMBERS;
  table.words.length = index * SHAPE_WORDS;
  table.layers.length = layersAt;
  return known;
}

function sameShape(left: PackageShape, right: PackageShape): boolean {
  return (
    left.config === right.config &&
    left.arrangement === right.arrangement &&
    left.order === right.order &&
    left.name === right.name &&
    left.group === right.group &&
    left.wholeBlocks === right.wholeBlocks &&
    left.alias === right.alias
  );
}

function writeShape(table: ShapeTable, shape: PackageShape, texts: TextTable): void {
  const { config, arrangement } = shape;
  const strides = typeof arrangement === "string" ? null : arrangement.strides;
  table.numbers.push(
    config.numBlocks,
    config.numLayers,
    config.outerDim,
    config.pageSize,
    config.headsKnown ? config.numHeads : NONE,
    config.headsKnown ? config.headDim : config.innerDim,
    config.elementBits,
    config.alignment,
    config.headWindow?.start ?? NONE,
    config.headWindow?.total ?? NONE,
    config.modelLayers?.length ?? NONE,
    config.modelLayerTotal ?? NONE,
    strides?.block ?? NONE,
    strides?.layer ?? NONE,
    strides?.outer ?? NONE,
    strides?.page ?? NONE,
    strides?.head ?? NONE,
  );
  table.words.push(
    textIndex(texts, shape.name),
    textIndex(texts, shape.group),
    config.dtype === null ? NO_WORD : DTYPES.indexOf(config.dtype),
    arrangementCode(arrangement),
    orderCode(shape.order),
    (shape.wholeBlocks ? 1 : 0) | (shape.alias ? 2 : 0),
  );
  for (const layer of config.modelLayers ?? []) table.layers.push(layer);
}

function arrangementCode(arrangement: Arrangement): number {
  if (typeof arrangement !== "string") return FIRST_SCHEME + SCHEMES.indexOf(arrangement.regions);
  const preset = PRESETS.indexOf(arrangement);
  if (preset >= 0) return preset;
  const engine = ENGINES.indexOf(arrangement);
  if (engine < 0) throw unencodable("arrangement", "a known preset or strides", arrangement);
  return FIRST_ENGINE + engine;
}

function orderCode(order: readonly OrderAxis[]): number {
  if (order.length !== 4) throw unencodable("order", "four axes", order);
  let code = 0;
  for (const [index, axis] of order.entries()) code |= ORDER_AXES.indexOf(axis) << (2 * index);
  return code;
}
