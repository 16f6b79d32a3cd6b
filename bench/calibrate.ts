// Measures this machine and gives a machine profile: `bun run bench -- calibrate --out profile.json`, for
// `Transport.open({ profile })`. What cannot be measured here keeps its default.
import { Transport } from "../index.ts";
import { encodeHop } from "../lib/core/encode.ts";
import type { CopyProgram } from "../lib/core/program.ts";
import { cudaProfileOf, defaultProfile } from "../lib/core/machine-figures.ts";
import type { CudaProfile, MachineProfile, RatePoint } from "../lib/core/profile.ts";
import { NativeContext } from "../lib/native/context.ts";
import { openLibrary } from "../lib/native/library.ts";
import {
  KVF_COPY_NONTEMPORAL,
  KVF_CUDA_METHOD_BATCH,
  KVF_CUDA_METHOD_BULK,
  KVF_CUDA_METHOD_DMA,
  KVF_CUDA_METHOD_KERNEL,
  KVF_CUDA_METHOD_PITCHED,
  KVF_CUDA_METHOD_SLAB,
} from "../lib/native/symbols.ts";
import {
  arena,
  blocks,
  kindOf,
  MOST_ROWS,
  MOVED,
  pitched,
  regions,
  scattered,
} from "./calibrate-programs.ts";
import type { Arena } from "./calibrate-programs.ts";
import type { SuiteOptions } from "./main.ts";
import { median } from "./statistics.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
/** The same within a device: so many that neither a cache nor the launch decides. */
const MOVED_LOCAL = 128 * MIB;
const REPEATS = 5;
const MOST_THREADS = 8;

/** Gives the profile as JSON. */
export async function run(options: SuiteOptions): Promise<string> {
  const begun = performance.now();
  options.progress("calibrating host copies");
  const host = await calibrateHost();
  options.progress(`host copies in ${secondsSince(begun)} s`);
  const cuda = await calibrateCuda(options.progress);
  const profile: MachineProfile = {
    ...defaultProfile,
    name: cuda === null ? "calibrated" : `calibrated, ${cuda.name}`,
    host,
    ...(cuda === null ? {} : { cuda: cuda.profile }),
  };
  options.progress(`calibrated in ${secondsSince(begun)} s`);
  return `${JSON.stringify(profile, null, 2)}\n`;
}

// ---- host ------------------------------------------------------------------------------------------------------------

async function calibrateHost(): Promise<MachineProfile["host"]> {
  await using transport = await Transport.open({ workerId: 1n, nixl: false, cuda: false, neighbours: false });
  const from = await arena(transport, { kind: "system" });
  const to = await arena(transport, { kind: "system" });
  from.layout.bytes[0]?.fill(1);
  to.layout.bytes[0]?.fill(2);
  const library = openLibrary();
  const out = new Float64Array(new ArrayBuffer(64));
  const rates = (flags: number): RatePoint[] =>
    [128, KIB, 4 * KIB, 64 * KIB, MIB].map((bytes) => {
      const hop = encodeHop([scattered(from, to, bytes, 0, 0, MOVED / bytes)]);
      return point(
        bytes,
        rateOf(MOVED, () => {
          const start = Bun.nanoseconds();
          check(library.kvf_copy_run(hop, hop.length, flags, out));
          return (Bun.nanoseconds() - start) / 1000;
        }),
      );
    });
  const plain = rates(0);
  const nontemporal = rates(KVF_COPY_NONTEMPORAL);
  return { ...defaultProfile.host, plain, nontemporal, threadScaling: await scaling(from, to) };
}

