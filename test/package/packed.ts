// The tarball as users get it, and an empty project that has it installed. Made once for all cases of a process.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pack } from "../../.ci/pack.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import type { Ended } from "../runtime/helpers/child.ts";
import { codeBlocks } from "../docs/pages.ts";

export const ROOT: string = resolve(import.meta.dirname, "../..");

const PREFIX = "kvferry-package-";

/**
 * A folder of the cases of one process. Files of cases share it and cannot know which of them is the last, so it stays
 * until the next process sweeps it; what is large is removed by the file that made it ({@link removeScratch}).
 */
export const SCRATCH: string = (() => {
  for (const name of readdirSync(tmpdir()).filter((one) => one.startsWith(PREFIX)))
    if (!existsSync(`/proc/${name.slice(PREFIX.length).split("-")[0]}`))
      rmSync(join(tmpdir(), name), { recursive: true, force: true });
  return mkdtempSync(join(tmpdir(), `${PREFIX}${process.pid}-`));
})();

/** Removes everything but the tarball and the project. */
export function removeScratch(): void {
  for (const name of readdirSync(SCRATCH).filter((one) => one !== "tarball" && one !== "project"))
    rmSync(join(SCRATCH, name), { recursive: true, force: true });
}

/** The README's ten lines, as they stand. */
export const TEN_LINES: string =
  codeBlocks("README.md").find(({ language }) => language === "ts")?.text ?? "";

/** The ten lines, and then a look at what they did. */
export const PROGRAM: string = `import { native } from "kvferry:native";
${TEN_LINES.replace("await transport.transfer", "await engine.fill({ random: 7 });\nawait transport.transfer")}
const same = Buffer.compare(await engine.read(9), await pool.read(1)) === 0;
console.log(JSON.stringify({ same, platform: native?.platform, kernels: native?.notice.includes("CUDA kernels") }));
`;

/** Builds its first argument into its second, for the target of its third. */
export const BUILD: string = `import plugin from "kvferry/plugin";
const [entry = "", outfile = "", target] = process.argv.slice(2);
const { success, logs } = await Bun.build({
  entrypoints: [entry],
  compile: { outfile, ...(target === undefined ? {} : { target: target as Bun.Build.CompileTarget }) },
  plugins: [plugin],
});
if (!success) throw new AggregateError(logs);
`;

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
