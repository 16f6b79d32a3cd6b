import type { GpuWork } from "./gpu-work.ts";
import { type CudaProfile, type MachineProfile, rateAt, type RatePoint } from "./profile.ts";
import type { GpuFacts, PlanEnvironment } from "./environment.ts";
import type { Option, Work } from "./work.ts";

/**
 * All ways to run a hop on a GPU, with their predicted times; Infinity where one cannot run.
 *
 * Every time is `launchMicros + bytes / rate(size of the pieces)` beside what each further copy of a loop costs.
 */
export function cudaOptions(
  work: Work,
  profile: MachineProfile,
  environment: PlanEnvironment,
): readonly Option[] {
  const { cuda } = profile;
  const gpu = work.gpu ?? assumed(work);
  const facts = environment.gpu?.(gpu.device) ?? ASSUMED;
  const methods = [dma, pitched, batch, kernel, slab, bulk];
  return methods.map((method) => method(work, gpu, cuda, facts));
}

/** How one method does with a hop. */
type Method = (work: Work, gpu: GpuWork, cuda: CudaProfile, facts: GpuFacts) => Option;

/** What is taken for true of a device that nobody described: an H100 with kernels. */
const ASSUMED: GpuFacts = { sms: 132, kernels: true, bulk: true, batch: true, busy: false };

/** How much a kernel's multiprocessors weigh while something else computes: time spent on them counts this often. */
const BUSY_WEIGHT = 2;
/** Zero-copy kernels fill the link with half of their CTAs, a little later. */
const BUSY_SHARE = 0.5;

const dma: Method = (work, gpu, cuda) => ({
  method: "cuda/dma",
  micros: cuda.launchMicros + Math.max(0, gpu.rows - 1) * cuda.copyMicros + micros(work, linkRate(gpu, cuda)),
  width: 1,
  inline: false,
  taken: "The bytes are so few runs that one DMA for each is fastest.",
  passed: "One DMA for each run costs a launch for each.",
});

const pitched: Method = (work, gpu, cuda) => {
  const fits = gpu.boxes !== null && !gpu.pageable;
  return {
    method: "cuda/pitched",
    micros: fits
      ? cuda.launchMicros +
        Math.max(0, (gpu.boxes ?? 0) - 1) * cuda.boxMicros +
        micros(work, Math.min(linkRate(gpu, cuda), rateAt(cuda.pitched, gpu.row)))
      : Number.POSITIVE_INFINITY,
    width: 1,
    inline: false,
    taken: "The rows lie at an even pitch on both sides, so few copies of boxes move them all.",
    passed: gpu.pageable
      ? NOT_PINNED
      : fits
        ? "Copies of boxes are slower for rows of this size or for so many blocks."
        : "The rows do not lie at one even pitch on both sides.",
  };
};

const batch: Method = (work, gpu, cuda, facts) => ({
  method: "cuda/batch",
  micros: facts.batch
    ? cuda.launchMicros + micros(work, Math.min(linkRate(gpu, cuda), rateAt(batchRates(gpu, cuda), gpu.row)))
    : cuda.launchMicros + gpu.rows * cuda.copyMicros + micros(work, linkRate(gpu, cuda)),
  width: 1,
  inline: false,
  taken: "A batched call moves runs of this size fastest.",
  passed: facts.batch
    ? "A batched call is slower for runs of this size."
    : "The driver has no batched copy: it would be one DMA for each run.",
});

const kernel: Method = (work, gpu, cuda, facts) => {
  const refused = noKernel(gpu, facts);
  const weight = facts.busy && crossesLink(gpu) ? BUSY_WEIGHT : 1;
  return {
    method: "cuda/kernel",
    micros:
      refused === null
        ? cuda.launchMicros + weight * micros(work, rateAt(kernelRates(gpu, cuda), gpu.row))
        : Number.POSITIVE_INFINITY,
    width: kernelWidth(gpu, cuda, facts),
    inline: false,
    taken: crossesLink(gpu)
      ? "A kernel moves many runs of this size at the speed of the link."
      : "A kernel moves runs of this size at nearly the speed of memory.",
    passed:
      refused ??
      (weight > 1
        ? "The GPU is busy: a kernel would hold multiprocessors for the whole copy."
        : "A kernel reaches less than a plain copy for runs this large."),
  };
};