/** Bandwidth of 1, 2, ... threads as a multiple of one. */
async function scaling(from: Arena, to: Arena): Promise<number[]> {
  const context = NativeContext.open(openLibrary(), 64);
  try {
    const hop = encodeHop([scattered(from, to, 64 * KIB, 0, 0, MOVED / (64 * KIB))]);
    const times: number[] = [];
    for (let threads = 1; threads <= Math.min(MOST_THREADS, navigator.hardwareConcurrency); threads += 1) {
      const taken: number[] = [];
      for (let round = 0; round < REPEATS; round += 1) {
        const start = Bun.nanoseconds();
        await context.job(
          "bench",
          (slot) =>
            context.library.kvf_copy_job(
              context.address,
              slot,
              hop,
              hop.length,
              KVF_COPY_NONTEMPORAL,
              threads,
              null,
              null,
              0,
            ),
          () => undefined,
        );
        taken.push(Bun.nanoseconds() - start);
      }
      times.push(median(taken));
    }
    return times.map((time) => round((times[0] ?? time) / time));
  } finally {
    context.close(1_000);
  }
}

// ---- CUDA ------------------------------------------------------------------------------------------------------------

async function calibrateCuda(
  progress: (line: string) => void,
): Promise<{ readonly name: string; readonly profile: CudaProfile } | null> {
  const begun = performance.now();
  let transport: Transport;
  try {
    transport = await Transport.open({ workerId: 1n, nixl: false, cuda: {}, neighbours: false });
  } catch (error) {
    progress(`no GPU is calibrated: ${error instanceof Error ? error.message : String(error)}`);
    return null;
  }
  try {
    const { cuda } = transport.dump();
    const name = (cuda?.devices[0] ?? "0 GPU").replace(/^\d+ /, "");
    progress(`calibrating ${name}`);
    const device = await arena(transport, { kind: "device" });
    const other = await arena(transport, { kind: "device" });
    const pinned = await arena(transport, { kind: "pinned" });
    const pageable = await arena(transport, { kind: "system" });
    pageable.layout.bytes[0]?.fill(3);
    progress(`memory is there after ${secondsSince(begun)} s`);
    const profile = measureCuda(cudaProfileOf(name), device, other, pinned, pageable);
    progress(`${name} in ${secondsSince(begun)} s`);
    return { name, profile };
  } finally {
    await transport.close();
  }
}

function measureCuda(
  base: CudaProfile,
  device: Arena,
  other: Arena,
  pinned: Arena,
  pageable: Arena,
): CudaProfile {
  const single =
    micros([scattered(device, pinned, 4 * KIB, 1, 0, 1)], KVF_CUDA_METHOD_DMA) ?? base.launchMicros;
  // A profile's rates are beside the launch, and those of slabs beside what fills the first.
  const slabbed = single + base.slabMicros;
  const whole = (from: Arena, to: Arena, bytes: number = MOVED): number =>
    gpuRate([scattered(from, to, bytes, kindOf(from), kindOf(to), 1)], KVF_CUDA_METHOD_DMA, single) ?? 1;
  const table = (from: Arena, to: Arena, method: number, sizes: readonly number[]): RatePoint[] | null => {
    const points: RatePoint[] = [];
    const kernel = method === KVF_CUDA_METHOD_KERNEL || method === KVF_CUDA_METHOD_BULK;
    const total = kindOf(from) === 1 && kindOf(to) === 1 ? MOVED_LOCAL : MOVED;
    for (const bytes of sizes) {
      const rows = Math.max(1, Math.min(MOST_ROWS, Math.floor(MOVED / bytes)));
      const program = kernel
        ? regions(from, to, bytes, total)
        : scattered(from, to, bytes, kindOf(from), kindOf(to), rows);
      const rate = gpuRate([program], method, method === KVF_CUDA_METHOD_SLAB ? slabbed : single);
      if (rate !== null) points.push(point(bytes, rate));
    }
    return points.length === 0 ? null : points;
  };
  const link = [2 * KIB, 16 * KIB, 64 * KIB, MIB];
  const local = [256, 2 * KIB, 16 * KIB, 256 * KIB, MIB];
  const many = 256;
  const loop = micros([scattered(device, pinned, 4 * KIB, 1, 0, many)], KVF_CUDA_METHOD_DMA) ?? 0;
  return {
    ...base,
    launchMicros: round(single),
    copyMicros: round(Math.max(0.5, (loop - single) / (many - 1))),
    hostToDevice: whole(pinned, device),
    deviceToHost: whole(device, pinned),
    deviceToDevice: whole(device, other, MOVED_LOCAL),
    pageable: Math.min(whole(pageable, device), whole(device, pageable)),
    pitched: [64, 512, 4 * KIB, 32 * KIB, 256 * KIB].map((bytes) => {
      const rate = gpuRate([pitched(device, pinned, bytes)], KVF_CUDA_METHOD_PITCHED, single);
      return point(bytes, rate ?? 0.1);
    }),
    kernelHostToDevice: table(pinned, device, KVF_CUDA_METHOD_KERNEL, link) ?? base.kernelHostToDevice,
    kernelDeviceToHost: table(device, pinned, KVF_CUDA_METHOD_KERNEL, link) ?? base.kernelDeviceToHost,
    kernelDevice: table(device, other, KVF_CUDA_METHOD_KERNEL, local) ?? base.kernelDevice,
    bulkHostToDevice: table(pinned, device, KVF_CUDA_METHOD_BULK, link),
    bulkDeviceToHost: table(device, pinned, KVF_CUDA_METHOD_BULK, link),
    bulkDevice: table(device, other, KVF_CUDA_METHOD_BULK, local),
    batchHostToDevice: table(pinned, device, KVF_CUDA_METHOD_BATCH, link) ?? base.batchHostToDevice,
    batchDeviceToHost: table(device, pinned, KVF_CUDA_METHOD_BATCH, link) ?? base.batchDeviceToHost,
    batchDevice: table(device, other, KVF_CUDA_METHOD_BATCH, [2 * KIB, 64 * KIB, MIB]) ?? base.batchDevice,
    slabHostToDevice: slabs(pinned, device, slabbed) ?? base.slabHostToDevice,
    slabDeviceToHost: slabs(device, pinned, slabbed) ?? base.slabDeviceToHost,
    slabRunsHostToDevice: table(pinned, device, KVF_CUDA_METHOD_SLAB, link) ?? base.slabRunsHostToDevice,
    slabRunsDeviceToHost: table(device, pinned, KVF_CUDA_METHOD_SLAB, link) ?? base.slabRunsDeviceToHost,
  };
}

