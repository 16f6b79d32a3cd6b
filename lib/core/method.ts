import { cudaOptions } from "./cuda-method.ts";
import { gdsOption } from "./gds.ts";
import type { ExecutorName, MethodCandidate } from "./plan.ts";
import { type MachineProfile, type NixlTransportProfile, rateAt } from "./profile.ts";
import { refusal } from "./refuse.ts";
import type { PlanEnvironment } from "./environment.ts";
import type { Option, Work } from "./work.ts";

/** The chosen method and everything that it was compared with. */
export interface Choice {
  readonly method: string;
  readonly width: number;
  readonly inline: boolean;
  readonly predictedMicros: number;
  readonly candidates: readonly MethodCandidate[];
}

/**
 * Chooses how to run a hop by predicted time.
 *
 * @param forced - A method to take whatever it costs, for measuring.
 * @throws KvferryError `NO_ROUTE` when the forced method does not exist for the hop.
 */
export function chooseMethod(
  work: Work,
  profile: MachineProfile,
  environment: PlanEnvironment,
  forced: string | undefined,
): Choice {
  const options = OPTIONS[work.executor](work, profile, environment);
  let best = options[0];
  if (forced !== undefined) {
    best = options.find((option) => option.method === forced);
  } else {
    for (const option of options) if (best !== undefined && option.micros < best.micros) best = option;
  }
  if (best === undefined || best.micros === Number.POSITIVE_INFINITY) {
    const methods = options
      .filter((option) => option.micros !== Number.POSITIVE_INFINITY)
      .map((option) => option.method);
    throw refusal(
      "NO_ROUTE",
      `the ${work.executor} executor has no method ${JSON.stringify(forced ?? "")} for this transfer${best === undefined ? "" : `: ${best.passed}`}`,
      `Leave the method out, or use one of ${methods.join(", ")}.`,
      { method: forced, methods },
    );
  }
  const candidates: MethodCandidate[] = [];
  for (const option of options)
    candidates.push({
      method: option.method,
      micros: option.micros,
      reason: option === best ? (forced === undefined ? option.taken : FORCED) : option.passed,
    });
  return {
    method: best.method,
    width: best.width,
    inline: best.inline,
    predictedMicros: best.micros,
    candidates,
  };
}

/**
 * Predicted time of a host copy, microseconds, without hand-over.
 *
 * `rows * rowNanos / threads + bytes / (rate(row bytes) * scaling(threads))`; copies that fit half the last-level
 * cache on both sides run at cache speed with plain stores.
 */
export function hostCopyMicros(
  method: "plain" | "nontemporal",
  bytes: number,
  rows: number,
  threads: number,
  profile: MachineProfile,
): number {
  const { host } = profile;
  if (rows === 0) return 0;
  const rowBytes = bytes / rows;
  const cached = method === "plain" && bytes * 2 <= host.lastLevelCacheBytes / 2;
  const rate = rateAt(cached ? host.cached : host[method], rowBytes);
  const scaling = host.threadScaling[Math.min(threads, host.threadScaling.length) - 1] ?? 1;
  return (rows * host.rowNanos) / threads / 1000 + bytes / (rate * scaling) / 1000;
}

/** Less than this for each thread is not worth waking it. */
const BYTES_PER_THREAD = 256 * 1024;
const FORCED = "The request forces this method.";

const OPTIONS: Readonly<
  Record<
    ExecutorName,
    (work: Work, profile: MachineProfile, environment: PlanEnvironment) => readonly Option[]
  >
> = {
  host: hostOptions,
  nixl: nixlOptions,
  cuda: cudaOptions,
  file: fileOptions,
  staged: stagedOptions,
  gds: (work, profile) => [gdsOption(work, { problem: null }, profile)],
};

function hostOptions(work: Work, profile: MachineProfile, environment: PlanEnvironment): readonly Option[] {
  return [
    hostOption("plain", work, profile, environment),
    hostOption("nontemporal", work, profile, environment),
  ];
}

function hostOption(
  kind: "plain" | "nontemporal",
  work: Work,
  profile: MachineProfile,
  environment: PlanEnvironment,
): Option {
  const { host } = profile;
  const one = hostCopyMicros(kind, work.bytes, work.descriptors, 1, profile);
  const [method, taken, passed] = HOST_TEXTS[kind];
  if (one <= host.inlineLimitMicros)
    return { method, micros: one, width: 1, inline: true, taken: kind === "plain" ? INLINE : taken, passed };
  const most = Math.min(
    environment.processors ?? 1,
    host.threadScaling.length,
    Math.max(1, Math.floor(work.bytes / BYTES_PER_THREAD)),
    Math.max(1, work.descriptors),
  );
  // One huge row is cut between threads by the executor, so its count of rows does not bound the width.
  const widest =
    work.bytes / Math.max(1, work.descriptors) >= 2 * BYTES_PER_THREAD
      ? Math.min(environment.processors ?? 1, host.threadScaling.length)
      : most;
  let width = 1;
  let micros = host.handoverMicros + one;
  for (let threads = 2; threads <= widest; threads++) {
    const time =
      host.handoverMicros +
      host.threadMicros * (threads - 1) +
      hostCopyMicros(kind, work.bytes, work.descriptors, threads, profile);
    if (time < micros) {
      micros = time;
      width = threads;
    }
  }
  return { method, micros, width, inline: false, taken, passed };
}

