import { KvferryError } from "./errors.ts";
import { U64_MAX } from "./integers.ts";

declare const handleBrand: unique symbol;

/**
 * A layout's 128-bit name: worker id in bits 0-63, layout id in bits 64-79, generation in bits 80-127.
 * Dynamo's own handles are the same number with a generation of zero.
 */
export type LayoutHandle = bigint & { readonly [handleBrand]: true };

/** The largest generation that fits above the layout id: 48 bits. */
export const MAX_GENERATION: number = 2 ** 48 - 1;

/** The largest layout id that a registry gives out. */
export const MAX_LAYOUT_ID = 65_534;

/**
 * Packs a handle.
 *
 * @param workerId - Unsigned 64 bits.
 * @param layoutId - 0 to 65,535.
 * @param generation - 0 to 2^48 - 1; 0 in Dynamo's formats.
 * @throws KvferryError `INVALID_CONFIG` when a part does not fit.
 */
export function makeHandle(workerId: bigint, layoutId: number, generation = 0): LayoutHandle {
  if (workerId < 0n || workerId > U64_MAX) throw outside("workerId", workerId);
  if (!Number.isInteger(layoutId) || layoutId < 0 || layoutId > 0xffff) throw outside("layoutId", layoutId);
  if (!Number.isInteger(generation) || generation < 0 || generation > MAX_GENERATION)
    throw outside("generation", generation);
  // One BigInt conversion for both small parts: 16 + 37 bits are exact in a number, the rest only when it is needed.
  const upper =
    generation < 2 ** 37
      ? BigInt(layoutId + generation * 65_536)
      : BigInt(layoutId) | (BigInt(generation) << 16n);
  return (workerId | (upper << 64n)) as LayoutHandle;
}

/** The worker id of a handle, unsigned 64 bits. */
export function handleWorkerId(handle: LayoutHandle): bigint {
  return handle & U64_MAX;
}

/** The layout id of a handle, 0 to 65,535. */
export function handleLayoutId(handle: LayoutHandle): number {
  return Number((handle >> 64n) & 0xffffn);
}

/** The generation of a handle, 0 to 2^48 - 1. */
export function handleGeneration(handle: LayoutHandle): number {
  return Number(handle >> 80n);
}

/** A handle in words: `LayoutHandle(worker=1, layout=0)`, with the generation when it has one. */
export function formatHandle(handle: LayoutHandle): string {
  const generation = handleGeneration(handle);
  const tail = generation === 0 ? "" : `, generation=${generation}`;
  return `LayoutHandle(worker=${handleWorkerId(handle)}, layout=${handleLayoutId(handle)}${tail})`;
}

function outside(field: string, value: bigint | number): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "makeHandle",
    `${field} does not fit a layout handle: ${value}`,
    "Worker ids have 64 bits, layout ids 16 and generations 48.",
    { field, found: value.toString() },
  );
}
