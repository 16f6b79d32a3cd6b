import type { RegionScheme, StridedArrangement } from "./arrangement.ts";
import { resolveArrangement } from "./arrangement-view.ts";
import type { LayoutConfig } from "./config.ts";
import { resolveConfig } from "./config-resolve.ts";
import { checkedInteger } from "./integers.ts";
import { resolveDType, type TensorDType } from "./tensor-dtype.ts";
import { TENSOR_OPERATION, wrongTensor } from "./tensor-error.ts";

/**
 * What an axis of a tensor means. The innermost values are one of `element` (of one head), `inner` (heads and
 * elements in one axis) or `content` (keys and values of one head side by side).
 */
export type TensorAxis = "block" | "layer" | "outer" | "page" | "head" | "element" | "inner" | "content";

/** Sizes or strides: numbers, or as PyTorch prints them, e.g. `"torch.Size([64, 2, 16, 8, 128])"` or `"(1, 2)"`. */
export type TensorNumbers = readonly number[] | string;

/** A tensor as an engine describes it. */
export interface TensorDescription {
  readonly shape: TensorNumbers;
  /** Null or left out: dense and row-major, as DLPack means it. */
  readonly strides?: TensorNumbers | null;
  /** DLPack and PyTorch count elements (the default), NumPy bytes. */
  readonly strideUnit?: "elements" | "bytes";
  /** The meaning of each axis, in the tensor's own sequence. */
  readonly axes: readonly TensorAxis[];
  readonly dtype: TensorDType;
  /** Default `one`. `per-layer`: one such tensor for each layer; `per-layer-and-outer`: for each layer's K and V. */
  readonly regions?: RegionScheme;
  /** Tensors with a layer each; needed, and only allowed, when the tensor has no axis `layer`. Default 1. */
  readonly numLayers?: number;
  /** How many of keys and values stand in `content`, or have a tensor of their own. Default 2 there. */
  readonly outerDim?: 1 | 2;
}

/** What `register` takes: a config and the strides, in bytes. */
export interface TensorLayout {
  readonly config: LayoutConfig;
  readonly arrangement: StridedArrangement;
}

/**
 * Turns a tensor's shape and strides into a layout's config and strided arrangement.
 *
 * `block` and one of `element`, `inner` or `content` must be among the axes; others that are left out have size 1.
 * Windows, alignment and memory are for the caller to add.
 *
 * @returns A config and strides that have been checked against each other.
 * @throws KvferryError `INVALID_CONFIG` that names the axis and its index: missing, doubled or unknown axes, sizes
 *   below 1, an `outer` above 2, values that are not contiguous, strides that are negative, missing, not whole bytes
 *   or make rows share bytes.
 */
export function layoutFromTensor(tensor: TensorDescription): TensorLayout {
  const { bits, dtype } = resolveDType(tensor.dtype);
  const axes = readAxes(tensor, bits);
  const find = (name: TensorAxis): Axis | undefined => axes.find((axis) => axis.name === name);
  const block = find("block");
  if (block === undefined) throw wrongTensor("block", -1, "the tensor has no axis block", tensor.axes);
  const values = valuesAxis(axes, tensor);
  const head = find("head");
  if (head !== undefined && values.name === "inner")
    throw wrongTensor(
      "head",
      head.index,
      "inner holds the heads already, so there can be no axis head",
      head.size,
    );
  const regions = tensor.regions ?? "one";
  const numLayers = layersOf(tensor, find("layer"), regions);
  const outer = outerOf(tensor, find("outer"), values, regions, bits);
  const headDim = values.name === "content" ? values.size / outer.size : values.size;
  const page = find("page");

  const config: LayoutConfig = {
    numBlocks: block.size,
    numLayers,
    outerDim: outer.size,
    pageSize: page?.size ?? 1,
    ...(head === undefined ? { innerDim: headDim } : { numHeads: head.size, headDim }),
    ...(dtype === null ? { dtypeBits: bits } : { dtype }),
  };
  const layer = find("layer");
  const arrangement: StridedArrangement = {
    strides: {
      block: block.stride,
      ...(layer === undefined ? {} : { layer: layer.stride }),
      ...(outer.stride === null ? {} : { outer: outer.stride }),
      page: page?.stride ?? 0,
      ...(head === undefined ? {} : { head: head.stride }),
    },
    regions,
  };
  resolveArrangement(resolveConfig(config, TENSOR_OPERATION), arrangement, undefined, TENSOR_OPERATION);
  return { config, arrangement };
}

