import { KvferryError } from "../core/errors.ts";
import { formatHandle } from "../core/handle.ts";
import type { MetadataPackage } from "../core/package.ts";
import { readNixlBlob, type NixlBlobRegion } from "../wire/nixl-blob.ts";
import { unpackBlobs } from "./nixl-blobs.ts";

const DRAM = 0;
const VRAM = 1;
/** NIXL indexes a table with the memory type that stands in a blob, unchecked: 0 to 4 have a meaning. */
const LARGEST_MEMORY = 4;

/**
 * Compares a package with the NIXL metadata that it carries, as far as those can be read: they must be of the agent
 * that the package names, and the layouts' regions must lie inside what they register.
 *
 * @throws KvferryError `METADATA_MALFORMED`, `AGENT_MISMATCH`.
 */
export function checkBlob(metadata: MetadataPackage, operation: string): void {
  const regions: NixlBlobRegion[] = [];
  for (const bytes of unpackBlobs(metadata.nixlMetadata)) {
    const blob = readNixlBlob(bytes);
    // Of another release, perhaps: then NIXL alone can tell.
    if (blob === null) return;
    if (blob.agent !== metadata.wireName) {
      throw new KvferryError(
        "AGENT_MISMATCH",
        operation,
        `the package is of agent ${metadata.wireName}, the NIXL metadata in it of ${blob.agent.slice(0, 256)}`,
        "Ask the exporter for a new package.",
        { agentName: metadata.agentName, found: blob.agent.slice(0, 256) },
      );
    }
    for (const region of blob.regions) {
      if (region.memory > LARGEST_MEMORY)
        throw malformed(operation, `its NIXL metadata have memory type ${region.memory}`, { ...region });
      if (!Number.isSafeInteger(region.address + region.bytes))
        throw malformed(operation, "a region of its NIXL metadata ends past 2^53", { ...region });
      regions.push(region);
    }
  }
  if (metadata.nixlMetadata.byteLength > 0) checkCovered(metadata, regions, operation);
}

/**
 * Whether the NIXL metadata of a package name the exporter's staging memory, through which it gathers and scatters:
 * with files and GPU memory they always do, else they name host memory that belongs to none of its layouts. False where
 * they cannot be read.
 */
export function namesStaging(metadata: MetadataPackage): boolean {
  if (metadata.format !== "kvferry") return false;
  for (const { components } of metadata.layouts)
    for (const { storage } of components)
      if (storage.kind === "disk" || storage.kind === "device") return true;
  if (metadata.nixlMetadata.byteLength === 0) return false;
  const starts = new Set<number>();
  for (const { components } of metadata.layouts)
    for (const { regionAddresses } of components) for (const address of regionAddresses) starts.add(address);
  const own = Float64Array.from(starts).sort();
  for (const bytes of unpackBlobs(metadata.nixlMetadata))
    for (const { memory, address, bytes: size } of readNixlBlob(bytes)?.regions ?? [])
      if (memory === DRAM && !own.some((start) => start >= address && start < address + size)) return true;
  return false;
}

function checkCovered(
  metadata: MetadataPackage,
  regions: readonly NixlBlobRegion[],
  operation: string,
): void {
  const spaces = new Map([DRAM, VRAM].map((memory) => [memory, spaceOf(regions, memory)]));
  for (const layout of metadata.layouts) {
    if (layout.stagedOnly) continue;
    for (const { name, storage, regionAddresses, regionSizes } of layout.components) {
      if (storage.kind === "disk") continue;
      const space = spaces.get(storage.kind === "device" ? VRAM : DRAM);
      // An agent that cannot reach GPU memory names none of it.
      if (space === undefined || (storage.kind === "device" && space.starts.length === 0)) continue;
      for (let index = 0; index < regionAddresses.length; index++) {
        const address = regionAddresses[index] ?? 0;
        const size = regionSizes[index] ?? 0;
        if (furthestFrom(space, address) >= address + size) continue;
        throw malformed(
          operation,
          `region ${index} of component ${name} of ${formatHandle(layout.handle)} lies outside what its NIXL metadata register`,
          { layout: layout.name, component: name, region: index, address, size },
        );
      }
    }
  }
}

/** Registrations by their starts, with the furthest end of those so far. */
interface Space {
  readonly starts: Float64Array;
  readonly ends: Float64Array;
}

function spaceOf(regions: readonly NixlBlobRegion[], memory: number): Space {
  const sorted = regions
    .filter((region) => region.memory === memory)
    .sort((left, right) => left.address - right.address);
  const starts = new Float64Array(sorted.length);
  const ends = new Float64Array(sorted.length);
  let furthest = 0;
  for (const [index, { address, bytes }] of sorted.entries()) {
    furthest = Math.max(furthest, address + bytes);
    starts[index] = address;
    ends[index] = furthest;
  }
  return { starts, ends };
}

/** The furthest end of a registration that begins at or before an address: it holds what lies in between. */
function furthestFrom({ starts, ends }: Space, address: number): number {
  let low = 0;
  let high = starts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((starts[middle] ?? 0) <= address) low = middle + 1;
    else high = middle;
  }
  return low === 0 ? 0 : (ends[low - 1] ?? 0);
}

function malformed(operation: string, message: string, details: Record<string, unknown>): KvferryError {
  return new KvferryError(
    "METADATA_MALFORMED",
    operation,
    `the package is refused: ${message}`,
    "Ask the exporter for a new package.",
    details,
  );
}
