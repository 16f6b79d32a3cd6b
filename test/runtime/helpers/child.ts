// Child processes for what may crash, must exit, or needs another NIXL library.
import { join } from "node:path";

const FIXTURES: string = join(import.meta.dir, "..", "fixtures");

/** How a child ended. */
export interface Ended {
  readonly code: number | null;
  readonly signal: string | number | null;
  readonly out: string;
  readonly words: string;
}

/** Runs a fixture to its end. It is killed after the given time, which shows as a signal. */
export async function runFixture(
  name: string,
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
  millis = 30_000,
): Promise<Ended> {
  return await runCommand([process.execPath, join(FIXTURES, name), ...args], env, millis);
}

/** Runs a command to its end. */
export async function runCommand(
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
  millis = 30_000,
  cwd?: string,
): Promise<Ended> {
  const child = Bun.spawn([...command], {
    ...(cwd === undefined ? {} : { cwd }),
    env: { ...process.env, NODE_ENV: "production", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: millis,
    killSignal: "SIGKILL",
  });
  const [out, words] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  await child.exited;
  return { code: child.exitCode, signal: child.signalCode, out, words };
}
