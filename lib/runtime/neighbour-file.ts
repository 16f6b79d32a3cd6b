import { closeSync } from "node:fs";
import { ownAddresses } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import type { NativeContext } from "../native/context.ts";
import { type MappedMemory, releaseMemory } from "../native/memory.ts";
import { type InspectedFile, inspectFile, mapOwnFile } from "../native/neighbour.ts";
import { KVF_MEM_DRAM } from "../native/symbols.ts";
import { adoptRegions } from "./host-memory.ts";
import type { MemoryProvider } from "./layout-memory.ts";

/** Files in memory that a caller owns and keeps as they are while the layout is registered. */
export function externalFileMemory(context: NativeContext): MemoryProvider {
  return ({ shape, memory, regionBytes }) => {
    if (memory.kind !== "external-fd") throw new TypeError(`${memory.kind} memory is not in a caller's file`);
    const files = new Map<number, InspectedFile & { readonly mapping: MappedMemory }>();
    const release = async (): Promise<void> => {
      for (const { descriptor, mapping } of files.values()) {
        closeSync(descriptor);
        await releaseMemory(context, mapping);
      }
    };
    try {
      for (const { fd, offset, size } of memory.regions) {
        if (!files.has(fd)) files.set(fd, openFile(context, fd));
        const bytes = files.get(fd)?.bytes ?? 0;
        if (offset + size > bytes)
          throw new KvferryError(
            "INVALID_CONFIG",
            "register",
            `component ${shape.name}: ${size} bytes at ${offset} do not lie in the file of descriptor ${fd}, which has ${bytes}`,
            "Give offsets and sizes within the file.",
            { fd, offset, size, bytes },
          );
      }
      const fileOf = (fd: number): InspectedFile & { readonly mapping: MappedMemory } =>
        files.get(fd) as InspectedFile & { readonly mapping: MappedMemory }; // opened above
      const regions = memory.regions.map(({ fd, offset, size }) => ({
        address: fileOf(fd).mapping.address + offset,
        size,
      }));
      const { addresses, sizes } = adoptRegions(shape, regions, regionBytes);
      return {
        storage: { kind: "system" },
        addresses,
        sizes,
        attachment: ownAddresses(addresses),
        nixlDevice: 0,
        nixl: [
          {
            memory: KVF_MEM_DRAM,
            regions: regions.map(({ address, size }) => ({ address, bytes: size, device: 0 })),
          },
        ],
        share: [...files.values()].every(({ sealed }) => sealed)
          ? {
              kind: "files",
              regions: memory.regions.map(({ fd, offset, size }) => {
                const { descriptor, bytes } = fileOf(fd);
                return { files: [{ descriptor, bytes }], offset, size };
              }),
            }
          : {
              kind: "none",
              why: "The peer's memory lies in a file that is not sealed against shrinking, so that it is not handed on.",
            },
        release,
      };
    } catch (error) {
      void release();
      throw error;
    }
  };
}

function openFile(context: NativeContext, fd: number): InspectedFile & { readonly mapping: MappedMemory } {
  const file = inspectFile(context, fd);
  try {
    return { ...file, mapping: mapOwnFile(context, file.descriptor, file.bytes) };
  } catch (error) {
    closeSync(file.descriptor);
    throw error;
  }
}
