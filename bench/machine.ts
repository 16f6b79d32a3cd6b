import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";

import { findNixl } from "../lib/native/find-nixl.ts";

/** Where a result was measured. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly architecture: string;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly bun: string;
  readonly kvferry: string;
  /** Commit of the checkout, with `+` when files were changed since; null outside a checkout. */
  readonly commit: string | null;
  readonly nixl: string | null;
  /** Name, memory and driver of each GPU as the driver tells them. */
  readonly gpu: readonly string[];
  readonly date: string;
}

/** Collects the facts about this machine that a figure means nothing without. */
export function machineFacts(): Machine {
  const processors = cpus();
  const root = join(import.meta.dirname, "..");
  return {
    cpu: processors[0]?.model.trim() ?? "unknown",
    cores: processors.length,
    architecture: process.arch,
    memoryGiB: Math.round((totalmem() / 2 ** 30) * 10) / 10,
    kernel: release(),
    bun: `${Bun.version}+${Bun.revision.slice(0, 9)}`,
    kvferry: packageVersion(root),
    commit: commitOf(root),
    nixl: findNixl()?.version ?? null,
    gpu: (
      wordsOf(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]) ?? ""
    )
      .split("\n")
      .filter((line) => line.trim() !== ""),
    date: new Date().toISOString(),
  };
}

/** The facts in a few lines, for a table's head. */
export function machineText(machine: Machine): string[] {
  return [
    `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, Linux ${machine.kernel} ${machine.architecture}`,
    `Bun ${machine.bun}, kvferry ${machine.kvferry}${machine.commit === null ? "" : ` (${machine.commit})`}, NIXL ${machine.nixl ?? "absent"}`,
    ...(machine.gpu.length === 0 ? [] : [`GPU ${machine.gpu.join("; ")}`]),
  ];
}

/** How many GPUs this machine has. */
export function gpuCount(): number {
  const lines = wordsOf(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]) ?? "";
  return lines.split("\n").filter(Boolean).length;
}

function packageVersion(root: string): string {
  const manifest: unknown = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  return typeof manifest === "object" && manifest !== null && "version" in manifest
    ? String(manifest.version)
    : "";
}

function commitOf(root: string): string | null {
  const commit = wordsOf(["git", "-C", root, "rev-parse", "--short=12", "HEAD"]);
  if (commit === null) return null;
  const changed = wordsOf(["git", "-C", root, "status", "--porcelain", "--untracked-files=no"]);
  return `${commit}${changed === null || changed === "" ? "" : "+"}`;
}

function wordsOf(command: string[]): string | null {
  try {
    const run = Bun.spawnSync(command, { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
    return run.exitCode === 0 ? run.stdout.toString().trim() : null;
  } catch {
    return null;
  }
}
