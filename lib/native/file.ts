import { KvferryError } from "../core/errors.ts";
import { cString } from "./c-string.ts";
import type { NativeContext } from "./context.ts";
import { KVF_FILE_CREATE, KVF_FILE_REPLACE, KVF_FILE_TEMPORARY, KVF_OK } from "./symbols.ts";

/** How a file is opened. */
export interface FileOpening {
  /** The file, or for a temporary one the directory that it is made in. */
  readonly path: string;
  /**
   * `create` makes it or takes over an empty one, `replace` gives up what is in it, `existing` keeps that; `unnamed` makes
   * a file whose name the caller takes away.
   */
  readonly mode: "create" | "replace" | "existing" | "temporary" | "unnamed";
  readonly bytes: number;
  /** Further `KVF_FILE_*` flags. */
  readonly flags?: number;
  /** Requests in flight at most. */
  readonly depth: number;
}

/** What the library knows of an open file. */
export interface FileFacts {
  readonly bytes: number;
  /** Whether requests can go past the page cache, and the alignment of addresses and offsets that this needs. */
  readonly direct: boolean;
  readonly memoryAlignment: number;
  readonly offsetAlignment: number;
  /** Whether an io_uring serves it; known after its first copy. */
  readonly ring: boolean;
  /** The library's own descriptor. */
  readonly descriptor: number;
}

/** An open file of the native library. Owned by whoever opened it until `close`. */
export interface OpenedFile {
  /** Its number in copy programs. */
  readonly number: number;
  facts(): FileFacts;
  /** Closes it; a lane that hangs is left behind with it. */
  close(): Promise<void>;
}

const MODES: Readonly<Record<FileOpening["mode"], number>> = {
  create: KVF_FILE_CREATE,
  replace: KVF_FILE_CREATE | KVF_FILE_REPLACE,
  existing: 0,
  temporary: KVF_FILE_TEMPORARY,
  unnamed: KVF_FILE_CREATE | KVF_FILE_TEMPORARY,
};

/**
 * Opens a file on a thread of the library; a new one has its space reserved.
 *
 * @throws KvferryError `IO` with the file's name and what the system said, `IN_USE` when another layout has it open.
 */
export async function openNativeFile(context: NativeContext, opening: FileOpening): Promise<OpenedFile> {
  const { library } = context;
  const number = await context.job(
    "register",
    (slot) =>
      library.kvf_file_open_job(
        context.address,
        slot,
        cString(opening.path),
        MODES[opening.mode] | (opening.flags ?? 0),
        opening.bytes,
        opening.depth,
      ),
    (completion) => completion.value,
  );
  return {
    number,
    facts() {
      const out = new Float64Array(new ArrayBuffer(64));
      if (library.kvf_file_facts(number, out) !== KVF_OK)
        throw new KvferryError("CLOSED", "file", `${opening.path} is closed`, "Register the layout again.");
      return {
        bytes: out[0] ?? 0,
        direct: out[1] === 1,
        memoryAlignment: out[2] ?? 0,
        offsetAlignment: out[3] ?? 0,
        ring: out[4] === 1,
        descriptor: out[5] ?? -1,
      };
    },
    async close() {
      // A context that is closed has closed its files.
      if (!context.isOpen) return;
      await context.job(
        "unregister",
        (slot) => library.kvf_file_close_job(context.address, slot, number),
        () => undefined,
      );
    },
  };
}