const INLINE = "The copy is shorter than a hand-over to another thread, so it runs on the caller's thread.";
const HOST_TEXTS = {
  plain: [
    "host/plain",
    "Plain stores are predicted to be faster: the bytes fit the cache or the rows are short.",
    "Plain stores would first read every destination line into the cache.",
  ],
  nontemporal: [
    "host/nontemporal",
    "Stores that bypass the cache are predicted to be faster for this much data in rows of this size.",
    "Stores that bypass the cache do not pay for so little data or such short rows.",
  ],
} as const;

function nixlOptions(work: Work, profile: MachineProfile, environment: PlanEnvironment): readonly Option[] {
  const { nixl } = profile;
  const transport = transportTo(work, profile, environment, betweenDevices(work));
  const onDevice = work.sourceKind === 1 || work.destinationKind === 1;
  const rowMicros = transport?.descriptorMicros ?? 0;
  const rate = work.op === "read" ? transport?.readGigabytesPerSecond : transport?.writeGigabytesPerSecond;
  const micros =
    nixl.postMicros +
    (transport?.latencyMicros ?? 0) +
    work.descriptors * (onDevice ? Math.max(rowMicros, nixl.deviceDescriptorMicros) : rowMicros) +
    work.bytes / ((rate ?? 1) * 1000);
  const wide = work.descriptors >= 1024 || work.bytes >= 32 * 1024 * 1024;
  return [
    {
      method: work.op === "read" ? "nixl/read" : "nixl/write",
      micros,
      width: wide ? nixl.lanes : 1,
      inline: false,
      taken: "One request with merged descriptors is the only way to this peer.",
      passed: "Another method was forced.",
    },
  ];
}

/**
 * Predicted time of a transfer that goes gathered through staging memory of both sides, microseconds.
 *
 * `slab + descriptors * row + bytes / rate + bytes / gathering`: gathering and scattering overlap with each other and, in
 * part, with the wire; each row is told to the peer.
 *
 * @param onDevice - The staging memory lies on the GPUs that hold the bytes, else in host memory.
 */
export function slabMicros(
  work: Work,
  profile: MachineProfile,
  environment: PlanEnvironment,
  onDevice: boolean,
): number {
  const { nixl } = profile;
  const rowMicros = onDevice ? nixl.deviceSlabRowMicros : nixl.slabRowMicros;
  const gathering = onDevice ? nixl.deviceSlabGigabytesPerSecond : nixl.slabGigabytesPerSecond;
  const transport = transportTo(work, profile, environment, onDevice);
  // Also what is read is written: by the peer.
  const rate = transport?.writeGigabytesPerSecond;
  return (
    (transport?.slabMicros ?? 0) +
    work.descriptors * rowMicros +
    work.bytes / ((rate ?? 1) * 1000) +
    work.bytes / (gathering * 1000)
  );
}

/** Whether a read would be answered by the peer's software. */
export function readsInSoftware(work: Work, profile: MachineProfile, environment: PlanEnvironment): boolean {
  return work.op === "read" && transportTo(work, profile, environment, false)?.softwareReads === true;
}

/** Whether both ends are GPU memory. */
export function betweenDevices({ sourceKind, destinationKind }: Work): boolean {
  return sourceKind === 1 && destinationKind === 1;
}

/** @param devices - Whether the wire is between GPUs: on one host it is CUDA's handles then, not the kernel's copies. */
function transportTo(
  { agent }: Work,
  { nixl }: MachineProfile,
  environment: PlanEnvironment,
  devices: boolean,
): NixlTransportProfile | undefined {
  const found = typeof agent === "string" ? environment.nixlTransport?.(agent) : undefined;
  const name = devices && (found ?? nixl.defaultTransport) === "cma" ? "cuda-ipc" : found;
  return nixl.transports[name ?? nixl.defaultTransport] ?? nixl.transports[nixl.defaultTransport];
}

function fileOptions(work: Work, profile: MachineProfile): readonly Option[] {
  const { file } = profile;
  const rate = work.destinationKind === 2 ? file.writeGigabytesPerSecond : file.readGigabytesPerSecond;
  return [
    {
      method: "file/direct",
      micros: file.latencyMicros + work.descriptors * file.requestMicros + work.bytes / (rate * 1000),
      width: 1,
      inline: false,
      taken: "Merged requests on the library's own threads are the only way to this file.",
      passed: "Another method was forced.",
    },
  ];
}

const THROUGH_HOST = "Through host memory the bytes are moved twice.";

function stagedOptions(work: Work, profile: MachineProfile): readonly Option[] {
  const slower = Math.min(profile.file.readGigabytesPerSecond, profile.file.writeGigabytesPerSecond);
  return [
    {
      method: "staged/pipeline",
      micros: profile.file.latencyMicros * 2 + work.bytes / (slower * 1000),
      width: 1,
      inline: false,
      taken:
        work.gds === undefined
          ? "Two hops through a bounce pool are the only way."
          : "Two hops through a bounce pool are the only way, or the faster one.",
      passed: work.gds === undefined ? "Another method was forced." : THROUGH_HOST,
    },
    ...(work.gds === undefined ? [] : [gdsOption(work, work.gds, profile)]),
  ];
}
