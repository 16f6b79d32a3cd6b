import { ownAddresses } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import { checkedSum } from "../core/integers.ts";
import type { Region } from "../core/layout.ts";
import type { CudaDriver } from "../native/cuda.ts";
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

/** The driver cuts smaller allocations from blocks of this size, and opens whole blocks to other processes. */
const DRIVER_BLOCK = 2 ** 21;

/** Gives back is all one can do with a device that is lost; the loss itself was reported by what it broke. */
export function ignoreLoss(error: unknown): void {
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

export function hostPart(regions: readonly Region[]): NixlPart {
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

export function wrongKind(kind: string): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `${kind} memory is not what this provider gives`,
    "This is a defect: please report the spec.",
    { kind },
  );
}
