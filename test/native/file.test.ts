import { test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BuildOptions } from "../../cshim/build.ts";
import { buildDriver, canSanitize, expectHeld, runProgram, SANITIZERS } from "./c-driver.ts";

// The file lanes' own C driver: every mode, jobs at once, cancelling, closing. The sanitizers turn a silent mistake into a
// failure.

const PARTS = ["random copies", "cancelled copies", "closing while jobs run", "refusals"];

async function runDriver(name: string, rounds: number, options: BuildOptions): Promise<void> {
  const program = await buildDriver("file_driver.c", name, { ...options, without: ["nixl", "cuda"] });
  const folder = mkdtempSync(join(tmpdir(), "kvferry-files-"));
  try {
    expectHeld(await runProgram([program, folder, String(rounds)]), PARTS);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("the file lanes hold at full optimisation", () => runDriver("plain", 6, {}), 120_000);

for (const kind of ["address", "thread"] as const)
  if (canSanitize(kind))
    test(
      `the file lanes hold under the ${kind} sanitizer`,
      () => runDriver(kind, 3, { sanitize: SANITIZERS[kind] }),
      240_000,
    );
  else
    test.skip(`NOT RUN: no compiler with the ${kind} sanitizer here: install gcc or clang`, () => undefined);
