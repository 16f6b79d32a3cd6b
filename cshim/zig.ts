import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** The release of Python's `ziglang` package that is used; the compiler in it needs nothing of the system. */
export const ZIG_VERSION = "0.17.0" as const;

/**
 * The command of the Zig compiler: one on the PATH through `KVFERRY_ZIG`, one installed before, else one that
 * `python3 -m pip` fetches into the user's cache directory (about 100 MB).
 *
 * @param note - Is told before something is fetched.
 * @throws Error that names what to install.
 */
export async function zigCommand(note: (line: string) => void): Promise<string[]> {
  const given = process.env["KVFERRY_ZIG"];
  if (given !== undefined && given !== "") return [given];
  const cache = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "kvferry");
  const place = join(cache, `ziglang-${ZIG_VERSION}`);
  const zig = join(place, "ziglang", "zig");
  if (!existsSync(zig)) await fetchZig(cache, place, note);
  return [zig];
}

async function fetchZig(cache: string, place: string, note: (line: string) => void): Promise<void> {
  if (Bun.which("python3") === null)
    throw new Error(
      "no C compiler: install gcc or clang, or Python 3 with pip, through which the Zig compiler is fetched",
    );
  mkdirSync(cache, { recursive: true });
  note(`fetching the Zig compiler ${ZIG_VERSION} with python3 -m pip`);
  const made = mkdtempSync(join(cache, "ziglang-"));
  const packages = [
    "install",
    "--no-deps",
    "--quiet",
    "--disable-pip-version-check",
    "--target",
    made,
    `ziglang==${ZIG_VERSION}`,
  ];
  const child = Bun.spawn(["python3", "-m", "pip", ...packages], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [words, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  try {
    if (code !== 0)
      throw new Error(
        `no C compiler, and the Zig compiler could not be fetched by python3 -m pip: ${words.trim()}`,
      );
    try {
      renameSync(made, place);
    } catch (error) {
      // Somebody else was quicker.
      if (!existsSync(join(place, "ziglang", "zig"))) throw error;
    }
  } finally {
    rmSync(made, { recursive: true, force: true });
  }
}
