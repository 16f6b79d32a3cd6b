import { existsSync, readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";

/** The NIXL release that kvferry is tested with. */
export const NIXL_VERSION = "1.5.1";

/** The library that kvferry loads from a NIXL installation. */
export const NIXL_LIBRARY_NAME = "libnixl_capi.so";

/** Who said where NIXL is. */
export type NixlSource = "given" | "environment" | "cache" | "python" | "system";

/** A NIXL installation on this machine. */
export interface NixlLocation {
  /** Absolute path of `libnixl_capi.so`. */
  readonly library: string;
  readonly source: NixlSource;
  /** Release of NIXL where files beside the library tell it. */
  readonly version: string | null;
}

/** Where to look. Everything has a default that is read from the process. */
export interface FindNixlOptions {
  /** Path of the library, or of a directory that holds it; when it is given, nothing else is looked at. */
  readonly library?: string;
  readonly environment?: Readonly<Record<string, string | undefined>>;
  readonly home?: string;
  /** Root of the file system, for tests. */
  readonly root?: string;
}

/**
 * Finds NIXL's C library: the given path, `KVFERRY_NIXL_LIBRARY`, what `kvferry setup` fetched, wheels of Python
 * environments, system directories; the first that is there. Looks at files only and starts nothing.
 *
 * @returns The installation, or null when there is none. A path that was given or named by the environment and does
 * not exist is null too: another installation in its place would be a silent surprise.
 */
export function findNixl(options: FindNixlOptions = {}): NixlLocation | null {
  const environment = options.environment ?? process.env;
  const home = options.home ?? environment["HOME"] ?? homedir();
  const root = options.root ?? "/";
  if (options.library !== undefined && options.library !== "")
    return found(libraryAt(options.library), "given");
  const named = environment["KVFERRY_NIXL_LIBRARY"];
  if (named !== undefined && named !== "") return found(libraryAt(named), "environment");
  const cached = found(libraryAt(nixlInstallDirectory(environment, home)), "cache");
  if (cached !== null) return cached;
  for (const directory of pythonDirectories(environment, home, root)) {
    const wheel = found(libraryAt(directory), "python");
    if (wheel !== null) return wheel;
  }
  for (const directory of systemDirectories(root)) {
    const system = found(libraryIn(directory), "system");
    if (system !== null) return system;
  }
  return null;
}

/** The directory for what kvferry fetches or builds for this user: `$XDG_CACHE_HOME/kvferry`, or `~/.cache/kvferry`. */
export function cacheDirectory(
  environment: Readonly<Record<string, string | undefined>> = process.env,
  home: string = environment["HOME"] ?? homedir(),
): string {
  const base = environment["XDG_CACHE_HOME"];
  // The specification says that a relative path in XDG_CACHE_HOME is to be ignored.
  return join(base !== undefined && isAbsolute(base) ? base : join(home, ".cache"), "kvferry");
}

/** Where `kvferry setup` puts the pinned release, named so that releases and processors live side by side. */
export function nixlInstallDirectory(
  environment: Readonly<Record<string, string | undefined>> = process.env,
  home?: string,
): string {
  return join(cacheDirectory(environment, home), `nixl-${NIXL_VERSION}-${process.arch}`);
}

/** Names of the backends whose plugin files stand beside the library, sorted. That one is there does not say it loads. */
export function nixlPlugins(library: string): readonly string[] {
  return entries(join(dirname(library), "plugins"))
    .map((name) => /^libplugin_(.+)\.so$/.exec(name)?.[1])
    .filter((name): name is string => name !== undefined)
    .toSorted();
}

function found(library: string | null, source: NixlSource): NixlLocation | null {
  return library === null ? null : { library, source, version: versionBeside(library) };
}

/** The library itself, or in a directory: directly, or where Python wheels keep it. */
function libraryAt(path: string): string | null {
  const absolute = resolve(path);
  if (basename(absolute).includes(".so")) return existsSync(absolute) ? absolute : null;
  const direct = libraryIn(absolute);
  if (direct !== null) return direct;
  const wheels = entries(absolute)
    .filter((name) => /^\.nixl(_cu\d+)?\.mesonpy\.libs$/.test(name))
    .toSorted();
  for (const name of wheels) {
    const inside = libraryIn(join(absolute, name));
    if (inside !== null) return inside;
  }
  return null;
}

function libraryIn(directory: string): string | null {
  const library = join(directory, NIXL_LIBRARY_NAME);
  return existsSync(library) ? library : null;
}

function pythonDirectories(
  environment: Readonly<Record<string, string | undefined>>,
  home: string,
  root: string,
): string[] {
  const prefixes = [
    environment["VIRTUAL_ENV"],
    environment["CONDA_PREFIX"],
    join(home, ".local"),
    join(root, "usr/local"),
    join(root, "usr"),
    join(root, "opt/venv"),
    ...entries(join(home, ".pyenv/versions")).map((name) => join(home, ".pyenv/versions", name)),
  ].filter((prefix): prefix is string => prefix !== undefined && prefix !== "");
  return prefixes.flatMap((prefix) =>
    ["lib", "lib64"].flatMap((lib) =>
      entries(join(prefix, lib))
        .filter((name) => /^python3(\.\d+)?$/.test(name))
        .flatMap((name) =>
          ["site-packages", "dist-packages"].map((packages) => join(prefix, lib, name, packages)),
        ),
    ),
  );
}

function systemDirectories(root: string): string[] {
  const triplet = process.arch === "arm64" ? "aarch64-linux-gnu" : "x86_64-linux-gnu";
  return ["opt/nvidia/nvda_nixl", "usr/local/nixl", "usr/local", "usr"].flatMap((prefix) =>
    [`lib/${triplet}`, "lib64", "lib"].map((lib) => join(root, prefix, lib)),
  );
}

/** Wheels have a `nixl_cu12-1.5.1.dist-info` directory next to the one of the libraries. */
function versionBeside(library: string): string | null {
  const packages = dirname(dirname(library));
  const flavour = /^\.(nixl(?:_cu\d+)?)\.mesonpy\.libs$/.exec(basename(dirname(library)))?.[1];
  if (flavour === undefined) return pkgConfigVersion(packages);
  for (const name of entries(packages)) {
    const match = /^(nixl(?:_cu\d+)?)-(.+)\.dist-info$/.exec(name);
    if (match !== null && match[1] === flavour) return match[2] ?? null;
  }
  return null;
}

function pkgConfigVersion(prefix: string): string | null {
  for (const directory of [prefix, dirname(prefix)]) {
    const file = join(directory, "pkgconfig/nixl.pc");
    if (!existsSync(file)) continue;
    const version = /^Version:\s*(\S+)/m.exec(readFileSync(file, "utf8"))?.[1];
    if (version !== undefined) return version;
  }
  return null;
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
