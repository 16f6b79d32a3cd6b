import { KvferryError, type ErrorDetails } from "../core/errors.ts";
import type { Hop, TransferPlan } from "../core/plan.ts";
import type { EngineEffects, Task } from "./task.ts";

/** The transfer's time is over. @param unreached - No byte has ever come to its peer or from it. */
export function timedOut(
  id: number,
  { agent, deadlineMillis, plan }: Task,
  unreached: boolean,
  fileName: EngineEffects["fileName"],
): KvferryError {
  const files = filesOf(plan, fileName);
  return new KvferryError(
    "TIMEOUT",
    "transfer",
    `the transfer did not finish within ${deadlineMillis} ms${files.length > 0 ? `; it reads or writes ${files.join(", ")}` : ""}${unreached ? "; no byte has ever reached the peer" : ""}`,
    unreached
      ? "Check that the workers can reach each other and that their NIXL releases can connect (1.3 with later ones on one host: UCX_TLS=tcp,self, on machines with GPUs tcp,self,cuda)."
      : "Give it a longer deadlineMs, or look at explain(request) for why it is slow.",
    {
      id,
      deadlineMillis,
      route: plan.route,
      agent,
      everReached: !unreached,
      ...(files.length > 0 ? { files } : undefined),
    },
  );
}

/** A staged copy was stopped before its end. */
export function stopped(details: ErrorDetails = {}): KvferryError {
  return new KvferryError(
    "TIMEOUT",
    "transfer",
    "the copy was stopped",
    "The transfer was cancelled; start it again if it is still wanted.",
    details,
  );
}

export function missingExecutor(hop: Hop): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `nothing here can run a ${hop.executor} hop`,
    "Run `kvferry doctor` to see what this process has.",
    {
      executor: hop.executor,
      method: hop.method,
    },
  );
}

export function missingReason(hop: Hop): KvferryError {
  return new KvferryError(
    "IO",
    "transfer",
    `the ${hop.executor} hop failed without a reason`,
    "Run it again with KVFERRY_LOG=debug.",
    {
      executor: hop.executor,
    },
  );
}

/** Paths of the files of this process that take part. */
function filesOf({ legs }: TransferPlan, fileName: EngineEffects["fileName"]): string[] {
  const names = new Set<string>();
  for (const { hops } of legs)
    for (const { programs } of hops)
      for (const { srcMemory, dstMemory } of programs)
        for (const { kind, device } of [srcMemory, dstMemory]) {
          const name = kind === 2 ? fileName?.(device) : undefined;
          if (name !== undefined) names.add(name);
        }
  return [...names];
}
