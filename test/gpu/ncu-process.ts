// A process that ends in time with all that it started: ncu is a script around a program that starts the watched one.

/** What a process said, and how it ended. */
export interface Ended {
  readonly out: string;
  readonly noise: string;
  /** Null when it was ended for its time. */
  readonly code: number | null;
}

/** Milliseconds between asking a process to end and ending it. */
const GRACE = 2_000;

/** Runs a program in a process group of its own, and ends the whole group after `limit` milliseconds. */
export async function runFor(
  words: readonly string[],
  limit: number,
  folder: string = process.cwd(),
): Promise<Ended> {
  const child = Bun.spawn([...words], {
    cwd: folder,
    env: { ...process.env, LC_ALL: "C" },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
  });
  let late = false;
  const end = (signal: NodeJS.Signals): void => {
    late = true;
    try {
      process.kill(-child.pid, signal);
    } catch {
      // The group ended by itself.
    }
  };
  const timers = [setTimeout(() => end("SIGTERM"), limit), setTimeout(() => end("SIGKILL"), limit + GRACE)];
  try {
    const [out, noise, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { out, noise, code: late ? null : code };
  } finally {
    for (const timer of timers) clearTimeout(timer);
  }
}
