import type { StorageKind, Tier } from "../core/layout.ts";

// Rows of a kvferry package's columns, shared by the side that writes and the side that reads.

export const TIERS: readonly Tier[] = ["G1", "G2", "G3", "G4"];
export const STORAGES: readonly StorageKind[] = ["system", "pinned", "device", "disk"];

/** Words of a layout's row: layout id; name; fingerprint + 1, 0 for none; components; tier and flags. */
export const LAYOUT_WORDS = 5;
/** Words of a component's row: shape; storage kind; its device, {@link NO_WORD} for none. */
export const COMPONENT_WORDS = 3;
/** Stands for "not given". */
export const NO_WORD = 0xffff_ffff;
/** Flag above the tier's two bits: peers may only read. */
export const READ_ONLY = 4;
/** Flag: reachable only with the owner's help. */
export const STAGED = 8;
