import { test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BuildOptions } from "../../cshim/build.ts";
import { buildDriver, canSanitize, expectHeld, runProgram, SANITIZERS } from "./c-driver.ts";

// The file lanes' own C drivers: every mode, jobs at once, cancelling, closing, and a kernel that answers short, with an
// interruption or with an error. The sanitizers turn a silent mistake into a failure.

const DRIVERS = {
  "the file lanes hold": [
    "file_driver.c",
    "random copies",
    "cancelled copies",
    "closing while jobs run",
    "refusals",
    "files that lose their name",
  ],
  "the file lanes go on after every short, interrupted and busy answer, and name the file that refuses": [
    "file_faults.c",
    "short, interrupted and busy answers",
    "a device that refuses",
    "a device that stays busy",
    "a page cache that cannot be passed",
  ],
} as const;

async function runDriver(
  [source, ...parts]: (typeof DRIVERS)[keyof typeof DRIVERS],
  name: string,
  rounds: number,
  options: BuildOptions,
): Promise<void> {
  const program = await buildDriver(source, name, { ...options, without: ["nixl", "cuda"] });
  const folder = mkdtempSync(join(tmpdir(), "kvferry-files-"));
  try {
    expectHeld(await runProgram([program, folder, String(rounds)]), parts);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

for (const [what, driver] of Object.entries(DRIVERS)) {
  test(`${what}, at full optimisation`, () => runDriver(driver, "plain", 6, {}), 120_000);
  for (const kind of ["address", "thread"] as const)
    if (canSanitize(kind))
      test(
        `${what}, under the ${kind} sanitizer`,
        () => runDriver(driver, kind, 3, { sanitize: SANITIZERS[kind] }),
        240_000,
      );
    else
      test.skip(`NOT RUN: no compiler with the ${kind} sanitizer here: install gcc or clang`, () =>
        undefined);
}
