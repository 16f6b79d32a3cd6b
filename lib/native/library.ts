import { dlopen, type Pointer } from "bun:ffi";
import { KvferryError } from "../core/errors.ts";
import { embeddedShim } from "./embedded.ts";
import { nodeLibrary } from "./node-library.ts";
import { glibcVersion, platformRefusal } from "./platform.ts";
import type { PlatformFacts } from "./platform.ts";
import { ABI_HASH, symbols } from "./symbols.ts";

/** What may be given for a parameter: addresses and 64-bit integers as numbers, buffers as views. */
export type NativeArgument<Kind extends string> = Kind extends "ptr"
  ? number | NodeJS.TypedArray | DataView | ArrayBufferLike | Pointer | null
  : number;

/** Parameters of a native function from its entry in {@link symbols}. */
export type NativeArguments<Kinds extends readonly string[]> = {
  -readonly [Index in keyof Kinds]: NativeArgument<Kinds[Index]>;
};

/** The native library: its functions by name, each returning a status. It is never closed. */
export type NativeLibrary = {
  readonly [Name in keyof typeof symbols]: (
    ...values: NativeArguments<(typeof symbols)[Name]["args"]>
  ) => number;
};

/** Environment variable with the path of a library to use instead of the package's own. */
export const SHIM_VARIABLE = "KVFERRY_SHIM" as const;

/** The package's folder, two above this file's. */
const ROOT: string = import.meta.dir.replace(/(?:\/[^/]+){2}$/, "");

let opened: NativeLibrary | undefined;

/**
 * The native library, opened at the first call; one for each JavaScript global.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM` when this is not Linux on x64 or arm64 with glibc, when no library was
 * built, when it cannot be loaded, or when it was built from another version of the interface.
 */
export function openLibrary(): NativeLibrary {
  opened ??= openFrom(libraryPath());
  return opened;
}

/**
 * Where the native library is: `KVFERRY_SHIM`, else one inside this executable, else one that came prebuilt, else one
 * that was built here.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM` when there is none.
 */
export function libraryPath(): string {
  const platform = `${process.platform}-${process.arch}`;
  refusePlatform({ system: process.platform, processor: process.arch });
  const given = process.env[SHIM_VARIABLE];
  if (embeddedShim !== null && (given === undefined || given === "")) return embeddedShim.path;
  const candidates =
    given !== undefined && given !== ""
      ? [nodeLibrary.path.resolve(given)]
      : [`${ROOT}/cshim/prebuilt/${platform}/libkvf.so`, `${ROOT}/cshim/build/libkvf.so`];
  const found = candidates.find((path) => Bun.file(path).size > 0);
  if (found === undefined)
    throw unsupported("kvferry's native library is not there", IN_EXECUTABLE ? EMBED : howToBuild(), {
      platform,
      looked: candidates,
    });
  return found;
}

/** An installed package brings its libraries and cannot build them. */
function howToBuild(): string {
  return nodeLibrary.fs.existsSync(`${ROOT}/cshim/build.ts`)
    ? "Run `bun run build:shim` in kvferry's folder."
    : "Install the package again: `bun install --force`. Where KVFERRY_SHIM is set, unset it.";
}

const EMBED =
  "Build the executable with the plugin of `kvferry/plugin`, which puts the library into it, or name one by KVFERRY_SHIM.";

/** Whether this is an executable of `bun build --compile`, whose modules lie in a file system of its own. */
const IN_EXECUTABLE: boolean = import.meta.dir.startsWith("/$bunfs/");

function openFrom(path: string): NativeLibrary {
  let library: NativeLibrary;
  try {
    // The library is never closed: its threads may run as long as the process does.
    library = dlopen(path, symbols).symbols as unknown as NativeLibrary;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    refusePlatform({ system: process.platform, processor: process.arch, glibc: glibcVersion() }, error);
    // A symbol is missing when the library was built before the symbol was declared.
    throw unsupported(
      `kvferry's native library ${path} could not be opened: ${reason}`,
      howToBuild(),
      { path, reason },
      error,
    );
  }
  const answer = new Uint8Array(new ArrayBuffer(32));
  library.kvf_abi_hash(answer, answer.byteLength);
  const hash = new TextDecoder().decode(answer.subarray(0, answer.indexOf(0)));
  if (hash !== ABI_HASH) {
    throw unsupported(
      `kvferry's native library ${path} is stale: it was built from interface ${hash}, this is ${ABI_HASH}`,
      howToBuild(),
      {
        path,
        found: hash,
        wanted: ABI_HASH,
      },
    );
  }
  return library;
}

/** The C library is looked at only where something failed: elsewhere it would cost every start. */
function refusePlatform(facts: PlatformFacts, cause?: unknown): void {
  const refusal = platformRefusal(facts);
  if (refusal !== null) throw unsupported(refusal.message, refusal.remedy, { ...facts }, cause);
}

function unsupported(
  message: string,
  remedy: string,
  details: Readonly<Record<string, unknown>>,
  cause?: unknown,
): KvferryError {
  return new KvferryError("UNSUPPORTED_PLATFORM", "open", message, remedy, details, cause);
}
