import type { CudaSession } from "./cuda-session.ts";
import type { OpenedDevice } from "./neighbour-import.ts";
import type { NeighbourDevices } from "./neighbours.ts";

/** How allocations of this process's GPUs are opened by others, and theirs here. GPUs are known by their UUIDs. */
export function neighbourDevices(cuda: CudaSession): NeighbourDevices {
  return {
    async export(device, address) {
      const driver = await cuda.demand(device);
      const uuid = cuda.device(device)?.uuid ?? "";
      const { handle, offset } = await driver.exportIpc(device, address);
      return { uuid, handle: handle.toHex(), offset };
    },
    async open(uuid, handle): Promise<OpenedDevice> {
      const loaded = await cuda.demand();
      const { devices } = await loaded.describe();
      const found = devices.find((candidate) => candidate.uuid === uuid);
      if (found === undefined) throw new Error(`this process does not see the GPU ${uuid}`);
      const device = found.ordinal;
      const driver = await cuda.demand(device);
      const address = await driver.openIpc(device, Uint8Array.fromHex(handle));
      const { start, bytes } = driver.pointer(address);
      return {
        device,
        address,
        bytes: start + bytes - address,
        close: () => driver.closeIpc(device, address).catch(() => undefined),
      };
    },
  };
}
