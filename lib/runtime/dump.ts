import { formatHandle } from "../core/handle.ts";
import { localLayouts } from "../core/registry-queries.ts";
import type { CudaDriver } from "../native/cuda.ts";
import type { CudaSession } from "./cuda-session.ts";
import type { Leases } from "./leases.ts";
import type { TransportMetrics } from "./metrics.ts";
import type { Session } from "./session.ts";
import type { StagingSides } from "./staging.ts";
import type { TransportState } from "./state.ts";

/** A transport in plain data, for bug reports: no keys, no metadata blobs, no block contents. */
export interface TransportDump {
  readonly workerId: string;
  readonly agentName: string;
  readonly open: boolean;
  readonly nixl: string | null;
  readonly nixlProblem: string | null;
  /** The CUDA driver's library and the devices in use; null before GPU memory was first asked for. */
  readonly cuda: {
    readonly library: string;
    readonly driver: number;
    readonly devices: readonly string[];
  } | null;
  readonly cudaProblem: string | null;
  /** NIXL's plugin for GPUDirect Storage, where it was asked for and proven, and why it is not used. */
  readonly gds: string | null;
  readonly gdsProblem: string | null;
  readonly secretConfigured: boolean;
  readonly jobsRunning: number;
  /** Chunks of staging memory that are lent now, and those that are only kept because a peer may still touch them. */
  readonly staging: { readonly lent: number; readonly doubtful: number };
  readonly layouts: readonly {
    readonly handle: string;
    readonly name: string;
    readonly tier: string;
    readonly components: readonly {
      readonly name: string;
      readonly storage: string;
      readonly bytes: number;
      readonly blocks: number;
    }[];
    readonly uses: number;
    readonly quarantined: number;
  }[];
  readonly peers: readonly {
    readonly workerId: string;
    readonly agentName: string;
    readonly incarnation: number;
    readonly layouts: number;
  }[];
  readonly metrics: TransportMetrics;
}

/** At most this many layouts stand in a dump. */
const MAX_LAYOUTS = 1_000;

/** See `Transport.dump`. */
export function dumpTransport(
  session: Session,
  state: TransportState,
  leases: Leases,
  metrics: TransportMetrics,
  staging: StagingSides | null,
): TransportDump {
  const { send, receive, devices } = session.staging;
  const { snapshot } = state;
  return {
    workerId: session.options.workerId.toString(),
    agentName: session.options.agentName,
    open: state.isOpen,
    nixl: session.agent?.library ?? null,
    nixlProblem: session.noNixl?.message ?? null,
    cuda: session.cuda.driver === null ? null : cudaFacts(session.cuda.driver, session.cuda),
    cudaProblem: session.cuda.problem?.message ?? null,
    gds: session.gds?.backend ?? null,
    gdsProblem: session.gds?.problem ?? null,
    secretConfigured: session.options.secrets.length > 0,
    jobsRunning: session.context.running,
    staging: {
      lent: send.lent + receive.lent + (devices?.lent ?? 0),
      doubtful: (staging?.client.doubtful ?? 0) + (staging?.server.doubtful ?? 0),
    },
    layouts: localLayouts(snapshot)
      .slice(0, MAX_LAYOUTS)
      .map((layout) => ({
        handle: formatHandle(layout.handle),
        name: layout.name,
        tier: layout.tier,
        components: layout.components.map(({ shape, storage }) => ({
          name: shape.name,
          storage: storage.kind,
          bytes: shape.config.totalBytes,
          blocks: shape.config.numBlocks,
        })),
        uses: leases.uses(layout.handle),
        quarantined: leases.quarantined(layout.handle).length,
      })),
    peers: [...snapshot.peers.values()].map((peer) => ({
      workerId: peer.workerId.toString(),
      agentName: peer.agentName,
      incarnation: peer.incarnation,
      layouts: peer.layouts.length,
    })),
    metrics,
  };
}

function cudaFacts({ info }: CudaDriver, cuda: CudaSession): NonNullable<TransportDump["cuda"]> {
  return {
    library: info.library,
    driver: info.driver,
    devices: cuda.devices.map((device) => `${device} ${cuda.device(device)?.name ?? ""}`.trim()),
  };
}
