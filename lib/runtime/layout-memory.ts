import { KvferryError } from "../core/errors.ts";
import { checkedSum } from "../core/integers.ts";
import type { ComponentShape, MemorySpec, Region, Storage } from "../core/layout.ts";
import type { NixlRegion } from "../native/agent.ts";
import type { NativeContext } from "../native/context.ts";
import { mapMemory, unmapMemory, type MappedMemory } from "../native/memory.ts";
import { KVF_MEM_DRAM } from "../native/symbols.ts";

/** Where a component's regions lie and who owns them. */
export interface ComponentMemory {
  readonly storage: Storage;
  readonly addresses: Float64Array;
  readonly sizes: Float64Array;
  readonly nixlDevice: number;
}

/** The memory of one layout: what was allocated for it, and what NIXL must be told. */
export interface LayoutMemory {
  readonly components: readonly ComponentMemory[];
  /** Runs that NIXL registers, by memory type; neighbours within one allocation are one run. */
  readonly nixl: readonly { readonly memory: number; readonly regions: readonly NixlRegion[] }[];
  /** Gives back what was allocated; adopted memory is only let go. */
  release(): void;
}

/** A component with the memory that its spec asks for. */
export interface ComponentRequest {
  readonly shape: ComponentShape;
  readonly memory: MemorySpec;
}

/** Regions that are carved from one allocation begin at multiples of this, or of the config's alignment. */
const REGION_ALIGNMENT = 512;

/**
 * Allocates or adopts the memory of a layout. All or nothing: what was allocated before a failure is given back.
 *
 * @throws KvferryError `OUT_OF_MEMORY`, `INVALID_CONFIG` for regions that do not fit the shape, `NO_CUDA` for GPU
 * memory in a process without a GPU.
 */
export function provideMemory(context: NativeContext, requests: readonly ComponentRequest[]): LayoutMemory {
  const mappings: MappedMemory[] = [];
  const release = (): void => {
    for (const mapping of mappings.splice(0)) unmapMemory(context, mapping);
  };
  try {
    const provided = new Map<string, ComponentMemory>();
    const registrations: NixlRegion[] = [];
    // Components that lie in another one's allocation come after it.
    for (const { shape, memory } of requests.toSorted(
      (a, b) => Number(a.memory.kind === "shared") - Number(b.memory.kind === "shared"),
    )) {
      provided.set(shape.name, provideComponent(context, shape, memory, provided, mappings, registrations));
    }
    return {
      components: requests.map(({ shape }) => provided.get(shape.name) ?? missing(shape.name)),
      nixl: registrations.length === 0 ? [] : [{ memory: KVF_MEM_DRAM, regions: registrations }],
      release,
    };
  } catch (error) {
    release();
    throw error;
  }
}

function provideComponent(
  context: NativeContext,
  shape: ComponentShape,
  memory: MemorySpec,
  provided: ReadonlyMap<string, ComponentMemory>,
  mappings: MappedMemory[],
  registrations: NixlRegion[],
): ComponentMemory {
  switch (memory.kind) {
    case "system": {
      const { offsets, bytes } = carve(shape);
      const mapping = mapMemory(context, bytes, false);
      mappings.push(mapping);
      registrations.push({ address: mapping.address, bytes: mapping.bytes, device: 0 });
      return {
        storage: { kind: "system" },
        addresses: offsets.map((offset) => mapping.address + offset),
        sizes: offsets.map(() => shape.view.regionBytes),
        nixlDevice: 0,
      };
    }
    case "external": {
      if (memory.storage !== "system") throw noCuda(shape.name, memory.kind);
      const adopted = adoptRegions(shape, memory.regions);
      for (const { address, size } of memory.regions) registrations.push({ address, bytes: size, device: 0 });
      return { storage: { kind: "system" }, ...adopted, nixlDevice: 0 };
    }
    case "shared": {
      const host = provided.get(memory.with);
      if (host === undefined) {
        throw new KvferryError(
          "INVALID_CONFIG",
          "register",
          `component ${shape.name} shares memory with ${memory.with}, which is not there or shares memory itself`,
          "Name a component of the same layout that has memory of its own.",
          { component: shape.name, with: memory.with },
        );
      }
      return shareRegions(shape, host, memory.offset, memory.with);
    }
    case "pinned":
    case "device":
    case "external-ipc":
      throw noCuda(shape.name, memory.kind);
    default:
      throw new KvferryError(
        "NO_ROUTE",
        "register",
        `component ${shape.name}: ${memory.kind} memory is not available in this release`,
        "Use system or external memory.",
        { component: shape.name, kind: memory.kind },
      );
  }
}

/** Offsets of a shape's regions in one allocation. */
function carve(shape: ComponentShape): { readonly offsets: Float64Array; readonly bytes: number } {
  const { regionCount, regionBytes } = shape.view;
  const alignment = Math.max(REGION_ALIGNMENT, shape.config.alignment);
  const step = Math.ceil(regionBytes / alignment) * alignment;
  const offsets = Float64Array.from({ length: regionCount }, (_unused, index) => index * step);
  return { offsets, bytes: checkedSum("register", "allocation", (regionCount - 1) * step, regionBytes) };
}

function adoptRegions(
  shape: ComponentShape,
  regions: readonly Region[],
): { readonly addresses: Float64Array; readonly sizes: Float64Array } {
  const { regionCount, regionBytes } = shape.view;
  if (!Array.isArray(regions) || regions.length !== regionCount) {
    throw badRegions(
      shape.name,
      `needs ${regionCount} regions, ${Array.isArray(regions) ? regions.length : 0} were given`,
      { needed: regionCount },
    );
  }
  regions.forEach(({ address, size }, index) => {
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
  });
  return {
    addresses: Float64Array.from(regions, ({ address }) => address),
    sizes: Float64Array.from(regions, ({ size }) => size),
  };
}

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
        {
          index,
          size,
          needed: offset + regionBytes,
        },
      );
    }
  }
  return {
    storage: host.storage,
    addresses: host.addresses.map((address) => address + offset),
    sizes: host.sizes.map((size) => size - offset),
    nixlDevice: host.nixlDevice,
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

function noCuda(component: string, kind: string): KvferryError {
  return new KvferryError(
    "NO_CUDA",
    "register",
    `component ${component}: ${kind} memory needs a CUDA driver and a GPU`,
    "Run `kvferry doctor`; without a GPU use system memory.",
    {
      component,
      kind,
    },
  );
}

function missing(name: string): never {
  throw new KvferryError(
    "INVALID_CONFIG",
    "register",
    `component ${name} has no memory`,
    "This is a defect: please report the spec.",
    { name },
  );
}
