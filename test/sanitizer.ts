import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const ROOT = resolve(import.meta.dirname, "..");
const LIBRARY = join(ROOT, "cshim/build/check/libkvf-asan.so");

/** What a run under the sanitizers left behind: the program's own answer and what was reported. */
export interface SanitizedRun<Answer> {
  readonly answer: Answer;
  readonly reports: readonly string[];
}

/** Whether this machine can check accesses: gcc with its sanitizer's runtime. */
export function sanitizerRuntime(): string | null {
  if (Bun.which("gcc") === null) return null;
  const path = Bun.spawnSync(["gcc", "-print-file-name=libasan.so"]).stdout.toString().trim();
  return path.startsWith("/") && existsSync(path) ? path : null;
}

/** Builds the native library that checks every access (AddressSanitizer, UndefinedBehaviorSanitizer); throws what the compiler said. */
export async function buildSanitized(): Promise<void> {
  const flags = ["--compiler", "gcc", "--sanitize", "address,undefined", "--out", LIBRARY];
  const built = Bun.spawn([process.execPath, "cshim/build.ts", ...flags], {
    cwd: ROOT,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, words, code] = await Promise.all([
    new Response(built.stdout).text(),
    new Response(built.stderr).text(),
    built.exited,
  ]);
  if (code !== 0) throw new Error(`the checking library could not be built:\n${out}${words}`);
}

/**
 * Runs something in the environment of the checking library and gathers what the sanitizers report, in processes that it
 * started too.
 *
 * @param runtime - From {@link sanitizerRuntime}.
 * @param run - Gets the environment variables that its processes need.
 */
export async function underSanitizers<Answer>(
  runtime: string,
  run: (environment: Readonly<Record<string, string>>) => Promise<Answer>,
): Promise<SanitizedRun<Answer>> {
  const logs = mkdtempSync(join(tmpdir(), "kvferry-asan-"));
  try {
    const answer = await run({
      KVFERRY_SHIM: LIBRARY,
      // The sanitizer must find the C++ library's throw before NIXL brings it: NIXL throws where an endpoint cannot be made.
      LD_PRELOAD: `${runtime} libstdc++.so.6`,
      // Bun and NIXL are not instrumented: what they leave at exit and how they mix allocators is not ours.
      ASAN_OPTIONS: `detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:allow_user_segv_handler=1:handle_segv=0:log_path=${logs}/report`,
      UBSAN_OPTIONS: `print_stacktrace=1:log_path=${logs}/report`,
    });
    return { answer, reports: readdirSync(logs).map((file) => readFileSync(join(logs, file), "utf8")) };
  } finally {
    rmSync(logs, { recursive: true, force: true });
  }
}
