import { findSharedBytes } from "../core/coverage.ts";
import type { PlacedComponent } from "../core/coverage.ts";
import { OVERLAP_BUDGET, regionSet, stridedSetOverlapsItself, stridedSetsOverlap } from "../core/overlap.ts";
import type { StridedSet } from "../core/overlap.ts";
import type { PackageComponent, PackageFormat } from "../core/package.ts";
import { malformed } from "./bounded.ts";

// Pairs of unevenly interleaved regions that are looked at in one package.
const MAX_PAIRS = 8_192;

// What sorting may cost: regions times the bits of their number. A region takes 12 bytes where addresses are real.
const FREE_SORTING = 2 ** 19;
const SORTING_A_BYTE = 0.75;

// What a check costs beside its search steps, in steps.
const STEPS_A_CALL = 25;

/** What the overlap checks of one package have in common: budgets, and the interleaving that was proven last. */
export interface OverlapState {
  pairs: number;
  steps: number;
  sorting: number;
  components: readonly PackageComponent[];
  /** Bases of the layout that was proven last, relative to its first. */
  relative: Float64Array;
}

/** A state for one package of so many bytes. */
export function newOverlapState(bytes: number): OverlapState {
  return {
    pairs: 0,
    steps: OVERLAP_BUDGET,
    sorting: FREE_SORTING + Math.floor(bytes * SORTING_A_BYTE),
    components: [],
    relative: new Float64Array(0),
  };
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
  if (total < 2 || risesApart(components)) return;
  const placed = components.filter((component) => component.regionAddresses.length > 0);
  state.sorting -= total * Math.ceil(Math.log2(total));
  if (state.sorting < 0)
    throw malformed(format, offset, "too many regions out of order to prove that they share no byte", {
      regions: total,
    });
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

// A handful is sorted in place: thousands of layouts may have one each.
const FEW = 24;
const few = new Float64Array(FEW);

function sortFew(count: number): void {
  for (let next = 1; next < count; next++) {
    const value = few[next] ?? 0;
    let at = next;
    for (; at > 0 && (few[at - 1] ?? 0) > value; at--) few[at] = few[at - 1] ?? 0;
    few[at] = value;
  }
}

/** True when each used range ends where or before the next begins, as regions mostly do. */
function risesApart(components: readonly PackageComponent[]): boolean {
  let end = 0;
  for (let part = 0; part < components.length; part++) {
    const component = components[part];
    if (component === undefined) continue;
    const { regionAddresses: bases, view } = component;
    for (let index = 0; index < bases.length; index++) {
      const base = bases[index] ?? 0;
      if (base < end) return false;
      end = base + view.regionBytes;
    }
  }
  return true;
}

/**
 * True when no two used ranges meet, whatever their memory. Ranges are apart exactly when, both sorted, each end lies
 * at or before the next start; that needs no pairs and no objects.
 */
function liesApart(components: readonly PackageComponent[], total: number): boolean {
  const starts = total <= FEW ? few : new Float64Array(total);
  let at = 0;
  for (const { regionAddresses } of components) {
    starts.set(regionAddresses, at);
    at += regionAddresses.length;
  }
  if (total <= FEW) sortFew(total);
  else starts.sort();
  const bytes = components[0]?.view.regionBytes ?? 0;
  if (components.every(({ view }) => view.regionBytes === bytes)) {
    for (let index = 1; index < total; index++)
      if ((starts[index] ?? 0) < (starts[index - 1] ?? 0) + bytes) return false;
    return true;
  }
  const ends = new Float64Array(total);
  at = 0;
  for (const { regionAddresses, view } of components)
    for (const address of regionAddresses) ends[at++] = address + view.regionBytes;
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
