import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

import { KvferryError } from "../core/errors.ts";
import { NIXL_VERSION } from "../native/find-nixl.ts";
import { readZipEntry, zipEntries } from "./zip.ts";
import type { ZipEntry } from "./zip.ts";

/** What setup fetches for a processor. */
export interface PinnedWheel {
  /** As pip is told. */
  readonly requirement: string;
  /** Platform tag. */
  readonly tag: string;
  /** SHA-256 of the file, lower-case hex. */
  readonly sha256: string;
}

/** The package that is fetched. On a machine without a GPU it is the same as the one for CUDA 13. */
export const PACKAGE: string = "nixl-cu12";
/** Tag and SHA-256 of the pinned wheel for each processor. */
const WHEELS: Readonly<Record<string, { readonly tag: string; readonly sha256: string }>> = {
  x64: {
    tag: "manylinux_2_28_x86_64",
    sha256: "a02005f84e498641b8fe02d058fdc6762c99edf7ae6430176d2d16fa57f4fb93",
  },
  arm64: {
    tag: "manylinux_2_28_aarch64",
    sha256: "98d4b169813a5110842aefc383ba3bf259a886cd09cc9d54c7a6db69bb36de4d",
  },
};
/** The pinned release in words: package, version, platform tag and SHA-256 for this processor. */
export function pinnedWheel(architecture: string = process.arch): PinnedWheel {
  const wheel = process.platform === "linux" ? WHEELS[architecture] : undefined;
  if (wheel === undefined)
    throw new KvferryError(
      "UNSUPPORTED_PLATFORM",
      "setup",
      `NIXL has no build for ${process.platform} on ${architecture}.`,
      "Use Linux with glibc 2.28 or later on x86-64 or arm64; work without NIXL goes on elsewhere.",
      { platform: process.platform, architecture },
    );
  return { requirement: `${PACKAGE}==${NIXL_VERSION}`, ...wheel };
}

/** The pinned wheel's file name: the same libraries come for several Pythons, and one of them is pinned. */
export function wheelName(wheel: PinnedWheel): string {
  return `${PACKAGE.replaceAll("-", "_")}-${NIXL_VERSION}-cp312-cp312-${wheel.tag}.whl`;
}

/** SHA-256 of a file, lower-case hex. */
export async function sha256Of(file: string): Promise<string> {
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(file).stream()) hasher.update(chunk);
  return hasher.digest("hex");
}

/**
 * Unpacks what kvferry needs of a wheel into `target`, which appears whole, by one rename.
 *
 * @param unpacked - Told of bytes that are unpacked, and how many there are.
 * @throws KvferryError `IO` when the wheel is damaged.
 */
export async function unpackWheel(
  wheel: string,
  target: string,
  progress: (line: string) => void,
  unpacked: (bytes: number, total: number) => void = () => undefined,
): Promise<void> {
  const archive = new Uint8Array(await Bun.file(wheel).arrayBuffer());
  const wanted = zipEntries(archive).filter(isNeeded);
  const total = wanted.reduce((sum, entry) => sum + entry.bytes, 0);
  progress(`unpacking ${wanted.length} files (${Math.round(total / 1e6)} MB) into ${target}`);
  const parent = dirname(target);
  mkdirSync(parent, { recursive: true });
  sweepLeftovers(parent, basename(target));
  const partial = `${target}.${process.pid}.partial`;
  rmSync(partial, { recursive: true, force: true });
  try {
    let done = 0;
    for (const entry of wanted) {
      const file = join(partial, entry.name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, readZipEntry(archive, entry), { mode: 0o644 });
      unpacked((done += entry.bytes), total);
    }
    const record = { package: PACKAGE, version: NIXL_VERSION, wheel: basename(wheel), bytes: total };
    writeFileSync(join(partial, "kvferry.json"), `${JSON.stringify(record, null, 2)}\n`);
    replaceDirectory(partial, target);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

/** A directory cannot be renamed over one that is not empty: the old one steps aside first, and is then removed. */
function replaceDirectory(from: string, to: string): void {
  const aside = `${to}.${process.pid}.old`;
  if (existsSync(to)) renameSync(to, aside);
  renameSync(from, to);
  rmSync(aside, { recursive: true, force: true });
}

/** Removes what interrupted calls left; the lock says that none of them still runs. */
function sweepLeftovers(parent: string, name: string): void {
  for (const entry of readdirSync(parent))
    if (entry.startsWith(`${name}.`) && /\.\d+\.(partial|old)$/.test(entry))
      rmSync(join(parent, entry), { recursive: true, force: true });
}

/** The libraries with their plugins and UCX's modules, and the licences. Headers, Python and Torch parts stay out. */
function isNeeded(entry: ZipEntry): boolean {
  if (/\.dist-info\/(METADATA|licenses\/)/.test(entry.name)) return true;
  if (!/^(\.nixl_cu\d+\.mesonpy\.libs|nixl_cu\d+\.libs)\//.test(entry.name)) return false;
  if (/perftest|\.la$/.test(entry.name)) return false;
  // The second copy of NIXL's plugins; the first stands beside the library, where it looks for them.
  return !/^nixl_cu\d+\.libs\/nixl\//.test(entry.name);
}
