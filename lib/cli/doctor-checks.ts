import {
  chosenWord,
  cudaDriverVersion,
  hasCapability,
  ioUringAllowed,
  kernelFile,
  lockedMemoryLimit,
  opensslVersion,
  pidfdAllowed,
  probeLibrary,
} from "./machine-facts.ts";
import { glibcVersion, platformRefusal } from "../native/platform.ts";
import { packagesInstalled } from "./checkout.ts";
import { shimState } from "./shim.ts";

/** One finding of the doctor. */
export interface DoctorCheck {
  readonly name: string;
  readonly ok: boolean;
  /** What was found, in words. */
  readonly found: string;
  /** Whether nothing works without it. */
  readonly required: boolean;
  /** What its absence costs. */
  readonly cost?: string;
  /** The command or the setting that mends it. */
  readonly remedy?: string;
}

/** The Bun release that kvferry needs at least. */
const BUN_NEEDED = "1.4.5";
const CAP_SYS_PTRACE = 19;
const CAP_IPC_LOCK = 14;

/** Bun, the platform and the native library. */
export function softwareChecks(): readonly DoctorCheck[] {
  const glibc = glibcVersion();
  const refusal = platformRefusal({ system: process.platform, processor: process.arch, glibc });
  const shim = shimState();
  return [
    check(
      "Bun",
      true,
      Bun.semver.satisfies(Bun.version, `>=${BUN_NEEDED}`),
      `${Bun.version} at ${process.execPath}`,
      {
        cost: `Older releases than ${BUN_NEEDED} have another foreign-function interface.`,
        remedy: "bun upgrade, or npm install --global bun@latest",
      },
    ),
    check(
      "platform",
      true,
      refusal === null,
      `${process.platform} ${process.arch}, kernel ${kernelFile("/proc/sys/kernel/osrelease") ?? "unknown"}, ${glibc === null ? "no glibc" : `glibc ${glibc}`}`,
      {
        cost: "Only kvferry/core and kvferry/wire work here; Transport.open is refused.",
        remedy: refusal?.remedy ?? "",
      },
    ),
    check("packages", true, packagesInstalled(), packagesInstalled() ? "installed" : "not installed", {
      cost: "Nothing that reads or writes metadata works.",
      remedy: "bun install",
    }),
    check("native library", true, shim.ok, shim.found, {
      cost: "Transport.open is refused: nothing can be moved.",
      remedy: shim.remedy,
    }),
  ];
}

/** Libraries beside kvferry, the GPU, and what the kernel allows. */
export function machineChecks(): readonly DoctorCheck[] {
  const openssl = opensslVersion();
  const libraries = [
    ["libstdc++.so.6", "__cxa_demangle"],
    ["libgcc_s.so.1", "_Unwind_Backtrace"],
    ["libz.so.1", "zlibVersion"],
    ["libssl.so.3", "OPENSSL_init_ssl"],
  ] as const;
  const absent = libraries
    .filter(([name, symbol]) => !probeLibrary(name, symbol).present)
    .map(([name]) => name);
  return [
    {
      name: "authentication",
      ok: true,
      required: false,
      // An application's secret is not to be seen from here.
      found:
        "by the `secret` that Transport.open is given; without one nothing that peers send is authenticated, and whoever can reach NIXL's ports can read and overwrite the process's memory",
    },
    check("OpenSSL 3", false, openssl !== null, openssl ?? "libcrypto.so.3 cannot be loaded", {
      cost: "NIXL cannot be loaded: no transfers between machines.",
      remedy: "Debian, Ubuntu: sudo apt-get install libssl3; Fedora: sudo dnf install openssl-libs",
    }),
    check(
      "C++ runtime and zlib",
      false,
      absent.length === 0,
      absent.length === 0 ? libraries.map(([name]) => name).join(", ") : `missing: ${absent.join(", ")}`,
      {
        cost: "NIXL cannot be loaded: no transfers between machines.",
        remedy: "Debian, Ubuntu: sudo apt-get install libstdc++6 libgcc-s1 zlib1g libssl3",
      },
    ),
    cudaCheck(),
    transparentPages("enabled", "heap pools"),
    transparentPages("shmem_enabled", "pools that neighbours map"),
    check("io_uring", false, ioUringAllowed(), ioUringAllowed() ? "allowed" : ioUringRefusal(), {
      cost: "Disk tiers read and write through plain system calls on threads: more CPU time for small blocks.",
      remedy: "sudo sysctl kernel.io_uring_disabled=0, and a container profile that allows io_uring_setup",
    }),
    crossMemoryCheck(),
    lockedMemoryCheck(),
    check(
      "pidfd",
      false,
      pidfdAllowed(),
      pidfdAllowed() ? "allowed" : "refused by the kernel or the container",
      {
        cost: "The end of a neighbour cannot be proven: blocks that it may write stay in quarantine until close.",
        remedy: "Linux 5.3 or later, and a container profile that allows pidfd_open",
      },
    ),
  ];
}

