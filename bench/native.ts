import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { basename, join } from "node:path";

import { hasCommand } from "../cshim/build.ts";
import { SHIM_FOLDER } from "../cshim/generate.ts";
import { zigCommand } from "../cshim/zig.ts";

const FOLDER: string = join(import.meta.dirname, "native");
const BUILD_FOLDER: string = join(SHIM_FOLDER, "build", "bench");

/**
 * Builds a C file of bench/native with the machine's compiler, else with Zig's, unless it was built before.
 *
 * @param name - Without folder, e.g. `host_copy.c`.
 * @param kind - A program, or a library for `bun:ffi`.
 * @returns The path of the result.
 * @throws Error with the compiler's words.
 */
export async function buildNative(
  name: string,
  kind: "program" | "library",
  note: (line: string) => void = () => undefined,
): Promise<string> {
  const source = join(FOLDER, name);
  const flags = ["-O3", "-std=c17", "-Wall", "-Wextra", "-Werror", `-I${SHIM_FOLDER}`];
  if (kind === "library") flags.push("-shared", "-fPIC", "-fvisibility=hidden");
  const key = createHash("sha256")
    .update([kind, ...flags, readFileSync(source, "utf8"), headersText()].join("\0"))
    .digest("hex")
    .slice(0, 16);
  const out = join(BUILD_FOLDER, `${basename(name, ".c")}-${key}${kind === "library" ? ".so" : ""}`);
  if (existsSync(out)) return out;
  mkdirSync(BUILD_FOLDER, { recursive: true });
  const compiler = hasCommand("cc") ? ["cc"] : [...(await zigCommand(note)), "cc", "-fno-sanitize=undefined"];
  const fresh = `${out}.${process.pid}.tmp`;
  note(`building ${name} with ${compiler.join(" ")}`);
  const run = Bun.spawnSync([...compiler, ...flags, source, "-o", fresh, "-ldl", "-lpthread"], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  if (run.exitCode !== 0) throw new Error(`${name} does not compile:\n${run.stderr.toString()}`);
  renameSync(fresh, out);
  return out;
}

/** The headers of the library that programs of bench/native include. */
function headersText(): string {
  return readFileSync(join(SHIM_FOLDER, "nixl_api.h"), "utf8");
}
