import { encodeHop } from "../core/encode.ts";
import { KvferryError } from "../core/errors.ts";
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
  KVF_CUDA_WATCH,
} from "../native/symbols.ts";
import { CUDA_WAIT, eventsByProgram } from "./cuda-order.ts";
import type { Executor, RunningHop } from "./executor.ts";
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

/** Words of the largest hop that is encoded without an array of its own. */
const SCRATCH_WORDS = 16_384;

/**
 * Runs hops between host and device memory of this process, on streams of the library.
 *
 * The hop is submitted on the calling thread where that takes microseconds; its end comes through the completion ring.
 */
export function cudaExecutor(context: NativeContext, defaultDevice: () => number): Executor {
  const scratch = new Float64Array(new ArrayBuffer(SCRATCH_WORDS * 8));
  return {
    start(hop: Hop, { watch, order = null }, done): RunningHop {
      const method = METHODS.get(hop.method);
      if (method === undefined) throw unknownMethod(hop.method);
      // The library copies the hop, or is done with it, before the call returns.
      const encoded = encodeHop(hop.programs, scratch);
      const waits = order === null ? null : eventsByProgram(hop, order);
      const stream = order?.stream ?? 0;
      const flags =
        (watch ? KVF_CUDA_WATCH : 0) |
        (stream !== 0 && order?.streamWaits === true ? KVF_CUDA_CALLER_WAITS : 0);
      const slot = context.submit(
        "transfer",
        (free) =>
          context.library.kvf_cuda_copy_job(
            context.address,
            free,
            deviceOf(hop) ?? order?.device ?? defaultDevice(),
            encoded,
            encoded.length,
            method,
            hop.width,
            flags,
            stream,
            waits,
            waits === null ? 0 : waits.length / 2,
          ),
        (completion, ended) => done(outcomeOf(context, completion, ended)),
        watch,
      );
      return runningJob(context, slot);
    },
  };
}

/** The device that a copy runs on: the one that holds the source, else the destination. */
function deviceOf(hop: Hop): number | null {
  const program = hop.programs[0];
  if (program?.srcMemory.kind === 1) return program.srcMemory.device;
  return program?.dstMemory.kind === 1 ? program.dstMemory.device : null;
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
