import { OVERLAP_BUDGET, regionSet, stridedSetsOverlap } from "./overlap.ts";
import type { StridedView } from "./view.ts";

/** A component whose place is known: one base in one byte space for each of its regions. */
export interface PlacedComponent {
  readonly name: string;
  readonly view: StridedView;
  readonly alias: boolean;
  /** Names the byte space of each region: regions meet only in the same one. */
  readonly spaces: readonly string[];
  /** A base for each region in its space; an address, an offset in a file. */
  readonly bases: ArrayLike<number>;
}

/** Two regions that share bytes though not both of their components say `alias: true`. */
export interface SharedBytes {
  readonly left: string;
  readonly leftRegion: number;
  readonly right: string;
  readonly rightRegion: number;
  /** A sentence. */
  readonly reason: string;
}

/** Pairs of regions that are looked at before a placement counts as overlapping; 500 interleaved regions have fewer. */
export const MAX_REGION_PAIRS = 131_072;

/**
 * Finds two regions of a layout that share bytes without leave.
 *
 * Decided on exact strides: components that interleave in one allocation are apart although their bounding boxes
 * meet. Bytes may be covered twice only where both components say `alias: true`.
 *
 * @returns The first such pair, or null.
 */
export function findSharedBytes(components: readonly PlacedComponent[]): SharedBytes | null {
  const only = components[0];
  if (components.length === 1 && only !== undefined && only.view.regionCount === 1) return null;
  const placed = placeRegions(components);
  // The same two views at the same distance were decided before: regions of an engine's tensor are evenly spaced.
  const apart = new Set<string>();
  let pairs = 0;
  let budget = OVERLAP_BUDGET * 8;
  for (const [index, left] of placed.entries()) {
    for (let other = index + 1; other < placed.length; other++) {
      const right = placed[other];
      if (right === undefined || right.space !== left.space || right.base >= left.end) break;
      if (left.component.alias && right.component.alias) continue;
      if (++pairs > MAX_REGION_PAIRS)
        return sharedBy(left, right, `more than ${MAX_REGION_PAIRS} pairs of regions interleave`);
      const key = `${left.rank} ${right.rank} ${right.base - left.base}`;
      if (apart.has(key)) continue;
      const verdict = stridedSetsOverlap(
        regionSet(left.component.view, left.base),
        regionSet(right.component.view, right.base),
        Math.min(OVERLAP_BUDGET, budget),
      );
      budget -= verdict.steps;
      if (verdict.overlaps) return sharedBy(left, right, verdict.reason);
      apart.add(key);
    }
  }
  return null;
}

interface PlacedRegion {
  readonly component: PlacedComponent;
  readonly rank: number;
  readonly region: number;
  readonly space: string;
  readonly base: number;
  readonly end: number;
}

/** All regions by space and base. */
function placeRegions(components: readonly PlacedComponent[]): readonly PlacedRegion[] {
  const regions: PlacedRegion[] = [];
  for (const [rank, component] of components.entries()) {
    for (let region = 0; region < component.view.regionCount; region++) {
      const base = component.bases[region] ?? 0;
      const space = component.spaces[region % component.spaces.length] ?? "";
      regions.push({ component, rank, region, space, base, end: base + component.view.regionBytes });
    }
  }
  return regions.sort((a, b) => (a.space === b.space ? a.base - b.base : a.space < b.space ? -1 : 1));
}

function sharedBy(left: PlacedRegion, right: PlacedRegion, reason: string): SharedBytes {
  return {
    left: left.component.name,
    leftRegion: left.region,
    right: right.component.name,
    rightRegion: right.region,
    reason,
  };
}
