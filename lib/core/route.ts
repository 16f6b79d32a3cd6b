import type { PlanEnvironment } from "./environment.ts";
import { type GdsWay, gdsWay } from "./gds.ts";
import type { ComponentRecord, StorageKind } from "./layout.ts";
import type { ExecutorName, Hop } from "./plan.ts";
import { refusal } from "./refuse.ts";

/** How a component's bytes are reached: by an address here, in an open file, over NIXL, or only by their owner. */
export type Reach = "here" | "file" | "nixl" | "staged";

/** One end of a route. */
export interface Place {
  readonly storage: StorageKind;
  readonly reach: Reach;
  /** A neighbour's memory that is mapped into this process. */
  readonly mapped: boolean;
  /** Why a peer's memory has no address in this process, as a sentence. */
  readonly unmapped?: string;
  /** Wire name of the peer's agent, where NIXL reaches it. */
  readonly agent: string | null;
}

/** A row of the route table: the first one that fits is taken. */
export interface RouteRule {
  readonly source: Pattern;
  readonly destination: Pattern;
  /** Who runs it; null when nothing can. */
  readonly executor: ExecutorName | null;
  readonly op: Hop["op"];
  /** A capability that the environment must have, else the row does not fit. */
  readonly needs?: "gpuRdma";
  /** A sentence: why this way, or what is missing. */
  readonly reason: string;
}

/** A chosen route. */
export interface Route {
  /** e.g. `system -> system (remote)`. */
  readonly key: string;
  readonly executor: ExecutorName;
  readonly op: Hop["op"];
  readonly agent: string | null;
  /** Whether the peer has to help: its bytes are out of NIXL's reach. */
  readonly assisted: boolean;
  /** CUDA ordinal of the device that runs it; null for other executors. */
  readonly device: number | null;
  /** How GPUDirect Storage stands to it; only between GPU memory and a file. */
  readonly gds?: GdsWay;
  readonly reason: string;
  readonly passedOver: readonly { readonly route: string; readonly reason: string }[];
}

interface Pattern {
  readonly storage: readonly StorageKind[];
  readonly reach: Reach;
}

const HOST: readonly StorageKind[] = ["system", "pinned"];
const DEVICE: readonly StorageKind[] = ["device"];
const MEMORY: readonly StorageKind[] = ["system", "pinned", "device"];
const ANY: readonly StorageKind[] = ["system", "pinned", "device", "disk"];

