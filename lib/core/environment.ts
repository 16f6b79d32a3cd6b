import type { PairScan } from "./blocks.ts";
import type { LayoutHandle } from "./handle.ts";
import type { ComponentRecord } from "./layout.ts";
import type { ExecutorName } from "./plan.ts";

/** What is possible in this process, as plain data: the caller tells, the planner never looks. */
export interface PlanEnvironment {
  /** Executors that can run here. */
  readonly executors: readonly ExecutorName[];
  /** Why an executor is missing, as a sentence with its remedy, e.g. which library was not found. */
  readonly missing?: Readonly<
    Partial<Record<ExecutorName, { readonly reason: string; readonly remedy: string }>>
  >;
  /** Whether NIXL may move GPU memory to and from peers. */
  readonly gpuRdma?: boolean;
  /**
   * Why GPUDirect Storage cannot move bytes between GPU memory and a file, as a sentence; null when it can. Left out where
   * nobody asked for it.
   */
  readonly gds?: (memory: ComponentRecord, file: ComponentRecord) => string | null;
  /** Whether the peer of that wire name helps with staged transfers: a kvferry transport that knows this one. */
  readonly assists?: (agent: string) => boolean;
  /** Whether staging memory on GPUs may serve between this process and the peer of that wire name. */
  readonly deviceSlabs?: (agent: string) => boolean;
  /** Which executors to prefer where several can do the work. */
  readonly prefer?: "automatic" | "native" | "nixl";
  /** Processors that this process may use. */
  readonly processors?: number;
  /** Transport between this process and the peer of that wire name, a key of the profile's `nixl.transports`. */
  readonly nixlTransport?: (agent: string) => string | undefined;
  /** What is known of the GPU of an ordinal; null when nothing is. */
  readonly gpu?: (device: number) => GpuFacts | null;
  /** Looks at long lists of block ids faster than this language does; the same is found without it. */
  readonly scan?: PairScan;
  /** Blocks of a layout's block-id space that nobody may use; null when there are none. */
  readonly quarantined?: (layout: LayoutHandle, group: string) => { has(block: number): boolean } | null;
}

/** What the choice of a copy method needs to know of a GPU. */
export interface GpuFacts {
  /** Multiprocessors. */
  readonly sms: number;
  /** Whether the native library has kernels for it, and those of bulk copies. */
  readonly kernels: boolean;
  readonly bulk: boolean;
  /** Whether the driver has the batched copy. */
  readonly batch: boolean;
  /** Something else computes on it: copies should leave it its multiprocessors. */
  readonly busy: boolean;
}
