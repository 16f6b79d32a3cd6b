import type { Axis, ComponentPair } from "./intersect.ts";

/** What is outside the tokens of a loop nest: base addresses on both sides and the affine axes among layer and outer. */
export interface Outside {
  readonly sourceBase: Float64Array;
  readonly destinationBase: Float64Array;
  readonly axes: readonly Axis[];
}

/** A loop nest over one segment of tokens, fused as far as it goes: all of a copy program but its pairs. */
export interface Nest {
  readonly sourceBase: Float64Array;
  readonly destinationBase: Float64Array;
  /** Outermost first. */
  readonly loops: readonly Axis[];
  /** The same as a program has them. All programs of a nest share these arrays, by which they are told to be of one. */
  readonly count: readonly number[];
  readonly sourceStride: readonly number[];
  readonly destinationStride: readonly number[];
  /** Rows of one pair: the product of the counts. */
  readonly rows: number;
  readonly rowBytes: number;
}

/** At most this many bases are made by unrolling loops; more would cost more than the merged rows save. */
export const MOST_UNROLLED_BASES = 65_536;

/**
 * Base addresses and affine axes of the layers `[from, to)` of a pair.
 *
 * Layers (outers) that are evenly spaced on both sides become a loop; the others become bases.
 *
 * @param from - Index into `pair.layers`, likewise `to`.
 */
export function outsideOf(pair: ComponentPair, from: number, to: number): Outside {
  const { outers } = pair;
  const layers = to - from;
  const source = pair.sourceCells.subarray(from * outers, to * outers);
  const destination = pair.destinationCells.subarray(from * outers, to * outers);
  const outerEven = outers === 1 || isEven(source, destination, outers, 1, layers, outers);
  const layerEven = layers === 1 || isEven(source, destination, layers, outers, outers, 1);
  const axes: Axis[] = [];
  let sourceShift = 0;
  let destinationShift = 0;
  const addAxis = (count: number, step: number, joins: boolean): void => {
    if (count === 1) return;
    let sourceStep = (source[step] as number) - (source[0] as number); // in bounds: count > 1
    let destinationStep = (destination[step] as number) - (destination[0] as number);
    if (destinationStep < 0) {
      // Walk the other way, so that the destination is written upwards and rows can be joined.
      sourceShift += sourceStep * (count - 1);
      destinationShift += destinationStep * (count - 1);
      sourceStep = -sourceStep;
      destinationStep = -destinationStep;
    }
    axes.push({ count, source: sourceStep, destination: destinationStep, joins });
  };
  if (layerEven) addAxis(layers, outers, pair.layersJoin);
  if (outerEven) addAxis(outers, 1, pair.outersJoin);

  const baseLayers = layerEven ? 1 : layers;
  const baseOuters = outerEven ? 1 : outers;
  const sourceBase = new Float64Array(baseLayers * baseOuters);
  const destinationBase = new Float64Array(baseLayers * baseOuters);
  let base = 0;
  for (let layer = 0; layer < baseLayers; layer++) {
    for (let outer = 0; outer < baseOuters; outer++) {
      const cell = layer * outers + outer;
      sourceBase[base] = (source[cell] as number) + sourceShift; // in bounds
      destinationBase[base] = (destination[cell] as number) + destinationShift; // in bounds
      base++;
    }
  }
  return { sourceBase, destinationBase, axes };
}

/**
 * The fused loop nest of a segment of `tokens` tokens inside one block on each side.
 *
 * Loops of 1 are dropped; a loop whose strides on both sides equal the row is joined into the row, one that continues
 * its neighbour on both sides into the neighbour. What remains is sorted so that the destination is written upwards:
 * largest destination stride outermost.
 */
export function nestOf(pair: ComponentPair, outside: Outside, tokens: number): Nest {
  const axes: Axis[] = [...outside.axes];
  if (tokens > 1)
    axes.push({ count: tokens, source: pair.sourceStep, destination: pair.destinationStep, joins: true });
  if (pair.heads.count > 1) axes.push(pair.heads);
  return fuse(outside.sourceBase, outside.destinationBase, axes, pair.rowBytes);
}

/** The same nest with rows of `times` its row: neighbouring blocks that were joined. Fuses what now continues. */
export function widened(nest: Nest, times: number): Nest {
  return fuse(nest.sourceBase, nest.destinationBase, nest.loops, nest.rowBytes * times);
}

