import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { buildShim, hasCommand, type BuildOptions } from "../../cshim/build.ts";

// Neighbour objects without JavaScript: messages, descriptors, what must not be mapped, strangers, processes that end,
// closing while messages fly. The sanitizers turn a silent mistake into a failure.

const PARTS = [
  "messages",
  "looking",
  "descriptors",
  "refused maps",
  "strangers",
  "ends of processes",
  "closing under fire",
];

const DRIVER = join(import.meta.dir, "neighbour_driver.c");

/** Whether the system's compiler links programs with this sanitizer: its library is a package of its own. */
function canSanitize(kind: string): boolean {
  if (!hasCommand("cc")) return false;
  const library = kind === "thread" ? "libtsan.so" : "libasan.so";
  const found = Bun.spawnSync(["cc", `-print-file-name=${library}`])
    .stdout.toString()
    .trim();
  return found.includes("/") && existsSync(found);
}

async function runDriver(name: string, percent: number, options: BuildOptions): Promise<void> {
  const out = join(import.meta.dir, "..", "..", "cshim", "build", `neighbour-driver-${name}`);
  const program = await buildShim({ ...options, program: DRIVER, without: ["nixl", "cuda"], out });
  const child = Bun.spawn([program, String(percent)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: {
      ...process.env,
      LD_PRELOAD: "",
      ASAN_OPTIONS: "detect_leaks=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
      // The thread sanitizer's own threads do not survive a fork; what a child does then is an exit at most.
      TSAN_OPTIONS: "halt_on_error=1:die_after_fork=0",
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

test("neighbour driver holds at full optimisation", () => runDriver("plain", 100, {}), 120_000);

for (const [kind, name, sanitize] of [
  ["address", "asan", "address,undefined"],
  ["thread", "tsan", "thread"],
] as const)
  if (canSanitize(kind))
    test(
      `neighbour driver holds under the ${kind} sanitizer`,
      () => runDriver(name, 30, { sanitize }),
      240_000,
    );
  else
    test.skip(`NOT RUN: no compiler with the ${kind} sanitizer here: install gcc or clang`, () => undefined);
