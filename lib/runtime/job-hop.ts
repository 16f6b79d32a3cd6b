import type { Completion } from "../native/completion.ts";
import type { NativeContext } from "../native/context.ts";
import { KVF_DONE_IN_DOUBT, KVF_DONE_TOUCHED, KVF_E_CANCELLED } from "../native/symbols.ts";
import type { HopOutcome, RunningHop } from "./executor.ts";

/** What a hop's completion says. Only inside the completion's handler. */
export function outcomeOf(context: NativeContext, completion: Completion, slot: number): HopOutcome {
  const ok = completion.status >= 0;
  return {
    ok,
    cancelled: completion.status === KVF_E_CANCELLED,
    touched: ok || (completion.flags & KVF_DONE_TOUCHED) !== 0,
    inDoubt: !ok && (completion.flags & KVF_DONE_IN_DOUBT) !== 0,
    bytes: ok ? completion.value : 0,
    error: ok ? null : context.failure("transfer", completion, slot),
  };
}

/** A hop that runs as one job of the native library. */
export function runningJob(
  context: NativeContext,
  slot: number,
  abandon: () => void = () => undefined,
): RunningHop {
  return {
    cancel: () => context.cancel(slot),
    abandon,
    programsDone: () => context.programsDone(slot),
    bytesDone: () => context.bytesDone(slot),
  };
}
