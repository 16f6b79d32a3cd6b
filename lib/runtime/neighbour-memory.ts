import type { Access } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import { mapMemory, type MappedMemory, releaseMemory } from "../native/memory.ts";
import { nodeLibrary } from "../native/node-library.ts";
import type { SharedMemory, SharedRegion } from "./layout-memory.ts";

/** Host memory that others can be given, unless there is a reason against it. */
export interface ShareableMemory {
  readonly mapping: MappedMemory;
  /** How regions at these offsets are handed out. */
  share(offsets: Float64Array, size: number): SharedMemory;
}

/** Files in memory that this process keeps open; the rest of its descriptors are the application's. */
let openFiles = 0;
let mostFiles: number | undefined;

/**
 * Maps zeroed host memory, as a file in memory that neighbours can be given where that is wanted and possible, else as
 * private memory.
 *
 * @param access - `"read"`: nobody else can ever write to it.
 * @throws KvferryError `OUT_OF_MEMORY`.
 */
export function mapShareable(
  context: NativeContext,
  bytes: number,
  access: Access,
  wanted: boolean,
): ShareableMemory {
  const shared = wanted
    ? mapFile(context, bytes, access)
    : "This transport shares nothing: it was opened so.";
  if (typeof shared === "string") {
    return { mapping: mapMemory(context, bytes, false), share: () => ({ kind: "none", why: shared }) };
  }
  return {
    mapping: shared,
    share: (offsets, size) => ({
      kind: "files",
      regions: Array.from(offsets, (offset): SharedRegion => ({
        descriptor: shared.descriptor,
        fileBytes: shared.bytes,
        offset,
        size,
      })),
    }),
  };
}

/** Gives back what {@link mapShareable} mapped. */
export async function releaseShareable(context: NativeContext, { mapping }: ShareableMemory): Promise<void> {
  if (mapping.descriptor >= 0) openFiles--;
  await releaseMemory(context, mapping);
}

/** The mapping of a file in memory, or why there is none. */
function mapFile(context: NativeContext, bytes: number, access: Access): MappedMemory | string {
  mostFiles ??= Math.floor(descriptorLimit() / 2);
  if (openFiles >= mostFiles)
    return `The peer keeps ${openFiles} layouts in files in memory already, half of the descriptors that it may open.`;
  try {
    const mapping = mapMemory(context, bytes, access === "read" ? "guarded" : true);
    openFiles++;
    return mapping;
  } catch (error) {
    return `The peer's kernel gave no file in memory: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Descriptors that this process may open. */
function descriptorLimit(): number {
  try {
    const limit = /^Max open files\s+(\d+|unlimited)/m.exec(
      nodeLibrary.fs.readFileSync("/proc/self/limits", "utf8"),
    )?.[1];
    return limit === undefined || limit === "unlimited" ? 2 ** 20 : Number(limit);
  } catch {
    return 1_024;
  }
}
