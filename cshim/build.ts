#!/usr/bin/env bun
// Builds the native library. Unchanged sources are not compiled again; several builders at once are safe.
//
//   bun cshim/build.ts [--compiler cc|gcc|clang|zig] [--sanitize address,undefined|thread] [--target TRIPLE]
//                      [--out FILE] [--program FILE.c] [--without nixl,cuda] [--debug]

import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { readAbi, SHIM_FOLDER, stubsSource } from "./generate.ts";
import { zigCommand } from "./zig.ts";

/** A compiler that {@link buildShim} can be asked for. */
export type CompilerName = "cc" | "gcc" | "clang" | "zig";

/** What to build and how. */
export interface BuildOptions {
  /** Default: `cc` where there is one, else `zig`. A target needs `zig`. */
  readonly compiler?: CompilerName;
  /** Sanitizers as the compiler names them, e.g. `address,undefined` or `thread`. */
  readonly sanitize?: string;
  /** Where the result goes; default `cshim/build/libkvf.so` or `cshim/build/<program>`. */
  readonly out?: string;
  /** No optimisation, debugging symbols. */
  readonly debug?: boolean;
  /** Another machine or C library, e.g. `aarch64-linux-gnu.2.28`; with zig the default is this machine's kind. */
  readonly target?: string;
  /** A C file with `main`: builds a program from it and the library's sources instead of the library. */
  readonly program?: string;
  /** Parts to leave out: sources whose names begin so. Their functions answer that they are unavailable. */
  readonly without?: readonly string[];
  /** Further flags for compiling and linking. */
  readonly flags?: readonly string[];
  /** Is told what happens, a line at a time; default: nobody. */
  readonly note?: (line: string) => void;
}

const BUILD_FOLDER: string = join(SHIM_FOLDER, "build");
const COMMON_FLAGS: readonly string[] = [
  "-std=c17",
  "-D_GNU_SOURCE=",
  "-fvisibility=hidden",
  "-fno-strict-aliasing",
  "-fPIC",
  "-pthread",
  "-Wall",
  "-Wextra",
  "-Werror",
];

/**
 * Builds the native library (or a program with it) unless what is there was made from the same sources and flags.
 *
 * @returns The path of the result.
 * @throws Error with the compiler's words when it fails, or with what to install when there is no compiler.
 */
export async function buildShim(options: BuildOptions = {}): Promise<string> {
  const note = options.note ?? (() => undefined);
  const out = resolve(options.out ?? join(BUILD_FOLDER, defaultName(options)));
  const abi = readAbi();
  const name = options.compiler ?? (options.target === undefined && hasCommand("cc") ? "cc" : "zig");
  const flags = flagsOf(options, abi.hash);
  const sources = sourcesOf(options);
  const inputs = inputsText(options);
  // Which compiler was asked for is part of the key, which one there is is not: another does not make a library stale.
  const wanted = digest(options.compiler ?? "", ...flags, stubsSource(abi), ...sources.map(readText), inputs);
  if (isCurrent(out, wanted)) return out;

  const compiler = await commandOf(name, options, note);
  const work = join(BUILD_FOLDER, "objects");
  mkdirSync(work, { recursive: true });
  mkdirSync(dirname(out), { recursive: true });
  const stubs = join(work, `stubs-${abi.hash}.c`);
  writeAtomically(stubs, stubsSource(abi));
  note(`building ${relative(process.cwd(), out)} with ${compiler.join(" ")}`);
  const objects = await compileAll(compiler, flags, [...sources, stubs], work, inputs);
  const fresh = temporaryName(out);
  const kind = options.program === undefined ? ["-shared", "-Wl,-soname,libkvf.so", "-Wl,-z,defs"] : [];
  await run([
    ...compiler,
    ...flags,
    ...(options.sanitize === undefined ? kind : kind.slice(0, 2)),
    ...objects,
    "-o",
    fresh,
    "-lpthread",
    "-ldl",
    "-lm",
  ]);
  writeAtomically(`${out}.stamp`, stampOf(wanted, fresh));
  renameSync(fresh, out);
  return out;
}

/** Whether a command of this name can be run. */
export function hasCommand(name: string): boolean {
  return Bun.which(name) !== null;
}

function defaultName(options: BuildOptions): string {
  return options.program === undefined ? "libkvf.so" : basename(options.program, ".c");
}

function flagsOf(options: BuildOptions, hash: string): string[] {
  const flags = [...COMMON_FLAGS, `-DKVF_ABI_HASH="${hash}"`, `-I${SHIM_FOLDER}`];
  if (options.sanitize === undefined) flags.push(options.debug === true ? "-O0" : "-O3");
  else flags.push("-O1", "-fno-omit-frame-pointer", `-fsanitize=${options.sanitize}`);
  if (options.sanitize?.includes("undefined") === true) flags.push("-fno-sanitize-recover=undefined");
  if (options.debug === true || options.sanitize !== undefined) flags.push("-g");
  if (options.target !== undefined) flags.push("-target", options.target);
  return [...flags, ...(options.flags ?? [])];
}

