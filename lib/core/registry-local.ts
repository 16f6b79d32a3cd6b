import { KvferryError } from "./errors.ts";
import type { LayoutHandle } from "./handle.ts";
import { makeHandle, MAX_LAYOUT_ID } from "./handle.ts";
import { checkedInteger, U64_MAX } from "./integers.ts";
import type { ComponentRecord, LayoutRecord } from "./layout.ts";
import type { PersistentVector } from "./persistent-vector.ts";
import { emptyVector, vectorAt, vectorPush, vectorSet } from "./persistent-vector.ts";
import { getLocal } from "./registry-queries.ts";
import type {
  FreeId,
  FreeIds,
  FreeSlot,
  NewLayout,
  RegistryIdentity,
  RegistrySnapshot,
} from "./registry-snapshot.ts";
import { MAX_INCARNATION, REUSES_PER_INCARNATION } from "./registry-snapshot.ts";

/**
 * A registry without layouts or peers.
 *
 * @throws KvferryError `INVALID_CONFIG` when the worker id is not an unsigned 64-bit bigint, the incarnation does
 *   not fit 36 bits, or a name is empty.
 */
export function emptyRegistry(identity: RegistryIdentity): RegistrySnapshot {
  const { workerId, agentName, wireName, incarnation } = identity;
  if (typeof workerId !== "bigint" || workerId < 0n || workerId > U64_MAX)
    throw new KvferryError(
      "INVALID_CONFIG",
      "emptyRegistry",
      `workerId must be an unsigned 64-bit bigint, found ${String(workerId)}`,
      "Give each worker of the deployment its own id from 0 to 2^64 - 1.",
      { field: "workerId", found: String(workerId) },
    );
  checkedInteger(incarnation, "incarnation", 0, MAX_INCARNATION, "emptyRegistry");
  for (const [field, value] of Object.entries({ agentName, wireName }))
    if (typeof value !== "string" || value === "")
      throw new KvferryError(
        "INVALID_CONFIG",
        "emptyRegistry",
        `${field} must be a string that is not empty`,
        `Give ${field}, e.g. worker-1.`,
        { field, found: value },
      );
  return {
    workerId,
    agentName,
    wireName,
    incarnation,
    revision: 0,
    firstHandle: makeHandle(workerId, 0, incarnation * REUSES_PER_INCARNATION),
    slots: emptyVector(),
    freeIds: { front: null, back: null },
    localCount: 0,
    remoteCount: 0,
    peers: new Map(),
    forgotten: new Map(),
  };
}

/**
 * Adds a layout of this process.
 *
 * Fresh ids rise by one from 0 to 65,534; when they are used up, ids of unregistered layouts are given out again,
 * longest free first, each time under a higher generation.
 *
 * @returns The new snapshot and the record with its handle. Constant time, whatever the number of layouts.
 * @throws KvferryError `TOO_MANY_LAYOUTS` when no id is left, `INVALID_CONFIG` when a component's regions do not
 *   match its shape (count, size, alignment, wrap).
 */
export function registerLayout(
  snapshot: RegistrySnapshot,
  layout: NewLayout,
): { readonly snapshot: RegistrySnapshot; readonly layout: LayoutRecord } {
  if (layout.components.length === 0)
    throw new KvferryError(
      "INVALID_CONFIG",
      "register",
      "a layout needs a component",
      "Give at least one.",
      {},
    );
  for (const component of layout.components) checkRegions(component);
  const fresh = snapshot.slots.size;
  if (fresh <= MAX_LAYOUT_ID) {
    // The layout id is the only part that differs between fresh handles.
    const handle = (snapshot.firstHandle | (BigInt(fresh) << 64n)) as LayoutHandle;
    const record = recordOf(layout, handle, fresh, snapshot.incarnation * REUSES_PER_INCARNATION);
    const slots = vectorPush(snapshot.slots, record);
    return { snapshot: advance(snapshot, slots, snapshot.freeIds, 1), layout: record };
  }
  const taken = takeFreeId(snapshot.freeIds);
  if (taken === null)
    throw new KvferryError(
      "TOO_MANY_LAYOUTS",
      "register",
      `all ${MAX_LAYOUT_ID + 1} layout ids are in use`,
      "Unregister layouts that are not needed, or put several tensors into one layout as components.",
      { limit: MAX_LAYOUT_ID + 1, registered: snapshot.localCount },
    );
  const used = vectorAt(snapshot.slots, taken.layoutId)?.generation ?? 0;
  const handle = makeHandle(snapshot.workerId, taken.layoutId, used + 1);
  const record = recordOf(layout, handle, taken.layoutId, used + 1);
  const slots = vectorSet(snapshot.slots, taken.layoutId, record);
  return { snapshot: advance(snapshot, slots, taken.rest, 1), layout: record };
}

