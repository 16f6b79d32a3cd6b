import { dlopen, FFIType } from "bun:ffi";

/** What decides whether the native library can run here. */
export interface PlatformFacts {
  /** As `process.platform` and `process.arch` name them. */
  readonly system: string;
  readonly processor: string;
  /** glibc's release, e.g. `2.36`; null where the C library is another one; undefined where nobody looked yet. */
  readonly glibc?: string | null;
}

/** Why the native library cannot run somewhere, and what to do about it. */
export interface PlatformRefusal {
  readonly message: string;
  readonly remedy: string;
}

/** The oldest glibc that the prebuilt libraries run with. */
export const GLIBC_NEEDED = "2.28" as const;

/**
 * Says why the native library cannot run on a platform.
 *
 * @returns Null where nothing that is known is against it.
 */
export function platformRefusal({ system, processor, glibc }: PlatformFacts): PlatformRefusal | null {
  const name = SYSTEMS[system] ?? system;
  const refusal = (found: string, instead: string): PlatformRefusal => ({
    message: `kvferry's native library needs Linux on x86-64 or arm64 with glibc ${GLIBC_NEEDED} or later; this is ${found}`,
    remedy: `${instead} kvferry/core and kvferry/wire, which move nothing, work here as they are.`,
  });
  if (system !== "linux") return refusal(`${name} on ${processor}`, INSTEAD[system] ?? INSTEAD_ELSEWHERE);
  if (processor !== "x64" && processor !== "arm64")
    return refusal(`Linux on ${processor}`, "Use a machine with an x86-64 or arm64 processor.");
  if (glibc === null)
    return refusal(
      "a Linux without glibc (Alpine and others have musl)",
      "Use a distribution or a container image with glibc, e.g. oven/bun:debian in place of oven/bun:alpine.",
    );
  if (glibc !== undefined && !Bun.semver.satisfies(`${glibc}.0`, `>=${GLIBC_NEEDED}.0`))
    return refusal(
      `glibc ${glibc}`,
      "Use Debian 10, Ubuntu 18.10, RHEL 8 or later, or build the library here: `bun run build:shim` in a clone.",
    );
  return null;
}

/** The C library's version, e.g. `2.36`, or null where it is not glibc. */
export function glibcVersion(): string | null {
  try {
    const { symbols } = dlopen("libc.so.6", { gnu_get_libc_version: { args: [], returns: FFIType.cstring } });
    return String(symbols.gnu_get_libc_version());
  } catch {
    return null;
  }
}

const SYSTEMS: Readonly<Record<string, string>> = { darwin: "macOS", win32: "Windows", linux: "Linux" };

const INSTEAD_ELSEWHERE = "Use Linux.";
const INSTEAD: Readonly<Record<string, string>> = {
  darwin: "Use Linux, on a Mac in a container or a virtual machine: `docker run -it oven/bun:debian`.",
  win32: "Use Linux, on Windows in WSL 2 (`wsl --install`) or in a container.",
};
