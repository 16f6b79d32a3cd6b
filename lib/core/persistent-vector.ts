/** Slots of a node: 32 children or values, so a vector of 65,535 values is three levels deep and its tail. */
const WIDTH_BITS = 5;
const WIDTH: number = 1 << WIDTH_BITS;
const MASK: number = WIDTH - 1;

/**
 * An immutable list that shares structure: `push` and `set` make a new one in constant time and space, and what was
 * there stays valid. Make it with {@link emptyVector}; the fields are for this module.
 */
export interface PersistentVector<Value> {
  readonly size: number;
  /** Bits that the root consumes above a leaf. */
  readonly shift: number;
  readonly root: Branch<Value>;
  /**
   * The last values, at most 32, not yet in the tree. Later vectors may have appended to the same array: how many of
   * its values are this vector's own follows from `size`.
   */
  readonly tail: readonly Value[];
}

interface Branch<Value> {
  readonly children: readonly (Branch<Value> | Leaf<Value>)[];
}

interface Leaf<Value> {
  readonly values: readonly Value[];
}

/** A vector of nothing. */
export function emptyVector<Value>(): PersistentVector<Value> {
  return { size: 0, shift: WIDTH_BITS, root: { children: [] }, tail: [] };
}

/** The value at an index, or undefined outside `0 <= index < size`. */
export function vectorAt<Value>(vector: PersistentVector<Value>, index: number): Value | undefined {
  // A negative or fractional index must not be folded into the range by the masks below.
  if (!(index >= 0 && index < vector.size) || !Number.isInteger(index)) return undefined;
  if (index >= tailStart(vector)) return vector.tail[index & MASK];
  let node: Branch<Value> | Leaf<Value> | undefined = vector.root;
  for (let shift = vector.shift; shift > 0; shift -= WIDTH_BITS)
    node = node === undefined || !("children" in node) ? undefined : node.children[(index >>> shift) & MASK];
  return node !== undefined && "values" in node ? node.values[index & MASK] : undefined;
}

/** A vector with one more value at its end. */
export function vectorPush<Value>(vector: PersistentVector<Value>, value: Value): PersistentVector<Value> {
  const { size, shift, root, tail } = vector;
  const own = tailSize(size);
  if (own < WIDTH) {
    // Behind the values of this vector nobody but later ones looks: the first of them takes the place.
    if (tail.length > own || own === 0)
      return { size: size + 1, shift, root, tail: [...tail.slice(0, own), value] };
    (tail as Value[]).push(value);
    return { size: size + 1, shift, root, tail };
  }
  const leaf: Leaf<Value> = { values: tail };
  const full = size - WIDTH === 2 ** (shift + WIDTH_BITS);
  return full
    ? {
        size: size + 1,
        shift: shift + WIDTH_BITS,
        root: { children: [root, pathTo(shift, leaf)] },
        tail: [value],
      }
    : { size: size + 1, shift, root: appendLeaf(root, shift, size - WIDTH, leaf), tail: [value] };
}

/**
 * A vector with another value at an index.
 *
 * @returns The vector itself when the index lies outside `0 <= index < size`.
 */
export function vectorSet<Value>(
  vector: PersistentVector<Value>,
  index: number,
  value: Value,
): PersistentVector<Value> {
  if (!(index >= 0 && index < vector.size) || !Number.isInteger(index)) return vector;
  if (index >= tailStart(vector))
    return { ...vector, tail: vector.tail.slice(0, tailSize(vector.size)).with(index & MASK, value) };
  return { ...vector, root: replaceIn(vector.root, vector.shift, index, value) };
}

/** The values in index order. */
export function* vectorValues<Value>(vector: PersistentVector<Value>): Generator<Value, void, undefined> {
  yield* valuesBelow(vector.root);
  yield* vector.tail.slice(0, tailSize(vector.size));
}

function tailStart<Value>(vector: PersistentVector<Value>): number {
  return vector.size - tailSize(vector.size);
}

/** How many of the last values are not in the tree: a full tail stays one until the next value comes. */
function tailSize(size: number): number {
  return size === 0 ? 0 : ((size - 1) & MASK) + 1;
}

/** A chain of branches down to a leaf. */
function pathTo<Value>(shift: number, leaf: Leaf<Value>): Branch<Value> | Leaf<Value> {
  return shift === 0 ? leaf : { children: [pathTo(shift - WIDTH_BITS, leaf)] };
}

function appendLeaf<Value>(
  node: Branch<Value>,
  shift: number,
  index: number,
  leaf: Leaf<Value>,
): Branch<Value> {
  const slot = (index >>> shift) & MASK;
  const child = node.children[slot];
  const below =
    child !== undefined && "children" in child
      ? appendLeaf(child, shift - WIDTH_BITS, index, leaf)
      : pathTo(shift - WIDTH_BITS, leaf);
  return { children: [...node.children.slice(0, slot), below] };
}

function replaceIn<Value>(node: Branch<Value>, shift: number, index: number, value: Value): Branch<Value> {
  const slot = (index >>> shift) & MASK;
  const child = node.children[slot];
  if (child === undefined) return node;
  const replaced =
    "children" in child
      ? replaceIn(child, shift - WIDTH_BITS, index, value)
      : { values: child.values.with(index & MASK, value) };
  return { children: node.children.with(slot, replaced) };
}

function* valuesBelow<Value>(node: Branch<Value> | Leaf<Value>): Generator<Value, void, undefined> {
  if ("values" in node) yield* node.values;
  else for (const child of node.children) yield* valuesBelow(child);
}
