import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

/** How long to wait between looks at a lock that somebody else holds, milliseconds. */
const LOOK_EVERY_MS = 100;
/** A lock whose owner left no readable name is broken after this time, milliseconds. */
const NAMELESS_MS = 5_000;

/**
 * Runs `work` while holding a lock that other processes of this machine respect: a directory made by one `mkdir`, which
 * exactly one of them wins. The lock of a process that no longer lives is broken.
 *
 * @param path - The lock's directory; its parents are made.
 * @param waiting - Called once when somebody else holds the lock, with the holder's process id where it is known.
 */
export async function withLock<T>(
  path: string,
  work: () => T | Promise<T>,
  waiting: (holder: number | null) => void = () => {},
): Promise<T> {
  mkdirSync(dirname(path), { recursive: true });
  let said = false;
  while (!tryTake(path)) {
    const holder = holderOf(path);
    if (abandoned(path, holder)) {
      breakLock(path, holder);
      continue;
    }
    if (!said) waiting(holder);
    said = true;
    await Bun.sleep(LOOK_EVERY_MS);
  }
  try {
    return await work();
  } finally {
    rmSync(path, { recursive: true, force: true });
  }
}

function tryTake(path: string): boolean {
  try {
    mkdirSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
  writeFileSync(join(path, "pid"), String(process.pid));
  return true;
}

function holderOf(path: string): number | null {
  try {
    const pid = Number(readFileSync(join(path, "pid"), "utf8"));
    return Number.isInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}

function abandoned(path: string, holder: number | null): boolean {
  if (holder !== null) return !isAlive(holder);
  try {
    return Date.now() - statSync(path).mtimeMs > NAMELESS_MS;
  } catch {
    return false;
  }
}

/**
 * By a rename, which only one of several waiters wins. Between the look at the holder and the rename another waiter may
 * have broken the lock and taken it: then the name in it is another one, and it goes back where it was.
 */
function breakLock(path: string, dead: number | null): void {
  const aside = `${path}.${process.pid}.stale`;
  try {
    renameSync(path, aside);
    if (holderOf(aside) === dead) rmSync(aside, { recursive: true, force: true });
    else renameSync(aside, path);
  } catch {
    // Another waiter was faster.
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
