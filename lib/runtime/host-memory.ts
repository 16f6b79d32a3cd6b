import { ownAddresses } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import { checkedSum } from "../core/integers.ts";
import type { Attachment, ComponentShape, Region, Storage } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import { HUGE_FROM_BYTES, touchMemory } from "../native/memory.ts";
import { KVF_MEM_DRAM } from "../native/symbols.ts";
import type { ComponentMemory, MemoryProvider, NixlPart, SharedMemory } from "./layout-memory.ts";
import { type FileCut, mapShareable, releaseShareable, type ShareableMemory } from "./neighbour-memory.ts";

/** Regions that are carved from one allocation begin at multiples of this, or of the config's alignment. */
const REGION_ALIGNMENT = 512;

/** Share of the memory that is left which one layout may take before it is written to. */
const SHARE_OF_ROOM = 0.75;

const NOTHING = (): void => undefined;

/**
 * Zeroed host memory of this process, page-aligned, one allocation for all regions.
 *
 * Large memory is in huge pages where the kernel has them: a device reads and writes what lies in one piece at about twice
 * the rate of small pages from all over the memory. Private memory gets them when it is first touched. Most systems give
 * none to files unless they are asked for each run of addresses, so that files are touched here.
 *
 * @param cut - Files that neighbours can map, where they can be had; null: private memory.
 */
export function systemMemory(context: NativeContext, cut: FileCut | null): MemoryProvider {
  return ({ shape, regionBytes }, _provided, { access, components }) => {
    const { offsets, bytes } = carve(shape, regionBytes);
    const sharing = cut === null ? null : { access, components: components.length, cut };
    const memory = mapShareable(context, bytes, sharing);
    const { mapping } = memory;
    const addresses = offsets.map((offset) => mapping.address + offset);
    const component: ComponentMemory = {
      storage: SYSTEM,
      addresses,
      sizes: offsets.map(() => regionBytes),
      attachment: ownAddresses(addresses),
      nixlDevice: 0,
      nixl: [
        // Not the whole mapping: what lies behind the last region is nobody's business.
        { memory: KVF_MEM_DRAM, regions: [{ address: mapping.address, bytes, device: 0 }] },
      ],
      share: memory.share(offsets, regionBytes),
      release: () => releaseShareable(context, memory),
    };
    const inFiles = mapping.files.length > 0 && mapping.bytes >= HUGE_FROM_BYTES;
    return inFiles && leavesRoom(mapping.bytes) ? makeHuge(context, memory).then(() => component) : component;
  };
}

/** Whether memory can be taken before anybody writes to it. */
function leavesRoom(bytes: number): boolean {
  // 0: nobody knows of a limit.
  const allowed = (process.constrainedMemory() || Number.POSITIVE_INFINITY) - process.memoryUsage.rss();
  return bytes <= Math.min(allowed, process.availableMemory()) * SHARE_OF_ROOM;
}

async function makeHuge(context: NativeContext, memory: ShareableMemory): Promise<void> {
  try {
    await touchMemory(context, memory.mapping, "huge");
  } catch (error) {
    await releaseShareable(context, memory);
    throw error;
  }
}

/** Host memory that the caller owns and keeps alive while the layout is registered. */
export const externalHostMemory: MemoryProvider = ({ shape, memory, regionBytes }) => {
  if (memory.kind !== "external" || memory.storage !== "system") {
    throw new KvferryError(
      "NO_CUDA",
      "register",
      `component ${shape.name}: external GPU or pinned memory needs a CUDA driver and a GPU`,
      "Run `kvferry doctor`.",
      {
        component: shape.name,
      },
    );
  }
  const { addresses, sizes } = adoptRegions(shape, memory.regions, regionBytes);
  return new ExternalHostMemory(addresses, sizes);
};

/** Adopted memory: what only NIXL needs is made when it asks, for there may be very many of them. */
class ExternalHostMemory implements ComponentMemory {
  readonly storage: Storage = SYSTEM;
  readonly addresses: Float64Array;
  readonly sizes: Float64Array;
  readonly attachment: Attachment;
  readonly nixlDevice: number = 0;

  constructor(addresses: Float64Array, sizes: Float64Array) {
    this.addresses = addresses;
    this.sizes = sizes;
    this.attachment = ownAddresses(addresses);
  }

  get nixl(): readonly NixlPart[] {
    const regions = Array.from(this.addresses, (address, index) => ({
      address,
      bytes: this.sizes[index] ?? 0,
      device: 0,
    }));
    return [{ memory: KVF_MEM_DRAM, regions }];
  }

  release(): void {
    // The caller's, who lets it live as long as the layout does.
  }
}

const SYSTEM: Storage = Object.freeze({ kind: "system" });

