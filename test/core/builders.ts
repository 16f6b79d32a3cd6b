import type {
  ComponentRecord,
  LayoutConfig,
  LayoutSpec,
  NewLayout,
  RegistrySnapshot,
} from "../../lib/core/index.ts";
import {
  emptyRegistry,
  isKvferryError,
  ownAddresses,
  resolveLayout,
  storageOf,
} from "../../lib/core/index.ts";

/** A small config: 3 blocks of 2 layers, K and V, 4 tokens, 2 heads of 8 two-byte elements. */
export const SMALL: LayoutConfig = {
  numBlocks: 3,
  numLayers: 2,
  outerDim: 2,
  pageSize: 4,
  numHeads: 2,
  headDim: 8,
};

/** Runs something that must throw a KvferryError of a code, and gives the error back. */
export function refusalOf(
  word: string,
  run: () => unknown,
): { message: string; details: Readonly<Record<string, unknown>>; remedy: string; operation: string } {
  try {
    run();
  } catch (error) {
    if (!isKvferryError(error)) throw error;
    if (error.code !== `ERR_KVF_${word}`)
      throw new Error(`expected ${word}, found ${error.code}: ${error.message}`, { cause: error });
    if (error.remedy === "" || error.operation === "")
      throw new Error("an error without remedy or operation", { cause: error });
    return error;
  }
  throw new Error(`expected a refusal with ${word}`);
}

/** A layout as the runtime would hand it to the registry, its regions laid out from an address on. */
export function newLayout(spec: LayoutSpec, address = 0x10000): NewLayout {
  const resolved = resolveLayout(spec);
  let next = address;
  const components = resolved.components.map(({ shape, memory, regionBytes }): ComponentRecord => {
    const bases = Float64Array.from({ length: shape.view.regionCount }, () => {
      const base = next;
      next += Math.ceil(regionBytes / 4096) * 4096;
      return base;
    });
    return {
      shape,
      storage: storageOf(memory, 0),
      regionAddresses: bases,
      regionSizes: new Float64Array(shape.view.regionCount).fill(regionBytes),
      attachment: ownAddresses(bases),
      nixlDevice: 0,
    };
  });
  return { ...resolved, components };
}

/** A registry of a worker that started at an incarnation. */
export function worker(workerId: bigint, incarnation = 7): RegistrySnapshot {
  return emptyRegistry({
    workerId,
    agentName: `worker-${workerId}`,
    wireName: `worker-${workerId}~${incarnation}`,
    incarnation,
  });
}
