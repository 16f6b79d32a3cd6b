import type { Hop } from "../core/plan.ts";

/** When a layer is complete: once `programs` programs of hop `hop` are, and every hop before it. */
export interface LayerNeed {
  readonly layer: number;
  readonly hop: number;
  readonly programs: number;
}

/**
 * Works out when each layer of a layer-wise plan is complete.
 *
 * A layer's bytes may lie in several programs (components) and hops; the last of them counts.
 *
 * @param layers - In the order in which the plan completes them.
 */
export function layerNeeds(layers: readonly number[], hops: readonly Hop[]): LayerNeed[] {
  const last = new Map<number, { hop: number; programs: number }>();
  hops.forEach((hop, hopIndex) => {
    hop.programs.forEach((program, index) => {
      const covered = program.layers;
      if (covered === null) return;
      for (let layer = covered.start; layer < covered.end; layer++)
        last.set(layer, { hop: hopIndex, programs: index + 1 });
    });
  });
  return layers.map((layer) => ({ layer, ...(last.get(layer) ?? { hop: -1, programs: 0 }) }));
}
