import { ownAddresses } from "../core/attachment.ts";
import { isKvferryError } from "../core/errors.ts";
import type { NativeContext } from "../native/context.ts";
import type { CudaDriver } from "../native/cuda.ts";
import { touchMemory } from "../native/memory.ts";
import { hostPart, ignoreLoss, wrongKind } from "./cuda-memory.ts";
import type { CudaSession } from "./cuda-session.ts";
import { carve } from "./host-memory.ts";
import type { MemoryProvider } from "./layout-memory.ts";
import {
  type FileCut,
  mapShareable,
  ONE_FILE,
  releaseShareable,
  type ShareableMemory,
} from "./neighbour-memory.ts";

/**
 * Pinned host memory: by default shareable memory, touched by several threads and then registered with the driver,
 * which is several times faster than the driver's own allocator; `allocator: "driver"` for that one.
 */
export function pinnedMemory(context: NativeContext, cuda: CudaSession, cut: FileCut): MemoryProvider {
  return async ({ shape, memory, regionBytes }, _provided, { access, components }) => {
    if (memory.kind !== "pinned") throw wrongKind(memory.kind);
    const device = memory.device ?? cuda.defaultDevice;
    const driver = await cuda.demand(device);
    const { offsets, bytes } = carve(shape, regionBytes);
    const pinned =
      memory.allocator === "driver"
        ? await allocateByDriver(driver, device, bytes)
        : await pinShareable(context, driver, device, (several) =>
            mapShareable(context, bytes, {
              access,
              components: components.length,
              cut: several ? cut : ONE_FILE,
            }),
          );
    const addresses = offsets.map((offset) => pinned.address + offset);
    return {
      storage: { kind: "pinned", device },
      addresses,
      sizes: offsets.map(() => regionBytes),
      attachment: ownAddresses(addresses),
      nixlDevice: 0,
      nixl: [hostPart([{ address: pinned.address, size: bytes }])],
      share: pinned.share(offsets, regionBytes),
      release: pinned.release,
    };
  };
}

/** Pinned memory and the way to give it back. */
export interface PinnedMemory {
  readonly address: number;
  readonly bytes: number;
  /** How regions at these offsets are handed to other processes. */
  readonly share: ShareableMemory["share"];
  readonly release: () => Promise<void>;
}

/**
 * Maps shareable memory, touches it in parallel and registers it, on threads of the library.
 *
 * @param map - Maps it; called again for memory of one file when the driver does not register several at once.
 * @throws KvferryError `OUT_OF_MEMORY` or `CUDA`.
 */
export async function pinShareable(
  context: NativeContext,
  driver: CudaDriver,
  device: number,
  map: (severalFiles: boolean) => ShareableMemory,
): Promise<PinnedMemory> {
  const several = map(true);
  try {
    return await touchAndPin(context, driver, device, several);
  } catch (error) {
    if (several.mapping.files.length < 2 || !isKvferryError(error, "CUDA")) throw error;
  }
  return await touchAndPin(context, driver, device, map(false));
}

async function touchAndPin(
  context: NativeContext,
  driver: CudaDriver,
  device: number,
  memory: ShareableMemory,
): Promise<PinnedMemory> {
  const { mapping } = memory;
  try {
    await touchMemory(context, mapping, "all");
    await driver.pin(device, mapping.address, mapping.bytes);
  } catch (error) {
    await releaseShareable(context, memory);
    throw error;
  }
  return {
    address: mapping.address,
    bytes: mapping.bytes,
    share: memory.share,
    release: () => unpinAndUnmap(context, driver, device, memory),
  };
}

async function allocateByDriver(driver: CudaDriver, device: number, bytes: number): Promise<PinnedMemory> {
  const address = await driver.allocatePinned(device, bytes);
  return {
    address,
    bytes,
    share: () => ({
      kind: "none",
      why: "The driver's own allocator gives memory that cannot be handed over.",
    }),
    release: () => driver.freePinned(device, address).catch(ignoreLoss),
  };
}

async function unpinAndUnmap(
  context: NativeContext,
  driver: CudaDriver,
  device: number,
  memory: ShareableMemory,
): Promise<void> {
  try {
    await driver.unpin(device, memory.mapping.address);
  } catch (error) {
    // A lost device still has the pages pinned: they stay mapped, so that nothing else is ever put there.
    ignoreLoss(error);
    return;
  }
  await releaseShareable(context, memory);
}
