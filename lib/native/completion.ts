import { KVF_DONE_IN_DOUBT, KVF_DONE_TOUCHED, KVF_E_CLOSED } from "./symbols.ts";

/** How a job ended. */
export interface Completion {
  /** `KVF_OK` or a negative status. */
  readonly status: number;
  /** `KVF_DONE_*`. */
  readonly flags: number;
  /** What the job answers with: bytes moved, a handle, a count. */
  readonly value: number;
  /** Microseconds from submission to completion, as the library measured it. */
  readonly micros: number;
}

/** What a job's owner gets told; called on the JavaScript thread, once. The slot is free again when it returns. */
export type CompletionHandler = (completion: Completion, slot: number) => void;

/** What the owner of a job is told that had not ended when its context was closed. */
export const LEFT_BEHIND: Completion = {
  status: KVF_E_CLOSED,
  flags: KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT,
  value: 0,
  micros: 0,
};
