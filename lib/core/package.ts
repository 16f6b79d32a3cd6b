import type { Arrangement } from "./arrangement.ts";
import type { ResolvedConfig } from "./config.ts";
import type { LayoutHandle } from "./handle.ts";
import type { Access, Storage, Tier } from "./layout.ts";
import type { StridedView } from "./view.ts";

/** The metadata formats that kvferry reads and writes. */
export type PackageFormat = "kvferry" | "dynamo-1.0" | "kvbm-physical-1";

/** Where a process of the same host can be met to have its memory mapped. */
export interface HostIdentity {
  /** Kernel boot id. */
  readonly bootId: string;
  /** Inode numbers of the pid, ipc, network and user namespaces. */
  readonly namespaces: Readonly<Record<"pid" | "ipc" | "net" | "user", string>>;
  readonly userId: number;
  readonly processId: number;
  /** Name of the abstract socket that hands out memory. */
  readonly rendezvous: string;
}

/** A component as it travels. Frozen plain data. */
export interface PackageComponent {
  readonly name: string;
  readonly config: ResolvedConfig;
  readonly arrangement: Arrangement;
  readonly order: readonly ("layer" | "outer" | "page" | "head")[];
  readonly view: StridedView;
  readonly group: string;
  readonly wholeBlocks: boolean;
  readonly alias: boolean;
  readonly storage: Storage;
  /** Addresses and sizes in the exporter's address space; empty for disk layouts. */
  readonly regionAddresses: Float64Array;
  readonly regionSizes: Float64Array;
  readonly nixlDevice: number;
}

/** A layout as it travels. */
export interface PackageLayout {
  readonly handle: LayoutHandle;
  readonly name: string;
  readonly tier: Tier;
  readonly access: Access;
  readonly fingerprint: string | null;
  readonly stagedOnly: boolean;
  readonly components: readonly PackageComponent[];
}

/** The common form of a metadata package, whatever its format. */
export interface MetadataPackage {
  readonly format: PackageFormat;
  readonly workerId: bigint;
  /** The name that users see. */
  readonly agentName: string;
  /** The name on NIXL's wire: the agent name and an incarnation for kvferry peers, the agent name for Dynamo's. */
  readonly wireName: string;
  /** Rises with every start of the worker; 0 in Dynamo's formats. */
  readonly incarnation: number;
  /** Rises with every export of one incarnation; 0 in Dynamo's formats. */
  readonly sequence: number;
  /** Milliseconds since 1970; null when unknown or never. */
  readonly issuedAtMs: number | null;
  readonly expiresAtMs: number | null;
  /** Worker ids that the package is meant for; null for everybody. */
  readonly audience: readonly bigint[] | null;
  /** NIXL's own blob; empty when the exporter has no agent. */
  readonly nixlMetadata: Uint8Array;
  readonly host: HostIdentity | null;
  /** In layout id order for packages that kvferry wrote, in the given order otherwise. */
  readonly layouts: readonly PackageLayout[];
}
