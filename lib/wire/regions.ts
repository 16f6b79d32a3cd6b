import { findSharedBytes } from "../core/coverage.ts";
import type { PlacedComponent } from "../core/coverage.ts";
import { OVERLAP_BUDGET, regionSet, stridedSetOverlapsItself, stridedSetsOverlap } from "../core/overlap.ts";
import type { StridedSet } from "../core/overlap.ts";
import type { PackageComponent, PackageFormat } from "../core/package.ts";
import { malformed } from "./bounded.ts";

// Pairs of interleaved regions without a common period that are looked at in one package.
const MAX_PAIRS = 1_024;

// What sorting may cost: regions and a bit more, times the bits of their number; and so much more for each byte beyond
// a mebibyte.
const FREE_SORTING = 2 ** 14;
const SORTING_A_CALL = 16;
const SORTING_A_BYTE = 0.75;
const MEBIBYTE = 2 ** 20;

// Components of one layout that are looked at when they interleave without a common period.
const MAX_INTERLEAVED = 64;

// What a check costs beside its search steps, in steps.
const STEPS_A_CALL = 1_250;

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
    sorting: FREE_SORTING + Math.floor(Math.max(0, bytes - MEBIBYTE) * SORTING_A_BYTE),
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
  // True while each used range ends where or before the next begins, as regions mostly do.
  let rising = true;
  let end = 0;
  for (let part = 0; part < components.length; part++) {
    const component = components[part];
    if (component === undefined) continue;
    const { regionAddresses, regionSizes, view } = component;
    const { regionBytes } = view;
    const count = regionAddresses.length;
    for (let index = 0; index < count; index++) {
      const address = regionAddresses[index] ?? Number.NaN;
      const size = regionSizes[index] ?? Number.NaN;
      // Without calls: this runs before it is compiled. Not a number fails as well.
      if (!(
        address >= 0 &&
        size >= regionBytes &&
        address + size <= Number.MAX_SAFE_INTEGER &&
        address % 1 === 0 &&
        size % 1 === 0
      ))
        throw badRange(index, address, size, regionBytes, format, offset);
      if (address < end) rising = false;
      end = address + regionBytes;
    }
    total += count;
  }
  if (total < 2 || rising) return;
  const placed = components.filter((component) => component.regionAddresses.length > 0);
  const bases = new Float64Array(total);
  let at = 0;
  for (const component of placed) {
    bases.set(component.regionAddresses, at);
    at += component.regionAddresses.length;
  }
  if (sameInterleaving(state, placed, bases)) return;
  paySorting(state, total, format, offset);
  if (!liesApart(placed, total)) {
    paySorting(state, total, format, offset);
    const reason = takesTurns(placed, total) ? null : sharedBytes(placed, total, state);
    if (reason !== null)
      throw malformed(format, offset, `regions of one layout overlap: ${reason}`, { regions: total });
  }
  const first = bases[0] ?? 0;
  state.components = placed;
  for (let index = 0; index < total; index++) bases[index] = (bases[index] ?? 0) - first;
  state.relative = bases;
}

/**
 * The length from which on a package with these layouts is read although regions of theirs are out of order; 0 where any
 * is long enough. Layouts that no reader takes, whose regions overlap, need no length.
 */
export function leastBytesToSort(
  layouts: readonly { readonly components: readonly PackageComponent[] }[],
): number {
  const state = { ...newOverlapState(0), sorting: Number.MAX_SAFE_INTEGER };
  try {
    for (const { components } of layouts) checkRegions(components, state, "kvferry", 0);
  } catch {
    return 0;
  }
  const beyond = Number.MAX_SAFE_INTEGER - state.sorting - FREE_SORTING;
  return beyond > 0 ? MEBIBYTE + Math.ceil(beyond / SORTING_A_BYTE) : 0;
}

function paySorting(state: OverlapState, total: number, format: PackageFormat, offset: number): void {
  state.sorting -= (total + SORTING_A_CALL) * Math.ceil(Math.log2(total));
  if (state.sorting < 0)
    throw malformed(format, offset, "too many regions out of order to prove that they share no byte", {
      regions: total,
    });
}

/** Why bytes are, or may be, covered twice; null when they are not. */
function sharedBytes(placed: readonly PackageComponent[], total: number, state: OverlapState): string | null {
  if (placed.length > MAX_INTERLEAVED)
    return "too many components interleave to prove that they share no byte";
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
    // Within one region rows were looked at with the shape.
    if (!left.alias && left.regionAddresses.length > 1) {
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

function badRange(
  index: number,
  address: number,
  size: number,
  needed: number,
  format: PackageFormat,
  offset: number,
): Error {
  // Not a number, fractions, negatives and sums past 2^53 all fail one of these.
  if (!(Number.isSafeInteger(address) && Number.isSafeInteger(size) && address >= 0 && size >= 0))
    return malformed(format, offset, `region ${index} at ${address} of ${size} bytes is no range`, {
      region: index,
    });
  if (!Number.isSafeInteger(address + size))
    return malformed(format, offset, `region ${index} at ${address} of ${size} bytes passes 2^53`, {
      region: index,
    });
  return malformed(format, offset, `region ${index} has ${size} bytes, its layout needs ${needed}`, {
    region: index,
    size,
    needed,
  });
}

/**
 * True when no two used ranges meet, whatever their memory. Ranges are apart exactly when, both sorted, each end lies
 * at or before the next start; that needs no pairs and no objects.
 */
function liesApart(components: readonly PackageComponent[], total: number): boolean {
  const starts = new Float64Array(total);
  let at = 0;
  for (const { regionAddresses } of components) {
    starts.set(regionAddresses, at);
    at += regionAddresses.length;
  }
  starts.sort();
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

/**
 * True when all regions repeat with one period and no two of them meet within it: blocks of a tensor that holds layers
 * or components side by side. Whatever else may be apart is left to the exact search.
 */
function takesTurns(components: readonly PackageComponent[], total: number): boolean {
  const period = components[0]?.view.strideBlock ?? 0;
  // Twice a period must be exact.
  if (period <= 0 || period > 2 ** 52) return false;
  const turns = new Float64Array(total);
  const ends = new Float64Array(total);
  let at = 0;
  for (const { regionAddresses, view } of components) {
    // What a block takes, from its first byte to its last.
    const block = view.regionBytes - (view.blocks - 1) * view.strideBlock;
    if (view.strideBlock !== period || block <= 0 || block > period) return false;
    for (let index = 0; index < regionAddresses.length; index++) {
      const turn = (regionAddresses[index] ?? 0) % period;
      turns[at] = turn;
      ends[at++] = turn + block;
    }
  }
  turns.sort();
  ends.sort();
  for (let index = 1; index < total; index++) if ((turns[index] ?? 0) < (ends[index - 1] ?? 0)) return false;
  // The last one may reach into the next period, up to where the first begins.
  return (ends[total - 1] ?? 0) <= (turns[0] ?? 0) + period;
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
