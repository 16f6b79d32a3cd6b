// What callers name of a layout to read, write or fill: blocks, layers and patterns, checked.
import { KvferryError } from "../core/errors.ts";
import type { ComponentRecord } from "../core/layout.ts";
import { KVF_FILL_CONSTANT, KVF_FILL_RANDOM, KVF_FILL_SEQUENTIAL } from "../native/symbols.ts";

/** A part of a block. */
export interface BlockRange {
  /** The layout's own layers, end excluded; default all. */
  readonly layers?: { readonly start: number; readonly end: number };
}

/** What `fill` writes: a constant byte, Dynamo's sequential pattern, or random bytes that a seed determines. */
export type FillPattern =
  | number
  | "sequential"
  | { readonly constant: number }
  | { readonly sequential: true }
  | { readonly random: number };

export function layerRange(
  component: ComponentRecord,
  range: BlockRange,
  operation: string,
): { start: number; end: number } {
  const { numLayers } = component.shape.config;
  const { start, end } = range.layers ?? { start: 0, end: numLayers };
  if (!Number.isInteger(start) || !Number.isInteger(end) || start < 0 || end > numLayers || start >= end) {
    throw new KvferryError(
      "LAYER_RANGE",
      operation,
      `layers ${start} to ${end} are not within ${numLayers}`,
      "Give start < end, end excluded.",
      { start, end, numLayers },
    );
  }
  return { start, end };
}

export function blockId(component: ComponentRecord, block: number, operation: string): Uint32Array {
  return blockIds(component, [block], operation);
}

export function blockIds(
  component: ComponentRecord,
  blocks: readonly number[] | Uint32Array | undefined,
  operation: string,
): Uint32Array {
  const { numBlocks } = component.shape.config;
  if (blocks === undefined) return firstIds(numBlocks);
  const bad = Array.prototype.find.call(
    blocks,
    (block: unknown) =>
      !(typeof block === "number" && Number.isInteger(block) && block >= 0 && block < numBlocks),
  ) as unknown;
  if (bad !== undefined) {
    throw new KvferryError(
      "BLOCK_OUT_OF_RANGE",
      operation,
      `block ${String(bad)} is not one of ${numBlocks}`,
      "Block ids are whole numbers from 0.",
      {
        block: bad,
        numBlocks,
      },
    );
  }
  return Uint32Array.from(blocks);
}

export function resolvePattern(given: FillPattern): { readonly kind: number; readonly seed: number } {
  // What is no pattern at all is refused like a wrong one.
  const pattern: FillPattern = given ?? { constant: Number.NaN };
  if (pattern === "sequential" || (typeof pattern === "object" && "sequential" in pattern))
    return { kind: KVF_FILL_SEQUENTIAL, seed: 0 };
  if (
    typeof pattern === "object" &&
    "random" in pattern &&
    Number.isSafeInteger(pattern.random) &&
    pattern.random >= 0
  ) {
    return { kind: KVF_FILL_RANDOM, seed: pattern.random };
  }
  const constant =
    typeof pattern === "number"
      ? pattern
      : typeof pattern === "object" && "constant" in pattern
        ? pattern.constant
        : Number.NaN;
  if (Number.isInteger(constant) && constant >= 0 && constant <= 255)
    return { kind: KVF_FILL_CONSTANT, seed: constant };
  throw new KvferryError(
    "INVALID_CONFIG",
    "fill",
    'the pattern is not a byte, "sequential" or { random: seed }',
    'Give a byte from 0 to 255, "sequential", or { random: seed }.',
    {
      pattern: given,
    },
  );
}
export function firstIds(count: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_unused, index) => index);
}