const AXES: ReadonlySet<string> = new Set<TensorAxis>([
  "block",
  "layer",
  "outer",
  "page",
  "head",
  "element",
  "inner",
  "content",
]);

interface Axis {
  readonly name: TensorAxis;
  readonly index: number;
  readonly size: number;
  /** Bytes. */
  readonly stride: number;
  /** Elements when counted so, else bytes: what the caller gave. */
  readonly given: number;
}

function readAxes(tensor: TensorDescription, bits: number): readonly Axis[] {
  const shape = readNumbers(tensor.shape, "shape");
  const names = tensor.axes;
  if (!Array.isArray(names)) throw wrongTensor("axes", -1, "axes must list the meaning of each axis", names);
  if (shape.length !== names.length)
    throw wrongTensor(
      names[shape.length] ?? "axes",
      Math.min(shape.length, names.length),
      `the shape has ${shape.length} axes, ${names.length} are named`,
      names,
    );
  for (const [index, name] of names.entries()) {
    if (!AXES.has(name)) throw wrongTensor(String(name), index, `unknown axis ${JSON.stringify(name)}`, name);
    if (names.indexOf(name) !== index) throw wrongTensor(name, index, `axis ${name} stands twice`, names);
    const size = shape[index];
    if (!Number.isSafeInteger(size) || (size ?? 0) < 1)
      throw wrongTensor(name, index, `axis ${name} must have a size of at least 1, found ${size}`, size);
  }
  const inBytes = tensor.strideUnit === "bytes";
  const absent = tensor.strides === undefined || tensor.strides === null;
  const given = absent ? denseStrides(shape) : readNumbers(tensor.strides ?? [], "strides");
  if (given.length !== shape.length)
    throw wrongTensor(
      names[given.length] ?? "strides",
      Math.min(given.length, shape.length),
      `the shape has ${shape.length} axes, the strides ${given.length}`,
      given,
    );
  return names.map((name: TensorAxis, index: number) => {
    const size = shape[index] ?? 1;
    const count = given[index] ?? Number.NaN;
    if (!Number.isSafeInteger(count) || count < (size > 1 ? 1 : 0))
      throw wrongTensor(
        name,
        index,
        `axis ${name} of size ${size} must have a positive stride, found ${count}`,
        count,
      );
    const isValues = name === "element" || name === "inner" || name === "content";
    const stride = inBytes && !absent ? count : (count * bits) / 8;
    // The stride of the values themselves may be half a byte; that they are contiguous is checked on its own.
    if (!isValues && size > 1 && !Number.isSafeInteger(stride))
      throw wrongTensor(
        name,
        index,
        `axis ${name} has a stride of ${stride} bytes, which is not a whole number`,
        count,
      );
    return { name, index, size, stride: Number.isSafeInteger(stride) ? stride : 0, given: count };
  });
}

function valuesAxis(axes: readonly Axis[], tensor: TensorDescription): Axis {
  const found = axes.filter(({ name }) => name === "element" || name === "inner" || name === "content");
  const [values, second] = found;
  if (values === undefined)
    throw wrongTensor("element", -1, "the tensor has no axis element, inner or content", tensor.axes);
  if (second !== undefined)
    throw wrongTensor(
      second.name,
      second.index,
      `${second.name} stands beside ${values.name}: only one can be`,
      tensor.axes,
    );
  const { bits } = resolveDType(tensor.dtype);
  const bytes = tensor.strideUnit === "bytes" && tensor.strides !== undefined && tensor.strides !== null;
  const dense = bytes ? bits / 8 : 1;
  if (values.size > 1 && values.given !== dense)
    throw wrongTensor(
      values.name,
      values.index,
      `axis ${values.name} must be contiguous: a stride of ${dense} ${bytes ? "bytes" : "elements"}, found ${values.given}`,
      values.given,
    );
  return values;
}

