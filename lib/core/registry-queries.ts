import { KvferryError } from "./errors.ts";
import type { LayoutHandle } from "./handle.ts";
import { formatHandle, handleGeneration, handleLayoutId, handleWorkerId } from "./handle.ts";
import type { LayoutRecord } from "./layout.ts";
import { vectorAt, vectorValues } from "./persistent-vector.ts";
import type { PeerRecord, RegistrySnapshot } from "./registry-snapshot.ts";
import { REUSES_PER_INCARNATION } from "./registry-snapshot.ts";

/**
 * The layout of this process that a handle names.
 *
 * @throws KvferryError `STALE_HANDLE` when the handle's generation is over (unregistered, or an earlier run of this
 *   worker), `UNKNOWN_HANDLE` when it never named a layout registered here.
 */
export function getLocal(
  snapshot: RegistrySnapshot,
  handle: LayoutHandle,
  operation = "getLocal",
): LayoutRecord {
  if (typeof handle !== "bigint" || handle < 0n || handleWorkerId(handle) !== snapshot.workerId)
    throw unknownHandle(handle, operation);
  const slot = vectorAt(snapshot.slots, handleLayoutId(handle));
  if (slot !== undefined && slot.handle === handle) return slot;
  const generation = handleGeneration(handle);
  const stale =
    slot === undefined
      ? generation < snapshot.incarnation * REUSES_PER_INCARNATION
      : generation < slot.generation || (slot.handle === null && generation === slot.generation);
  throw stale ? staleHandle(handle, operation, slot?.generation ?? null) : unknownHandle(handle, operation);
}

/**
 * The layout of a peer that a handle names.
 *
 * @throws KvferryError `STALE_HANDLE` when the peer was forgotten, restarted or took the layout back,
 *   `UNKNOWN_HANDLE` when no imported package had it.
 */
export function getRemote(
  snapshot: RegistrySnapshot,
  handle: LayoutHandle,
  operation = "getRemote",
): LayoutRecord {
  if (typeof handle !== "bigint" || handle < 0n) throw unknownHandle(handle, operation);
  const workerId = handleWorkerId(handle);
  const generation = handleGeneration(handle);
  const peer = snapshot.peers.get(workerId);
  if (peer === undefined) {
    const known = snapshot.forgotten.get(workerId);
    const over = known !== undefined && generation < (known.incarnation + 1) * REUSES_PER_INCARNATION;
    throw over ? staleHandle(handle, operation, null) : unknownHandle(handle, operation);
  }
  const layoutId = handleLayoutId(handle);
  const record = peer.byLayoutId.get(layoutId);
  if (record !== undefined && record.handle === handle) return record;
  const newest = record?.generation ?? (peer.removed.get(layoutId) ?? -1) + 1;
  const stale = generation < newest || generation < peer.incarnation * REUSES_PER_INCARNATION;
  throw stale ? staleHandle(handle, operation, record?.generation ?? null) : unknownHandle(handle, operation);
}

/**
 * The layout that a handle names, of this process or of a peer.
 *
 * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE`.
 */
export function getLayout(
  snapshot: RegistrySnapshot,
  handle: LayoutHandle,
  operation = "getLayout",
): LayoutRecord {
  // A package with this worker's id is never imported, so the id tells where to look; that the layout is local is
  // then decided by its having been registered here.
  return typeof handle === "bigint" && handleWorkerId(handle) === snapshot.workerId
    ? getLocal(snapshot, handle, operation)
    : getRemote(snapshot, handle, operation);
}

/** Tells whether a handle names a layout that is registered here now. */
export function isLocal(snapshot: RegistrySnapshot, handle: LayoutHandle): boolean {
  return typeof handle === "bigint" && handle >= 0n && handleWorkerId(handle) === snapshot.workerId
    ? vectorAt(snapshot.slots, handleLayoutId(handle))?.handle === handle
    : false;
}

/** Tells whether a handle names a layout of an imported peer now. */
export function isRemote(snapshot: RegistrySnapshot, handle: LayoutHandle): boolean {
  if (snapshot.peers.size === 0 || typeof handle !== "bigint" || handle < 0n) return false;
  const layout = snapshot.peers.get(handleWorkerId(handle))?.byLayoutId.get(handleLayoutId(handle));
  return layout !== undefined && layout.handle === handle;
}

/** The layouts of this process in id order. Linear in the ids given out so far. */
export function localLayouts(snapshot: RegistrySnapshot): LayoutRecord[] {
  const layouts: LayoutRecord[] = [];
  for (const slot of vectorValues(snapshot.slots)) if (slot.handle !== null) layouts.push(slot);
  return layouts;
}

/** The layouts of all peers, by worker id and then layout id. */
export function remoteLayouts(snapshot: RegistrySnapshot): LayoutRecord[] {
  return peers(snapshot).flatMap((peer) => peer.layouts.toSorted((a, b) => a.layoutId - b.layoutId));
}

/** Handles of the layouts of this process in id order. */
export function localHandles(snapshot: RegistrySnapshot): LayoutHandle[] {
  return localLayouts(snapshot).map((layout) => layout.handle);
}

/** Handles of the layouts of all peers, by worker id and then layout id. */
export function remoteHandles(snapshot: RegistrySnapshot): LayoutHandle[] {
  return remoteLayouts(snapshot).map((layout) => layout.handle);
}

/** How many layouts are registered here. Constant time. */
export function localCount(snapshot: RegistrySnapshot): number {
  return snapshot.localCount;
}

/** How many layouts all peers have. Constant time. */
export function remoteCount(snapshot: RegistrySnapshot): number {
  return snapshot.remoteCount;
}

/** The imported peers, by worker id. */
export function peers(snapshot: RegistrySnapshot): PeerRecord[] {
  return [...snapshot.peers.values()].toSorted((a, b) => (a.workerId < b.workerId ? -1 : 1));
}

/** The imported peer of a worker id, or null. */
export function getPeer(snapshot: RegistrySnapshot, workerId: bigint): PeerRecord | null {
  return snapshot.peers.get(workerId) ?? null;
}

function unknownHandle(handle: LayoutHandle, operation: string): KvferryError {
  return new KvferryError(
    "UNKNOWN_HANDLE",
    operation,
    `${nameOf(handle)} names no layout that is registered or imported here`,
    "Register the layout, or import the metadata of the worker that has it.",
    { handle: String(handle) },
  );
}

function staleHandle(handle: LayoutHandle, operation: string, current: number | null): KvferryError {
  return new KvferryError(
    "STALE_HANDLE",
    operation,
    `${nameOf(handle)} names a layout that is gone: it was unregistered, or its worker restarted or was forgotten`,
    "Look the layout up again by its name, after importing the worker's present metadata where it is a peer's.",
    { handle: String(handle), currentGeneration: current },
  );
}

function nameOf(handle: LayoutHandle): string {
  return typeof handle === "bigint" && handle >= 0n ? formatHandle(handle) : String(handle);
}
