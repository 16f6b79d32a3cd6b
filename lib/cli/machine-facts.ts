import { dlopen, FFIType } from "bun:ffi";
import type { Pointer } from "bun:ffi";
import { readFileSync } from "node:fs";

/** What a shared library said when it was loaded. */
export interface LibraryFact {
  readonly present: boolean;
  /** Its version or the loader's complaint. */
  readonly found: string;
}

const IO_URING_SETUP = 425;
const PIDFD_OPEN = 434;

/** A file under /proc or /sys without the white space around it, or null where there is none. */
export function kernelFile(path: string): string | null {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return null;
  }
}

/** The word in brackets of a file such as `always [madvise] never`. */
export function chosenWord(path: string): string | null {
  return /\[(\S+)\]/.exec(kernelFile(path) ?? "")?.[1] ?? null;
}

/** Loads a library by its name and looks for one symbol that it must have. */
export function probeLibrary(name: string, symbol: string): LibraryFact {
  try {
    dlopen(name, { [symbol]: { args: [], returns: FFIType.void } }).close();
    return { present: true, found: name };
  } catch (error) {
    return { present: false, found: error instanceof Error ? error.message : String(error) };
  }
}

/** OpenSSL's version as libcrypto.so.3 tells it, e.g. `OpenSSL 3.0.17 1 Jul 2025`, or null. */
export function opensslVersion(): string | null {
  try {
    const { symbols } = dlopen("libcrypto.so.3", {
      OpenSSL_version: { args: [FFIType.i32], returns: FFIType.cstring },
    });
    return String(symbols.OpenSSL_version(0));
  } catch {
    return null;
  }
}

/** The CUDA version that the installed driver serves, e.g. `12.9`, or null without a driver. */
export function cudaDriverVersion(): string | null {
  try {
    const { symbols } = dlopen("libcuda.so.1", {
      cuDriverGetVersion: { args: [FFIType.ptr], returns: FFIType.i32 },
    });
    const out = new Int32Array(new ArrayBuffer(8));
    if (symbols.cuDriverGetVersion(out) !== 0) return null;
    const version = out[0] ?? 0;
    return `${Math.floor(version / 1_000)}.${Math.floor((version % 1_000) / 10)}`;
  } catch {
    return null;
  }
}

/** Whether the kernel and the container's filter let this process make an io_uring. */
export function ioUringAllowed(): boolean {
  return opensDescriptor(IO_URING_SETUP, 2, new Uint8Array(new ArrayBuffer(256)));
}

/** Whether this process may hold another by a descriptor (Linux 5.3 and later). */
export function pidfdAllowed(): boolean {
  return opensDescriptor(PIDFD_OPEN, process.pid, null);
}

/** The soft limit on locked memory in bytes, Infinity where there is none, null where it is unknown. */
export function lockedMemoryLimit(): number | null {
  const limit = /^Max locked memory\s+(\S+)/m.exec(kernelFile("/proc/self/limits") ?? "")?.[1];
  if (limit === undefined) return null;
  return limit === "unlimited" ? Infinity : Number(limit);
}

/** Whether this process has a capability, by its number in capability.h. */
export function hasCapability(number: number): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(kernelFile("/proc/self/status") ?? "")?.[1];
  return effective !== undefined && ((BigInt(`0x${effective}`) >> BigInt(number)) & 1n) === 1n;
}

/** Makes a system call whose success is a descriptor, which is closed again. */
function opensDescriptor(call: number, first: number, second: Uint8Array | null): boolean {
  try {
    const { symbols } = dlopen("libc.so.6", {
      syscall: { args: [FFIType.ptr, FFIType.ptr, FFIType.ptr, FFIType.ptr], returns: FFIType.i32 },
      close: { args: [FFIType.i32], returns: FFIType.i32 },
    });
    // 64-bit arguments travel as pointers: the only 64-bit argument type that takes a plain number as it is.
    const descriptor = symbols.syscall(asWord(call), asWord(first), second, null);
    if (descriptor < 0) return false;
    symbols.close(descriptor);
    return true;
  } catch {
    return false;
  }
}

function asWord(value: number): Pointer {
  return value as Pointer;
}
