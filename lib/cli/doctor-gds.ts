import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { findNixl, nixlPlugins } from "../native/find-nixl.ts";
import { moduleCommand } from "./checkout.ts";
import { check } from "./doctor-checks.ts";
import type { DoctorCheck } from "./doctor-checks.ts";
import { GDS_BACKENDS } from "../runtime/gds-trial.ts";
import { probeLibrary } from "./machine-facts.ts";

/** A plugin that does not end within this time is reported as one that hangs, milliseconds. */
const TRIAL_MILLISECONDS = 30_000;

const COST =
  "With `capabilities: { gds: true }` files and GPU memory still meet in host memory; without it they do so on every machine.";

/** What the trial's process says. */
interface Trial {
  readonly proven: boolean;
  readonly stage: "device" | "backend" | "memory" | "write" | "read" | "process";
  readonly found: string;
}

/**
 * Whether NIXL moves bytes between GPU memory and a file here: a temporary file is written and read back, and every byte is
 * compared.
 */
export async function gdsCheck(library: string | undefined, canTry: boolean): Promise<DoctorCheck> {
  const say = (ok: boolean, found: string, remedy: string): DoctorCheck =>
    check("GPUDirect Storage", false, ok, found, { cost: COST, remedy });
  const location = findNixl(library === undefined ? {} : { library });
  if (location === null || !canTry)
    return say(false, "not tried, for NIXL cannot be used", "Mend what is missing above first");
  const there = nixlPlugins(location.library);
  const backends = GDS_BACKENDS.filter((name) => there.includes(name));
  if (backends.length === 0)
    return say(
      false,
      `NIXL has no GDS plugin (${there.length === 0 ? "no plugins" : there.join(", ")} beside ${location.library})`,
      "KVFERRY_NIXL_LIBRARY=PATH of a NIXL with libplugin_GDS_MT.so, as Python's package nixl brings it",
    );
  const folder = resolve(
    process.env["KVFERRY_DISK_CACHE_DIR"] || process.env["DYN_KVBM_DISK_CACHE_DIR"] || tmpdir(),
  );
  const trials: string[] = [];
  let last: Trial | undefined;
  for (const backend of backends) {
    last = await runTrial(location.library, backend, folder);
    if (last.proven) {
      return say(
        true,
        `${backend}: every byte was right both ways between ${last.found} and a file in ${folder}${directness()}`,
        "",
      );
    }
    if (last.stage === "device") return say(false, `no CUDA device: ${last.found}`, REMEDIES.device);
    trials.push(`${backend}: ${WORDS[last.stage]}: ${last.found}`);
  }
  const cuFile = probeLibrary("libcufile.so.0", "cuFileDriverOpen").present;
  const missing = cuFile ? "" : "; libcufile.so.0 cannot be loaded";
  return say(
    false,
    `${trials.join("; ")}${missing}`,
    cuFile ? REMEDIES[last?.stage ?? "process"] : NO_CUFILE,
  );
}

const WORDS: Readonly<Record<Trial["stage"], string>> = {
  device: "no CUDA device",
  backend: "the backend does not come up",
  memory: "the file or the device memory was refused",
  write: "writing a file failed",
  read: "reading a file failed",
  process: "the trial did not end well",
};

const NO_CUFILE =
  "Install cuFile of the CUDA release that NIXL was built for (Ubuntu: libcufile-12-8, with gds-tools to check it)";

const REMEDIES: Readonly<Record<Trial["stage"], string>> = {
  device:
    "On a machine with an NVIDIA GPU: install its driver; in a container: run it with --gpus all. Elsewhere there is nothing to mend",
  backend: "gdscheck -p says what cuFile misses; NIXL_LOG_LEVEL=debug kvferry doctor says more",
  memory: `gdscheck -p says which file systems cuFile takes; it asks udev, so a container needs /run/udev; KVFERRY_DISK_CACHE_DIR names a directory on another one`,
  write: "Leave GPUDirect Storage alone on this machine; gdscheck -p and cufile.log say what cuFile did",
  read: "Leave GPUDirect Storage alone on this machine; gdscheck -p and cufile.log say what cuFile did",
  process: "Leave GPUDirect Storage alone on this machine; NIXL_LOG_LEVEL=debug kvferry doctor says more",
};

/** Bytes alone do not tell which way they went. */
function directness(): string {
  return existsSync("/proc/driver/nvidia-fs")
    ? "; nvidia-fs is loaded"
    : "; nvidia-fs is not loaded, so that cuFile may have copied through host memory";
}

/** In a directory of its own, so that a process that is killed leaves no file. */
async function runTrial(library: string, backend: string, folder: string): Promise<Trial> {
  let own: string;
  try {
    mkdirSync(folder, { recursive: true });
    own = mkdtempSync(join(folder, "kvferry-gds-"));
  } catch (error) {
    return { proven: false, stage: "memory", found: error instanceof Error ? error.message : String(error) };
  }
  try {
    return await runProbe(library, backend, own);
  } finally {
    rmSync(own, { recursive: true, force: true });
  }
}

async function runProbe(library: string, backend: string, folder: string): Promise<Trial> {
  const child = Bun.spawn([...moduleCommand("doctor-gds-probe"), library, backend, folder], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: TRIAL_MILLISECONDS,
    killSignal: "SIGKILL",
  });
  const [words, complaints] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const line = words.split("\n").find((one) => one.startsWith('{"proven":'));
  if (child.signalCode === null && line !== undefined) return JSON.parse(line) as Trial; // as the probe writes it
  const why =
    child.signalCode === null ? complaints.trim().split("\n")[0] : `it ended with ${child.signalCode}`;
  return {
    proven: false,
    stage: "process",
    found: why === undefined || why === "" ? "it said nothing" : why,
  };
}
