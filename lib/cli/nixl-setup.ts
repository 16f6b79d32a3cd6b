import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { basename, join, resolve } from "node:path";

import { KvferryError } from "../core/errors.ts";
import { cacheDirectory, findNixl, nixlInstallDirectory } from "../native/find-nixl.ts";
import type { FindNixlOptions, NixlLocation } from "../native/find-nixl.ts";
import { withLock } from "./lock.ts";
import { pinnedWheel, sha256Of, unpackWheel, wheelName } from "./nixl-wheel.ts";
import type { PinnedWheel } from "./nixl-wheel.ts";
import { findPip, lastLine, runPip } from "./pip.ts";
import type { Environment } from "./pip.ts";

export { findNixl } from "../native/find-nixl.ts";
export type { FindNixlOptions, NixlLocation } from "../native/find-nixl.ts";

/** What {@link setupNixl} may do and where. */
export interface SetupNixlOptions extends FindNixlOptions {
  /** A wheel that was fetched by other means; nothing is downloaded. */
  readonly wheel?: string;
  /** SHA-256 that the wheel must have instead of the pinned one, hex: for a rebuilt wheel of a mirror of one's own. */
  readonly sha256?: string;
  /** Fetch and unpack even where an installation was found. */
  readonly force?: boolean;
  /** Python to call `pip` with; default `KVFERRY_PYTHON`, else `python3`, else `python`. */
  readonly python?: string;
  /** Receives one line for each step. */
  readonly progress?: (line: string) => void;
  /** Told of bytes that are unpacked, and how many there are. */
  readonly unpacked?: (bytes: number, total: number) => void;
}

/** A NIXL installation, and whether this call made it. */
export interface SetUpNixl extends NixlLocation {
  readonly fetched: boolean;
}

const ATTEMPTS = 3;

/**
 * Finds NIXL, or fetches the pinned wheel with pip and unpacks its libraries into the user's cache directory. Work
 * that was done stays done: a wheel that arrived whole is kept until it is unpacked, and the installation appears
 * under its final name by one rename, so that an interrupted call leaves nothing half made in use.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM` where NIXL has no build, `NO_NIXL` when Python, pip or the package is not
 * to be had, or a path that was given does not exist, `CHECKSUM` when a wheel is not the pinned one, `IO` when it cannot be
 * unpacked.
 */
export async function setupNixl(options: SetupNixlOptions = {}): Promise<SetUpNixl> {
  const environment = options.environment ?? process.env;
  const progress = options.progress ?? (() => {});
  const found = options.force === true || options.wheel !== undefined ? null : findNixl(options);
  if (found !== null) return { ...found, fetched: false };
  refuseMissingPath(options, environment);
  const standard = pinnedWheel();
  const pinned = { ...standard, sha256: options.sha256?.toLowerCase() ?? standard.sha256 };
  const cache = cacheDirectory(environment, options.home);
  const target = nixlInstallDirectory(environment, options.home);
  await withLock(
    join(cache, "setup.lock"),
    async () => {
      // Somebody else may have finished while this process waited.
      if (
        options.force !== true &&
        options.wheel === undefined &&
        findNixl({ ...options, environment }) !== null
      )
        return;
      const downloads = join(cache, "downloads");
      const wheel =
        options.wheel === undefined
          ? await fetchWheel(downloads, pinned, options, environment, progress)
          : await givenWheel(resolve(options.wheel), pinned);
      await unpackWheel(wheel, target, progress, options.unpacked);
      if (options.wheel === undefined) rmSync(downloads, { recursive: true, force: true });
    },
    (holder) =>
      progress(`waiting for another setup${holder === null ? "" : ` (process ${holder})`} to finish`),
  );
  const installed = findNixl({ library: target, environment });
  const result =
    installed === null ? findNixl({ ...options, environment }) : { ...installed, source: "cache" as const };
  if (result === null)
    throw new KvferryError(
      "NO_NIXL",
      "setup",
      `${target} was unpacked but holds no NIXL library.`,
      "Report this with the wheel's name and size; it is not laid out as the pinned release.",
      { target },
    );
  return { ...result, fetched: true };
}

