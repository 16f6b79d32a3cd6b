// The tarball as users get it, and an empty project that has it installed. Made once for all cases of a process.
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pack } from "../../.ci/pack.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import type { Ended } from "../runtime/helpers/child.ts";
import { codeBlocks } from "../docs/pages.ts";

export const ROOT: string = resolve(import.meta.dirname, "../..");

/** A folder of these cases; everything in it goes when they end. */
export const SCRATCH: string = mkdtempSync(join(tmpdir(), "kvferry-package-"));
process.on("exit", () => rmSync(SCRATCH, { recursive: true, force: true }));

/** The README's ten lines, as they stand. */
export const TEN_LINES: string =
  codeBlocks("README.md").find(({ language }) => language === "ts")?.text ?? "";

/** What a user's shell has, without what names a clone's own library or NIXL. */
export const USER_ENVIRONMENT: Readonly<Record<string, string>> = {
  KVFERRY_SHIM: "",
  NODE_ENV: "",
  NO_COLOR: "1",
};

let packed: Promise<string> | undefined;
/** Path of the tarball. */
export function tarball(): Promise<string> {
  packed ??= pack(join(SCRATCH, "tarball"));
  return packed;
}

let installed: Promise<string> | undefined;
/** An empty project in which the tarball was installed, by the two commands that the README names. */
export function project(): Promise<string> {
  installed ??= (async () => {
    const folder = join(SCRATCH, "project");
    mkdirSync(folder);
    await demand([process.execPath, "init", "-y"], folder);
    await demand([process.execPath, "add", await tarball()], folder);
    writeFileSync(join(folder, "index.ts"), TEN_LINES);
    return folder;
  })();
  return installed;
}

/** A copy of the project's files in a folder of its own. */
export async function copyOfProject(name: string): Promise<string> {
  const folder = join(SCRATCH, name);
  cpSync(await project(), folder, { recursive: true });
  return folder;
}

/** Runs a command that must succeed. */
export async function demand(
  command: readonly string[],
  cwd: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<Ended> {
  const ended = await runCommand(command, { ...USER_ENVIRONMENT, ...environment }, 240_000, cwd);
  if (ended.code !== 0)
    throw new Error(
      `${command.join(" ")} ended with ${ended.code ?? ended.signal}:\n${ended.out}${ended.words}`,
    );
  return ended;
}