function layersOf(tensor: TensorDescription, layer: Axis | undefined, regions: RegionScheme): number {
  if (layer === undefined)
    return tensor.numLayers === undefined
      ? 1
      : checkedInteger(tensor.numLayers, "numLayers", 1, regions === "one" ? 1 : 65_536, TENSOR_OPERATION);
  if (regions !== "one")
    throw wrongTensor(
      "layer",
      layer.index,
      `each layer has a tensor of its own (${regions}), yet there is an axis layer`,
      layer.size,
    );
  if (tensor.numLayers !== undefined && tensor.numLayers !== layer.size)
    throw wrongTensor(
      "layer",
      layer.index,
      `axis layer has size ${layer.size}, numLayers is ${tensor.numLayers}`,
      layer.size,
    );
  return layer.size;
}

function outerOf(
  tensor: TensorDescription,
  outer: Axis | undefined,
  values: Axis,
  regions: RegionScheme,
  bits: number,
): { readonly size: 1 | 2; readonly stride: number | null } {
  const apart = regions === "per-layer-and-outer";
  const fused = values.name === "content";
  if (outer !== undefined) {
    if (apart || fused)
      throw wrongTensor(
        "outer",
        outer.index,
        `keys and values ${fused ? "stand in content" : "have tensors of their own"}, yet there is an axis outer`,
        outer.size,
      );
    if (outer.size !== 1 && outer.size !== 2)
      throw wrongTensor(
        "outer",
        outer.index,
        `axis outer must have size 1 or 2, found ${outer.size}`,
        outer.size,
      );
    if (tensor.outerDim !== undefined && tensor.outerDim !== outer.size)
      throw wrongTensor(
        "outer",
        outer.index,
        `axis outer has size ${outer.size}, outerDim is ${tensor.outerDim}`,
        outer.size,
      );
    return { size: outer.size, stride: outer.stride };
  }
  const size = tensor.outerDim ?? (apart || fused ? 2 : 1);
  if (size !== 1 && size !== 2) throw wrongTensor("outer", -1, "outerDim must be 1 or 2", size);
  if (size === 2 && !apart && !fused)
    throw wrongTensor("outer", -1, "outerDim is 2, yet the tensor has no axis outer or content", size);
  if (!fused) return { size, stride: null };
  const bytes = (values.size / size) * (bits / 8);
  if (values.size % size !== 0 || !Number.isSafeInteger(bytes))
    throw wrongTensor(
      "content",
      values.index,
      `axis content of ${values.size} elements cannot be split in ${size}`,
      values.size,
    );
  return { size, stride: bytes };
}

function denseStrides(shape: readonly number[]): readonly number[] {
  const strides: number[] = [];
  let elements = 1;
  for (const size of shape.toReversed()) {
    strides.push(elements);
    elements *= size;
  }
  return strides.reverse();
}

function readNumbers(given: TensorNumbers, field: string): readonly number[] {
  if (typeof given !== "string") {
    if (!Array.isArray(given)) throw wrongTensor(field, -1, `${field} must be a list of numbers`, given);
    return given;
  }
  const inside = /^\s*(?:torch\.Size\()?[([]?\s*([-\d\s,]*?)\s*,?\s*[)\]]*\s*$/.exec(given)?.[1];
  const numbers = inside?.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  if (numbers === undefined || numbers.some(Number.isNaN))
    throw wrongTensor(field, -1, `${field} cannot be read: ${JSON.stringify(given)}`, given);
  return numbers;
}