function refuseMissingPath(options: SetupNixlOptions, environment: Environment): void {
  const named = environment["KVFERRY_NIXL_LIBRARY"];
  const path = options.library ?? (named === "" ? undefined : named);
  if (path === undefined || options.wheel !== undefined || options.force === true) return;
  throw new KvferryError(
    "NO_NIXL",
    "setup",
    `There is no NIXL library at ${path}.`,
    options.library === undefined
      ? "Unset KVFERRY_NIXL_LIBRARY, or let it name libnixl_capi.so or a directory that holds it."
      : "Give the path of libnixl_capi.so or of a directory that holds it.",
    { path },
  );
}

async function givenWheel(file: string, pinned: PinnedWheel): Promise<string> {
  if (!existsSync(file))
    throw new KvferryError("IO", "setup", `There is no wheel at ${file}.`, "Check the path after --wheel.", {
      file,
    });
  const hash = await sha256Of(file);
  const expected = pinned.sha256;
  if (hash !== expected)
    throw new KvferryError(
      "CHECKSUM",
      "setup",
      `${basename(file)} has the SHA-256 ${hash}, not ${expected}.`,
      `Give ${wheelName(pinned)}, or accept this file with --sha256 ${hash}.`,
      { file, found: hash, expected },
    );
  return file;
}

async function fetchWheel(
  downloads: string,
  pinned: PinnedWheel,
  options: SetupNixlOptions,
  environment: Environment,
  progress: (line: string) => void,
): Promise<string> {
  mkdirSync(downloads, { recursive: true });
  const kept = await verifiedWheel(downloads, pinned.sha256);
  if (kept !== null) {
    progress(`using ${basename(kept)}, which an earlier setup fetched`);
    return kept;
  }
  const { python, resumes } = findPip(
    options.python ?? environment["KVFERRY_PYTHON"],
    environment,
    wheelName(pinned),
  );
  // pip has the user's mirrors, proxies and certificates in its own configuration: that is why it is called.
  const command = [
    python,
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--python-version",
    "3.12",
    "--implementation",
    "cp",
    "--platform",
    pinned.tag,
    "--retries",
    "5",
    "--disable-pip-version-check",
    ...(resumes ? ["--resume-retries", "5"] : []),
    "--dest",
    downloads,
    pinned.requirement,
  ];
  let text = "";
  for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
    progress(
      `fetching ${pinned.requirement} (about 69 MB) with pip${attempt === 1 ? "" : `, attempt ${attempt}`}`,
    );
    const outcome = await runPip(command, environment, progress);
    const wheel = await verifiedWheel(downloads, pinned.sha256);
    if (wheel !== null) return wheel;
    if (outcome.ok) throw wrongWheel(downloads, pinned.sha256);
    text = outcome.text;
    if (
      /No matching distribution|Could not find a version/i.test(text) &&
      !/connection|timed? ?out|retry/i.test(text)
    )
      break;
  }
  throw new KvferryError(
    "NO_NIXL",
    "setup",
    `pip could not fetch ${pinned.requirement}: ${lastLine(text)}`,
    `Check the network or pip's mirror and run setup again, or fetch the wheel elsewhere (${command.slice(1).join(" ")}) and give it with --wheel FILE.`,
    { command, output: text.slice(-2_000) },
  );
}

function wrongWheel(downloads: string, expected: string): KvferryError {
  return new KvferryError(
    "CHECKSUM",
    "setup",
    `What pip fetched into ${downloads} is not the pinned wheel (SHA-256 ${expected}).`,
    "Find out what your package mirror serves; a wheel that you trust can be given with --wheel FILE --sha256 HASH.",
    { downloads, expected },
  );
}

async function verifiedWheel(downloads: string, sha256: string): Promise<string | null> {
  for (const name of readdirSync(downloads)) {
    const file = join(downloads, name);
    if (!name.endsWith(".whl")) continue;
    if ((await sha256Of(file)) === sha256) return file;
    // A wheel of another content under the same name would keep pip from fetching the right one.
    rmSync(file, { force: true });
  }
  return null;
}
