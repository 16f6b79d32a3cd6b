import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

import { KvferryError } from "../core/errors.ts";

/** The root of the package: a clone of the repository, or the package installed by somebody else. */
export const PACKAGE_ROOT: string = resolve(import.meta.dirname, "../..");

/** Whether this is an executable of `bun build --compile`, whose modules lie in a file system of its own. */
export const IN_EXECUTABLE: boolean = import.meta.dirname.startsWith("/$bunfs/");

/**
 * The command that runs a module of this folder in a process of its own. In an executable the command line itself knows
 * the modules by their names.
 */
export function moduleCommand(name: "demo-peer" | "doctor-probe" | "doctor-gds-probe"): string[] {
  return IN_EXECUTABLE
    ? [process.execPath, name]
    : [process.execPath, join(PACKAGE_ROOT, "lib/cli", `${name}.ts`)];
}

/** Whether the root is a clone, which has to look after its own packages and native library. */
export function isClone(root: string = PACKAGE_ROOT): boolean {
  return !root.split("/").includes("node_modules") && existsSync(join(root, "bun.lock"));
}

/** Whether the packages that kvferry needs are there; an installed package's own are its installer's business. */
export function packagesInstalled(root: string = PACKAGE_ROOT): boolean {
  return !isClone(root) || existsSync(join(root, "node_modules/valibot/package.json"));
}

/**
 * Installs the packages of a fresh clone. Bun keeps what its resolver saw, so a process that had to install must
 * start itself anew: {@link restart}.
 *
 * @returns True when packages were installed just now.
 * @throws KvferryError `IO` when `bun install` fails.
 */
export async function installPackages(
  note: (line: string) => void,
  root: string = PACKAGE_ROOT,
): Promise<boolean> {
  if (packagesInstalled(root)) return false;
  note("installing packages");
  const code = await Bun.spawn([process.execPath, "install", "--frozen-lockfile"], {
    cwd: root,
    stdin: "ignore",
    stdout: 2,
    stderr: 2,
  }).exited;
  if (code !== 0)
    throw new KvferryError(
      "IO",
      "setup",
      `bun install ended with status ${code}.`,
      "Read its words above; a package mirror is configured in bunfig.toml or .npmrc.",
      { root, code },
    );
  return true;
}

/** Runs this very command line in a new process and gives its exit status. */
export async function restart(): Promise<number> {
  return await Bun.spawn([process.execPath, ...process.argv.slice(1)], {
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).exited;
}
