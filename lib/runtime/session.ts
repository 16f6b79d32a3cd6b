import type { KvferryError } from "../core/errors.ts";
import type { MachineProfile } from "../core/profile.ts";
import type { ExecutorName } from "../core/plan.ts";
import type { NixlAgent } from "../native/agent.ts";
import { NativeContext } from "../native/context.ts";
import { openLibrary } from "../native/library.ts";
import { idComparison, listNumbers } from "../native/id-lists.ts";
import type { BlockSums } from "./block-sums.ts";
import { cudaExecutor } from "./cuda-executor.ts";
import { CudaSession } from "./cuda-session.ts";
import { CudaStages } from "./cuda-stages.ts";
import { DeviceStaging, deviceStagingMemory } from "./device-staging.ts";
import type { HostIdentity } from "../core/package.ts";
import type { Executor } from "./executor.ts";
import { systemClock, type Clock } from "./deadlines.ts";
import { IdLists } from "./id-lists.ts";
import { fileExecutor } from "./file-executor.ts";
import type { Gds } from "./gds.ts";
import { hostExecutor } from "./host-executor.ts";
import { externalHostMemory, sharedMemory, systemMemory } from "./host-memory.ts";
import { hostPlace, type HostPlace } from "./neighbour-host.ts";
import { FILE_CUT } from "./neighbour-memory.ts";
import { linuxProcesses, type ProcessFacts } from "./process-watch.ts";
import type { Neighbours } from "./neighbours.ts";
import { loadedOnDemand, type MemoryProvider, type MemoryProviders } from "./layout-memory.ts";
import { nextIncarnation, wireName } from "./incarnation.ts";
import type { NixlParts } from "./nixl-parts.ts";
import type { OpenedNixl } from "./nixl-session.ts";
import { stagedExecutor, type StagedParts } from "./staged-executor.ts";
import { nativeStaging, StagingPool } from "./staging-pool.ts";
import type { ResolvedOptions } from "./options.ts";

/** What an open transport holds of the machine. */
export interface Session {
  readonly options: ResolvedOptions;
  /** Every timer of the transport runs on it; a simulation gives its own. */
  readonly clock: Clock;
  readonly incarnation: number;
  /** Name of this transport's agent on NIXL's wire. */
  readonly wireName: string;
  readonly context: NativeContext;
  readonly agent: NixlAgent | null;
  /** What works with the agent; null without one. */
  readonly overNixl: NixlParts | null;
  /** Why there is no agent; null when there is one or none was wanted. */
  readonly noNixl: KvferryError | null;
  /** The way to GPUs; loads the driver when one is first asked for. */
  readonly cuda: CudaSession;
  /** Pinned memory for reading and writing blocks of GPU memory. */
  readonly stages: CudaStages;
  /** Hashes of the blocks of open files that keep them, by file number. */
  readonly sums: Map<number, BlockSums>;
  /** Paths of the open files of layouts, by file number. */
  readonly files: Map<number, string>;
  /** Staging memory of two-hop routes and of what is sent, and of what peers send here. */
  readonly staging: {
    readonly send: StagingPool;
    readonly receive: StagingPool;
    /** The same on GPUs; null where NIXL may not move GPU memory, or none is wanted. */
    readonly devices: DeviceStaging | null;
  };
  /** What two-hop routes use; null where there are none. */
  readonly staged: StagedParts | null;
  /** GPUDirect Storage through NIXL; null where nobody asked for it. */
  readonly gds: Gds | null;
  /** Long lists of block ids of transfers. */
  readonly ids: IdLists;
  /** What was given, else figures of the GPU once one is in use. */
  readonly profile: MachineProfile;
  /** Processes of this host whose memory is mapped; null when the transport was opened without. */
  readonly neighbours: Neighbours | null;
  /** Where this process runs; null when the kernel does not say. */
  readonly place: HostIdentity | null;
  /** What is known of other processes of this host; a simulation gives its own. */
  readonly processes: ProcessFacts;
  readonly executors: ReadonlyMap<ExecutorName, Executor>;
  /** Where the memory of layouts comes from, by kind. */
  readonly providers: MemoryProviders;
}

/**
 * Opens what the options ask for: the native context, and a NIXL agent with its backends where there is NIXL.
 * All or nothing.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM`, `NO_NIXL` or `NIXL` when something that was named is not to be had.
 */
