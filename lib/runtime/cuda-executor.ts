import { KvferryError } from "../core/errors.ts";
import { listsBeside } from "../core/encode.ts";
import { runningDeviceOf } from "../core/program.ts";
import type { Hop } from "../core/plan.ts";
import type { NativeContext } from "../native/context.ts";
import {
  KVF_CUDA_CALLER_WAITS,
  KVF_CUDA_METHOD_BATCH,
  KVF_CUDA_METHOD_BULK,
  KVF_CUDA_METHOD_DMA,
  KVF_CUDA_METHOD_KERNEL,
  KVF_CUDA_METHOD_PITCHED,
  KVF_CUDA_METHOD_SLAB,
  KVF_AGAIN,
  KVF_CUDA_WAKES,
  KVF_CUDA_WATCH,
} from "../native/symbols.ts";
import { CUDA_WAIT, eventsByProgram } from "./cuda-order.ts";
import type { Executor, RunningHop } from "./executor.ts";
import { hopEncoder } from "./hop-encoder.ts";
import { outcomeOf, runningJob } from "./job-hop.ts";

const METHODS: ReadonlyMap<string, number> = new Map([
  ["cuda/dma", KVF_CUDA_METHOD_DMA],
  ["cuda/pitched", KVF_CUDA_METHOD_PITCHED],
  ["cuda/batch", KVF_CUDA_METHOD_BATCH],
  ["cuda/kernel", KVF_CUDA_METHOD_KERNEL],
  ["cuda/slab", KVF_CUDA_METHOD_SLAB],
  ["cuda/bulk", KVF_CUDA_METHOD_BULK],
  [CUDA_WAIT, KVF_CUDA_METHOD_KERNEL],
]);

/** Copies up to this long are looked for from their start; up to the second, from shortly before their end. */
const SHORT_MICROS = 1_500;
const LONG_MICROS = 20_000;
/** Part of the predicted time after which looking begins, and at which it ends, beside a fixed delay. */
const EARLY = 0.8;
const SLACK = 1.3;
const LATE_MICROS = 100;
/** Code and data that were not used for so long are out of the processor's caches. */
const COLD_NANOS = 1_000_000;

/**
 * Runs hops between host and device memory of this process, on streams of the library.
 *
 * The hop is submitted on the calling thread where that takes microseconds; its end comes through the completion ring.
 *
 * @param numberOf - The number of a list of block ids: lists of one number hold the same ids. 0 for none.
 */
export function cudaExecutor(
  context: NativeContext,
  defaultDevice: () => number,
  numberOf: (list: Uint32Array) => number,
): Executor {
  const encode = hopEncoder();
  const wakeSoon = waker(context);
  let lastStart = 0;
  /** What submitting the same once more would go over, as far as that has no effect. */
  const rehearseStart = (hop: Hop, method: number, rehearse: () => void): void => {
    if (Bun.nanoseconds() - lastStart < COLD_NANOS) return;
    try {
      rehearse();
    } catch {
      // A layout is gone by now, its blocks are not good any more, or all is being closed, the device too: whoever asks
      // for the like will hear of it.
      return;
    }
    const beside = listsBeside(hop.programs, numberOf);
    const encoded = encode(hop.programs, beside);
    context.library.kvf_cuda_rehearse(
      deviceOf(hop) ?? defaultDevice(),
      encoded,
      encoded.length,
      method,
      hop.width,
      beside?.source ?? null,
      beside?.destination ?? null,
      beside?.count ?? 0,
    );
  };
  return {
    start(hop: Hop, { watch, order = null, rehearse }, done): RunningHop {
      const method = METHODS.get(hop.method);
      if (method === undefined) throw unknownMethod(hop.method);
      // The library copies the hop and its lists, or is done with them, before the call returns.
      const beside = listsBeside(hop.programs, numberOf);
      const encoded = encode(hop.programs, beside);
      const waits = order === null ? null : eventsByProgram(hop, order);
      const stream = order?.stream ?? 0;
      const flags =
        KVF_CUDA_WAKES |
        (watch ? KVF_CUDA_WATCH : 0) |
        (stream !== 0 && order?.streamWaits === true ? KVF_CUDA_CALLER_WAITS : 0);
      const device = deviceOf(hop) ?? order?.device ?? defaultDevice();
      const slot = context.submit(
        "transfer",
        (free) => {
          const status = context.library.kvf_cuda_copy_job(
            context.address,
            free,
            device,
            encoded,
            encoded.length,
            method,
            hop.width,
            flags,
            stream,
            waits,
            waits === null ? 0 : waits.length / 2,
            beside?.source ?? null,
            beside?.destination ?? null,
            beside?.count ?? 0,
          );
          if (status === KVF_AGAIN) wakeSoon(device);
          return status;
        },
        (completion, ended) => {
          if (timer !== undefined) clearTimeout(timer);
          done(outcomeOf(context, completion, ended));
        },
        watch,
      );
      // What comes first may take any time; only copies that begin at once have an end that can be foreseen.
      lastStart = Bun.nanoseconds();
      const timer =
        order === null
          ? hastenFor(context, hop.predictedMicros, () => {
              if (rehearse !== undefined) rehearseStart(hop, method, rehearse);
            })
          : undefined;
      return runningJob(context, slot);
    },
  };
}

/**
 * Wakes the library's thread that looks for the ends of a device's copies, once the code that called is done: waking a
 * thread takes longer than all the rest of a short submission, and no end can be told before. No turn of the event loop
 * comes first: after milliseconds without one that would take longer than small copies do.
 */
function waker(context: NativeContext): (device: number) => void {
  const asleep: Set<number> = new Set();
  const wake = (): void => {
    for (const device of asleep) context.library.kvf_cuda_wake(device);
    asleep.clear();
  };
  return (device) => {
    if (asleep.size === 0) queueMicrotask(wake);
    asleep.add(device);
  };
}

/**
 * Looks for the end of a copy about when it is due, instead of sleeping until the doorbell: waking takes as long as a
 * copy of some megabytes.
 *
 * Who sleeps for milliseconds finds its caches cold: submitting takes four times as long then, several percent of such a
 * copy. So the time of looking is used to go over it.
 *
 * @param idle - Called when looking begins after a sleep.
 * @returns A timer that is to be cleared when the copy ends earlier.
 */
function hastenFor(context: NativeContext, micros: number, idle: () => void): Timer | undefined {
  if (micros <= SHORT_MICROS) {
    context.hasten(micros * SLACK + LATE_MICROS);
    return undefined;
  }
  if (micros > LONG_MICROS) return undefined;
  const lead = Math.floor((micros * EARLY) / 1000);
  return setTimeout(() => {
    context.hasten(micros * (SLACK - EARLY) + LATE_MICROS);
    idle();
  }, lead);
}

/** The device that a copy runs on. */
function deviceOf({ programs: [program] }: Hop): number | null {
  return program === undefined ? null : runningDeviceOf(program);
}

function unknownMethod(method: string): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `the CUDA executor has no method ${method}`,
    "This is a defect: please report the request.",
    { method },
  );
}
