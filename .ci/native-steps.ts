import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execute, failed, passed, ROOT, skipped } from "./step.ts";
import type { Outcome, Step } from "./step.ts";
import { countTests } from "./suite.ts";

const BUILDS = "cshim/build/check";

/** The native library with each compiler, warnings as errors, and for the other processor. */
export const shimSteps: readonly Step[] = [
  {
    name: "native library with gcc",
    run: async () => {
      const compiler = ["gcc", "cc"].find((name) => Bun.which(name) !== null);
      if (compiler === undefined) return skipped("there is no gcc or cc on this machine");
      return await build(["--compiler", compiler, "--out", `${BUILDS}/libkvf-gcc.so`]);
    },
  },
  {
    name: "native library with clang, and for arm64",
    run: async () => {
      const here = await build(["--compiler", "zig", "--out", `${BUILDS}/libkvf-clang.so`]);
      if (here.failed > 0) return here;
      const arm = ["--target", "aarch64-linux-gnu.2.28", "--out", `${BUILDS}/libkvf-arm64.so`];
      return await build(["--compiler", "zig", ...arm]);
    },
  },
];

/**
 * Tests with a native library that checks every access (AddressSanitizer and UndefinedBehaviorSanitizer).
 *
 * @param files - Which; none for the whole suite.
 */
export const sanitizedSuite = (name: string, files: readonly string[], minutes: number): Step => ({
  name,
  run: async () => {
    const runtime = sanitizerRuntime();
    if (runtime === null) return skipped("there is no gcc with libasan on this machine");
    const library = `${BUILDS}/libkvf-asan.so`;
    const built = await build(["--compiler", "gcc", "--sanitize", "address,undefined", "--out", library]);
    if (built.failed > 0) return built;
    const logs = mkdtempSync(join(tmpdir(), "kvferry-asan-"));
    try {
      const words = [process.execPath, "test", "--timeout", "120000", "--retry", "2", ...files];
      const ended = await execute(words, {
        minutes,
        environment: {
          KVFERRY_SHIM: join(ROOT, library),
          LD_PRELOAD: runtime,
          // Bun and NIXL are not instrumented: what they leave at exit and how they mix allocators is not ours.
          ASAN_OPTIONS: `detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:allow_user_segv_handler=1:handle_segv=0:log_path=${logs}/report`,
          UBSAN_OPTIONS: `print_stacktrace=1:log_path=${logs}/report`,
        },
      });
      const outcome = countTests(words, ended);
      // A child process of a test may have died of a report without the test's noticing.
      const reports = readdirSync(logs).map((file) => readFileSync(join(logs, file), "utf8"));
      if (reports.length === 0) return outcome;
      return {
        ...outcome,
        failed: outcome.failed + 1,
        text: [outcome.text, ...reports].join("\n").slice(0, 20_000),
      };
    } finally {
      rmSync(logs, { recursive: true, force: true });
    }
  },
});

async function build(flags: readonly string[]): Promise<Outcome> {
  const words = [process.execPath, "cshim/build.ts", ...flags];
  const ended = await execute(words, { minutes: 4 });
  return ended.code === 0 ? passed() : failed(`${words.join(" ")}\n${ended.output}`);
}

function sanitizerRuntime(): string | null {
  if (Bun.which("gcc") === null) return null;
  const path = Bun.spawnSync(["gcc", "-print-file-name=libasan.so"]).stdout.toString().trim();
  return path.startsWith("/") && existsSync(path) ? path : null;
}