/** Slabs between short pieces on the device and whole blocks on the host. */
function slabs(from: Arena, to: Arena, beside: number): RatePoint[] | null {
  const points: RatePoint[] = [];
  for (const bytes of [2 * KIB, 16 * KIB, 64 * KIB]) {
    const rate = gpuRate([blocks(from, to, bytes)], KVF_CUDA_METHOD_SLAB, beside);
    if (rate !== null) points.push(point(bytes, rate));
  }
  return points.length === 0 ? null : points;
}

/**
 * GB/s of a hop by one method without the `beside` microseconds that no byte moves in; null where the method cannot do
 * it. What is left is half of the time at least, so that an unsteady machine gets no rate out of nothing.
 */
function gpuRate(programs: readonly CopyProgram[], method: number, beside: number): number | null {
  const time = micros(programs, method);
  const bytes = programs.reduce((sum, program) => sum + program.bytes, 0);
  return time === null ? null : round(bytes / Math.max(time - beside, time / 2) / 1000);
}

function micros(programs: readonly CopyProgram[], method: number): number | null {
  const hop = encodeHop(programs);
  const out = new Float64Array(new ArrayBuffer(8 * (1 + 2 * (REPEATS + 1))));
  if (openLibrary().kvf_cuda_test_copy(0, hop, hop.length, method, 0, REPEATS + 1, out) !== 0) return null;
  return median(Array.from({ length: REPEATS }, (_, index) => out[4 + 2 * index] ?? Number.NaN));
}

function rateOf(bytes: number, work: () => number): number {
  work();
  return round(bytes / median(Array.from({ length: REPEATS }, work)) / 1000);
}

function point(bytes: number, gigabytesPerSecond: number): RatePoint {
  return { bytes, gigabytesPerSecond };
}

function secondsSince(begun: number): string {
  return ((performance.now() - begun) / 1000).toFixed(1);
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}

function check(status: number): void {
  if (status < 0) throw new Error(`a copy was refused with status ${status}`);
}
