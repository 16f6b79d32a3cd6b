// Rows F1 to F7, F12 and F19: blocks between GPU and pinned memory, within a GPU, and between two; submission and waking;
// and what it costs others (G1), and how it grows (G2).
import { join } from "node:path";

import { BESIDE_ROWS } from "./gpu-beside.ts";
import { DEVICE_ROWS } from "./gpu-device.ts";
import { LINK_ROWS } from "./gpu-link.ts";
import { MOMENT_ROWS } from "./gpu-moments.ts";
import { SAME_ROWS } from "./gpu-same.ts";
import { World } from "./gpu-world.ts";
import type { Row } from "./gpu-world.ts";
import { gpuCount } from "./machine.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";

const ROWS: readonly Row[] = [
  ...LINK_ROWS,
  ...DEVICE_ROWS,
  ...MOMENT_ROWS,
  // Before those whose product runs in another process: the GPU has work of this one only.
  ...SAME_ROWS,
  ...BESIDE_ROWS,
];

/** Measures the rows on this machine's GPU; says so and gives none where there is no GPU. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const devices = gpuCount();
  if (devices === 0) {
    options.progress(
      "NOT RUN: there is no GPU on this machine, so the rows F1 to F7, F12 and F19 have no figures",
    );
    return [];
  }
  const library = await buildNative("gpu_anchor.c", "library", options.progress);
  const asked = ROWS.filter((row) => row.id.includes(options.only));
  const torch = asked.some((row) => row.torch === true) && hasTorch();
  const noProduct = asked.some((row) => row.cublas === true) ? await whyNoProduct() : null;
  const rows = asked.filter(
    (row) =>
      (row.devices ?? 1) <= devices &&
      (row.torch !== true || torch) &&
      (row.cublas !== true || noProduct === null),
  );
  for (const row of asked) {
    if (row.cublas === true && noProduct !== null) options.progress(`NOT RUN: ${row.id}: ${noProduct}`);
    if ((row.devices ?? 1) > devices) options.progress(`NOT RUN: ${row.id} needs ${row.devices} GPUs`);
    if (row.torch === true && !torch) options.progress(`NOT RUN: ${row.id} needs python3 with PyTorch`);
  }
  const sets: Record<string, SampleSets[number]>[] = [];
  for (let count = 0; count < options.processes; count += 1) {
    options.progress(`GPU: process ${count + 1} of ${options.processes}, ${rows.length} rows`);
    const [taken] = await inProcesses<Record<string, SampleSets[number]>>(
      import.meta.path,
      "measure",
      { library, ids: rows.map(({ id }) => id), samples: options.samples, slow: count === 0 },
      1,
    );
    if (taken !== undefined) sets.push(taken);
  }
  return rows.map(({ measure: _measure, devices: _devices, torch: _torch, cublas: _cublas, ...spec }) =>
    summarize(
      spec,
      sets.map((set) => set[spec.id] ?? {}),
    ),
  );
}

/** In one process: samples of the named rows. */
export async function measure(parameters: {
  readonly library: string;
  readonly ids: readonly string[];
  readonly samples: number;
  readonly slow: boolean;
}): Promise<Record<string, Record<string, number[]>>> {
  const world = await World.open(parameters.library);
  const taken: Record<string, Record<string, number[]>> = {};
  for (const row of ROWS.filter(({ id }) => parameters.ids.includes(id)))
    taken[row.id] = await row.measure(world, parameters.samples, parameters.slow);
  await world.close();
  return taken;
}

/** Tried in a process of its own, which keeps what it loads. */
async function whyNoProduct(): Promise<string | null> {
  const module = join(import.meta.dirname, "gpu-product.ts");
  const [reason] = await inProcesses<string | null>(module, "trySameProduct", {}, 1);
  return reason ?? null;
}

function hasTorch(): boolean {
  if (Bun.which("python3") === null) return false;
  return Bun.spawnSync(["python3", "-c", "import torch"], { stdout: "ignore", stderr: "ignore" }).success;
}