/** The route table. A way that needs an executor which this process lacks is refused by name, never replaced in silence. */
export const ROUTES: readonly RouteRule[] = [
  {
    source: { storage: HOST, reach: "here" },
    destination: { storage: HOST, reach: "here" },
    executor: "host",
    op: "copy",
    reason: "Both sides are host memory with addresses in this process: the processor copies.",
  },
  {
    source: { storage: MEMORY, reach: "here" },
    destination: { storage: MEMORY, reach: "here" },
    executor: "cuda",
    op: "copy",
    reason: "A side is GPU memory with an address in this process: the CUDA driver copies.",
  },
  {
    source: { storage: HOST, reach: "here" },
    destination: { storage: HOST, reach: "nixl" },
    executor: "nixl",
    op: "write",
    reason: "The destination is host memory of a peer: NIXL writes into it.",
  },
  {
    source: { storage: HOST, reach: "nixl" },
    destination: { storage: HOST, reach: "here" },
    executor: "nixl",
    op: "read",
    reason: "The source is host memory of a peer: NIXL reads from it.",
  },
  {
    source: { storage: MEMORY, reach: "here" },
    destination: { storage: MEMORY, reach: "nixl" },
    executor: "nixl",
    op: "write",
    needs: "gpuRdma",
    reason: "A side is GPU memory and NIXL may move it: NIXL writes to the peer.",
  },
  {
    source: { storage: MEMORY, reach: "nixl" },
    destination: { storage: MEMORY, reach: "here" },
    executor: "nixl",
    op: "read",
    needs: "gpuRdma",
    reason: "A side is GPU memory and NIXL may move it: NIXL reads from the peer.",
  },
  {
    source: { storage: HOST, reach: "here" },
    destination: { storage: ANY, reach: "file" },
    executor: "file",
    op: "copy",
    reason: "The destination is a file of this process: it is written from host memory.",
  },
  {
    source: { storage: ANY, reach: "file" },
    destination: { storage: HOST, reach: "here" },
    executor: "file",
    op: "copy",
    reason: "The source is a file of this process: it is read into host memory.",
  },
  {
    source: { storage: DEVICE, reach: "here" },
    destination: { storage: HOST, reach: "nixl" },
    executor: "staged",
    op: "write",
    reason:
      "GPU memory goes to host memory of a peer in two hops: into a bounce pool, and from there by NIXL.",
  },
  {
    source: { storage: HOST, reach: "nixl" },
    destination: { storage: DEVICE, reach: "here" },
    executor: "staged",
    op: "read",
    reason:
      "Host memory of a peer goes to GPU memory in two hops: by NIXL into a bounce pool, and from there.",
  },
  {
    source: { storage: ANY, reach: "file" },
    destination: { storage: HOST, reach: "nixl" },
    executor: "staged",
    op: "write",
    reason: "A file goes to host memory of a peer in two hops: into a bounce pool, and from there by NIXL.",
  },
  {
    source: { storage: HOST, reach: "nixl" },
    destination: { storage: ANY, reach: "file" },
    executor: "staged",
    op: "read",
    reason: "Host memory of a peer goes to a file in two hops: by NIXL into a bounce pool, and from there.",
  },
  ...(["here", "file"] as const).flatMap((near) =>
    (["nixl", "staged"] as const).flatMap((far): RouteRule[] => [
      {
        source: { storage: ANY, reach: near },
        destination: { storage: far === "nixl" ? DEVICE : ANY, reach: far },
        executor: "staged",
        op: "write",
        reason:
          "The peer itself must put the bytes in place: they go through staging memory of both sides, and it scatters them.",
      },
      {
        source: { storage: far === "nixl" ? DEVICE : ANY, reach: far },
        destination: { storage: ANY, reach: near },
        executor: "staged",
        op: "read",
        reason:
          "The peer itself must fetch the bytes: it gathers them, and they go through staging memory of both sides.",
      },
    ]),
  ),
  {
    source: { storage: DEVICE, reach: "here" },
    destination: { storage: ANY, reach: "file" },
    executor: "staged",
    op: "copy",
    reason: "GPU memory goes to a file in two hops through a bounce pool, or in one by GPUDirect Storage.",
  },
  {
    source: { storage: ANY, reach: "file" },
    destination: { storage: ANY, reach: "file" },
    executor: "staged",
    op: "copy",
    reason: "A file goes to another file in two hops through a bounce pool.",
  },
  {
    source: { storage: ANY, reach: "file" },
    destination: { storage: DEVICE, reach: "here" },
    executor: "staged",
    op: "copy",
    reason: "A file goes to GPU memory in two hops through a bounce pool, or in one by GPUDirect Storage.",
  },
];

/**
 * Finds the way from one component to the other.
 *
 * @throws KvferryError `NO_ROUTE` when both sides are remote or the way is missing, `NO_NIXL` and `NO_CUDA` when what
 *   would run it is missing in this process; each names what is missing and its remedy.
 */
export function findRoute(
  source: ComponentRecord,
  destination: ComponentRecord,
  environment: PlanEnvironment,
): Route {
  const from = placeOf(source);
  const to = placeOf(destination);
  const key = `${placeName(from)} -> ${placeName(to)}`;
  if (isRemote(from) && isRemote(to)) {
    throw refusal(
      "NO_ROUTE",
      `both sides belong to peers and have no addresses in this process (${key})`,
      "Start the transfer at the worker that holds one of the sides, or go through a layout of this process.",
      { route: key },
    );
  }
  const rule = ROUTES.find((row) => fits(row, from, to, environment));
  if (rule === undefined) throw noWay(key, from, to);
  const unmapped = unmappedReason(from, to);
  if (rule.executor === null) throw missingExecutor(key, "staged", rule.reason, environment, unmapped);
  if (!environment.executors.includes(rule.executor))
    throw missingExecutor(key, rule.executor, rule.reason, environment, unmapped);
  const remote = isRemote(from) ? from : isRemote(to) ? to : null;
  if (rule.executor === "staged" && remote !== null && !environment.executors.includes("nixl"))
    throw missingExecutor(key, "nixl", rule.reason, environment, unmapped);
  const gds =
    rule.executor === "staged" && rule.op === "copy" ? gdsWay(source, destination, environment) : undefined;
  return {
    key,
    executor: rule.executor,
    op: rule.op,
    agent: remote?.agent ?? null,
    assisted:
      rule.executor === "staged" &&
      remote !== null &&
      (remote.reach === "staged" || remote.storage === "device"),
    device: rule.executor === "cuda" ? runningDevice(source, destination) : null,
    ...(gds === undefined ? undefined : { gds }),
    reason: rule.reason,
    passedOver: passedOver(from, to, rule, environment),
  };
}