export async function openSession(options: ResolvedOptions): Promise<Session> {
  const context = NativeContext.open(openLibrary(), options.slots);
  let gds: Gds | null = null;
  try {
    const incarnation = nextIncarnation(Date.now());
    const wire = wireName(options.agentName, incarnation);
    const cuda = new CudaSession(context, options);
    const [{ agent, reason, overNixl }] = await Promise.all([
      openNixl(context, options, wire),
      // What is named must be there; what is not is loaded when a layout first asks for it.
      options.cuda?.demanded === true ? cuda.demand() : null,
    ]);
    if (options.capabilities.gds) gds = await openGds(context, cuda, options, wire);
    const ids = new IdLists(listNumbers(context.library), idComparison(context.library));
    const numberOf = (list: Uint32Array): number => ids.numberOf(list);
    const executors = new Map<ExecutorName, Executor>([
      ["host", hostExecutor(context, numberOf)],
      ["file", fileExecutor(context)],
    ]);
    if (agent !== null && overNixl !== null) executors.set("nixl", overNixl.nixlExecutor(context, agent));
    if (options.cuda !== null)
      executors.set(
        "cuda",
        cudaExecutor(context, () => cuda.defaultDevice, numberOf),
      );
    const byGds = gds?.executor() ?? null;
    if (byGds !== null) executors.set("gds", byGds);
    const { sendBytes, receiveBytes, chunkBytes, deviceBytes, deviceChunkBytes } = options.staging;
    const gpus = options.cuda === null ? null : cuda;
    const staging = {
      send: new StagingPool(nativeStaging(context), gpus, sendBytes, chunkBytes),
      receive: new StagingPool(nativeStaging(context), gpus, receiveBytes, chunkBytes),
      devices:
        gpus === null || agent === null || !options.capabilities.gpuRdma || deviceBytes === 0
          ? null
          : new DeviceStaging((device) => deviceStagingMemory(gpus, device), deviceBytes, deviceChunkBytes),
    };
    const staged: StagedParts = {
      agent,
      client: null,
      waiting: () => undefined,
      assists: () => false,
      pool: staging.send,
      receive: staging.receive,
      devices: staging.devices,
      executor: (name) => executors.get(name),
      profile: () => cuda.profile,
      environment: {
        executors: [...executors.keys()],
        processors: navigator.hardwareConcurrency,
        gpu: (device) => cuda.facts(device),
      },
      progressed: () => context.onProgress?.(),
    };
    executors.set("staged", stagedExecutor(staged));
    const sums = new Map<number, BlockSums>();
    const files = new Map<number, string>();
    const providers: MemoryProviders = {
      system: systemMemory(context, options.neighbours ? FILE_CUT : null),
      "external-fd": loadedOnDemand(async () =>
        (await import("./neighbour-file.ts")).externalFileMemory(context),
      ),
      external: externalMemory(cuda, gds),
      shared: sharedMemory,
      disk: loadedOnDemand(async () =>
        (await import("./file-memory.ts")).fileMemory(context, process.env, sums, files, gds),
      ),
      ...(options.cuda === null ? undefined : gpuMemory(context, cuda, options.neighbours, gds)),
    };
    let place: HostIdentity | null | undefined;
    return {
      providers,
      options,
      clock: systemClock,
      incarnation,
      wireName: wire,
      context,
      ids,
      agent,
      overNixl,
      noNixl: reason,
      cuda,
      stages: new CudaStages(context, cuda),
      // Read when somebody first asks: without peers nobody does.
      get place(): HostIdentity | null {
        if (place === undefined) place = placeOf(hostPlace());
        return place;
      },
      processes: linuxProcesses(),
      staging,
      staged,
      gds,
      sums,
      files,
      neighbours: options.neighbours ? await openNeighbours(context, options, wire, incarnation, cuda) : null,
      get profile(): MachineProfile {
        return cuda.profile;
      },
      executors,
    };
  } catch (error) {
    await gds?.close();
    context.close(1000);
    throw error;
  }
}

/** GPUDirect Storage, tried; loaded only by who asks for it. */
async function openGds(
  context: NativeContext,
  cuda: CudaSession,
  options: ResolvedOptions,
  wire: string,
): Promise<Gds> {
  const { Gds } = await import("./gds.ts");
  return await Gds.open(context, cuda, options, wire);
}

/** A NIXL agent and what works with it, where one is wanted; loaded only then. */
async function openNixl(context: NativeContext, options: ResolvedOptions, wire: string): Promise<OpenedNixl> {
  if (options.nixl === null) return { agent: null, reason: null, overNixl: null };
  const { openAgent } = await import("./nixl-session.ts");
  return await openAgent(context, options, options.nixl, wire);
}

/** Processes of this host; what reaches them is loaded only by who wants that. */
async function openNeighbours(
  context: NativeContext,
  options: ResolvedOptions,
  wire: string,
  incarnation: number,
  cuda: CudaSession,
): Promise<Neighbours> {
  const [{ Neighbours }, { neighbourDevices }] = await Promise.all([
    import("./neighbours.ts"),
    import("./neighbour-devices.ts"),
  ]);
  const self = { worker: options.workerId.toString(), agent: options.agentName, wire, incarnation };
  return new Neighbours(context, self, options.secrets, neighbourDevices(cuda));
}

/** Memory of GPUs, and what is pinned for them. */
function gpuMemory(
  context: NativeContext,
  cuda: CudaSession,
  shareable: boolean,
  gds: Gds | null,
): Pick<MemoryProviders, "pinned" | "device" | "external-ipc"> {
  return {
    pinned: loadedOnDemand(async () =>
      (await import("./pinned-memory.ts")).pinnedMemory(context, cuda, FILE_CUT),
    ),
    device: knownToGds(
      gds,
      loadedOnDemand(async () => (await import("./cuda-memory.ts")).deviceMemory(cuda, shareable)),
    ),
    "external-ipc": loadedOnDemand(async () => (await import("./cuda-memory.ts")).externalIpcMemory(cuda)),
  };
}

/** Memory that the caller owns: what lies on a GPU, or is pinned for one, is checked with the driver. */
function externalMemory(cuda: CudaSession, gds: Gds | null): MemoryProvider {
  const onGpu = knownToGds(
    gds,
    loadedOnDemand(async () => (await import("./cuda-memory.ts")).externalCudaMemory(cuda)),
  );
  return (request, provided, layout) => {
    const { memory } = request;
    const plain = memory.kind !== "external" || memory.storage === "system";
    return plain ? externalHostMemory(request, provided, layout) : onGpu(request, provided, layout);
  };
}

function knownToGds(gds: Gds | null, provider: MemoryProvider): MemoryProvider {
  return gds === null ? provider : gds.knowing(provider);
}

/** Where a process is that nobody can meet there. */
function placeOf(place: HostPlace | null): HostIdentity | null {
  return place === null ? null : { ...place, rendezvous: "" };
}
