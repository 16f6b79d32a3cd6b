import type { CudaDriver } from "../native/cuda.ts";
import type { MappedMemory } from "../native/memory.ts";
import type { CudaSession } from "./cuda-session.ts";
import type { OpenedDevice, PinnedHere } from "./neighbour-import.ts";
import type { NeighbourDevices } from "./neighbours.ts";

/** How allocations of this process's GPUs are opened by others, and theirs here. GPUs are known by their UUIDs. */
export function neighbourDevices(cuda: CudaSession): NeighbourDevices {
  return {
    async export(device, { address, given }) {
      const driver = await cuda.demand(device);
      const uuid = cuda.device(device)?.uuid ?? "";
      if (given !== undefined)
        return { segment: { uuid, handle: given.handle.toHex(), start: 0 }, offset: given.offset };
      const { handle, offset } = await driver.exportIpc(device, address);
      return { segment: { uuid, handle: handle.toHex(), start: address - offset }, offset };
    },
    async open({ uuid, handle, start }, own): Promise<OpenedDevice> {
      const { devices } = await (await cuda.demand()).describe();
      const device = devices.find((candidate) => candidate.uuid === uuid)?.ordinal;
      if (device === undefined) throw new Error(`this process does not see the GPU ${uuid}`);
      const driver = await cuda.demand(device);
      await connect(driver, cuda.devices, device);
      // The driver opens nothing to the process that it belongs to: there it has its own address.
      if (own && start > 0) return { ...boundsOf(driver, start), device, close: async () => undefined };
      const address = await driver.openIpc(device, Uint8Array.fromHex(handle));
      return {
        ...boundsOf(driver, address),
        device,
        close: () => driver.closeIpc(device, address).catch(() => undefined),
      };
    },
    pin(memory: MappedMemory): Promise<PinnedHere> | null {
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

/** Lets the GPUs in use and this one reach each other's memory, where the hardware can. */
async function connect(driver: CudaDriver, devices: readonly number[], device: number): Promise<void> {
  for (const other of devices) {
    if (other === device) continue;
    await driver.reach(other, device).catch(() => undefined);
    await driver.reach(device, other).catch(() => undefined);
  }
}

function boundsOf(driver: CudaDriver, address: number): Pick<OpenedDevice, "address" | "bytes"> {
  const { start, bytes } = driver.pointer(address);
  return { address, bytes: start + bytes - address };
}
