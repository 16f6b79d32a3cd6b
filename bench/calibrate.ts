// Measures this machine and gives a machine profile: `bun run bench -- calibrate --out profile.json`, for
// `Transport.open({ profile })`. What cannot be measured here keeps its default.
import { Transport } from "../index.ts";
import type { LocalLayout } from "../index.ts";
import { encodeHop } from "../lib/core/encode.ts";
import type { CopyProgram } from "../lib/core/program.ts";
import {
  type CudaProfile,
  cudaProfileOf,
  defaultProfile,
  type MachineProfile,
  type RatePoint,
} from "../lib/core/profile.ts";
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
import { copyProgram } from "../test/copy-program.ts";
import type { SuiteOptions } from "./main.ts";
import { median, seededRandom } from "./statistics.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
/** Bytes of each piece of memory, and of one measured copy. */
const ARENA = 256 * MIB;
const MOVED = 64 * MIB;
const REPEATS = 5;
/** Few enough that a slow way does not take the whole time. */
const MOST_ROWS = 16_384;
const MOST_THREADS = 8;

/** Gives the profile as JSON. */
export async function run(options: SuiteOptions): Promise<string> {
  const begun = performance.now();
  options.progress("calibrating host copies");
  const host = await calibrateHost();
  const cuda = await calibrateCuda(options.progress);
  const profile: MachineProfile = {
    ...defaultProfile,
    name: cuda === null ? "calibrated" : `calibrated, ${cuda.name}`,
    host,
    ...(cuda === null ? {} : { cuda: cuda.profile }),
  };
  options.progress(`calibrated in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
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
    return { name, profile: measureCuda(cudaProfileOf(name), device, other, pinned, pageable) };
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
  const whole = (from: Arena, to: Arena): number =>
    gpuRate([scattered(from, to, MOVED, kindOf(from), kindOf(to), 1)], KVF_CUDA_METHOD_DMA) ?? 1;
  const table = (from: Arena, to: Arena, method: number, sizes: readonly number[]): RatePoint[] | null => {
    const points: RatePoint[] = [];
    for (const bytes of sizes) {
      const rows = Math.max(1, Math.min(MOST_ROWS, Math.floor(MOVED / bytes)));
      const rate = gpuRate([scattered(from, to, bytes, kindOf(from), kindOf(to), rows)], method);
      if (rate !== null) points.push(point(bytes, rate));
    }
    return points.length === 0 ? null : points;
  };
  const link = [2 * KIB, 16 * KIB, 64 * KIB, MIB];
  const local = [256, 2 * KIB, 16 * KIB, 256 * KIB, MIB];
  const single =
    micros([scattered(device, pinned, 4 * KIB, 1, 0, 1)], KVF_CUDA_METHOD_DMA) ?? base.launchMicros;
  const many = 256;
  const loop = micros([scattered(device, pinned, 4 * KIB, 1, 0, many)], KVF_CUDA_METHOD_DMA) ?? 0;
  return {
    ...base,
    launchMicros: round(single),
    copyMicros: round(Math.max(0.5, (loop - single) / (many - 1))),
    hostToDevice: whole(pinned, device),
    deviceToHost: whole(device, pinned),
    deviceToDevice: whole(device, other),
    pageable: Math.min(whole(pageable, device), whole(device, pageable)),
    pitched: [64, 512, 4 * KIB, 32 * KIB, 256 * KIB].map((bytes) => {
      const rate = gpuRate([pitched(device, pinned, bytes)], KVF_CUDA_METHOD_PITCHED);
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
    slabHostToDevice: slabs(pinned, device) ?? base.slabHostToDevice,
    slabDeviceToHost: slabs(device, pinned) ?? base.slabDeviceToHost,
    slabRunsHostToDevice: table(pinned, device, KVF_CUDA_METHOD_SLAB, link) ?? base.slabRunsHostToDevice,
    slabRunsDeviceToHost: table(device, pinned, KVF_CUDA_METHOD_SLAB, link) ?? base.slabRunsDeviceToHost,
  };
}

/** Slabs between short pieces on the device and whole blocks on the host. */
function slabs(from: Arena, to: Arena): RatePoint[] | null {
  const points: RatePoint[] = [];
  for (const bytes of [2 * KIB, 16 * KIB, 64 * KIB]) {
    const rate = gpuRate([blocks(from, to, bytes)], KVF_CUDA_METHOD_SLAB);
    if (rate !== null) points.push(point(bytes, rate));
  }
  return points.length === 0 ? null : points;
}

/** GB/s of a hop by one method; null where the method cannot do it. */
function gpuRate(programs: readonly CopyProgram[], method: number): number | null {
  const time = micros(programs, method);
  const bytes = programs.reduce((sum, program) => sum + program.bytes, 0);
  return time === null ? null : round(bytes / time / 1000);
}

function micros(programs: readonly CopyProgram[], method: number): number | null {
  const hop = encodeHop(programs);
  const out = new Float64Array(new ArrayBuffer(8 * (1 + 2 * (REPEATS + 1))));
  if (openLibrary().kvf_cuda_test_copy(0, hop, hop.length, method, 0, REPEATS + 1, out) !== 0) return null;
  return median(Array.from({ length: REPEATS }, (_, index) => out[4 + 2 * index] ?? Number.NaN));
}

// ---- programs ----------------------------------------------------------------------------------------------------------

/** A piece of memory that stays while the machine is measured. */
interface Arena {
  readonly layout: LocalLayout;
  readonly address: number;
}

async function arena(
  transport: Transport,
  memory: { readonly kind: "system" | "pinned" | "device" },
): Promise<Arena> {
  const config = {
    numBlocks: ARENA / MIB,
    numLayers: 1,
    outerDim: 1,
    pageSize: 1,
    innerDim: MIB / 2,
  } as const;
  const layout = await transport.register({ config, memory });
  return { layout, address: layout.regions[0]?.address ?? 0 };
}

function kindOf({ layout }: Arena): 0 | 1 {
  return layout.storage.kind === "device" ? 1 : 0;
}

/** Rows of one size at places in random order on both sides. */
function scattered(
  from: Arena,
  to: Arena,
  bytes: number,
  fromKind: 0 | 1,
  toKind: 0 | 1,
  rows: number,
): CopyProgram {
  return program(from, to, fromKind, toKind, {
    srcOffset: places(rows, bytes, 1),
    dstOffset: places(rows, bytes, 2),
    rowBytes: bytes,
  });
}

/** Rows at a pitch of twice their size on the device, one after the other on the host. */
function pitched(from: Arena, to: Arena, bytes: number): CopyProgram {
  const count = Math.min(MOST_ROWS, MOVED / 2 / bytes);
  return program(from, to, kindOf(from), kindOf(to), {
    count: [count],
    srcStride: [2 * bytes],
    dstStride: [bytes],
    rowBytes: bytes,
  });
}

/** Blocks of 64 pieces: on the device each piece in a region of its own, on the host whole. */
function blocks(from: Arena, to: Arena, bytes: number): CopyProgram {
  const pieces = 64;
  const count = Math.max(1, Math.floor(MOVED / (pieces * bytes)));
  const apart = Float64Array.from(
    { length: pieces },
    (_, piece) => piece * count * bytes + piece * piece * 256,
  );
  const whole = Float64Array.from({ length: pieces }, (_, piece) => piece * bytes);
  const inward = kindOf(from) === 0;
  return program(from, to, kindOf(from), kindOf(to), {
    srcBase: (inward ? whole : apart).map((base) => from.address + base),
    dstBase: (inward ? apart : whole).map((base) => to.address + base),
    srcOffset: places(count, inward ? pieces * bytes : bytes, 1),
    dstOffset: places(count, inward ? bytes : pieces * bytes, 2),
    rowBytes: bytes,
  });
}

function program(
  from: Arena,
  to: Arena,
  fromKind: 0 | 1,
  toKind: 0 | 1,
  change: Parameters<typeof copyProgram>[0],
): CopyProgram {
  return copyProgram({
    srcBase: Float64Array.of(from.address),
    dstBase: Float64Array.of(to.address),
    srcMemory: { kind: fromKind, device: 0 },
    dstMemory: { kind: toKind, device: 0 },
    ...change,
  });
}

/** The first `rows` places of that size in random order. */
function places(rows: number, bytes: number, seed: number): Float64Array {
  const random = seededRandom(seed);
  const order = Float64Array.from({ length: rows }, (_, index) => index * bytes);
  for (let index = rows - 1; index > 0; index -= 1) {
    const other = Math.floor(random() * (index + 1));
    const kept = order[index] as number; // in bounds
    order[index] = order[other] as number; // in bounds
    order[other] = kept;
  }
  return order;
}

function rateOf(bytes: number, work: () => number): number {
  work();
  return round(bytes / median(Array.from({ length: REPEATS }, work)) / 1000);
}

function point(bytes: number, gigabytesPerSecond: number): RatePoint {
  return { bytes, gigabytesPerSecond };
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}

function check(status: number): void {
  if (status < 0) throw new Error(`a copy was refused with status ${status}`);
}
