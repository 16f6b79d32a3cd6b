// What the processes of the kill proof say to each other, and what they are made of.
import type { LayoutSpec, OpenOptions } from "../../index.ts";

/** Blocks of a pool: enough bytes that a fault falls into the middle of a transfer. */
export const BLOCKS = 32;

export const ALL_BLOCKS: readonly number[] = Array.from({ length: BLOCKS }, (_, block) => block);

/**
 * What a pool's blocks are for. Sources are only ever filled, and within one case no block is the destination of two
 * transfers, so that the bytes of every transfer that was done are known.
 */
export const USE: {
  readonly survivor: Readonly<
    Record<"sources" | "pulledFromVictim" | "pushedByVictim" | "pulledFromThird", readonly number[]>
  >;
  readonly other: Readonly<Record<"pushedBySurvivor" | "sources" | "pulled" | "verified", readonly number[]>>;
} = {
  survivor: {
    sources: ids(0, 8),
    pulledFromVictim: ids(8, 8),
    pushedByVictim: ids(16, 8),
    pulledFromThird: ids(24, 8),
  },
  other: { pushedBySurvivor: ids(0, 16), sources: ids(16, 8), pulled: ids(24, 4), verified: ids(28, 4) },
};

function ids(first: number, count: number): readonly number[] {
  return ALL_BLOCKS.slice(first, first + count);
}

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
  // Chunks enough for all that a case's transfers ask for at once, and for what a link that was down keeps in doubt; all
  // of them, and as many spare ones that are touched when others are kept, too few bytes to look like growth.
  staging: { sendBytes: 2 ** 20, receiveBytes: 2 ** 20, chunkBytes: 2 ** 16 },
  secret: new Uint8Array(32).fill(0x42),
  trustedNetwork: true,
};

/** What a peer is told. */
export type SurvivorWord =
  | { readonly do: "export" | "forget" | "end" }
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
  | { readonly say: "imported" | "ended" }
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
  /** Open descriptors by what they are. */
  readonly descriptors: Readonly<Record<string, number>>;
  /** Nobody who lives has been forgotten and imported anew since its process began: see `comparable` in `kill.ts`. */
  readonly fresh: boolean;
  readonly threads: number;
  readonly rss: number;
}