/**
 * Takes a layout of this process out. Its handle is stale from then on.
 *
 * Whether anything still uses the layout is for the caller to know: a snapshot does not count uses.
 *
 * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE` when it is not registered here.
 */
export function unregisterLayout(snapshot: RegistrySnapshot, handle: LayoutHandle): RegistrySnapshot {
  const record = getLocal(snapshot, handle, "unregister");
  const slots = vectorSet(snapshot.slots, record.layoutId, { handle: null, generation: record.generation });
  const spent = record.generation % REUSES_PER_INCARNATION === REUSES_PER_INCARNATION - 1;
  const { front, back } = snapshot.freeIds;
  const freeIds = spent ? snapshot.freeIds : { front, back: { layoutId: record.layoutId, next: back } };
  return advance(snapshot, slots, freeIds, -1);
}

/**
 * Checks that a component's regions are what its shape needs: one for each region of the view, each large enough,
 * none past 2^53, each aligned as the config asks. Addresses 0 are allowed: files start there.
 */
function checkRegions(component: ComponentRecord): void {
  const { shape, regionAddresses, regionSizes } = component;
  const { regionCount, regionBytes } = shape.view;
  if (regionAddresses.length !== regionCount || regionSizes.length !== regionCount)
    throw badRegion(component, `needs ${regionCount} regions, found ${regionAddresses.length}`, {
      expected: regionCount,
      found: regionAddresses.length,
    });
  const { alignment } = shape.config;
  for (let index = 0; index < regionCount; index++) {
    const address = regionAddresses[index] ?? Number.NaN;
    const size = regionSizes[index] ?? Number.NaN;
    if (
      !Number.isSafeInteger(address) ||
      address < 0 ||
      !(size >= 0) ||
      !Number.isSafeInteger(address + size)
    )
      throw badRegion(component, `region ${index} at ${address} of ${size} bytes is no range below 2^53`, {
        region: index,
        address,
        size,
      });
    if (size < regionBytes)
      throw badRegion(component, `region ${index} has ${size} bytes, the layout needs ${regionBytes}`, {
        region: index,
        size,
        needed: regionBytes,
      });
    if (alignment > 1 && address % alignment !== 0)
      throw badRegion(component, `region ${index} at ${address} is not aligned to ${alignment}`, {
        region: index,
        address,
        alignment,
      });
  }
}

function recordOf(
  layout: NewLayout,
  handle: LayoutHandle,
  layoutId: number,
  generation: number,
): LayoutRecord {
  return {
    handle,
    layoutId,
    generation,
    owner: null,
    name: layout.name ?? `layout-${layoutId}`,
    tier: layout.tier,
    access: layout.access,
    fingerprint: layout.fingerprint,
    stagedOnly: layout.stagedOnly ?? false,
    components: layout.components,
  };
}

function advance(
  snapshot: RegistrySnapshot,
  slots: PersistentVector<LayoutRecord | FreeSlot>,
  freeIds: FreeIds,
  change: 1 | -1,
): RegistrySnapshot {
  // Field by field: a spread of this object costs as much as the rest of a registration.
  return {
    workerId: snapshot.workerId,
    agentName: snapshot.agentName,
    wireName: snapshot.wireName,
    incarnation: snapshot.incarnation,
    revision: snapshot.revision + 1,
    firstHandle: snapshot.firstHandle,
    slots,
    freeIds,
    localCount: snapshot.localCount + change,
    remoteCount: snapshot.remoteCount,
    peers: snapshot.peers,
    forgotten: snapshot.forgotten,
  };
}

function takeFreeId(ids: FreeIds): { readonly layoutId: number; readonly rest: FreeIds } | null {
  const { front, back } = ids.front === null ? { front: reversed(ids.back), back: null } : ids;
  return front === null ? null : { layoutId: front.layoutId, rest: { front: front.next, back } };
}

function reversed(list: FreeId | null): FreeId | null {
  let result: FreeId | null = null;
  for (let link = list; link !== null; link = link.next) result = { layoutId: link.layoutId, next: result };
  return result;
}

function badRegion(
  component: ComponentRecord,
  message: string,
  details: Record<string, unknown>,
): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "register",
    `component ${component.shape.name}: ${message}`,
    "Give one region for each that the arrangement has, with at least the bytes that it needs.",
    { component: component.shape.name, ...details },
  );
}
