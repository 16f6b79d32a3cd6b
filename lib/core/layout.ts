import type { Arrangement, Order } from "./arrangement.ts";
import type { LayoutConfig, ResolvedConfig } from "./config.ts";
import type { LayoutHandle } from "./handle.ts";
import type { StridedView } from "./view.ts";

/** Logical tier of Dynamo's block manager: GPU, host, disk, external service. */
export type Tier = "G1" | "G2" | "G3" | "G4";

/** What peers may do with a layout's blocks. */
export type Access = "read" | "read-write";

/** Where bytes physically live. `device` is the CUDA ordinal of the owner's process. */
export type Storage =
  | { readonly kind: "system" }
  | { readonly kind: "pinned"; readonly device?: number }
  | { readonly kind: "device"; readonly device: number }
  | { readonly kind: "disk" };

/** The word of a {@link Storage}. */
export type StorageKind = Storage["kind"];

/** A run of bytes by address; for disk layouts `address` is the byte offset in the file. */
export interface Region {
  readonly address: number;
  readonly size: number;
}

/** Where a component's memory comes from. */
export type MemorySpec =
  | { readonly kind: "system" }
  | { readonly kind: "pinned"; readonly device?: number; readonly allocator?: "shared" | "driver" }
  | { readonly kind: "device"; readonly device?: number }
  | {
      readonly kind: "disk";
      readonly path?: string;
      readonly open?: "create" | "existing";
      readonly checksums?: boolean;
    }
  | { readonly kind: "shared"; readonly with: string; readonly offset: number }
  | {
      readonly kind: "external";
      readonly storage: "system" | "pinned" | { readonly device: number };
      readonly regions: readonly Region[];
    }
  | {
      readonly kind: "external-fd";
      readonly regions: readonly { readonly fd: number; readonly offset: number; readonly size: number }[];
    }
  | {
      readonly kind: "external-ipc";
      readonly device: number;
      readonly regions: readonly {
        readonly ipcHandle: Uint8Array;
        readonly offset: number;
        readonly size: number;
      }[];
    };

/** One named component of a bundle, as a caller describes it. */
export interface ComponentSpec {
  readonly config: LayoutConfig;
  readonly arrangement?: Arrangement;
  readonly order?: Order;
  readonly memory: MemorySpec;
  /** The block-id space that it is addressed in; default `"default"`. */
  readonly group?: string;
  /** Blocks pair one to one and are never split by page size or heads (recurrent state). */
  readonly wholeBlocks?: boolean;
  /** Its bytes may also belong to another component of the bundle. */
  readonly alias?: boolean;
}

/** What the short and the long form of a layout have in common. */
export interface LayoutCommon {
  readonly name?: string;
  readonly tier?: Tier;
  readonly fingerprint?: string;
  readonly access?: Access;
}

/** A layout of one tensor, or a bundle of named components. */
export type LayoutSpec = LayoutCommon &
  (ComponentSpec | { readonly components: Readonly<Record<string, ComponentSpec>> });

/** How this process reaches a component's bytes. The planner takes addresses where there are some. */
export type Attachment =
  /** Addresses of this process: own memory, or a neighbour's memory mapped at import. */
  | {
      readonly kind: "addresses";
      readonly bases: Float64Array;
      readonly origin: "own" | "mapped";
      /** What mapped memory is to this process, where that differs from what it is to its owner. */
      readonly storage?: Storage;
      /** CUDA ordinal of the one device that reaches a neighbour's GPU memory: it was opened for that device. */
      readonly via?: number;
    }
  /** An open file of this process: `bases` are byte offsets in it. */
  | { readonly kind: "file"; readonly file: number; readonly bases: Float64Array }
  /** A peer's addresses, reachable through the NIXL agent of that wire name. */
  | {
      readonly kind: "nixl";
      readonly agent: string;
      readonly bases: Float64Array;
      /** Why the bytes have no address in this process: a sentence. */
      readonly unmapped?: string;
    }
  /** Only the peer itself can touch the bytes (disk, or GPU without RDMA). */
  | {
      readonly kind: "staged";
      readonly agent: string;
      /** Why the bytes have no address in this process: a sentence. */
      readonly unmapped?: string;
    };

/** The immutable shape of a component: everything but its memory. Shared by all layouts registered from one spec. */
export interface ComponentShape {
  readonly name: string;
  readonly config: ResolvedConfig;
  readonly arrangement: Arrangement;
  readonly order: readonly ["layer" | "outer" | "page" | "head", ...("layer" | "outer" | "page" | "head")[]];
  readonly view: StridedView;
  readonly group: string;
  readonly wholeBlocks: boolean;
  readonly alias: boolean;
}

/** A component of a registered layout. */
export interface ComponentRecord {
  readonly shape: ComponentShape;
  readonly storage: Storage;
  /** One address for each region, in the owner's address space. */
  readonly regionAddresses: Float64Array;
  /** Bytes of each region. */
  readonly regionSizes: Float64Array;
  readonly attachment: Attachment;
  /** Memory type and device id under which NIXL knows the bytes. */
  readonly nixlDevice: number;
}

/** A layout as a registry snapshot holds it. Immutable. */
export interface LayoutRecord {
  readonly handle: LayoutHandle;
  readonly layoutId: number;
  /** 48-bit generation of the handle. */
  readonly generation: number;
  /** The peer that owns it, or null when it was registered here: locality is this fact and nothing else. */
  readonly owner: bigint | null;
  readonly name: string;
  readonly tier: Tier;
  readonly access: Access;
  readonly fingerprint: string | null;
  /** Only reachable with the peer's help (disk, GPU without RDMA). */
  readonly stagedOnly: boolean;
  readonly components: readonly ComponentRecord[];
}
