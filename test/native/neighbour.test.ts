import { test } from "bun:test";
import type { BuildOptions } from "../../cshim/build.ts";
import { buildDriver, canSanitize, expectHeld, runProgram, SANITIZERS } from "./c-driver.ts";

// Neighbour objects without JavaScript: messages, by the socket and by rings, descriptors, what must not be mapped,
// strangers, hostile neighbours, processes that end, closing while messages fly. The sanitizers turn a silent mistake into a failure.

const PARTS = [
  "messages",
  "looking",
  "last words",
  "descriptors",
  "refused maps",
  "several files",
  "refused files",
  "rings",
  "full rings",
  "hostile rings",
  "scribbled rings",
  "strangers",
  "ends of processes",
  "closing under fire",
];

async function runDriver(name: string, percent: number, options: BuildOptions): Promise<void> {
  const program = await buildDriver("neighbour_driver.c", name, { ...options, without: ["nixl", "cuda"] });
  // The thread sanitizer's own threads do not survive a fork; what a child does then is an exit at most.
  const environment = { TSAN_OPTIONS: "halt_on_error=1:die_after_fork=0" };
  expectHeld(await runProgram([program, String(percent)], environment), PARTS);
}

test("neighbour driver holds at full optimisation", () => runDriver("plain", 100, {}), 120_000);

for (const kind of ["address", "thread"] as const)
  if (canSanitize(kind))
    test(
      `neighbour driver holds under the ${kind} sanitizer`,
      () => runDriver(kind, 30, { sanitize: SANITIZERS[kind] }),
      240_000,
    );
  else
    test.skip(`NOT RUN: no compiler with the ${kind} sanitizer here: install gcc or clang`, () => undefined);
