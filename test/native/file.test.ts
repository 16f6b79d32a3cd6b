import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildShim, hasCommand, type BuildOptions } from "../../cshim/build.ts";

// The file lanes' own C driver: every mode, jobs at once, cancelling, closing. The sanitizers turn a silent mistake into a
// failure.

const DRIVER = join(import.meta.dir, "file_driver.c");
const PARTS = ["random copies", "cancelled copies", "closing while jobs run", "refusals"];

async function runDriver(name: string, rounds: number, options: BuildOptions): Promise<void> {
  const out = join(import.meta.dir, "..", "..", "cshim", "build", `file_driver-${name}`);
  const program = await buildShim({ ...options, program: DRIVER, without: ["nixl", "cuda"], out });
  const folder = mkdtempSync(join(tmpdir(), "kvferry-files-"));
  try {
    const child = Bun.spawn([program, folder, String(rounds)], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env: {
        ...process.env,
        LD_PRELOAD: "",
        ASAN_OPTIONS: "detect_leaks=1",
        UBSAN_OPTIONS: "print_stacktrace=1",
        TSAN_OPTIONS: "halt_on_error=1",
      },
    });
    const [held, said, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    expect({ code, said }).toEqual({ code: 0, said: "" });
    expect(held.trim().split("\n")).toEqual(PARTS.map((part) => `held ${part}`));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("the file lanes hold at full optimisation", () => runDriver("plain", 6, {}), 120_000);

function canSanitize(library: string): boolean {
  if (!hasCommand("cc")) return false;
  return Bun.spawnSync(["cc", `-print-file-name=${library}`])
    .stdout.toString()
    .trim()
    .includes("/");
}

for (const [name, sanitize, library] of [
  ["asan", "address,undefined", "libasan.so"],
  ["tsan", "thread", "libtsan.so"],
] as const) {
  if (canSanitize(library))
    test(
      `the file lanes hold under the sanitizers: ${sanitize}`,
      () => runDriver(name, 3, { sanitize }),
      240_000,
    );
  else test.skip(`NOT RUN: no compiler with the sanitizers ${sanitize} here: install gcc`, () => undefined);
}
