// What the processes of the kill proof say to each other, and what they are made of.
import type { LayoutSpec, OpenOptions } from "../../index.ts";

/** Blocks of a pool: enough bytes that a fault falls into the middle of a transfer. */
export const BLOCKS = 32;

/** 1 MiB a block. */
export const POOL: LayoutSpec = {
  config: { numBlocks: BLOCKS, numLayers: 4, outerDim: 2, pageSize: 64, innerDim: 1_024 },
  arrangement: "fully-contiguous",
  memory: { kind: "system" },
};

export const KILL_OPTIONS: Omit<OpenOptions, "workerId"> = {
  nixl: { backends: { UCX: {} } },
  cuda: false,
  neighbours: false,
  heartbeatMs: 200,
  secret: new Uint8Array(32).fill(0x42),
  trustedNetwork: true,
};

/** What a peer is told. */
export type SurvivorWord =
  | { readonly do: "export" | "forget" }
  | { readonly do: "import"; readonly bytes: Uint8Array }
  | { readonly do: "fill"; readonly seed: number }
  | {
      readonly do: "push" | "pull";
      readonly sourceBlocks: readonly number[];
      readonly destinationBlocks: readonly number[];
      readonly deadlineMs: number;
      readonly tag: string | null;
    }
  | { readonly do: "checksums"; readonly blocks: readonly number[] };

/** What a peer says. */
export type PeerWord =
  | { readonly say: "package"; readonly bytes: Uint8Array }
  | { readonly say: "imported" | "filled" }
  | { readonly say: "sums"; readonly sums: readonly string[] }
  | { readonly say: "failed"; readonly why: string };

/** What befalls a peer. */
export type Fault = "kill" | "stop" | "link";

/** What the survivor says of a case. */
export interface KillReport {
  readonly index: number;
  readonly fault: Fault;
  readonly problems: readonly string[];
  readonly tally: Readonly<Record<string, number>>;
  readonly descriptors: number;
  readonly threads: number;
  readonly rss: number;
}