/** A component that lies in another one's allocation. */
export const sharedMemory: MemoryProvider = ({ shape, memory }, provided) => {
  if (memory.kind !== "shared") throw badRegions(shape.name, "is not shared memory", {});
  const host = provided.get(memory.with);
  if (host === undefined) {
    throw badRegions(
      shape.name,
      `shares memory with ${memory.with}, which is not there or shares memory itself`,
      { with: memory.with },
    );
  }
  return shareRegions(shape, host, memory.offset, memory.with);
};

/** Offsets of a shape's regions in one allocation, and its size in bytes. */
export function carve(
  shape: ComponentShape,
  regionBytes: number,
): { readonly offsets: Float64Array; readonly bytes: number } {
  const { regionCount } = shape.view;
  const alignment = Math.max(REGION_ALIGNMENT, shape.config.alignment);
  const step = Math.ceil(regionBytes / alignment) * alignment;
  const offsets = new Float64Array(regionCount);
  for (let index = 0; index < regionCount; index++) offsets[index] = index * step;
  return { offsets, bytes: checkedSum("register", "allocation", (regionCount - 1) * step, regionBytes) };
}

/**
 * Checks regions that a caller gave against the shape.
 *
 * @throws KvferryError `INVALID_CONFIG` for a wrong count, size, alignment or address.
 */
export function adoptRegions(
  shape: ComponentShape,
  regions: readonly Region[],
  regionBytes: number,
): { readonly addresses: Float64Array; readonly sizes: Float64Array } {
  const { regionCount } = shape.view;
  if (!Array.isArray(regions) || regions.length !== regionCount) {
    throw badRegions(
      shape.name,
      `needs ${regionCount} regions, ${Array.isArray(regions) ? regions.length : 0} were given`,
      { needed: regionCount },
    );
  }
  const addresses = new Float64Array(regionCount);
  const sizes = new Float64Array(regionCount);
  for (let index = 0; index < regionCount; index++) {
    const { address, size } = regions[index] ?? NOWHERE;
    if (!Number.isSafeInteger(address) || address <= 0)
      throw badRegions(shape.name, `region ${index} has no valid address`, { index, address });
    if (!Number.isSafeInteger(size) || size < regionBytes) {
      throw badRegions(shape.name, `region ${index} has ${size} bytes, ${regionBytes} are needed`, {
        index,
        size,
        needed: regionBytes,
      });
    }
    checkedSum("register", `end of region ${index}`, address, size);
    if (address % shape.config.alignment !== 0) {
      throw badRegions(
        shape.name,
        `region ${index} at ${address} is not aligned to ${shape.config.alignment}`,
        { index, address },
      );
    }
    addresses[index] = address;
    sizes[index] = size;
  }
  return { addresses, sizes };
}

const NOWHERE: Region = { address: Number.NaN, size: 0 };

function shareRegions(
  shape: ComponentShape,
  host: ComponentMemory,
  offset: number,
  hostName: string,
): ComponentMemory {
  const { regionCount, regionBytes } = shape.view;
  if (!Number.isSafeInteger(offset) || offset < 0)
    throw badRegions(shape.name, `offset ${offset} is not a byte offset`, { offset });
  if (host.addresses.length !== regionCount) {
    throw badRegions(shape.name, `needs ${regionCount} regions, ${hostName} has ${host.addresses.length}`, {
      needed: regionCount,
    });
  }
  for (const [index, size] of host.sizes.entries()) {
    if (offset + regionBytes > size) {
      throw badRegions(
        shape.name,
        `at offset ${offset} it needs ${offset + regionBytes} bytes of region ${index} of ${hostName}, which has ${size}`,
        { index, size },
      );
    }
  }
  const addresses = host.addresses.map((address) => address + offset);
  const { attachment } = host;
  return {
    storage: host.storage,
    addresses,
    sizes: host.sizes.map((size) => size - offset),
    attachment: attachment.kind === "file" ? { ...attachment, bases: addresses } : ownAddresses(addresses),
    nixlDevice: host.nixlDevice,
    nixl: [],
    ...(host.share === undefined ? undefined : { share: partOf(host.share, offset) }),
    release: NOTHING,
  };
}

/** How regions are handed out that begin so many bytes into those of another component. */
function partOf(share: SharedMemory, offset: number): SharedMemory {
  if (share.kind === "none") return share;
  if (share.kind === "device")
    return {
      ...share,
      regions: share.regions.map(({ address, size, given, exportable }) => ({
        address: address + offset,
        size: size - offset,
        ...(exportable === undefined ? undefined : { exportable }),
        ...(given === undefined ? undefined : { given: { ...given, offset: given.offset + offset } }),
      })),
    };
  return {
    ...share,
    regions: share.regions.map((region) => ({
      ...region,
      offset: region.offset + offset,
      size: region.size - offset,
    })),
  };
}

function badRegions(
  component: string,
  what: string,
  details: Readonly<Record<string, unknown>>,
): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `component ${component}: ${what}`,
    "Give one region of at least view.regionBytes for each region of the arrangement.",
    {
      component,
      ...details,
    },
  );
}
