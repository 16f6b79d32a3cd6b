import type { LayoutHandle } from "./handle.ts";
import type { CopyProgram } from "./program.ts";

/** Who runs a hop. */
export type ExecutorName = "host" | "cuda" | "nixl" | "file" | "staged" | "gds";

/** One way to run a hop's programs, with what the cost model thinks of it. */
export interface MethodCandidate {
  /** e.g. `host/plain`, `host/nontemporal`, `nixl/write`, `cuda/kernel`, `gds/read`. */
  readonly method: string;
  /** Predicted duration in microseconds; Infinity when it cannot run. */
  readonly micros: number;
  /** A sentence: why it was taken or passed over. */
  readonly reason: string;
}

/** A hop: a list of copy programs run by one native call. */
export interface Hop {
  readonly executor: ExecutorName;
  /** `copy` here; `write` to or `read` from a peer, or a file by GPUDirect Storage. */
  readonly op: "copy" | "write" | "read";
  /** Wire name of the peer's NIXL agent for `nixl` hops. */
  readonly agent: string | null;
  readonly programs: readonly CopyProgram[];
  /** The component that each program moves, where a peer has to help and must be told. */
  readonly components?: readonly string[];
  readonly bytes: number;
  /** Rows before and after neighbours were merged. */
  readonly descriptorsBefore: number;
  readonly descriptorsAfter: number;
  readonly method: string;
  /** Threads (host), lanes (NIXL) or CTAs (kernels) that the method wants. */
  readonly width: number;
  /** True when running on the caller's thread is cheaper than handing over. */
  readonly inline: boolean;
  readonly predictedMicros: number;
  readonly candidates: readonly MethodCandidate[];
}

/** A leg takes the bytes to one destination. */
export interface Leg {
  readonly destination: LayoutHandle;
  readonly hops: readonly Hop[];
}

/** What will be done for a request: pure data, made from the request, a snapshot and a machine profile. */
export interface TransferPlan {
  readonly source: LayoutHandle;
  readonly destination: LayoutHandle;
  /** Key of the route table, e.g. `system -> system (remote)`. */
  readonly route: string;
  readonly reason: string;
  readonly legs: readonly Leg[];
  readonly bytes: number;
  /** Covered part of the destination blocks' bytes within what was asked for, 0 to 1. */
  readonly coverage: number;
  /** Layers in the order in which a layer-wise plan completes them; null otherwise. */
  readonly layers: readonly number[] | null;
  readonly predictedMicros: number;
  /** Sentences about what is slow, unproven or missing (a fingerprint on one side, ...). */
  readonly warnings: readonly string[];
  /** Faster ways that were passed over, with the reason. */
  readonly passedOver: readonly { readonly route: string; readonly reason: string }[];
}
