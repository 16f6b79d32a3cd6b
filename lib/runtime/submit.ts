import type { LayoutHandle } from "../core/handle.ts";
import { KvferryError } from "../core/errors.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { BlockList, BlockSelection, PlanRequest } from "../core/request.ts";
import type { OrderOptions } from "./cuda-order.ts";
import type { LocalLayout } from "./local-layout.ts";
import type { BlockGroups } from "./leases.ts";
import { payloadBytes } from "./notifications.ts";
import type { RemoteLayout } from "./remote-layout.ts";
import type { Transfer } from "./transfer.ts";

/** A layout, by object or by handle. */
export type LayoutReference = LocalLayout | RemoteLayout | LayoutHandle;

/** What `Transport.transfer` takes. */
export interface TransferRequest extends TransferOptions {
  readonly source: LayoutReference;
  readonly destination: LayoutReference;
  /** Block ids; for bundles with several block-id spaces `{ group: ids }`. Copied at the call. */
  readonly sourceBlocks: BlockSelection;
  readonly destinationBlocks: BlockSelection;
}

/** Options of a transfer beside what moves where. */
export interface TransferOptions extends OrderOptions {
  readonly tokens?: PlanRequest["tokens"];
  readonly components?: readonly string[];
  readonly layers?: { readonly start: number; readonly end: number };
  readonly partial?: boolean;
  /** Delivered after the data to the worker at the other side; to this transport's own queue for local transfers. */
  readonly notify?: Uint8Array | string;
  readonly layerwise?:
    boolean | { readonly every: number; readonly notify?: (layer: number) => Uint8Array | string };
  readonly bounce?: { readonly layout: LayoutReference; readonly blocks: BlockList };
  /**
   * Compare both ends after the last byte moved, over exactly the bytes that were written; a peer's end by sums that
   * the peer makes. What differs is `CHECKSUM` with the block ids, and `notify` goes out only when nothing does.
   */
  readonly checksum?: boolean;
  /** Transfers that must be done before this one starts; when one fails, this one never starts. */
  readonly after?: readonly Transfer[];
  readonly priority?: "latency" | "bulk";
  readonly signal?: AbortSignal;
  readonly deadlineMs?: number;
  /** Force one method, for measuring. */
  readonly method?: string;
}

/** What `prepare` takes: a transfer without its block ids. */
export type PrepareRequest = Omit<TransferRequest, "sourceBlocks" | "destinationBlocks" | "signal" | "after">;

/** The handle behind a layout or a handle. */
export function handleOf(layout: LayoutReference): LayoutHandle {
  return typeof layout === "bigint" ? layout : layout.record.handle;
}

/** The planner's view of a request: handles, and id lists that the caller can no longer change. */
export function planRequest(
  request: TransferRequest,
  copy: (blocks: BlockSelection) => BlockSelection = copyBlocks,
): PlanRequest {
  const { layerwise, bounce } = request;
  return {
    source: referenced(request.source, "source"),
    destination: referenced(request.destination, "destination"),
    sourceBlocks: copy(request.sourceBlocks),
    destinationBlocks: copy(request.destinationBlocks),
    ...(request.tokens === undefined ? undefined : { tokens: request.tokens }),
    ...(request.components === undefined ? undefined : { components: request.components }),
    ...(request.layers === undefined ? undefined : { layers: request.layers }),
    ...(request.partial === undefined ? undefined : { partial: request.partial }),
    ...(layerwise === undefined || layerwise === false
      ? undefined
      : { layerwise: layerwise === true ? true : { every: layerwise.every } }),
    ...(request.method === undefined ? undefined : { method: request.method }),
    ...(bounce === undefined
      ? undefined
      : { bounce: { layout: handleOf(bounce.layout), blocks: copyList(bounce.blocks) } }),
    ...(request.checksum === undefined ? undefined : { checksum: request.checksum }),
    ...(request.priority === undefined ? undefined : { priority: request.priority }),
  };
}

/** A list of ids as the engine keeps it; what is not a list is left to the planner to refuse. */
export function copyBlocks(blocks: BlockSelection): BlockSelection {
  if (isList(blocks)) return copyList(blocks);
  if (typeof blocks !== "object" || blocks === null) return blocks;
  return Object.fromEntries(Object.entries(blocks).map(([group, ids]) => [group, copyList(ids)]));
}

/** The destination's blocks by block-id space. */
export function blockGroups(blocks: BlockSelection, groups: readonly string[]): BlockGroups {
  if (isList(blocks)) {
    const ids = Uint32Array.from(blocks);
    return new Map(groups.map((group) => [group, ids]));
  }
  return new Map(Object.entries(blocks).map(([group, ids]) => [group, Uint32Array.from(ids)]));
}

/** The notification's bytes, or null. */
export function notificationOf(options: TransferOptions): Uint8Array<ArrayBuffer> | null {
  return options.notify === undefined ? null : payloadBytes(options.notify);
}

/** The wire name of the peer that a plan moves bytes to or from; null for a local one. */
export function agentOf(plan: TransferPlan): string | null {
  for (const leg of plan.legs) for (const hop of leg.hops) if (hop.agent !== null) return hop.agent;
  return null;
}

/** @throws KvferryError `INVALID_CONFIG` for a deadline that is not a positive number of milliseconds. */
export function deadlineOf(
  options: { readonly deadlineMs?: number },
  standard: number,
  operation = "transfer",
): number {
  const { deadlineMs } = options;
  if (deadlineMs === undefined) return standard;
  if (typeof deadlineMs === "number" && deadlineMs > 0 && deadlineMs <= 2 ** 31 - 1) return deadlineMs;
  throw new KvferryError(
    "INVALID_CONFIG",
    operation,
    `deadlineMs must be a positive number of milliseconds, found ${String(deadlineMs)}`,
    "Give milliseconds up to 2^31 - 1.",
    {
      deadlineMs,
    },
  );
}

function referenced(layout: LayoutReference, side: string): LayoutHandle {
  if (typeof layout === "bigint") return layout;
  if (typeof layout === "object" && layout !== null && typeof layout.record?.handle === "bigint")
    return layout.record.handle;
  throw new KvferryError(
    "UNKNOWN_HANDLE",
    "transfer",
    `the ${side} is neither a layout nor a handle`,
    "Give a layout that was registered or imported, or its handle.",
    { side },
  );
}

function isList(blocks: BlockSelection): blocks is BlockList {
  return blocks instanceof Uint32Array || Array.isArray(blocks);
}

function copyList(list: BlockList): BlockList {
  return list instanceof Uint32Array || Array.isArray(list) ? list.slice() : list;
}
