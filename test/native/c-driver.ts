// What the tests of the library's C drivers share: building one, running it, and the sanitizers that this machine has.
import { expect } from "bun:test";
import { basename, join } from "node:path";
import { buildShim, hasCommand, type BuildOptions } from "../../cshim/build.ts";

/** Where drivers are built. */
export const DRIVER_FOLDER: string = join(import.meta.dir, "..", "..", "cshim", "build");

/** A sanitizer by its short name, as compilers are told. */
export const SANITIZERS = { address: "address,undefined", thread: "thread" } as const;

/** A sanitizer's short name. */
export type Sanitizer = keyof typeof SANITIZERS;

/** How a driver ended. */
export interface DriverEnded {
  readonly code: number;
  /** Standard error. */
  readonly said: string;
  /** Standard output, line by line. */
  readonly lines: readonly string[];
}

/** Whether the system's compiler links programs with this sanitizer: its library is a package of its own. */
export function canSanitize(kind: Sanitizer): boolean {
  if (!hasCommand("cc")) return false;
  const program = Buffer.from("int main(void) { return 0; }\n");
  const words = ["cc", `-fsanitize=${SANITIZERS[kind]}`, "-x", "c", "-", "-o", "/dev/null"];
  return Bun.spawnSync(words, { stdin: program, stdout: "ignore", stderr: "ignore" }).success;
}

/**
 * Builds a driver of this folder.
 *
 * @param source - Its C file.
 * @param name - Tells builds of one source apart.
 */
export function buildDriver(source: string, name: string, options: BuildOptions): Promise<string> {
  const program = join(import.meta.dir, source);
  return buildShim({ ...options, program, out: join(DRIVER_FOLDER, `${basename(source, ".c")}-${name}`) });
}

/** Runs a program to its end. */
export async function runProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<DriverEnded> {
  const child = Bun.spawn([...words], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: {
      ...process.env,
      // The driver brings its own sanitizer: one that the tests themselves run under would not bear another.
      LD_PRELOAD: "",
      ASAN_OPTIONS: "detect_leaks=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
      TSAN_OPTIONS: "halt_on_error=1",
      ...environment,
    },
  });
  const [held, said, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, said, lines: held.trim().split("\n") };
}

/** Demands that a driver held every one of its parts, in order, and said nothing else. */
export function expectHeld(ended: DriverEnded, parts: readonly string[]): void {
  expect({ code: ended.code, said: ended.said }).toEqual({ code: 0, said: "" });
  expect(ended.lines).toEqual(parts.map((part) => `held ${part}`));
}
