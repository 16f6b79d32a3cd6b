// A whole transport on simulated ground: the code that ships, over a session whose effects are the world's.
import { openFile, ownAddresses } from "../../lib/core/attachment.ts";
import type { ExecutorName } from "../../lib/core/plan.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import type { NixlAgent } from "../../lib/native/agent.ts";
import type { NativeContext } from "../../lib/native/context.ts";
import type { CudaSession } from "../../lib/runtime/cuda-session.ts";
import type { CudaStages } from "../../lib/runtime/cuda-stages.ts";
import type { Executor } from "../../lib/runtime/executor.ts";
import { loadExchange } from "../../lib/runtime/exchange.ts";
import { carve, externalHostMemory } from "../../lib/runtime/host-memory.ts";
import { IdLists } from "../../lib/runtime/id-lists.ts";
import { wireName } from "../../lib/runtime/incarnation.ts";
import type { MemoryProvider } from "../../lib/runtime/layout-memory.ts";
import { resolveOptions, type OpenOptions } from "../../lib/runtime/options.ts";
import type { ProcessFacts, ProcessIdentity } from "../../lib/runtime/process-watch.ts";
import * as overNixl from "../../lib/runtime/nixl-parts.ts";
import type { Session } from "../../lib/runtime/session.ts";
import { stagedExecutor, type StagedParts } from "../../lib/runtime/staged-executor.ts";
import { StagingPool, type StagingMemory } from "../../lib/runtime/staging-pool.ts";
import { Transport } from "../../lib/runtime/transport.ts";
import {
  SimAgent,
  simHostExecutor,
  simNixlExecutor,
  type SimCopies,
  type SimCopyFaults,
  type SimNetwork,
} from "./sim-nixl.ts";
import type { SimProcess, SimRegion } from "./sim-world.ts";

/** A process with its transport. */
export interface SimWorker {
  readonly process: SimProcess;
  readonly agent: SimAgent;
  readonly transport: Transport;
  readonly workerId: bigint;
  readonly staging: Session["staging"];
}

// Loading takes real time, of which the world knows nothing.
await loadExchange();

let lastIncarnation = 0;

/** Starts a process with an open transport. Incarnations count from 1 in each case, so that a seed replays. */
export function startWorker(
  network: SimNetwork,
  options: OpenOptions & { readonly workerId: bigint },
  first: boolean,
): SimWorker {
  const process = network.world.spawn();
  lastIncarnation = first ? 1 : lastIncarnation + 1;
  const resolved = resolveOptions({ ...options, cuda: false, neighbours: false }, {});
  const incarnation = lastIncarnation;
  const wire = wireName(resolved.agentName, incarnation);
  const agent = new SimAgent(network, process, wire);
  const copies: SimCopies = { running: 0 };
  const context = simContext(copies);
  agent.onNotifications = () => context.onNotifications?.();
  agent.onProgress = () => context.onProgress?.();
  const { faults } = network;
  const ofMemory = (): SimCopyFaults => ({ ...faults, fail: 0, slowCopy: faults.slowCopy / 2 });
  const ofFiles = (): SimCopyFaults => ({ ...faults, fail: faults.fail / 4 });
  const executors = new Map<ExecutorName, Executor>([
    ["host", simHostExecutor(network.world, process, copies, ofMemory)],
    ["file", simHostExecutor(network.world, process, copies, ofFiles)],
    ["nixl", simNixlExecutor(agent)],
  ]);
  const { sendBytes, receiveBytes, chunkBytes } = resolved.staging;
  const memory = simStaging(network, process);
  const staging = {
    send: new StagingPool(memory, null, sendBytes, chunkBytes),
    receive: new StagingPool(memory, null, receiveBytes, chunkBytes),
    devices: null,
  };
  const staged: StagedParts = {
    agent: agent as unknown as NixlAgent, // only what the runtime calls on these routes
    client: null,
    waiting: () => undefined,
    assists: () => false,
    pool: staging.send,
    receive: staging.receive,
    devices: null,
    executor: (name) => executors.get(name),
    profile: () => defaultProfile,
    environment: { executors: [...executors.keys()], processors: 1 },
    progressed: () => context.onProgress?.(),
  };
  executors.set("staged", stagedExecutor(staged));
  let lists = 0;
  const session: Session = {
    options: resolved,
    clock: process.clock,
    incarnation,
    wireName: wire,
    context: context as unknown as NativeContext, // only what the runtime calls on these routes
    agent: agent as unknown as NixlAgent, // likewise
    overNixl,
    noNixl: null,
    cuda: NO_CUDA as unknown as CudaSession, // likewise
    stages: { close: async () => undefined } as unknown as CudaStages, // likewise
    staging,
    staged,
    gds: null,
    ids: new IdLists(
      () => ++lists,
      (left, right) => left.every((id, index) => id === right[index]),
    ),
    sums: new Map(),
    files: new Map(),
    neighbours: null,
    place: {
      bootId: BOOT,
      namespaces: { pid: "1", ipc: "1", net: "1", user: "1" },
      userId: 1_000,
      processId: process.id + 1,
      rendezvous: "",
    },
    processes: simProcesses(network, process),
    profile: defaultProfile,
    executors,
    providers: {
      system: simMemory(network, process),
      disk: simFile(network, process),
      external: externalHostMemory,
    },
  };
  return { process, agent, transport: Transport.over(session), workerId: resolved.workerId, staging };
}