/** Where a component's bytes are, as the route table sees it. */
export function placeOf(component: ComponentRecord): Place {
  const { attachment } = component;
  const storage = component.storage.kind;
  if (attachment.kind === "addresses")
    return { storage, reach: "here", mapped: attachment.origin === "mapped", agent: null };
  if (attachment.kind === "file") return { storage, reach: "file", mapped: false, agent: null };
  const { agent, unmapped } = attachment;
  return {
    storage,
    reach: attachment.kind,
    mapped: false,
    agent,
    ...(unmapped === undefined ? {} : { unmapped }),
  };
}

/** The device that holds the source runs a copy: writing to another device is the faster direction. */
function runningDevice(source: ComponentRecord, destination: ComponentRecord): number {
  for (const { attachment } of [source, destination])
    if (attachment.kind === "addresses" && attachment.via !== undefined) return attachment.via;
  for (const { storage } of [source, destination]) if (storage.kind === "device") return storage.device;
  return 0;
}

function isRemote(place: Place): boolean {
  return place.reach === "nixl" || place.reach === "staged";
}

function placeName(place: Place): string {
  return isRemote(place)
    ? `${place.storage} (remote)`
    : place.mapped
      ? `${place.storage} (neighbour)`
      : place.storage;
}

function fits(rule: RouteRule, from: Place, to: Place, environment: PlanEnvironment): boolean {
  if (rule.source.reach !== from.reach || rule.destination.reach !== to.reach) return false;
  if (rule.needs === "gpuRdma" && environment.gpuRdma !== true) return false;
  return rule.source.storage.includes(from.storage) && rule.destination.storage.includes(to.storage);
}

function passedOver(
  from: Place,
  to: Place,
  rule: RouteRule,
  environment: PlanEnvironment,
): Route["passedOver"] {
  if (rule.executor === "nixl")
    return [
      {
        route: "neighbour",
        reason: unmappedReason(from, to) ?? "The peer's memory has no addresses in this process.",
      },
    ];
  if (environment.prefer === "nixl" && !isRemote(from) && !isRemote(to))
    return [
      { route: "nixl", reason: "Both sides have addresses in this process: NIXL would only add a detour." },
    ];
  return [];
}

function inBrackets(words: string | undefined): string {
  return words === undefined ? "" : ` (${words})`;
}

/** Why the peer's side of a route is not mapped here. */
function unmappedReason(from: Place, to: Place): string | undefined {
  return (isRemote(from) ? from : to).unmapped;
}

function missingExecutor(
  key: string,
  executor: ExecutorName,
  why: string,
  environment: PlanEnvironment,
  unmapped: string | undefined,
): Error {
  const known = environment.missing?.[executor];
  const word = executor === "nixl" ? "NO_NIXL" : executor === "cuda" ? "NO_CUDA" : "NO_ROUTE";
  return refusal(
    word,
    `${key} needs the ${executor} executor, which this process does not have${known === undefined ? "" : `: ${known.reason}`}${inBrackets(unmapped)}`,
    known?.remedy ?? REMEDIES[executor],
    { route: key, executor, why },
  );
}

const REMEDIES: Readonly<Record<ExecutorName, string>> = {
  host: "Build the native library with `bun run build:shim`.",
  nixl: "Run `kvferry setup` to install NIXL, or name its library by KVFERRY_NIXL_LIBRARY.",
  cuda: "Run on a machine with an NVIDIA driver, or keep both sides in system memory.",
  file: "Keep both sides in memory: this process cannot move bytes to and from files.",
  gds: "Leave the method out: files and GPU memory also meet in host memory.",
  staged: "Go through a layout in host memory with two transfers: this process has no bounce pool.",
};

function noWay(key: string, from: Place, to: Place): Error {
  const staged = from.reach === "staged" || to.reach === "staged";
  const device = from.storage === "device" || to.storage === "device";
  const why = staged
    ? "the peer's layout can only be touched with the peer's help, and this process cannot ask for it"
    : device
      ? "NIXL may not move GPU memory here, and there is no staging through host memory"
      : "there is no row for it in the route table";
  return refusal(
    "NO_ROUTE",
    `no way for ${key}: ${why}${inBrackets(unmappedReason(from, to))}`,
    staged
      ? "Let the peer copy the blocks into a layout in host memory first, and transfer that one."
      : device
        ? "Open the transport with `capabilities: { gpuRdma: true }` where the machines can, or go through a layout in host memory."
        : "Go through a layout in host memory with two transfers.",
    { route: key, source: from, destination: to },
  );
}