function cudaCheck(): DoctorCheck {
  const version = cudaDriverVersion();
  const driver = probeLibrary("libcuda.so.1", "cuDriverGetVersion");
  const found =
    version !== null
      ? `driver for CUDA ${version}`
      : driver.present
        ? "libcuda.so.1 is there but does not work"
        : "no libcuda.so.1";
  return check("CUDA driver", false, version !== null, found, {
    cost: "Device and pinned memory are refused; host memory and NIXL work.",
    remedy: "On a machine with an NVIDIA GPU: install its driver; in a container: run it with --gpus all",
  });
}

function transparentPages(file: "enabled" | "shmem_enabled", pools: string): DoctorCheck {
  const path = `/sys/kernel/mm/transparent_hugepage/${file}`;
  const word = chosenWord(path);
  const asked = file === "shmem_enabled" && word === "never" && makesHugePagesWhenAsked();
  const allowed = word !== null && (asked || !["never", "deny"].includes(word));
  return check(
    file === "enabled" ? "huge pages" : "huge pages for shared memory",
    false,
    allowed,
    word === null
      ? "the kernel has no transparent huge pages"
      : `${word} (${path})${asked ? ", but made when they are asked for" : ""}`,
    {
      cost: `Large ${pools} are made of 4 KiB pages: scattered copies and registration are slower.`,
      remedy: `echo ${file === "enabled" ? "madvise" : "advise"} | sudo tee ${path}`,
    },
  );
}

/** From Linux 6.1 on a process may ask for huge pages of a run of addresses, whatever the setting is but `deny`. */
function makesHugePagesWhenAsked(): boolean {
  const [major = 0, minor = 0] = (kernelFile("/proc/sys/kernel/osrelease") ?? "").split(".").map(Number);
  return major > 6 || (major === 6 && minor >= 1);
}

function ioUringRefusal(): string {
  const setting = kernelFile("/proc/sys/kernel/io_uring_disabled");
  return setting === null || setting === "0"
    ? "refused by the kernel or the container"
    : `kernel.io_uring_disabled is ${setting}`;
}

/** UCX's cross-memory attach between processes of one host (process_vm_readv): needs the right to trace the peer. */
function crossMemoryCheck(): DoctorCheck {
  const scope = kernelFile("/proc/sys/kernel/yama/ptrace_scope");
  const privileged = hasCapability(CAP_SYS_PTRACE);
  const allowed = scope === null || scope === "0" || scope === "1" || (scope === "2" && privileged);
  const found =
    scope === null
      ? "allowed (no Yama in this kernel)"
      : `kernel.yama.ptrace_scope is ${scope}${privileged ? ", with CAP_SYS_PTRACE" : ""}`;
  return check("cross-memory attach", false, allowed, found, {
    cost: "NIXL between processes of this host goes through TCP on the loopback: a few times slower.",
    remedy: "sudo sysctl kernel.yama.ptrace_scope=1",
  });
}

function lockedMemoryCheck(): DoctorCheck {
  const limit = lockedMemoryLimit();
  const free = limit === Infinity || hasCapability(CAP_IPC_LOCK);
  const words = limit === null ? "unknown" : limit === Infinity ? "no limit" : `${limit / 1_024} KiB`;
  return check(
    "locked memory",
    false,
    free,
    `${words}${limit !== Infinity && free ? ", lifted by CAP_IPC_LOCK" : ""}`,
    {
      cost: "Registering memory with an InfiniBand or RoCE adapter fails beyond the limit; TCP and shared memory are not affected.",
      remedy:
        "ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or --ulimit memlock=-1 for a container",
    },
  );
}

/** A check that says what its absence costs and what mends it only where it is absent. */
export function check(
  name: string,
  required: boolean,
  ok: boolean,
  found: string,
  absent: { readonly cost: string; readonly remedy: string },
): DoctorCheck {
  return { name, ok, found, required, ...(ok ? {} : absent) };
}
