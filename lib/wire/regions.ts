import { findSharedBytes } from "../core/coverage.ts";
import type { PlacedComponent } from "../core/coverage.ts";
import { OVERLAP_BUDGET, regionSet, stridedSetOverlapsItself, stridedSetsOverlap } from "../core/overlap.ts";
import type { StridedSet } from "../core/overlap.ts";
import type { PackageComponent, PackageFormat } from "../core/package.ts";
import { malformed } from "./bounded.ts";

// Pairs of unevenly interleaved regions that are looked at in one package.
const MAX_PAIRS = 16_384;

// What a check costs beside its search steps, in steps.
const STEPS_A_CALL = 25;

/** What the overlap checks of one package have in common: budgets, and the interleaving that was proven last. */
export interface OverlapState {
  pairs: number;
  steps: number;
  components: readonly PackageComponent[];
  /** Bases of the layout that was proven last, relative to its first. */
  relative: Float64Array;
}

/** A state for one package. */
export function newOverlapState(): OverlapState {
  return { pairs: 0, steps: 2 * OVERLAP_BUDGET, components: [], relative: new Float64Array(0) };
}

/**
 * Checks the regions of one layout: as many as its views have, each large enough, none past 2^53, and no byte covered
 * twice unless both components say so.
 *
 * @param offset - Where the layout stands, for errors.
 * @throws KvferryError `METADATA_MALFORMED`.
 */
export function checkRegions(
  components: readonly PackageComponent[],
  state: OverlapState,
  format: PackageFormat,
  offset: number,
): void {
  let total = 0;
  for (let index = 0; index < components.length; index++) {
    const component = components[index];
    if (component !== undefined) total += checkRanges(component, format, offset);
  }
  if (total < 2) return;
  const placed = components.filter((component) => component.regionAddresses.length > 0);
  if (liesApart(placed, total)) return;
  const bases = new Float64Array(total);
  let at = 0;
  for (const component of placed) {
    bases.set(component.regionAddresses, at);
    at += component.regionAddresses.length;
  }
  if (sameInterleaving(state, placed, bases)) return;
  const reason = sharedBytes(placed, total, state);
  if (reason !== null)
    throw malformed(format, offset, `regions of one layout overlap: ${reason}`, { regions: total });
  const first = bases[0] ?? 0;
  state.components = placed;
  state.relative = bases.map((base) => base - first);
}

/** Why bytes are, or may be, covered twice; null when they are not. */
function sharedBytes(placed: readonly PackageComponent[], total: number, state: OverlapState): string | null {
  const even = placed.map(evenSet);
  if (even.every((set) => set !== null)) return sharedByEven(placed, even, state);
  state.pairs += (total * (total - 1)) / 2;
  if (state.pairs > MAX_PAIRS) return "too many regions interleave unevenly to prove that they share no byte";
  const shared = findSharedBytes(placed.map(placedOf));
  if (shared === null) return null;
  return `region ${shared.leftRegion} of ${shared.left} and region ${shared.rightRegion} of ${shared.right}: ${shared.reason}`;
}

/** Engines space the regions of a tensor evenly: then they are one more axis, and a component is one strided set. */
function sharedByEven(
  placed: readonly PackageComponent[],
  sets: readonly StridedSet[],
  state: OverlapState,
): string | null {
  for (const [index, set] of sets.entries()) {
    const left = placed[index];
    if (left === undefined) continue;
    if (!left.alias) {
      const verdict = stridedSetOverlapsItself(set, state.steps);
      state.steps -= verdict.steps + STEPS_A_CALL;
      if (verdict.overlaps) return `regions of ${left.name}: ${verdict.reason}`;
    }
    for (let other = index + 1; other < sets.length; other++) {
      const right = placed[other];
      const rightSet = sets[other];
      if (right === undefined || rightSet === undefined || (left.alias && right.alias)) continue;
      if (spaceOf(left) !== spaceOf(right)) continue;
      if (state.steps <= 0) return "too many components interleave to prove that they share no byte";
      const verdict = stridedSetsOverlap(set, rightSet, state.steps);
      state.steps -= verdict.steps + STEPS_A_CALL;
      if (verdict.overlaps) return `${left.name} and ${right.name}: ${verdict.reason}`;
    }
  }
  return null;
}

function evenSet(component: PackageComponent): StridedSet | null {
  const bases = component.regionAddresses;
  const first = bases[0] ?? 0;
  const step = bases.length > 1 ? (bases[1] ?? 0) - first : 0;
  for (let index = 2; index < bases.length; index++) if (bases[index] !== first + index * step) return null;
  const set = regionSet(component.view, step < 0 ? first + (bases.length - 1) * step : first);
  return { ...set, axes: [...set.axes, { size: bases.length, stride: Math.abs(step) }] };
}

function checkRanges(component: PackageComponent, format: PackageFormat, offset: number): number {
  const { regionAddresses, regionSizes, view } = component;
  const count = regionAddresses.length;
  for (let index = 0; index < count; index++) {
    const address = regionAddresses[index] ?? Number.NaN;
    const size = regionSizes[index] ?? Number.NaN;
    // Not a number, fractions, negatives and sums past 2^53 all fail one of these.
    if (!(Number.isSafeInteger(address) && Number.isSafeInteger(size) && address >= 0 && size >= 0))
      throw malformed(format, offset, `region ${index} at ${address} of ${size} bytes is no range`, {
        region: index,
      });
    if (!Number.isSafeInteger(address + size))
      throw malformed(format, offset, `region ${index} at ${address} of ${size} bytes passes 2^53`, {
        region: index,
      });
    if (size < view.regionBytes)
      throw malformed(
        format,
        offset,
        `region ${index} has ${size} bytes, its layout needs ${view.regionBytes}`,
        {
          region: index,
          size,
          needed: view.regionBytes,
        },
      );
  }
  return count;
}

/**
 * True when no two used ranges meet, whatever their memory. Ranges are apart exactly when, both sorted, each end lies
 * at or before the next start; that needs no pairs and no objects.
 */
function liesApart(components: readonly PackageComponent[], total: number): boolean {
  const starts = new Float64Array(total);
  const ends = new Float64Array(total);
  let at = 0;
  let rising = true;
  for (const { regionAddresses, view } of components) {
    for (const address of regionAddresses) {
      if (at > 0 && address < (ends[at - 1] ?? 0)) rising = false;
      starts[at] = address;
      ends[at++] = address + view.regionBytes;
    }
  }
  if (rising) return true;
  starts.sort();
  ends.sort();
  for (let index = 1; index < total; index++) if ((starts[index] ?? 0) < (ends[index - 1] ?? 0)) return false;
  return true;
}

function sameInterleaving(
  state: OverlapState,
  components: readonly PackageComponent[],
  bases: Float64Array,
): boolean {
  if (state.relative.length !== bases.length || state.components.length !== components.length) return false;
  for (const [index, component] of components.entries()) {
    const proven = state.components[index];
    if (proven === undefined || proven.view !== component.view || proven.alias !== component.alias)
      return false;
    if (spaceOf(proven) !== spaceOf(component)) return false;
  }
  const first = bases[0] ?? 0;
  for (let index = 0; index < bases.length; index++)
    if ((bases[index] ?? 0) - first !== state.relative[index]) return false;
  return true;
}

function placedOf(component: PackageComponent): PlacedComponent {
  const { name, view, alias, regionAddresses } = component;
  return { name, view, alias, spaces: [spaceOf(component)], bases: regionAddresses };
}

function spaceOf(component: PackageComponent): string {
  return component.storage.kind === "device" ? `device ${component.storage.device}` : "host";
}
