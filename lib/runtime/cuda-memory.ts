import { ownAddresses } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import { checkedSum } from "../core/integers.ts";
import type { Region } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import type { CudaDriver } from "../native/cuda.ts";
import { mapMemory, releaseMemory, touchMemory, type MappedMemory } from "../native/memory.ts";
import { KVF_MEM_DRAM, KVF_MEM_VRAM } from "../native/symbols.ts";
import type { CudaSession } from "./cuda-session.ts";
import { adoptRegions, carve } from "./host-memory.ts";
import type { ComponentMemory, MemoryProvider, NixlPart, SharedDeviceRegion } from "./layout-memory.ts";

/**
 * Device memory: one allocation for all regions. Its content is undefined.
 *
 * @param shareable - Neighbours may open it: it has blocks of the driver to itself.
 */
export function deviceMemory(cuda: CudaSession, shareable: boolean): MemoryProvider {
  return async ({ shape, memory, regionBytes }) => {
    if (memory.kind !== "device") throw wrongKind(memory.kind);
    const device = memory.device ?? cuda.defaultDevice;
    const driver = await cuda.demand(device);
    const { offsets, bytes } = carve(shape, regionBytes);
    const { address, exportable } = shareable
      ? await allocateShareable(cuda, driver, device, Math.ceil(bytes / DRIVER_BLOCK) * DRIVER_BLOCK)
      : { address: await driver.allocate(device, bytes), exportable: undefined };
    const addresses = offsets.map((offset) => address + offset);
    return {
      ...onDevice(device, addresses, [{ address, size: bytes }]),
      sizes: offsets.map(() => regionBytes),
      share: {
        kind: "device",
        device,
        regions: Array.from(addresses, (at) => ({
          address: at,
          size: regionBytes,
          ...(exportable === undefined ? undefined : { exportable }),
        })),
      },
      // Memory of a device that is lost cannot be freed; the driver takes it back with the process.
      release: () => driver.free(device, address).catch(ignoreLoss),
    };
  };
}

/**
 * Device memory that other processes can open: by the driver's handles, or, where it gives none, by descriptors. Which of
 * them works is found out with the first allocation of a device.
 */
async function allocateShareable(
  cuda: CudaSession,
  driver: CudaDriver,
  device: number,
  bytes: number,
): Promise<{ readonly address: number; readonly exportable: SharedDeviceRegion["exportable"] }> {
  const handles = cuda.ipcHandles.get(device);
  if (handles !== false) {
    const address = await driver.allocate(device, bytes);
    const works =
      handles ??
      (await driver.exportIpc(device, address).then(
        () => true,
        () => false,
      ));
    cuda.ipcHandles.set(device, works);
    if (works) return { address, exportable: undefined };
    await driver.free(device, address);
  }
  try {
    const address = await driver.allocateExportable(device, bytes);
    return { address, exportable: { start: address, bytes } };
  } catch (error) {
    // Without either it is memory of this process, and whoever wants to open it is told why that cannot be.
    if (error instanceof KvferryError && error.code === "ERR_KVF_OUT_OF_MEMORY") throw error;
    return { address: await driver.allocate(device, bytes), exportable: undefined };
  }
}

/**
 * Pinned host memory: by default shareable memory, touched by several threads and then registered with the driver,
 * which is several times faster than the driver's own allocator; `allocator: "driver"` for that one.
 */
export function pinnedMemory(context: NativeContext, cuda: CudaSession): MemoryProvider {
  return async ({ shape, memory, regionBytes }, _provided, { access }) => {
    if (memory.kind !== "pinned") throw wrongKind(memory.kind);
    const device = memory.device ?? cuda.defaultDevice;
    const driver = await cuda.demand(device);
    const { offsets, bytes } = carve(shape, regionBytes);
    const kind = memory.allocator === "driver" ? "driver" : access === "read" ? "guarded" : "shared";
    const pinned = await allocatePinned(context, driver, device, bytes, kind);
    const addresses = offsets.map((offset) => pinned.address + offset);
    return {
      storage: { kind: "pinned", device },
      addresses,
      sizes: offsets.map(() => regionBytes),
      attachment: ownAddresses(addresses),
      nixlDevice: 0,
      nixl: [hostPart([{ address: pinned.address, size: bytes }])],
      share:
        pinned.descriptor < 0
          ? { kind: "none", why: "The driver's own allocator gives memory that cannot be handed over." }
          : {
              kind: "files",
              regions: Array.from(offsets, (offset) => ({
                descriptor: pinned.descriptor,
                fileBytes: pinned.bytes,
                offset,
                size: regionBytes,
              })),
            },
      release: pinned.release,
    };
  };
}

/**
 * Pinned or device memory that the caller owns and keeps alive while the layout is registered. The driver is asked
 * whether it is what the caller says.
 */
export function externalCudaMemory(cuda: CudaSession): MemoryProvider {
  return async ({ shape, memory, regionBytes }) => {
    if (memory.kind !== "external" || memory.storage === "system") throw wrongKind(memory.kind);
    const { storage } = memory;
    const device = storage === "pinned" ? cuda.defaultDevice : storage.device;
    const driver = await cuda.demand(device);
    const { addresses, sizes } = adoptRegions(shape, memory.regions, regionBytes);
    const adopted: number[] = [];
    const release = (): void => {
      for (const address of adopted) driver.disown(address);
    };
    try {
      for (const { address, size } of memory.regions) {
        await driver.adopt(device, address, size, storage === "pinned" ? "pinned" : "device");
        adopted.push(address);
      }
    } catch (error) {
      release();
      throw error;
    }
    if (storage !== "pinned") return { ...onDevice(device, addresses, memory.regions), sizes, release };
    return {
      storage: { kind: "pinned", device },
      addresses,
      sizes,
      attachment: ownAddresses(addresses),
      nixlDevice: 0,
      nixl: [hostPart(memory.regions)],
      release,
    };
  };
}

