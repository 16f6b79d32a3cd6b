// Debian's packages, unpacked into the user's cache directory: nothing of the system is changed.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../../lib/native/find-nixl.ts";
import { runCommand } from "../runtime/helpers/child.ts";

/**
 * Unpacks packages of this machine's Debian or Ubuntu, which is asked for them by its own tools.
 *
 * @returns The folder that has them as a root directory, or null and what was in the way.
 */
export async function debianPackages(
  names: readonly string[],
): Promise<{ readonly folder: string | null; readonly problem: string | null }> {
  const folder = join(cacheDirectory(), `debian-${names.join("-")}`);
  if (existsSync(folder)) return { folder, problem: null };
  if (Bun.which("apt-get") === null || Bun.which("dpkg") === null)
    return { folder: null, problem: `no apt-get to fetch ${names.join(" and ")} with` };
  mkdirSync(cacheDirectory(), { recursive: true });
  const made = mkdtempSync(join(cacheDirectory(), "debian-"));
  try {
    for (const name of names) {
      const { code, words } = await runCommand(["apt-get", "download", name], {}, 120_000, made);
      if (code !== 0)
        return {
          folder: null,
          problem: `apt-get download ${name}: ${words.trim().split("\n").at(-1) ?? ""}`,
        };
    }
    const root = join(made, "root");
    mkdirSync(root);
    for (const file of readdirSync(made).filter((one) => one.endsWith(".deb"))) {
      const { code, words } = await runCommand(["dpkg", "-x", file, root], {}, 120_000, made);
      if (code !== 0) return { folder: null, problem: `dpkg -x ${file}: ${words.trim()}` };
    }
    renameSync(root, folder);
    return { folder, problem: null };
  } finally {
    rmSync(made, { recursive: true, force: true });
  }
}