/**
 * The same nest with its loops unrolled into bases, so that runs of blocks lie innermost and can be joined into rows.
 *
 * @returns null when that makes too many bases.
 */
export function unrolled(nest: Nest): Nest | null {
  let factor = 1;
  for (const loop of nest.loops) factor *= loop.count;
  if (factor === 1) return nest;
  const bases = nest.sourceBase.length;
  if (bases * factor > MOST_UNROLLED_BASES) return null;
  let source = nest.sourceBase;
  let destination = nest.destinationBase;
  for (const loop of nest.loops) {
    const nextSource = new Float64Array(source.length * loop.count);
    const nextDestination = new Float64Array(source.length * loop.count);
    for (let base = 0; base < source.length; base++) {
      for (let index = 0; index < loop.count; index++) {
        const at = base * loop.count + index;
        nextSource[at] = (source[base] as number) + index * loop.source; // in bounds
        nextDestination[at] = (destination[base] as number) + index * loop.destination; // in bounds
      }
    }
    source = nextSource;
    destination = nextDestination;
  }
  return nestWith(source, destination, [], nest.rowBytes);
}

/** Rows that one cell (block, layer, outer) of `tokens` tokens takes when nothing is joined beyond the cell. */
export function rowsOfCell(pair: ComponentPair, tokens: number): number {
  const { heads, rowBytes } = pair;
  const headsJoin = (row: number): boolean => heads.source === row && heads.destination === row;
  const pagesJoin = (row: number): boolean => pair.sourceStep === row && pair.destinationStep === row;
  if (heads.count === 1 || headsJoin(rowBytes))
    return tokens === 1 || pagesJoin(rowBytes * heads.count) ? 1 : tokens;
  if (tokens === 1) return heads.count;
  if (!pagesJoin(rowBytes)) return heads.count * tokens;
  return headsJoin(rowBytes * tokens) ? 1 : heads.count;
}

/** Whether the cells at distance `step` differ by the same bytes everywhere, on both sides. */
function isEven(
  source: Float64Array,
  destination: Float64Array,
  count: number,
  step: number,
  lines: number,
  lineStep: number,
): boolean {
  const sourceStep = (source[step] as number) - (source[0] as number); // in bounds: count > 1
  const destinationStep = (destination[step] as number) - (destination[0] as number);
  for (let line = 0; line < lines; line++) {
    let cell = line * lineStep;
    for (let index = 1; index < count; index++) {
      const next = cell + step;
      if ((source[next] as number) - (source[cell] as number) !== sourceStep) return false;
      if ((destination[next] as number) - (destination[cell] as number) !== destinationStep) return false;
      cell = next;
    }
  }
  return true;
}

function fuse(
  sourceBase: Float64Array,
  destinationBase: Float64Array,
  axes: readonly Axis[],
  row: number,
): Nest {
  const open: Axis[] = axes.slice();
  let rowBytes = row;
  for (let index = 0; index < open.length; index++) {
    const axis = open[index] as Axis; // in bounds
    if (axis.joins && axis.source === rowBytes && axis.destination === rowBytes) {
      rowBytes *= axis.count;
      open.splice(index, 1);
      // A longer row may be continued by an axis that was passed.
      index = -1;
    }
  }
  if (open.length > 1) {
    open.sort(byDestinationStride);
    for (let index = open.length - 2; index >= 0; index--) {
      const outer = open[index] as Axis; // in bounds
      const inner = open[index + 1] as Axis; // in bounds
      if (
        outer.source !== inner.source * inner.count ||
        outer.destination !== inner.destination * inner.count
      )
        continue;
      open.splice(index, 2, {
        count: outer.count * inner.count,
        source: inner.source,
        destination: inner.destination,
        joins: outer.joins && inner.joins,
      });
    }
  }
  return nestWith(sourceBase, destinationBase, open, rowBytes);
}

function nestWith(
  sourceBase: Float64Array,
  destinationBase: Float64Array,
  loops: readonly Axis[],
  rowBytes: number,
): Nest {
  const count: number[] = [];
  const sourceStride: number[] = [];
  const destinationStride: number[] = [];
  let rows = 1;
  for (const loop of loops) {
    count.push(loop.count);
    sourceStride.push(loop.source);
    destinationStride.push(loop.destination);
    rows *= loop.count;
  }
  return { sourceBase, destinationBase, loops, count, sourceStride, destinationStride, rows, rowBytes };
}

function byDestinationStride(left: Axis, right: Axis): number {
  return right.destination - left.destination || right.source - left.source;
}
