import { KvferryError } from "./errors.ts";
import type { LayoutHandle } from "./handle.ts";
import { formatHandle, handleGeneration, handleLayoutId, handleWorkerId } from "./handle.ts";
import type { Attachment, LayoutRecord, Storage } from "./layout.ts";
import { getLayout } from "./registry-queries.ts";
import type { PeerRecord, RegistrySnapshot } from "./registry-snapshot.ts";
import { REUSES_PER_INCARNATION } from "./registry-snapshot.ts";
import type { StridedView } from "./view.ts";

/** How many forgotten peers are remembered to tell stale handles and replayed packages; the oldest go first. */
export const MAX_FORGOTTEN_PEERS = 65_536;

/**
 * Takes a peer and all its layouts out; their handles are stale from then on.
 *
 * @returns The snapshot itself when the worker is not known.
 */
export function forgetPeer(snapshot: RegistrySnapshot, workerId: bigint): RegistrySnapshot {
  const peer = snapshot.peers.get(workerId);
  if (peer === undefined) return snapshot;
  const peers = new Map(snapshot.peers);
  peers.delete(workerId);
  const forgotten = new Map(snapshot.forgotten);
  forgotten.delete(workerId);
  const oldest = forgotten.keys().next();
  if (forgotten.size >= MAX_FORGOTTEN_PEERS && oldest.done !== true) forgotten.delete(oldest.value);
  forgotten.set(workerId, { incarnation: peer.incarnation, sequence: peer.sequence });
  const remoteCount = snapshot.remoteCount - peer.layouts.length;
  return { ...snapshot, revision: snapshot.revision + 1, peers, forgotten, remoteCount };
}

/**
 * Takes one layout of a peer out, because the peer said that it took it back: the handle is stale from then on, and no
 * package brings it back, not even one that is being imported now.
 *
 * @returns The snapshot itself when the handle is of no peer's present incarnation.
 */
export function takeBackLayout(snapshot: RegistrySnapshot, handle: LayoutHandle): RegistrySnapshot {
  const peer = snapshot.peers.get(handleWorkerId(handle));
  const layoutId = handleLayoutId(handle);
  const generation = handleGeneration(handle);
  if (peer === undefined || Math.floor(generation / REUSES_PER_INCARNATION) !== peer.incarnation)
    return snapshot;
  if (generation <= (peer.takenBack?.get(layoutId) ?? -1)) return snapshot;
  const record = peer.byLayoutId.get(layoutId);
  const found = record !== undefined && record.handle === handle;
  const byLayoutId = new Map(peer.byLayoutId);
  if (found) byLayoutId.delete(layoutId);
  const changed: PeerRecord = {
    ...peer,
    layouts: found ? peer.layouts.filter((layout) => layout !== record) : peer.layouts,
    byLayoutId,
    removed: found ? new Map(peer.removed).set(layoutId, generation) : peer.removed,
    takenBack: new Map(peer.takenBack).set(layoutId, generation),
  };
  const peers = new Map(snapshot.peers).set(peer.workerId, changed);
  const remoteCount = snapshot.remoteCount - (found ? 1 : 0);
  return { ...snapshot, revision: snapshot.revision + 1, peers, remoteCount };
}

/**
 * Replaces how this process reaches one component of a peer's layout: a neighbour's memory that was mapped after the
 * import, or a mapping that was lost.
 *
 * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE` for the layout, `INVALID_CONFIG` for a layout of this
 *   process, a component that it does not have, or bases that are not one for each region.
 */
export function setAttachment(
  snapshot: RegistrySnapshot,
  handle: LayoutHandle,
  component: string,
  attachment: Attachment,
): RegistrySnapshot {
  const record = getLayout(snapshot, handle, "setAttachment");
  const peer = record.owner === null ? undefined : snapshot.peers.get(record.owner);
  const index = record.components.findIndex((candidate) => candidate.shape.name === component);
  const found = record.components[index];
  if (peer === undefined || found === undefined)
    throw new KvferryError(
      "INVALID_CONFIG",
      "setAttachment",
      peer === undefined
        ? `${formatHandle(handle)} is a layout of this process`
        : `${formatHandle(handle)} has no component ${JSON.stringify(component)}`,
      "Name a component of a peer's layout.",
      { component, components: record.components.map((candidate) => candidate.shape.name) },
    );
  checkAttachment(found.shape.view, attachment, component);
  const components = record.components.with(index, {
    ...found,
    storage: storageHere(found.storage, attachment),
    attachment,
  });
  const changed: LayoutRecord = { ...record, components };
  const layouts = peer.layouts.map((layout) => (layout === record ? changed : layout));
  const byLayoutId = new Map(peer.byLayoutId).set(changed.layoutId, changed);
  const peers = new Map(snapshot.peers).set(peer.workerId, { ...peer, layouts, byLayoutId });
  return { ...snapshot, revision: snapshot.revision + 1, peers };
}

/** What a component's memory is to this process. */
export function storageHere(owners: Storage, attachment: Attachment): Storage {
  return attachment.kind === "addresses" ? (attachment.storage ?? owners) : owners;
}

function checkAttachment(view: StridedView, attachment: Attachment, component: string): void {
  if (attachment.kind === "staged" || attachment.bases.length === view.regionCount) return;
  throw new KvferryError(
    "INVALID_CONFIG",
    "setAttachment",
    `component ${component} has ${view.regionCount} regions, the attachment ${attachment.bases.length} bases`,
    "Give one base for each region.",
    { component, expected: view.regionCount, found: attachment.bases.length },
  );
}