function sourcesOf(options: BuildOptions): string[] {
  const sources = readdirSync(SHIM_FOLDER)
    .filter((name) => name.endsWith(".c") && !options.without?.some((part) => name.startsWith(part)))
    .sort()
    .map((name) => join(SHIM_FOLDER, name));
  return options.program === undefined ? sources : [...sources, resolve(options.program)];
}

/** Everything besides the sources that compiling may read: headers, and what is embedded. */
function inputsText(options: BuildOptions): string {
  const folders =
    options.program === undefined ? [SHIM_FOLDER] : [SHIM_FOLDER, dirname(resolve(options.program))];
  const hash = createHash("sha256");
  for (const folder of folders) {
    for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" }).sort()) {
      if (!/\.(?:h|inc|bin)$/.test(name) || /^(?:build|prebuilt)\//.test(name)) continue;
      hash.update(`${name}\0`).update(readFileSync(join(folder, name)));
    }
  }
  return hash.digest("hex");
}

async function commandOf(
  name: CompilerName,
  options: BuildOptions,
  note: (line: string) => void,
): Promise<string[]> {
  if (name === "zig") {
    // Without a target Zig compiles for this very processor and C library; the result should run on its siblings too.
    const target =
      options.target === undefined
        ? ["-target", `${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu.2.28`]
        : [];
    const unsanitized = options.sanitize === undefined ? ["-fno-sanitize=undefined"] : [];
    return [...(await zigCommand(note)), "cc", ...target, ...unsanitized];
  }
  if (!hasCommand(name))
    throw new Error(`there is no ${name} on the PATH; leave --compiler out, or use --compiler zig`);
  return [name];
}

/** Compiles each source into an object named by the hash of all that it depends on; two at a time. */
async function compileAll(
  compiler: readonly string[],
  flags: readonly string[],
  sources: readonly string[],
  work: string,
  inputs: string,
): Promise<string[]> {
  const objects = sources.map((source) => {
    const key = digest(...compiler, ...flags, inputs, source, readText(source));
    return { source, object: join(work, `${basename(source, ".c")}-${key.slice(0, 16)}.o`) };
  });
  const waiting = objects.filter(({ object }) => !existsSync(object));
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const fresh = temporaryName(next.object);
      await run([...compiler, ...flags, "-c", next.source, "-o", fresh]);
      renameSync(fresh, next.object);
    }
  };
  await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, worker));
  forgetOldObjects(work, new Set(objects.map(({ object }) => basename(object))));
  return objects.map(({ object }) => object);
}

/** Keeps the folder from growing for ever: objects that nobody made or used for two days go. */
function forgetOldObjects(work: string, used: ReadonlySet<string>): void {
  const limit = Date.now() - 2 * 86_400_000;
  for (const name of readdirSync(work)) {
    const path = join(work, name);
    if (!used.has(name) && (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? limit) < limit)
      rmSync(path, { force: true });
  }
}

async function run(command: readonly string[]): Promise<void> {
  const child = Bun.spawn([...command], {
    cwd: SHIM_FOLDER,
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [words, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  if (code !== 0) throw new Error(`${command.join(" ")}\nended with status ${code}:\n${words}`);
}

function isCurrent(out: string, wanted: string): boolean {
  try {
    return readText(`${out}.stamp`) === stampOf(wanted, out);
  } catch {
    return false;
  }
}

/** The key of the inputs and the digest of the result, so that a stamp never vouches for somebody else's file. */
function stampOf(wanted: string, result: string): string {
  return `${wanted} ${createHash("sha256").update(readFileSync(result)).digest("hex")}\n`;
}

function digest(...parts: readonly string[]): string {
  return createHash("sha256").update(parts.join("\0")).digest("hex");
}

function readText(path: string): string {
  return readFileSync(path, "utf8");
}

function writeAtomically(path: string, text: string): void {
  const fresh = temporaryName(path);
  writeFileSync(fresh, text);
  renameSync(fresh, path);
}

let made = 0;

/** A name that no other builder uses, in this process or another. */
function temporaryName(path: string): string {
  return `${path}.${process.pid}-${made++}.tmp`;
}

function valueOf(name: string): string | undefined {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
}

async function main(): Promise<void> {
  const compiler = valueOf("--compiler");
  if (compiler !== undefined && !["cc", "gcc", "clang", "zig"].includes(compiler))
    throw new Error(`--compiler ${compiler}: cc, gcc, clang and zig are known`);
  const [sanitize, out, target, program] = ["--sanitize", "--out", "--target", "--program"].map(valueOf);
  const without = valueOf("--without");
  const path = await buildShim({
    ...(compiler === undefined ? {} : { compiler: compiler as CompilerName }),
    ...(sanitize === undefined ? {} : { sanitize }),
    ...(out === undefined ? {} : { out }),
    ...(target === undefined ? {} : { target }),
    ...(program === undefined ? {} : { program }),
    ...(without === undefined ? {} : { without: without.split(",") }),
    debug: process.argv.includes("--debug"),
    note: (line) => console.error(line),
  });
  console.log(path);
}

if (import.meta.main) {
  await main().catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : String(error));
    process.exit(1);
  });
}
