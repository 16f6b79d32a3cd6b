import type { Attachment, ComponentRecord, ComponentShape, LayoutRecord } from "./layout.ts";
import { checkAge, checkIdentity, checkValidity } from "./package-check.ts";
import type { CheckedLayout } from "./package-layouts.ts";
import { checkLayouts } from "./package-layouts.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "./package.ts";
import { storageHere } from "./registry-peers.ts";
import type { PeerRecord, RegistrySnapshot } from "./registry-snapshot.ts";

/** Says how this process reaches a component of a package. Called once for each, in package order; must not fail half-way. */
export type Attach = (layout: PackageLayout, component: PackageComponent) => Attachment;

/** How a package is taken. */
export interface ImportOptions {
  /** The worker id of a peer that the package must update in place: same incarnation, higher sequence. */
  readonly updates?: bigint;
  /** Milliseconds since 1970, to refuse packages that have expired; not checked when left out. */
  readonly nowMs?: number;
}

/**
 * Takes a peer's layouts in, all or none.
 *
 * A worker that is known already is refused, unless the package is of a later incarnation (the worker came back: its
 * earlier layouts become stale) or `updates` asks for a later sequence of the same one. Layouts that an update leaves
 * as they were keep their records. `config` and `order` of each component must have been made by `resolveConfig` and
 * `resolveOrder`; everything else is checked here.
 *
 * @param attach - Asked only after every check has passed.
 * @returns The new snapshot and the peer as it stands in it.
 * @throws KvferryError `DUPLICATE_WORKER`: this worker's own id, or a worker that is known. `AGENT_MISMATCH`: this
 *   worker's own agent name, a known worker id under another name, a known name under another worker id, an update
 *   of another worker or incarnation. `METADATA_EXPIRED`: expired, or older than what was imported already.
 *   `METADATA_UNAUTHENTICATED`: meant for others. `METADATA_MALFORMED`: handles of another worker or doubled, shapes
 *   that contradict their config, regions that are missing, too small, past 2^53 or shared without leave.
 *   `PEER_LOST`: an update of a peer that is not there.
 */
export function importPackage(
  snapshot: RegistrySnapshot,
  metadata: MetadataPackage,
  attach: Attach,
  options: ImportOptions = {},
): { readonly snapshot: RegistrySnapshot; readonly peer: PeerRecord } {
  return take(snapshot, checkImport(snapshot, metadata, options), attach, options);
}

/** A package that was checked against a snapshot. */
export interface CheckedPackage {
  readonly metadata: MetadataPackage;
  readonly layouts: readonly CheckedLayout[];
}

/**
 * Everything that {@link importPackage} checks, and nothing taken.
 *
 * @throws KvferryError as `importPackage` does.
 */
export function checkImport(
  snapshot: RegistrySnapshot,
  metadata: MetadataPackage,
  options: ImportOptions = {},
): CheckedPackage {
  checkNews(snapshot, metadata, options);
  return { metadata, layouts: checkLayouts(metadata) };
}

/**
 * {@link importPackage} of a package that was checked against an earlier snapshot. All that another snapshot can change is
 * checked again; what a package says of its layouts is the same at any time.
 *
 * @throws KvferryError as `importPackage` does, without `METADATA_MALFORMED`.
 */
export function importChecked(
  snapshot: RegistrySnapshot,
  checked: CheckedPackage,
  attach: Attach,
  options: ImportOptions = {},
): Imported {
  checkNews(snapshot, checked.metadata, options);
  return take(snapshot, checked, attach, options);
}

/** The checks that need a snapshot. */
function checkNews(snapshot: RegistrySnapshot, metadata: MetadataPackage, options: ImportOptions): void {
  checkIdentity(snapshot, metadata);
  checkValidity(snapshot, metadata, options.nowMs);
  checkAge(snapshot, metadata, snapshot.peers.get(metadata.workerId), options.updates);
}

/** A snapshot with a peer's layouts, and the peer as it stands in it. */
interface Imported {
  readonly snapshot: RegistrySnapshot;
  readonly peer: PeerRecord;
}

function take(
  snapshot: RegistrySnapshot,
  { metadata, layouts: checked }: CheckedPackage,
  attach: Attach,
  options: ImportOptions,
): Imported {
  const known = snapshot.peers.get(metadata.workerId);
  const kept = options.updates === undefined ? undefined : known;
  const takenBack = kept?.takenBack;
  const layouts: LayoutRecord[] = [];
  const byLayoutId = new Map<number, LayoutRecord>();
  for (const layout of checked) {
    if (takenBack !== undefined && layout.generation <= (takenBack.get(layout.layoutId) ?? -1)) continue;
    const record = takeLayout(metadata.workerId, layout, attach);
    layouts.push(record);
    byLayoutId.set(record.layoutId, record);
  }
  const removed = new Map(kept?.removed);
  for (const layout of kept?.layouts ?? [])
    if (byLayoutId.get(layout.layoutId)?.generation !== layout.generation)
      removed.set(layout.layoutId, layout.generation);
  const peer: PeerRecord = {
    workerId: metadata.workerId,
    agentName: metadata.agentName,
    wireName: metadata.wireName,
    format: metadata.format,
    incarnation: metadata.incarnation,
    sequence: metadata.sequence,
    host: metadata.host,
    layouts,
    byLayoutId,
    removed,
    ...(takenBack === undefined ? undefined : { takenBack }),
  };
  const remoteCount = snapshot.remoteCount - (known?.layouts.length ?? 0) + layouts.length;
  const peers = new Map(snapshot.peers).set(peer.workerId, peer);
  return { snapshot: { ...snapshot, revision: snapshot.revision + 1, peers, remoteCount }, peer };
}

function takeLayout(owner: bigint, checked: CheckedLayout, attach: Attach): LayoutRecord {
  const { layout, layoutId, generation, shapes } = checked;
  const { handle, name, tier, access, fingerprint, stagedOnly } = layout;
  const components: ComponentRecord[] = [];
  for (let index = 0; index < shapes.length; index++) {
    const shape = shapes[index] as ComponentShape;
    const component = layout.components[index] as PackageComponent; // shapes were made from them, one for one
    const { storage, regionAddresses, regionSizes, nixlDevice } = component;
    const attachment = attach(layout, component);
    components.push({
      shape,
      storage: storageHere(storage, attachment),
      regionAddresses,
      regionSizes,
      attachment,
      nixlDevice,
    });
  }
  return { handle, layoutId, generation, owner, name, tier, access, fingerprint, stagedOnly, components };
}
