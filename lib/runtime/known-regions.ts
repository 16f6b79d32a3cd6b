import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage } from "../core/package.ts";

interface KnownRegion {
  readonly space: string;
  readonly start: number;
  readonly end: number;
  readonly owner: LayoutHandle;
}

/**
 * The regions of a peer that NIXL was given since it last learnt of the peer from scratch.
 *
 * NIXL adds what newer metadata name and drops nothing. Where memory was registered anew, or registered around or
 * inside what it knows, it would go on with keys that are no more, or find the wrong registration.
 */
export type KnownRegions = readonly KnownRegion[];

/** The regions that a package names, in the order of their addresses. */
export function regionsOf(metadata: MetadataPackage): KnownRegions {
  const regions: KnownRegion[] = [];
  for (const { handle, components } of metadata.layouts)
    for (const component of components) {
      const space = `${component.storage.kind === "device" ? "device" : "host"}/${component.nixlDevice}`;
      // Regions of one allocation lie an alignment apart: between them there is nothing of anybody else's.
      const gap = Math.max(LEAST_GAP, component.config.alignment);
      let open: { start: number; end: number } | undefined;
      const addresses = Float64Array.from(component.regionAddresses.keys()).sort(
        (a, b) => (component.regionAddresses[a] ?? 0) - (component.regionAddresses[b] ?? 0),
      );
      for (const index of addresses) {
        const start = component.regionAddresses[index] ?? 0;
        const end = start + (component.regionSizes[index] ?? 0);
        if (open !== undefined && start <= open.end + gap) open.end = Math.max(open.end, end);
        else {
          if (open !== undefined) regions.push({ space, ...open, owner: handle });
          open = { start, end };
        }
      }
      if (open !== undefined) regions.push({ space, ...open, owner: handle });
    }
  return regions.sort((a, b) => a.start - b.start);
}

/**
 * What NIXL knows after it was given `wanted` as well, or null when that contradicts what it knows: a layout that is
 * new lies in memory that another one's registration covers, or covered.
 */
export function mergedRegions(known: KnownRegions, wanted: KnownRegions): KnownRegions | null {
  const owners = new Set(known.map((region) => region.owner));
  const fresh = wanted.filter((region) => !owners.has(region.owner));
  const kept = new Set(wanted.map((region) => region.owner));
  const merged: KnownRegion[] = [];
  // Both lists are in the order of their starts; the furthest end so far tells of every overlap.
  const furthest = new Map<string, { known: number; fresh: number }>();
  let at = 0;
  for (const region of known) {
    for (; at < fresh.length && (fresh[at] as KnownRegion).start < region.start; at++)
      if (!pass(furthest, fresh[at] as KnownRegion, "fresh", merged)) return null; // in bounds
    // The same memory under a layout that is still there: both share one registration.
    const shared = kept.has(region.owner) ? fresh[at] : undefined;
    if (shared?.start === region.start && shared.end === region.end && shared.space === region.space) at++;
    if (!pass(furthest, region, "known", merged)) return null;
  }
  for (; at < fresh.length; at++) if (!pass(furthest, fresh[at] as KnownRegion, "fresh", merged)) return null; // in bounds
  return merged;
}

const LEAST_GAP = 512;

/** Appends a region unless it overlaps one of the other list. */
function pass(
  furthest: Map<string, { known: number; fresh: number }>,
  region: KnownRegion,
  from: "known" | "fresh",
  merged: KnownRegion[],
): boolean {
  const ends = furthest.get(region.space) ?? { known: 0, fresh: 0 };
  furthest.set(region.space, ends);
  if (region.start < ends[from === "known" ? "fresh" : "known"]) return false;
  ends[from] = Math.max(ends[from], region.end);
  merged.push(region);
  return true;
}