/** Device memory of another process, mapped by the handles that it got from its driver. */
export function externalIpcMemory(cuda: CudaSession): MemoryProvider {
  return async ({ shape, memory, regionBytes }) => {
    if (memory.kind !== "external-ipc") throw wrongKind(memory.kind);
    const { device } = memory;
    const driver = await cuda.demand(device);
    const opened: number[] = [];
    const release = async (): Promise<void> => {
      for (const start of opened.splice(0)) await driver.closeIpc(device, start).catch(ignoreLoss);
    };
    try {
      const regions: Region[] = [];
      for (const { ipcHandle, offset, size } of memory.regions) {
        const start = await driver.openIpc(device, ipcHandle);
        opened.push(start);
        const address = checkedSum("register", "address of a mapped region", start, offset);
        checkInside(driver, address, size);
        regions.push({ address, size });
      }
      const { addresses, sizes } = adoptRegions(shape, regions, regionBytes);
      return {
        ...onDevice(device, addresses, regions),
        sizes,
        // What a third process opened can be passed on, by its own handle only.
        share: {
          kind: "device",
          device,
          regions: regions.map(({ address, size }, index) => {
            const given = memory.regions[index];
            return {
              address,
              size,
              ...(given === undefined ? {} : { given: { handle: given.ipcHandle, offset: given.offset } }),
            };
          }),
        },
        release,
      };
    } catch (error) {
      await release();
      throw error;
    }
  };
}

/** Pinned memory and the way to give it back. */
export interface PinnedMemory {
  readonly address: number;
  readonly bytes: number;
  /** File descriptor by which other processes can map it; -1 when they cannot. */
  readonly descriptor: number;
  readonly release: () => Promise<void>;
}

/** The driver cuts smaller allocations from blocks of this size, and opens whole blocks to other processes. */
const DRIVER_BLOCK = 2 ** 21;

/** Threads that touch fresh memory; more do not make the kernel faster. */
const TOUCH_THREADS = 16;

/**
 * Allocates pinned memory on threads of the library.
 *
 * @param allocator - `shared`: mapped, touched in parallel and registered; `guarded`: the same, and nothing but this
 * mapping can ever write to it; `driver`: the driver's own.
 * @throws KvferryError `OUT_OF_MEMORY` or `CUDA`.
 */
export async function allocatePinned(
  context: NativeContext,
  driver: CudaDriver,
  device: number,
  bytes: number,
  allocator: "shared" | "guarded" | "driver",
): Promise<PinnedMemory> {
  if (allocator === "driver") {
    const address = await driver.allocatePinned(device, bytes);
    return {
      address,
      bytes,
      descriptor: -1,
      release: () => driver.freePinned(device, address).catch(ignoreLoss),
    };
  }
  const mapping = mapMemory(context, bytes, allocator === "guarded" ? "guarded" : true);
  try {
    await touchMemory(context, mapping, Math.min(TOUCH_THREADS, navigator.hardwareConcurrency));
    await driver.pin(device, mapping.address, mapping.bytes);
  } catch (error) {
    await releaseMemory(context, mapping);
    throw error;
  }
  return {
    address: mapping.address,
    bytes: mapping.bytes,
    descriptor: mapping.descriptor,
    release: () => unpinAndUnmap(context, driver, device, mapping),
  };
}

async function unpinAndUnmap(
  context: NativeContext,
  driver: CudaDriver,
  device: number,
  mapping: MappedMemory,
): Promise<void> {
  try {
    await driver.unpin(device, mapping.address);
  } catch (error) {
    // A lost device still has the pages pinned: they stay mapped, so that nothing else is ever put there.
    ignoreLoss(error);
    return;
  }
  await releaseMemory(context, mapping);
}

/** Gives back is all one can do with a device that is lost; the loss itself was reported by what it broke. */
function ignoreLoss(error: unknown): void {
  if (error instanceof KvferryError) return;
  throw error;
}

function onDevice(
  device: number,
  addresses: Float64Array,
  regions: readonly Region[],
): Pick<ComponentMemory, "storage" | "addresses" | "attachment" | "nixlDevice" | "nixl"> {
  return {
    storage: { kind: "device", device },
    addresses,
    attachment: ownAddresses(addresses),
    nixlDevice: device,
    nixl: [
      {
        memory: KVF_MEM_VRAM,
        regions: regions.map(({ address, size }) => ({ address, bytes: size, device })),
      },
    ],
  };
}

function hostPart(regions: readonly Region[]): NixlPart {
  return {
    memory: KVF_MEM_DRAM,
    regions: regions.map(({ address, size }) => ({ address, bytes: size, device: 0 })),
  };
}

function checkInside(driver: CudaDriver, address: number, size: number): void {
  const found = driver.pointer(address);
  if (found.kind === "device" && address + size <= found.start + found.bytes) return;
  throw new KvferryError(
    "INVALID_CONFIG",
    "register",
    `${size} bytes at this offset do not lie in the allocation that the IPC handle names (${found.bytes} bytes)`,
    "Pass on the offset that the other process got with the handle.",
    { address, size, found },
  );
}

function wrongKind(kind: string): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `${kind} memory is not what this provider gives`,
    "This is a defect: please report the spec.",
    { kind },
  );
}
