import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { buildShim, hasCommand, type BuildOptions } from "../../cshim/build.ts";

// The library's own C driver, without JavaScript: contexts, the ring under many producers, copies against the
// definition of a hop, cancelling, closing while work runs. The sanitizers turn a silent mistake into a failure.

const PARTS = [
  "contexts and slots",
  "ring under many producers",
  "pool widths",
  "socket doorbell",
  "closing while jobs run",
  "memory",
  "blake3",
  "patterns",
  "random hops",
  "split rows, many programs, many runs",
  "programs in order",
  "cursor",
  "bad hops",
  "cancelled copies",
];

const DRIVER = join(import.meta.dir, "driver.c");

/** Whether the system's compiler links programs with this sanitizer: its library is a package of its own. */
function canSanitize(kind: string): boolean {
  if (!hasCommand("cc")) return false;
  const library = kind === "thread" ? "libtsan.so" : "libasan.so";
  const found = Bun.spawnSync(["cc", `-print-file-name=${library}`])
    .stdout.toString()
    .trim();
  if (found.includes("/") && existsSync(found)) return true;
  // clang has them as archives in its resource directory.
  const folder = Bun.spawnSync(["cc", "-print-runtime-dir"]).stdout.toString().trim();
  return folder !== "" && existsSync(folder);
}

async function runDriver(name: string, percent: number, options: BuildOptions): Promise<void> {
  const out = join(import.meta.dir, "..", "..", "cshim", "build", `driver-${name}`);
  // NIXL and CUDA have drivers of their own; left out, their functions must answer that they are not there.
  const program = await buildShim({ ...options, program: DRIVER, without: ["nixl", "cuda"], out });
  const child = Bun.spawn([program, String(percent)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    // The driver brings its own sanitizer: one that the tests themselves run under would not bear another.
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
}

test("driver holds at full optimisation", () => runDriver("plain", 25, {}), 120_000);

if (canSanitize("address")) {
  test(
    "driver touches no byte that is not its own (address and undefined behaviour sanitizers)",
    () => runDriver("asan", 10, { sanitize: "address,undefined" }),
    180_000,
  );
} else {
  test.skip("NOT RUN: no compiler with the address sanitizer here: install gcc or clang", () => undefined);
}

if (canSanitize("thread")) {
  test(
    "driver has no data race (thread sanitizer)",
    () => runDriver("tsan", 6, { sanitize: "thread" }),
    240_000,
  );
} else {
  test.skip("NOT RUN: no compiler with the thread sanitizer here: install gcc or clang", () => undefined);
}
