import type { GdsWay } from "./gds.ts";
import type { GpuWork } from "./gpu-work.ts";
import type { ExecutorName, Hop } from "./plan.ts";
import type { ProgramMemory } from "./program.ts";

/** What the cost model needs to know of a hop. */
export interface Work {
  readonly executor: ExecutorName;
  readonly op: Hop["op"];
  /** Wire name of the peer, for NIXL. */
  readonly agent?: string | null;
  readonly bytes: number;
  /** Contiguous pieces after merging. */
  readonly descriptors: number;
  /** 0 host, 1 device, 2 file. */
  readonly sourceKind: ProgramMemory["kind"];
  readonly destinationKind: ProgramMemory["kind"];
  /** More about a hop that a GPU runs. */
  readonly gpu?: GpuWork | undefined;
  /** How GPUDirect Storage stands to it; only between GPU memory and a file. */
  readonly gds?: GdsWay | undefined;
}

/** One way to run a hop. */
export interface Option {
  readonly method: string;
  readonly micros: number;
  readonly width: number;
  readonly inline: boolean;
  /** Sentences for either outcome; constant, so that planning one block makes no strings. */
  readonly taken: string;
  readonly passed: string;
}
