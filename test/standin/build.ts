// Builds the stand-in for libnixl_capi.so, and a library without any function, for tests.

import { mkdirSync, readdirSync, renameSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { SHIM_FOLDER } from "../../cshim/generate.ts";
import { zigCommand } from "../../cshim/zig.ts";

const SOURCE: string = join(import.meta.dir, "nixl_capi.c");

/** How {@link buildStandin} compiles. */
export interface StandinOptions {
  /** Sanitizers as the compiler names them; the program that loads the library must have them too. */
  readonly sanitize?: string;
  /** The compiler's command; default `cc`, else Zig's. */
  readonly compiler?: readonly string[];
}

/**
 * Compiles `nixl_capi.c` to a shared library unless it is there and newer than its sources. Several builders at once
 * are safe.
 *
 * @param out - Path of the result.
 * @returns `out`.
 * @throws Error with the compiler's words.
 */
export async function buildStandin(out: string, options: StandinOptions = {}): Promise<string> {
  if (newerThan(out, [SOURCE, join(SHIM_FOLDER, "nixl_api.h")])) return out;
  const sanitize = options.sanitize === undefined ? ["-O2"] : ["-O1", "-g", `-fsanitize=${options.sanitize}`];
  await compile(out, options.compiler, ["-I", SHIM_FOLDER, ...sanitize, SOURCE, "-lpthread"]);
  return out;
}

/**
 * Compiles `cuda.c`, the stand-in for libcuda.so.1, unless it is there and newer than its sources.
 *
 * @param out - Path of the result.
 * @returns `out`.
 * @throws Error with the compiler's words.
 */
export async function buildCudaStandin(out: string, options: StandinOptions = {}): Promise<string> {
  const sources = [
    join(import.meta.dir, "cuda.c"),
    join(SHIM_FOLDER, "cuda_driver.h"),
    ...readdirSync(join(SHIM_FOLDER, "kernels"))
      .filter((name) => name.endsWith(".h"))
      .map((name) => join(SHIM_FOLDER, "kernels", name)),
  ];
  if (newerThan(out, sources)) return out;
  const sanitize = options.sanitize === undefined ? ["-O2"] : ["-O1", "-g", `-fsanitize=${options.sanitize}`];
  await compile(out, options.compiler, ["-I", SHIM_FOLDER, ...sanitize, sources[0] ?? "", "-lpthread"]);
  return out;
}

/**
 * Compiles `hang_fs.c`, a file system that stops answering on demand, unless it is there and newer than its source.
 *
 * @param out - Path of the program.
 * @returns `out`.
 * @throws Error with the compiler's words.
 */
export async function buildHangingFiles(out: string): Promise<string> {
  const source = join(import.meta.dir, "hang_fs.c");
  if (!newerThan(out, [source])) await compile(out, undefined, ["-O1", source, "-lpthread"], []);
  return out;
}

/** Compiles a shared library that has no function at all. */
export async function buildEmptyLibrary(out: string): Promise<string> {
  if (!newerThan(out, [])) await compile(out, undefined, ["-x", "c", "/dev/null"]);
  return out;
}

/** Compiles a shared library that ends the process that loads it. */
export async function buildDeadlyLibrary(out: string): Promise<string> {
  const source = `${out}.c`;
  mkdirSync(dirname(out), { recursive: true });
  await Bun.write(
    source,
    "#include <stdlib.h>\n__attribute__((constructor)) static void end(void) { abort(); }\n",
  );
  await compile(out, undefined, [source]);
  return out;
}

function newerThan(out: string, sources: readonly string[]): boolean {
  const made = statSync(out, { throwIfNoEntry: false })?.mtimeMs;
  return made !== undefined && sources.every((source) => statSync(source).mtimeMs < made);
}

async function compile(
  out: string,
  compiler: readonly string[] | undefined,
  args: readonly string[],
  library: readonly string[] = ["-fPIC", "-shared", "-fvisibility=hidden"],
): Promise<void> {
  const command =
    compiler ?? (Bun.which("cc") === null ? [...(await zigCommand(() => undefined)), "cc"] : ["cc"]);
  mkdirSync(dirname(out), { recursive: true });
  const made = `${out}.${process.pid}.tmp`;
  const flags = ["-std=c17", "-Wall", "-Wextra", "-Werror", ...library];
  const child = Bun.spawn([...command, ...flags, ...args, "-o", made], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [words, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  if (code !== 0) throw new Error(`the stand-in could not be compiled:\n${words}`);
  renameSync(made, out);
}
