import { explainPlan, type Explanation } from "../core/explain.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { LayoutRecord } from "../core/layout.ts";
import type { ExecutorName, TransferPlan } from "../core/plan.ts";
import { isPlain, prepareRequest } from "../core/planner.ts";
import { preparePair, type PreparedPair } from "../core/prepare.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { getLayout, getPeer, isRemote } from "../core/registry-queries.ts";
import type { BlockSelection, PlanRequest } from "../core/request.ts";
import type { PlanEnvironment } from "../core/environment.ts";
import { pairScan } from "../native/pair-scan.ts";
import { KnownPlans } from "./known-plans.ts";
import type { Leases } from "./leases.ts";
import { hasRdma, likelyTransport } from "./nixl-transport.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";
import { planRequest, type TransferRequest } from "./submit.ts";

/** How a prepared transfer finds its layouts again after a peer came back: by owner and name. */
export interface LayoutNames {
  readonly source: LayoutIdentity;
  readonly destination: LayoutIdentity;
}

/** Who owns a layout and what it is called. */
export interface LayoutIdentity {
  /** Worker id of the peer that owns it; null for this transport's own. */
  readonly owner: bigint | null;
  readonly name: string;
}

/** Plans requests on the current snapshot, with what this process has. */
export class Planning {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #environment: PlanEnvironment;
  readonly #plans: KnownPlans;
  readonly #transports: Map<string, string> = new Map();

  constructor(session: Session, state: TransportState, leases: Leases) {
    this.#session = session;
    this.#state = state;
    this.#plans = new KnownPlans((list) => session.ids.numberOf(list));
    this.#environment = {
      executors: [...session.executors.keys()],
      missing: missingExecutors(session),
      gpuRdma: session.options.capabilities.gpuRdma,
      ...(session.gds === null ? undefined : { gds: session.gds.between.bind(session.gds) }),
      assists: (agent) => session.staged?.assists(agent) ?? false,
      deviceSlabs: (agent) =>
        session.staging.devices !== null && session.staged?.client?.lendsDevices(agent) !== false,
      nixlTransport: (agent) => this.#transportTo(agent),
      prefer: session.options.prefer,
      processors: navigator.hardwareConcurrency,
      scan: session.ids.remembering(pairScan(session.context.library)),
      gpu: (device) => session.cuda.facts(device),
      quarantined: (layout, group) => (leases.anyQuarantined ? leases.quarantinedSet(layout, group) : null),
    };
  }

  get snapshot(): RegistrySnapshot {
    return this.#state.snapshot;
  }

  /** @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE`. */
  record(handle: LayoutHandle, operation = "layout"): LayoutRecord {
    return getLayout(this.#state.snapshot, handle, operation);
  }

  /** How a layout is found again when its handle is out of date. */
  identity(handle: LayoutHandle): LayoutIdentity {
    const { owner, name } = this.record(handle, "prepare");
    return { owner, name };
  }

  /** The request with handles that are out of date replaced by those of the same names at peers that came back. */
  renew(request: PlanRequest, names: LayoutNames): PlanRequest {
    return {
      ...request,
      source: this.#renewed(request.source, names.source),
      destination: this.#renewed(request.destination, names.destination),
    };
  }

  plan(request: PlanRequest): TransferPlan {
    this.#state.demandOpen("transfer");
    const { snapshot } = this.#state;
    const { source, destination, method } = request;
    return this.#plans.plan(
      isPlain(request) ? { of: snapshot, source, destination, method } : null,
      request.sourceBlocks,
      request.destinationBlocks,
      () => prepareRequest(snapshot, request, this.#session.profile, this.#environment),
    );
  }

  prepare(request: PlanRequest): PreparedPair {
    this.#state.demandOpen("prepare");
    return preparePair(this.#state.snapshot, request, this.#session.profile, this.#environment);
  }

  planPrepared(
    prepared: PreparedPair,
    sourceBlocks: BlockSelection,
    destinationBlocks: BlockSelection,
  ): TransferPlan {
    this.#state.demandOpen("transfer");
    return this.#plans.plan({ of: prepared }, sourceBlocks, destinationBlocks, () => prepared);
  }

  explain(request: TransferRequest): Explanation {
    return explainPlan(this.plan(planRequest(request)));
  }

  get environment(): PlanEnvironment {
    return this.#environment;
  }

  /** Asked for every plan: peers are found once. A peer that comes back has another wire name. */
  #transportTo(agent: string): string | undefined {
    const known = this.#transports.get(agent);
    if (known !== undefined) return known;
    const peer = [...this.#state.snapshot.peers.values()].find(({ wireName }) => wireName === agent);
    const found = likelyTransport({
      own: this.#session.place,
      peer: peer?.host ?? null,
      allowed: process.env["UCX_TLS"],
      rdma: hasRdma(),
    });
    if (found === undefined) return undefined;
    if (this.#transports.size >= MOST_TRANSPORTS) this.#transports.clear();
    this.#transports.set(agent, found);
    return found;
  }

  #renewed(handle: LayoutHandle, { owner, name }: LayoutIdentity): LayoutHandle {
    if (owner === null || isRemote(this.#state.snapshot, handle)) return handle;
    return (
      getPeer(this.#state.snapshot, owner)?.layouts.find((layout) => layout.name === name)?.handle ?? handle
    );
  }
}

/** Peers whose transport is remembered; then all are looked for anew. */
const MOST_TRANSPORTS = 4_096;

function missingExecutors(session: Session): NonNullable<PlanEnvironment["missing"]> {
  const missing: Partial<Record<ExecutorName, { readonly reason: string; readonly remedy: string }>> = {};
  if (session.agent === null) {
    missing.nixl = {
      reason: session.noNixl?.message ?? "this transport was opened with nixl: false",
      remedy: session.noNixl?.remedy ?? "Open the transport without `nixl: false`.",
    };
  }
  return missing;
}