interface SimContext {
  isOpen: boolean;
  running: number;
  onProgress: (() => void) | undefined;
  onNotifications: (() => void) | undefined;
  holdProcess(): void;
  close(): number;
}

function simContext(copies: SimCopies): SimContext {
  return {
    isOpen: true,
    running: 0,
    onProgress: undefined,
    onNotifications: undefined,
    holdProcess: () => undefined,
    close() {
      this.isOpen = false;
      return copies.running;
    },
  };
}

const NO_CUDA = { driver: null, defaultDevice: 0, facts: () => null, close: async () => undefined };

function simStaging({ world }: SimNetwork, process: SimProcess): StagingMemory {
  const regions = new Map<number, SimRegion>();
  return {
    map: (bytes) => {
      const region = world.allocate(process, bytes, `staging of P${process.id}`, true);
      regions.set(region.base, region);
      return { address: region.base, bytes, files: [] };
    },
    release: async ({ address }) => {
      const region = regions.get(address);
      if (region === undefined || region.freed) world.find(`staging of P${process.id} was freed twice`);
      else region.freed = true;
    },
  };
}

/** A file is memory that only its owner touches; offsets in it are addresses of the world. */
function simFile(network: SimNetwork, process: SimProcess): MemoryProvider {
  const memory = simMemory(network, process);
  return (request, provided, layout) => {
    const made = memory(request, provided, layout);
    if (made instanceof Promise) throw new Error("simulated memory is there at once");
    return {
      ...made,
      storage: { kind: "disk" },
      attachment: openFile(made.addresses[0] ?? 0, made.addresses),
      nixl: [],
    };
  };
}

function simMemory(network: SimNetwork, process: SimProcess): MemoryProvider {
  return ({ shape, regionBytes }, _provided, { name }) => {
    const { offsets, bytes } = carve(shape, regionBytes);
    const region = network.world.allocate(process, bytes, `${name ?? "?"} of P${process.id}`);
    network.world.fill(region);
    const addresses = offsets.map((offset) => region.base + offset);
    return {
      storage: { kind: "system" },
      addresses,
      sizes: offsets.map(() => regionBytes),
      attachment: ownAddresses(addresses),
      nixlDevice: 0,
      nixl: [{ memory: 0, regions: [{ address: region.base, bytes, device: 0 }] }],
      release: () => {
        if (region.freed) network.world.find(`${region.name} was freed twice`);
        region.freed = true;
        network.world.say(() => `${region.name} is freed`);
      },
    };
  };
}

const BOOT = "00000000-0000-4000-8000-000000000000";

function simProcesses({ world, inSockets }: SimNetwork, own: SimProcess): ProcessFacts {
  const identityOf = (process: SimProcess): ProcessIdentity => ({
    bootId: BOOT,
    pidNamespace: "1",
    processId: process.id + 1,
    startedAt: process.id,
  });
  const other = (processId: number): SimProcess | undefined => world.processes[processId - 1];
  return {
    self: identityOf(own),
    identify: (bootId, _namespace, processId) => {
      const process = other(processId);
      return bootId !== BOOT || process === undefined || process.reaped ? null : identityOf(process);
    },
    ended: ({ processId }) => other(processId)?.reaped === true,
    drained: ({ processId }) => (inSockets.get(`${processId - 1}>${own.id}`) ?? 0) === 0,
  };
}