const slab: Method = (work, gpu, cuda, facts) => {
  const refused = crossesLink(gpu)
    ? noKernel(gpu, facts)
    : "A slab needs one side in host and one in device memory.";
  const runs = gpu.direction === "in" ? cuda.slabRunsHostToDevice : cuda.slabRunsDeviceToHost;
  const far = Math.min(linkRate(gpu, cuda), rateAt(runs, Math.max(1, gpu.hostRun)));
  const near = rateAt(gpu.direction === "in" ? cuda.slabHostToDevice : cuda.slabDeviceToHost, gpu.row);
  return {
    method: "cuda/slab",
    micros:
      refused === null
        ? cuda.launchMicros + cuda.slabMicros + micros(work, Math.min(near, far))
        : Number.POSITIVE_INFINITY,
    width: facts.busy ? Math.max(1, Math.ceil(cuda.slabCtas * BUSY_SHARE)) : cuda.slabCtas,
    inline: false,
    taken: "The host side has long runs: a slab in device memory takes them by large copies.",
    passed: refused ?? "The bytes are too few for a slab, or the host side has no long runs.",
  };
};

const bulk: Method = (work, gpu, cuda, facts) => {
  const refused =
    noKernel(gpu, facts) ??
    (facts.bulk
      ? gpu.aligned
        ? null
        : "Bulk copies need addresses and rows that are multiples of 16 bytes."
      : "This device has no bulk copies (compute capability 9.0 and up).");
  const rates = bulkRates(gpu, cuda);
  const weight = facts.busy && crossesLink(gpu) ? BUSY_WEIGHT : 1;
  // Not measured: assumed to be a little slower than plain loads and stores, so that it is never taken on a guess.
  const rate = rates === null ? rateAt(kernelRates(gpu, cuda), gpu.row) * 0.95 : rateAt(rates, gpu.row);
  return {
    method: "cuda/bulk",
    micros: refused === null ? cuda.launchMicros + weight * micros(work, rate) : Number.POSITIVE_INFINITY,
    width: crossesLink(gpu) ? cuda.bulkCtas : facts.sms,
    inline: false,
    taken: "Bulk copies by a kernel were measured to be fastest for runs of this size.",
    passed:
      refused ??
      (rates === null
        ? "Bulk copies were not measured on this machine."
        : "Bulk copies by a kernel are slower for runs of this size."),
  };
};

const NOT_PINNED = "The host memory is not pinned: only the driver's plain and batched copies can reach it.";

/** Why no kernel can do it, or null. */
function noKernel(gpu: GpuWork, facts: GpuFacts): string | null {
  if (gpu.pageable) return NOT_PINNED;
  if (!facts.kernels) return "The native library has no kernels for this device.";
  return gpu.scattered ? "The memory has more regions than a kernel's list holds." : null;
}

function kernelWidth(gpu: GpuWork, cuda: CudaProfile, facts: GpuFacts): number {
  if (!crossesLink(gpu)) return cuda.deviceCtas * facts.sms;
  return facts.busy ? Math.max(1, Math.ceil(cuda.kernelCtas * BUSY_SHARE)) : cuda.kernelCtas;
}

function crossesLink(gpu: GpuWork): boolean {
  return gpu.direction === "in" || gpu.direction === "out";
}

function linkRate(gpu: GpuWork, cuda: CudaProfile): number {
  switch (gpu.direction) {
    case "in":
      return gpu.pageable ? Math.min(cuda.pageable, cuda.hostToDevice) : cuda.hostToDevice;
    case "out":
      return gpu.pageable ? Math.min(cuda.pageable, cuda.deviceToHost) : cuda.deviceToHost;
    case "local":
      return cuda.deviceToDevice;
    case "peer":
      return cuda.peerToPeer;
  }
}

function batchRates(gpu: GpuWork, cuda: CudaProfile): readonly RatePoint[] {
  if (gpu.direction === "in") return cuda.batchHostToDevice;
  return gpu.direction === "out" ? cuda.batchDeviceToHost : cuda.batchDevice;
}

function kernelRates(gpu: GpuWork, cuda: CudaProfile): readonly RatePoint[] {
  switch (gpu.direction) {
    case "in":
      return cuda.kernelHostToDevice;
    case "out":
      return cuda.kernelDeviceToHost;
    case "local":
      return cuda.kernelDevice;
    case "peer":
      return cuda.kernelPeer;
  }
}

function bulkRates(gpu: GpuWork, cuda: CudaProfile): readonly RatePoint[] | null {
  switch (gpu.direction) {
    case "in":
      return cuda.bulkHostToDevice;
    case "out":
      return cuda.bulkDeviceToHost;
    case "local":
      return cuda.bulkDevice;
    case "peer":
      return null;
  }
}

function micros(work: Work, rate: number): number {
  return work.bytes / (rate * 1000);
}

/** For work that was described by its size alone. */
function assumed(work: Work): GpuWork {
  const row = work.bytes / Math.max(1, work.descriptors);
  return {
    device: 0,
    direction: work.sourceKind === 0 ? "in" : work.destinationKind === 0 ? "out" : "local",
    pageable: false,
    hostRun: row,
    boxes: work.descriptors === 1 ? 1 : null,
    row,
    rows: work.descriptors,
    aligned: row % 16 === 0,
    scattered: false,
  };
}
