import { runningDeviceOf } from "../core/program.ts";
import { KvferryError } from "../core/errors.ts";
import type { Hop, TransferPlan } from "../core/plan.ts";
import type { CudaDriver } from "../native/cuda.ts";
import { KVF_CUDA_IPC_BYTES } from "../native/symbols.ts";
import type { CudaSession } from "./cuda-session.ts";

/** Method of a hop that copies nothing and ends when what its order names is over. */
export const CUDA_WAIT = "cuda/wait" as const;

/** What GPU work comes before a transfer, as callers say it. */
export interface OrderOptions {
  /** Address of a CUDA stream: the transfer starts after what is on it at the call. */
  readonly stream?: number;
  /** Makes that stream wait for the transfer in turn: what is queued on it later sees the bytes. */
  readonly streamWaits?: boolean;
  /**
   * CUDA events of this process by address, or 64-byte IPC handles of another process's. With a layer, only that layer
   * waits (layer-wise transfers); without one, all of it does.
   */
  readonly waitEvents?: readonly { readonly layer?: number; readonly event: number | Uint8Array }[];
}

/** The same, ready to be given to an executor. */
export interface CudaOrder {
  /** CUDA ordinal of the device whose queues wait where no copy names one. */
  readonly device: number;
  /** 0 for none. */
  readonly stream: number;
  readonly streamWaits: boolean;
  /** `layer` null: before everything. */
  readonly events: readonly { readonly layer: number | null; readonly event: number }[];
  /** Events that were opened for this order and are closed with it. */
  readonly opened: readonly number[];
}

/** Whether a caller asked for an order at all. */
export function hasOrder({ stream, waitEvents }: OrderOptions): boolean {
  return stream !== undefined || (waitEvents !== undefined && waitEvents.length > 0);
}

/**
 * Checks an order; what needs no waiting is ready at once.
 *
 * @returns The order, or a promise of it where a device or another process's event must be opened first.
 * @throws KvferryError `INVALID_CONFIG` for a stream or an event that cannot be one, `NO_CUDA` without CUDA.
 */
export function resolveOrder(
  options: OrderOptions,
  cuda: CudaSession,
  device: number,
): CudaOrder | Promise<CudaOrder> {
  const stream = options.stream ?? 0;
  if (!Number.isSafeInteger(stream) || stream < 0)
    throw invalid("stream", "an address of a CUDA stream", stream);
  const events = options.waitEvents ?? [];
  if (!Array.isArray(events)) throw invalid("waitEvents", "a list of { event, layer? }", events);
  let foreign = false;
  for (const { event, layer } of events) {
    const handle = event instanceof Uint8Array;
    if (handle ? event.length !== KVF_CUDA_IPC_BYTES : !(Number.isSafeInteger(event) && event > 0))
      throw invalid("waitEvents", "events by address, or IPC handles of 64 bytes", event);
    if (layer !== undefined && !(Number.isInteger(layer) && layer >= 0))
      throw invalid("waitEvents", "layers that are whole numbers from 0", layer);
    foreign ||= handle;
  }
  const streamWaits = options.streamWaits ?? false;
  if (!foreign && cuda.driver !== null && cuda.facts(device) !== null) {
    return {
      device,
      stream,
      streamWaits,
      events: events.map(({ layer, event }) => ({ layer: layer ?? null, event: event as number })), // none is foreign
      opened: [],
    };
  }
  return openOrder(cuda, device, stream, streamWaits, events);
}

/** The device of this process whose memory a plan touches first, or null. */
export function deviceOfPlan(plan: TransferPlan): number | null {
  for (const hop of plan.legs.flatMap((leg) => leg.hops)) {
    const program = hop.programs[0];
    if (program === undefined) continue;
    const { srcMemory, dstMemory } = program;
    if (hop.op === "copy") {
      const running = runningDeviceOf(program);
      if (running !== null) return running;
    }
    if (srcMemory.kind === 1 && hop.op !== "read") return srcMemory.device;
    if (dstMemory.kind === 1 && hop.op !== "write") return dstMemory.device;
  }
  return null;
}

/** Gives back what an order opened. */
export async function closeOrder(order: CudaOrder, driver: CudaDriver): Promise<void> {
  for (const event of order.opened) await driver.closeEvent(order.device, event).catch(() => undefined);
}

/**
 * A plan whose first hop awaits the order, where not every hop can wait by itself.
 *
 * Copies by the GPU wait on its own queues, layer by layer; hosts, files and NIXL know no CUDA event.
 */
export function orderedPlan(plan: TransferPlan, order: CudaOrder): TransferPlan {
  const hops = plan.legs.flatMap((leg) => leg.hops);
  if (hops.every((hop) => hop.executor === "cuda")) return plan;
  if (order.streamWaits)
    throw invalid("streamWaits", "left out: only copies by a GPU can be waited for by a stream", true);
  const [first, ...others] = plan.legs;
  if (first === undefined) return plan;
  return { ...plan, legs: [{ ...first, hops: [WAIT, ...first.hops] }, ...others] };
}

/**
 * The events that a hop's programs wait for, as pairs of a program's index and an event; null when there are none.
 *
 * An event of a layer holds up the programs of the step that moves that layer, and so those behind it.
 */
export function eventsByProgram(hop: Hop, order: CudaOrder): Float64Array<ArrayBuffer> | null {
  if (order.events.length === 0) return null;
  const pairs = new Float64Array(new ArrayBuffer(order.events.length * 16));
  order.events.forEach(({ layer, event }, index) => {
    pairs[index * 2] = layer === null ? 0 : firstProgramOf(hop, layer);
    pairs[index * 2 + 1] = event;
  });
  return pairs;
}

const WAIT: Hop = Object.freeze({
  executor: "cuda",
  op: "copy",
  agent: null,
  programs: [],
  bytes: 0,
  descriptorsBefore: 0,
  descriptorsAfter: 0,
  method: CUDA_WAIT,
  width: 0,
  inline: true,
  predictedMicros: 0,
  candidates: [],
});

/** The last program of a step names its layers: the step begins behind the one before it. */
function firstProgramOf(hop: Hop, layer: number): number {
  let first = 0;
  for (const [index, { layers }] of hop.programs.entries()) {
    if (layers === null) continue;
    if (layer >= layers.start && layer < layers.end) return first;
    first = index + 1;
  }
  // A layer that this hop does not move, or a plan that is not layer-wise: everything waits.
  return 0;
}

async function openOrder(
  cuda: CudaSession,
  device: number,
  stream: number,
  streamWaits: boolean,
  events: readonly { readonly layer?: number; readonly event: number | Uint8Array }[],
): Promise<CudaOrder> {
  // The caller may reuse its handles.
  const kept = events.map(({ layer, event }) => ({
    layer: layer ?? null,
    event: event instanceof Uint8Array ? event.slice() : event,
  }));
  const driver = await cuda.demand(device);
  const opened: number[] = [];
  const ready: { layer: number | null; event: number }[] = [];
  try {
    for (const { layer, event } of kept) {
      if (typeof event === "number") ready.push({ layer, event });
      else {
        const own = await driver.openEvent(device, event);
        opened.push(own);
        ready.push({ layer, event: own });
      }
    }
  } catch (error) {
    for (const event of opened) await driver.closeEvent(device, event).catch(() => undefined);
    throw error;
  }
  return { device, stream, streamWaits, events: ready, opened };
}

function invalid(field: string, wanted: string, found: unknown): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "transfer",
    `${field} must be ${wanted}`,
    `Correct ${field} in the transfer's options.`,
    { field, found: typeof found === "object" ? String(found) : found },
  );
}
