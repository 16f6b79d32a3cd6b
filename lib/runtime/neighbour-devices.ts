import type { CudaDriver } from "../native/cuda.ts";
import type { MappedMemory } from "../native/memory.ts";
import type { CudaSession } from "./cuda-session.ts";
import type { SharedDeviceRegion } from "./layout-memory.ts";
import type { DeviceWord, ExportableWord } from "./neighbour-words.ts";
import type { Storage } from "../core/layout.ts";

/** Mapped memory that is pinned for this process's driver. */
export interface PinnedHere {
  readonly storage: Storage;
  readonly unpin: () => Promise<void>;
}

/** An allocation of a GPU, mapped here. */
export interface OpenedDevice {
  /** CUDA ordinal here of the GPU that holds it. */
  readonly device: number;
  /** CUDA ordinal of the GPU whose context it was opened in: no other one reaches it. */
  readonly via: number;
  readonly address: number;
  readonly bytes: number;
  readonly close: () => Promise<void>;
}

/** How a region of a GPU's memory is handed to another process. */
export interface ExportedDevice {
  readonly segment: DeviceWord | ExportableWord;
  /** Where the region begins in what is opened. */
  readonly offset: number;
  /** Of an exportable allocation; whoever takes it closes it. */
  readonly descriptor: number | null;
}

/** How allocations of GPUs go to other processes and come from them. */
export interface NeighbourDevices {
  readonly export: (device: number, region: SharedDeviceRegion) => Promise<ExportedDevice>;
  /** @param own - Whether its owner is another transport of this very process. */
  readonly open: (segment: DeviceWord, own: boolean) => Promise<OpenedDevice>;
  /** @param descriptor - Of the allocation; stays the caller's. */
  readonly import: (segment: ExportableWord, descriptor: number) => Promise<OpenedDevice>;
  /** Pins mapped memory for this process's driver; null without one. */
  readonly pin: (memory: MappedMemory) => Promise<PinnedHere> | null;
  /** Calls back whenever a GPU came into use. */
  readonly onOpened: (callback: () => void) => void;
}

/** How allocations of this process's GPUs are opened by others, and theirs here. GPUs are known by their UUIDs. */
export function neighbourDevices(cuda: CudaSession): NeighbourDevices {
  return {
    async export(device, { address, given, exportable }) {
      const driver = await cuda.demand(device);
      const uuid = cuda.device(device)?.uuid ?? "";
      if (exportable !== undefined) {
        const { start, bytes } = exportable;
        const descriptor = await driver.exportDescriptor(start);
        return { segment: { uuid, bytes }, offset: address - start, descriptor };
      }
      if (given !== undefined) {
        const segment = { uuid, handle: given.handle.toHex(), start: 0 };
        return { segment, offset: given.offset, descriptor: null };
      }
      const { handle, offset } = await driver.exportIpc(device, address);
      return {
        segment: { uuid, handle: handle.toHex(), start: address - offset },
        offset,
        descriptor: null,
      };
    },
    async open({ uuid, handle, start }, own) {
      const device = await ordinalOf(cuda, uuid);
      // The driver opens nothing to the process that it belongs to: there it has its own address.
      if (own && start > 0) {
        const driver = await demand(cuda, device);
        return { ...boundsOf(driver, start), device, via: device, close: async () => undefined };
      }
      return await byOneOf(reaching(cuda, device), async (via) => {
        const driver = await demand(cuda, via);
        const address = await driver.openIpc(via, Uint8Array.fromHex(handle));
        const close = (): Promise<void> => driver.closeIpc(via, address).catch(() => undefined);
        return { ...boundsOf(driver, address), device, via, close };
      });
    },
    async import({ uuid, bytes }, descriptor) {
      const device = await ordinalOf(cuda, uuid);
      return await byOneOf(reaching(cuda, device), async (via) => {
        const driver = await demand(cuda, via);
        const address = await driver.importDescriptor(via, descriptor, bytes);
        const close = (): Promise<void> => driver.free(via, address).catch(() => undefined);
        return { address, bytes, device, via, close };
      });
    },
    pin(memory) {
      const { driver, defaultDevice, devices } = cuda;
      const device = devices.includes(defaultDevice) ? defaultDevice : devices[0];
      if (driver === null || device === undefined) return null;
      return driver.pin(device, memory.address, memory.bytes).then(() => ({
        storage: { kind: "pinned", device },
        unpin: () => driver.unpin(device, memory.address).catch(() => undefined),
      }));
    },
    onOpened(callback) {
      cuda.onOpened = callback;
    },
  };
}

/** The ordinal here of the GPU of that UUID. */
async function ordinalOf(cuda: CudaSession, uuid: string): Promise<number> {
  const { devices } = await (await cuda.demand()).describe();
  const device = devices.find((candidate) => candidate.uuid === uuid)?.ordinal;
  if (device === undefined) throw new Error(`this process does not see the GPU ${uuid}`);
  return device;
}

/**
 * The devices by which another process's memory on a GPU is to be reached, the best first: that GPU where it is in use
 * here anyway, else the one that is. A driver maps such memory for the one context that opens it; opened in the context
 * of its own GPU, no other one could touch it, and copies would take that GPU's time from its owner.
 */
function reaching(cuda: CudaSession, device: number): readonly number[] {
  const { devices, defaultDevice } = cuda;
  const [first = device] = [device, defaultDevice].filter((one) => devices.includes(one)).concat(devices);
  return first === device ? [device] : [first, device];
}

/** The first that succeeds: GPUs without a link between them cannot map each other's memory. */
async function byOneOf<T>(devices: readonly number[], open: (device: number) => Promise<T>): Promise<T> {
  const [first, ...others] = devices;
  if (first === undefined) throw new Error("there is no device to open it with");
  return await open(first).catch(async (error: unknown) => {
    if (others.length === 0) throw error;
    return await byOneOf(others, open);
  });
}

/** The driver with a device in use that has peer access to the others in use where the hardware can. */
async function demand(cuda: CudaSession, device: number): Promise<CudaDriver> {
  const driver = await cuda.demand(device);
  for (const other of cuda.devices) {
    if (other === device) continue;
    await driver.reach(other, device).catch(() => undefined);
    await driver.reach(device, other).catch(() => undefined);
  }
  return driver;
}

function boundsOf(driver: CudaDriver, address: number): Pick<OpenedDevice, "address" | "bytes"> {
  const { start, bytes } = driver.pointer(address);
  return { address, bytes: start + bytes - address };
}
