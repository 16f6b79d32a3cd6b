import type { LayoutHandle } from "./handle.ts";
import type { Access, ComponentRecord, LayoutRecord, Tier } from "./layout.ts";
import type { HostIdentity, PackageFormat } from "./package.ts";
import type { PersistentVector } from "./persistent-vector.ts";

/** Reuses of one id within an incarnation: the low 12 bits of a generation. */
export const REUSES_PER_INCARNATION = 4_096;

/** The largest incarnation: 36 bits. */
export const MAX_INCARNATION: number = 2 ** 36 - 1;

/** Who a registry speaks for. */
export interface RegistryIdentity {
  /** Unsigned 64 bits. */
  readonly workerId: bigint;
  /** The name that users see. */
  readonly agentName: string;
  /** The name of this process's NIXL agent. */
  readonly wireName: string;
  /** Rises with every start of the worker: units of 16 ms since 2025-01-01, 36 bits. */
  readonly incarnation: number;
}

/** What the place of an unregistered layout remembers, so that its handles can be told as stale. */
export interface FreeSlot {
  readonly handle: null;
  /** The generation that was used last. */
  readonly generation: number;
}

/** A peer that was imported. */
export interface PeerRecord {
  readonly workerId: bigint;
  readonly agentName: string;
  readonly wireName: string;
  readonly format: PackageFormat;
  readonly incarnation: number;
  readonly sequence: number;
  readonly host: HostIdentity | null;
  /** In package order. */
  readonly layouts: readonly LayoutRecord[];
  readonly byLayoutId: ReadonlyMap<number, LayoutRecord>;
  /** Layout ids that an update took away, with their last generation. */
  readonly removed: ReadonlyMap<number, number>;
  /** Layout ids that the peer said it took back, with their last generation: no package brings those back. */
  readonly takenBack?: ReadonlyMap<number, number>;
}

/** What was last known of a peer that was forgotten: older packages of it are replays. */
export interface ForgottenPeer {
  readonly incarnation: number;
  readonly sequence: number;
}

/** Ids that may be given out again, oldest first: a queue of two shared lists. */
export interface FreeIds {
  readonly front: FreeId | null;
  readonly back: FreeId | null;
}

/** A link of {@link FreeIds}. */
export interface FreeId {
  readonly layoutId: number;
  readonly next: FreeId | null;
}

/**
 * Everything that this process knows about layouts, its own and its peers'. Immutable; every change makes a new
 * snapshot that shares what did not change. Read it with the queries of `registry-queries.ts`.
 */
export interface RegistrySnapshot extends RegistryIdentity {
  /** Rises by one with every change. */
  readonly revision: number;
  /** Handle of layout 0 before any reuse: what handles of fresh ids are made from. */
  readonly firstHandle: LayoutHandle;
  /** By layout id; its size is the next fresh id. */
  readonly slots: PersistentVector<LayoutRecord | FreeSlot>;
  readonly freeIds: FreeIds;
  readonly localCount: number;
  readonly remoteCount: number;
  /** In order of import. */
  readonly peers: ReadonlyMap<bigint, PeerRecord>;
  readonly forgotten: ReadonlyMap<bigint, ForgottenPeer>;
}

/** A layout about to be registered: what the registry does not decide itself. */
export interface NewLayout {
  /** Null becomes `layout-<id>`. */
  readonly name: string | null;
  readonly tier: Tier;
  readonly access: Access;
  readonly fingerprint: string | null;
  readonly stagedOnly?: boolean;
  /** Kept, not copied; must not change afterwards. */
  readonly components: readonly ComponentRecord[];
}
