import type { ComponentPair } from "./intersect.ts";
import { type Outside, outsideOf } from "./nest.ts";

/** Layers that complete together. */
export interface PreparedStep {
  readonly start: number;
  /** One past the last layer. */
  readonly end: number;
  readonly parts: readonly {
    readonly component: number;
    readonly layers: number;
    readonly outside: Outside;
  }[];
}

/** All layers that are moved, ascending. */
export function unionOfLayers(pairs: readonly ComponentPair[]): readonly number[] {
  return [...new Set(pairs.flatMap((pair) => pair.layers))].sort((left, right) => left - right);
}

/**
 * Cuts the layers of some components into steps of `every` layers of their union.
 *
 * @param members - Indices into `pairs`.
 */
export function stepsOf(
  pairs: readonly ComponentPair[],
  members: readonly number[],
  every: number,
): readonly PreparedStep[] {
  const own = members.map((index) => pairs[index] as ComponentPair); // indices into pairs
  const layers = unionOfLayers(own);
  const steps: PreparedStep[] = [];
  const done = own.map(() => 0);
  for (let first = 0; first < layers.length; first += every) {
    const end = (layers[Math.min(first + every, layers.length) - 1] as number) + 1; // in bounds
    const parts: { component: number; layers: number; outside: Outside }[] = [];
    own.forEach((pair, index) => {
      const from = done[index] as number; // in bounds
      let to = from;
      while (to < pair.layers.length && (pair.layers[to] as number) < end) to++;
      done[index] = to;
      if (to > from)
        parts.push({
          component: members[index] as number,
          layers: to - from,
          outside: outsideOf(pair, from, to),
        });
    });
    steps.push({ start: layers[first] as number, end, parts });
  }
  return steps;
}
