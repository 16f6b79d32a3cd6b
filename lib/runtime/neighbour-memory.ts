import type { Access } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import { mapMemory, type MappedMemory, releaseMemory } from "../native/memory.ts";
import { nodeLibrary } from "../native/node-library.ts";
import { KVF_MEMORY_FILES, KVF_NEIGHBOUR_DESCRIPTORS } from "../native/symbols.ts";
import type { SharedMemory, SharedRegion } from "./layout-memory.ts";

/** How many files shareable memory lies in. */
export interface FileCut {
  /** No file of several is smaller; a multiple of 2 MiB. */
  readonly leastBytes: number;
  readonly most: number;
}

/**
 * The kernel adds pages to a file for one thread after the other, so that more threads than files do not make fresh memory
 * sooner: where pages have 4 KiB, 16 threads filled 16 files at 4.4 times the rate of one. More than 16 threads are never
 * used for it. Less than 64 MiB is there within a few hundredths of a second anyway, and each file costs a descriptor in
 * every process that has it.
 */
export const FILE_CUT: FileCut = {
  leastBytes: 64 * 2 ** 20,
  most: Math.min(KVF_MEMORY_FILES, navigator.hardwareConcurrency),
};

/** All in one file. */
export const ONE_FILE: FileCut = { leastBytes: Number.POSITIVE_INFINITY, most: 1 };

/** Files begin where a huge page does. */
const FILE_STEP = 2 ** 21;

/** What memory is to be shared for. */
export interface Sharing {
  /** `"read"`: nobody else can ever write to it. */
  readonly access: Access;
  /** Components of its layout: the files of all of them are handed over together. */
  readonly components: number;
  readonly cut: FileCut;
}

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
 * Maps zeroed host memory, as files in memory that neighbours can be given where that is wanted and possible, else as
 * private memory. One run of addresses in any case.
 *
 * @param sharing - Null: private memory is wanted.
 * @throws KvferryError `OUT_OF_MEMORY`.
 */
export function mapShareable(
  context: NativeContext,
  bytes: number,
  sharing: Sharing | null,
): ShareableMemory {
  const shared =
    sharing === null ? "This transport shares nothing: it was opened so." : mapFiles(context, bytes, sharing);
  if (typeof shared === "string") {
    return { mapping: mapMemory(context, bytes, false), share: () => ({ kind: "none", why: shared }) };
  }
  return {
    mapping: shared,
    share: (offsets, size) => ({
      kind: "files",
      regions: Array.from(offsets, (offset): SharedRegion => ({ files: shared.files, offset, size })),
    }),
  };
}

/** Gives back what {@link mapShareable} mapped. */
export async function releaseShareable(context: NativeContext, { mapping }: ShareableMemory): Promise<void> {
  openFiles -= mapping.files.length;
  await releaseMemory(context, mapping);
}

/** The mapping of files in memory, or why there is none. */
function mapFiles(
  context: NativeContext,
  bytes: number,
  { access, components, cut }: Sharing,
): MappedMemory | string {
  mostFiles ??= Math.floor(descriptorLimit() / 2);
  if (openFiles >= mostFiles)
    return `The peer keeps ${openFiles} files in memory open already, half of the descriptors that it may open.`;
  try {
    // Descriptors are for layouts first: half of them stay for such as take one each.
    const room = Math.floor(mostFiles / 2) - openFiles;
    const together = Math.floor(KVF_NEIGHBOUR_DESCRIPTORS / components);
    const fileBytes = bytesOfFile(bytes, cut, Math.min(room, together));
    const mapping = mapMemory(context, bytes, access === "read" ? "guarded" : true, fileBytes);
    openFiles += mapping.files.length;
    return mapping;
  } catch (error) {
    return `The peer's kernel gave no file in memory: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Bytes of each of several files; 0 for one. */
function bytesOfFile(bytes: number, { leastBytes, most }: FileCut, room: number): number {
  const count = Math.min(most, room, Math.floor(bytes / leastBytes));
  return count < 2 ? 0 : Math.ceil(bytes / count / FILE_STEP) * FILE_STEP;
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
