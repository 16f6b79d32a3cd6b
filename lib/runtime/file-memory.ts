import { mkdir, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { openFile } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import { checkedSum } from "../core/integers.ts";
import type { ComponentShape } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import { openNativeFile, type FileOpening, type OpenedFile } from "../native/file.ts";
import { BlockSums } from "./block-sums.ts";
import { demandSame, readHeader, writeHeader } from "./file-header.ts";
import type { Gds } from "./gds.ts";
import type { ComponentMemory, MemoryProvider } from "./layout-memory.ts";

/** Regions begin at multiples of this, which every device's blocks divide. */
const REGION_ALIGNMENT = 4096;

/** Requests that a file has in flight at most. */
const DEPTH = 32;

/**
 * One file for each component: named by the caller and kept, or one without a name that goes with the layout.
 *
 * Beside a named file a small header (`FILE.kvferry`) says what its blocks are, so that they can be used again after a
 * restart and a changed model is refused.
 *
 * @param environment - Where `KVFERRY_DISK_CACHE_DIR` and `DYN_KVBM_DISK_CACHE_DIR` name the directory of files
 *   without a name; default the system's directory for temporary files.
 * @param sums - Gets the hashes of the blocks of files that keep them, by file number.
 * @param names - Gets the paths of open files, by file number, for errors.
 * @param gds - Is told of every file; null where nobody asked for it.
 */
export function fileMemory(
  context: NativeContext,
  environment: Readonly<Record<string, string | undefined>>,
  sums: Map<number, BlockSums>,
  names: Map<number, string>,
  gds: Gds | null,
): MemoryProvider {
  return async ({ shape, memory, regionBytes }, _provided, layout) => {
    if (memory.kind !== "disk") throw notDisk(shape);
    const { offsets, bytes } = placeRegions(shape, regionBytes);
    const { file, letGo } =
      memory.path === undefined
        ? await openTemporary(context, environment, memory.open, bytes, gds)
        : await openNamed(
            context,
            resolve(memory.path),
            memory.open ?? "create",
            shape,
            layout.fingerprint,
            bytes,
            gds,
          );
    const closeFile = async (): Promise<void> => {
      // Nothing knows a file that is closed: another one may get its descriptor.
      await letGo();
      names.delete(file.number);
      await file.close();
    };
    names.set(
      file.number,
      memory.path === undefined
        ? `a temporary file in ${temporaryFolder(environment)}`
        : resolve(memory.path),
    );
    if (memory.checksums !== true) return componentOf(file, offsets, regionBytes, closeFile);
    let kept: BlockSums;
    try {
      const path = memory.path === undefined ? null : resolve(memory.path);
      kept = await BlockSums.open(path, shape.config.numBlocks, memory.open === "existing");
    } catch (error) {
      await closeFile();
      throw error;
    }
    sums.set(file.number, kept);
    return componentOf(file, offsets, regionBytes, async () => {
      sums.delete(file.number);
      await closeFile();
      await kept.close();
    });
  };
}

/** Byte offsets of a shape's regions in its file, and the file's size. */
function placeRegions(
  shape: ComponentShape,
  regionBytes: number,
): { readonly offsets: Float64Array; readonly bytes: number } {
  const { regionCount } = shape.view;
  const step = Math.ceil(regionBytes / REGION_ALIGNMENT) * REGION_ALIGNMENT;
  const offsets = new Float64Array(regionCount);
  for (let index = 0; index < regionCount; index++) offsets[index] = index * step;
  // Whole pages: the last one can be moved past the page cache as well.
  return { offsets, bytes: checkedSum("register", "file", (regionCount - 1) * step, step) };
}

function componentOf(
  file: OpenedFile,
  offsets: Float64Array,
  regionBytes: number,
  release: () => Promise<void>,
): ComponentMemory {
  return {
    storage: { kind: "disk" },
    addresses: offsets,
    sizes: offsets.map(() => regionBytes),
    attachment: openFile(file.number, offsets),
    nixlDevice: 0,
    // NIXL's way to files is not used: only the owner of a file touches it.
    nixl: [],
    release,
  };
}

/** An open file, and how those are made to forget it that were told of it. */
interface TakenFile {
  readonly file: OpenedFile;
  readonly letGo: () => Promise<void>;
}

async function openTemporary(
  context: NativeContext,
  environment: Readonly<Record<string, string | undefined>>,
  open: "create" | "existing" | undefined,
  bytes: number,
  gds: Gds | null,
): Promise<TakenFile> {
  if (open === "existing") {
    throw new KvferryError(
      "INVALID_CONFIG",
      "register",
      'open: "existing" needs the path of the file',
      "Give memory.path.",
      { field: "memory.path" },
    );
  }
  const folder = temporaryFolder(environment);
  await makeFolder(folder);
  if (gds === null || gds.problem !== null)
    return {
      file: await openNativeFile(context, { path: folder, mode: "temporary", bytes, depth: DEPTH }),
      letGo: NOTHING,
    };
  // GPUDirect Storage looks at a file's name when it is told of it.
  const path = join(folder, `kvferry-disk-cache-${process.pid}-${crypto.randomUUID()}`);
  const file = await openNativeFile(context, { path, mode: "unnamed", bytes, depth: DEPTH });
  try {
    return { file, letGo: await gds.takeFile(file, null) };
  } finally {
    await unlink(path);
  }
}

const NOTHING = async (): Promise<void> => undefined;

/** The directory of files without a name. */
export function temporaryFolder(environment: Readonly<Record<string, string | undefined>>): string {
  return resolve(environment["KVFERRY_DISK_CACHE_DIR"] || environment["DYN_KVBM_DISK_CACHE_DIR"] || tmpdir());
}

async function openNamed(
  context: NativeContext,
  path: string,
  open: "create" | "existing",
  shape: ComponentShape,
  fingerprint: string | null,
  bytes: number,
  gds: Gds | null,
): Promise<TakenFile> {
  const header = await readHeader(path).catch((error: unknown) => {
    // What is made anew needs no old header, readable or not: the file itself decides whether it may be replaced.
    if (open === "create") return null;
    throw error;
  });
  if (open === "create") await makeFolder(dirname(path));
  else if (header !== null) demandSame(path, header, shape, fingerprint, bytes);
  // Only what a header shows to be a layout's file is ever given up.
  const mode: FileOpening["mode"] = open === "existing" ? "existing" : header === null ? "create" : "replace";
  const file = await openNativeFile(context, { path, mode, bytes, depth: DEPTH });
  try {
    if (open === "create" || header === null) await writeHeader(path, shape, fingerprint, bytes);
  } catch (error) {
    await file.close();
    throw error;
  }
  return { file, letGo: gds === null ? NOTHING : await gds.takeFile(file, path) };
}

async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    throw new KvferryError(
      "IO",
      "register",
      `${folder}: the directory could not be made: ${String(error)}`,
      "Name a directory that this process may write to.",
      { path: folder },
      error,
    );
  }
}

function notDisk(shape: ComponentShape): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `component ${shape.name} is not on disk`,
    "This is a defect: please report the spec.",
    { component: shape.name },
  );
}
