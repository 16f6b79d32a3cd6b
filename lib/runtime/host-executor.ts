import type { KvferryError } from "../core/errors.ts";
import { listsBeside } from "../core/encode.ts";
import type { Hop } from "../core/plan.ts";
import type { NativeContext } from "../native/context.ts";
import { nativeError } from "../native/native-error.ts";
import { KVF_COPY_NONTEMPORAL } from "../native/symbols.ts";
import type { Executor, HopOutcome, RunningHop } from "./executor.ts";
import { hopEncoder } from "./hop-encoder.ts";
import { outcomeOf, runningJob } from "./job-hop.ts";

/** A hop that ended before `start` returned. */
const ENDED: RunningHop = {
  cancel: () => undefined,
  abandon: () => undefined,
  programsDone: () => 0,
  bytesDone: () => 0,
};

/**
 * Runs hops between host addresses: small ones on the calling thread, where handing over costs more than the copy,
 * large ones on the copy pool.
 *
 * @param numberOf - The number of a list of block ids: lists of one number hold the same ids. 0 for none.
 */
export function hostExecutor(context: NativeContext, numberOf: (list: Uint32Array) => number): Executor {
  const out = new Float64Array(new ArrayBuffer(16));
  const encode = hopEncoder();
  return {
    start(hop: Hop, { watch }, done): RunningHop {
      const flags = hop.method === "host/nontemporal" ? KVF_COPY_NONTEMPORAL : 0;
      if (hop.inline && !watch) {
        const encoded = encode(hop.programs);
        const status = context.library.kvf_copy_run(encoded, encoded.length, flags, out);
        done(
          status < 0
            ? refused(nativeError(context.library, status, "transfer", "the host copy was refused"))
            : finished(hop.bytes),
        );
        return ENDED;
      }
      // The library copies the hop and its lists before the call returns.
      const beside = listsBeside(hop.programs, numberOf);
      const encoded = encode(hop.programs, beside);
      const slot = context.submit(
        "transfer",
        (free) =>
          context.library.kvf_copy_job(
            context.address,
            free,
            encoded,
            encoded.length,
            flags,
            hop.width,
            beside?.source ?? null,
            beside?.destination ?? null,
            beside?.count ?? 0,
          ),
        (completion, ended) => done(outcomeOf(context, completion, ended)),
        watch,
      );
      return runningJob(context, slot);
    },
  };
}

function finished(bytes: number): HopOutcome {
  return { ok: true, cancelled: false, touched: true, inDoubt: false, bytes, error: null };
}

// The library checks a whole program before it copies the first byte.
function refused(error: KvferryError): HopOutcome {
  return { ok: false, cancelled: false, touched: false, inDoubt: false, bytes: 0, error };
}
