import { encodeHop } from "../core/encode.ts";
import type { Hop } from "../core/plan.ts";
import type { NativeContext } from "../native/context.ts";
import type { Executor, RunningHop } from "./executor.ts";
import { outcomeOf, runningJob } from "./job-hop.ts";

/** Runs hops between files and host memory on the lanes of the files. */
export function fileExecutor(context: NativeContext): Executor {
  return {
    start(hop: Hop, { watch }, done): RunningHop {
      const encoded = encodeHop(hop.programs);
      const slot = context.submit(
        "transfer",
        (free) => context.library.kvf_file_copy_job(context.address, free, encoded, encoded.length),
        (completion, ended) => done(outcomeOf(context, completion, ended)),
        watch,
      );
      return runningJob(context, slot);
    },
  };
}
