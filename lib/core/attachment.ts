import type { Attachment, Storage } from "./layout.ts";

/**
 * Memory of this process.
 *
 * @param bases - One address for each region; kept, not copied.
 */
export function ownAddresses(bases: Float64Array): Attachment {
  return { kind: "addresses", bases, origin: "own" };
}

/**
 * A neighbour's memory at the addresses where this process mapped it.
 *
 * @param bases - One address of this process for each region; kept, not copied.
 * @param storage - What the memory is to this process, where that differs from what it is to its owner.
 * @param via - CUDA ordinal of the device that reaches it, of GPU memory.
 */
export function mappedAddresses(bases: Float64Array, storage?: Storage, via?: number): Attachment {
  return {
    kind: "addresses",
    bases,
    origin: "mapped",
    ...(storage === undefined ? undefined : { storage }),
    ...(via === undefined ? undefined : { via }),
  };
}

/**
 * Bytes of an open file of this process.
 *
 * @param file - The file's number on the native side.
 * @param bases - One byte offset for each region; kept, not copied.
 */
export function openFile(file: number, bases: Float64Array): Attachment {
  return { kind: "file", file, bases };
}

/**
 * A peer's memory that NIXL reads and writes.
 *
 * @param agent - The peer agent's name on NIXL's wire.
 * @param bases - One address of the peer for each region; kept, not copied.
 * @param unmapped - Why the bytes have no address in this process: a sentence.
 */
export function throughNixl(agent: string, bases: Float64Array, unmapped?: string): Attachment {
  return unmapped === undefined ? { kind: "nixl", agent, bases } : { kind: "nixl", agent, bases, unmapped };
}

/**
 * Bytes that only their owner can touch: each transfer needs the peer's help.
 *
 * @param agent - The peer agent's name on NIXL's wire.
 */
export function throughPeer(agent: string): Attachment {
  return { kind: "staged", agent };
}

/** One base for each region in whatever space the attachment names, or null where there is none. */
export function attachmentBases(attachment: Attachment): Float64Array | null {
  return attachment.kind === "staged" ? null : attachment.bases;
}

/** Tells whether this process can touch the bytes itself, by address or through a file of its own. */
export function isDirect(attachment: Attachment): boolean {
  return attachment.kind === "addresses" || attachment.kind === "file";
}
