// Runs a file of CUDA cases in a process of its own: a driver is loaded once for a process, and a fault ends its device.
import { expect } from "bun:test";
import { join, resolve } from "node:path";

const ROOT = resolve(import.meta.dir, "..", "..");

/** How one file of cases ended. */
export interface CasesOutcome {
  readonly code: number;
  readonly passed: number;
  readonly failed: number;
  readonly said: string;
}

/**
 * Runs `bun test` on a file of cases.
 *
 * @param file - Path from the repository's root.
 * @param environment - Variables to add; undefined ones are taken away.
 */
export async function runCases(
  file: string,
  environment: Readonly<Record<string, string | undefined>> = {},
): Promise<CasesOutcome> {
  const variables: Record<string, string | undefined> = { ...process.env, ...environment };
  for (const [name, value] of Object.entries(variables))
    if (value === undefined || value === "") delete variables[name];
  const child = Bun.spawn([process.execPath, "test", "--timeout", "60000", `./${file}`], {
    cwd: ROOT,
    env: variables as Record<string, string>,
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [said, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  const count = (word: string): number =>
    Number(new RegExp(`^ *(\\d+) ${word}$`, "m").exec(said)?.[1] ?? Number.NaN);
  return { code, passed: count("pass"), failed: count("fail"), said };
}

/** The same, and fails with what it said unless at least so many cases passed and none failed. */
export async function expectCases(
  file: string,
  least: number,
  environment: Readonly<Record<string, string | undefined>> = {},
): Promise<void> {
  const { code, passed, failed, said } = await runCases(file, environment);
  if (code !== 0 || failed !== 0 || !(passed >= least)) process.stderr.write(`${said}\n`);
  expect({ code, failed }).toEqual({ code: 0, failed: 0 });
  expect(passed).toBeGreaterThanOrEqual(least);
}

/** Where the stand-in for the driver is built. */
export const STANDIN_PATH: string = join(ROOT, "cshim", "build", "standin", "libcuda.so.1");
