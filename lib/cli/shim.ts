import { existsSync } from "node:fs";
import { join } from "node:path";

import type * as Builder from "../../cshim/build.ts";
import { isKvferryError, KvferryError } from "../core/errors.ts";
import { libraryPath, openLibrary, SHIM_VARIABLE } from "../native/library.ts";
import { ABI_HASH } from "../native/symbols.ts";
import { isClone, PACKAGE_ROOT } from "./checkout.ts";

/** What the doctor says about the native library. */
export interface ShimState {
  readonly ok: boolean;
  readonly found: string;
  readonly remedy: string;
}

/**
 * Builds the native library of a clone unless it is there and current; an installed package brings its own.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM` when there is none and none can be built, with the compiler's words.
 */
export async function readyShim(note: (line: string) => void): Promise<void> {
  const given = process.env[SHIM_VARIABLE] ?? "";
  const prebuilt = join(PACKAGE_ROOT, "cshim/prebuilt", `${process.platform}-${process.arch}`, "libkvf.so");
  if (given !== "" || existsSync(prebuilt) || !isClone()) return void libraryPath();
  // Named at run time: the builder is no part of the package, nor of an executable.
  const builder: string = join(PACKAGE_ROOT, "cshim/build.ts");
  const { buildShim } = (await import(builder)) as typeof Builder;
  try {
    await buildShim({ note });
  } catch (error) {
    throw new KvferryError(
      "UNSUPPORTED_PLATFORM",
      "setup",
      `The native library could not be built: ${error instanceof Error ? error.message : String(error)}`,
      "Install a C compiler (Debian, Ubuntu: apt-get install gcc libc6-dev), or Python 3 with pip, which fetches one.",
      {},
      error,
    );
  }
}

/** Opens the native library and says what came of it. */
export function shimState(): ShimState {
  try {
    openLibrary();
    return { ok: true, found: `${libraryPath()}, interface ${ABI_HASH}`, remedy: "" };
  } catch (error) {
    if (isKvferryError(error)) return { ok: false, found: error.message, remedy: error.remedy };
    return { ok: false, found: String(error), remedy: "bun run build:shim" };
  }
}
