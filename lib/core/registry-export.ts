import { KvferryError } from "./errors.ts";
import type { LayoutHandle } from "./handle.ts";
import { makeHandle } from "./handle.ts";
import type { ComponentRecord, LayoutRecord } from "./layout.ts";
import type {
  HostIdentity,
  MetadataPackage,
  PackageComponent,
  PackageFormat,
  PackageLayout,
} from "./package.ts";
import type { RegistrySnapshot } from "./registry-snapshot.ts";
import { getLocal, localLayouts } from "./registry-queries.ts";

/** What an export adds to a snapshot. */
export interface ExportOptions {
  /** Default `"kvferry"`. */
  readonly format?: PackageFormat;
  /** A subset of this process's layouts; kvferry's format only. Default all. */
  readonly layouts?: readonly LayoutHandle[] | null;
  /** Must rise with every export of a process; default the snapshot's revision. Dynamo's formats carry none. */
  readonly sequence?: number;
  /** Milliseconds since 1970. */
  readonly issuedAtMs?: number | null;
  readonly expiresAtMs?: number | null;
  /** Worker ids that may import the package; null for everybody. */
  readonly audience?: readonly bigint[] | null;
  /** Where neighbours can meet this process. */
  readonly host?: HostIdentity | null;
}

/**
 * Describes this process's layouts to others, in layout id order.
 *
 * Bytes on disk travel without addresses, for staged routes, in kvferry's own format and not at all in Dynamo's. In
 * Dynamo's formats handles have no generation, and the one agent name is the name on NIXL's wire, since that is
 * what the importer's agent compares.
 *
 * @param nixlMetadata - NIXL's own blob; empty without an agent. Kept, not copied.
 * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE` for a layout that is not registered here, `INVALID_CONFIG`
 *   for options that Dynamo's formats cannot carry.
 */
export function exportPackage(
  snapshot: RegistrySnapshot,
  nixlMetadata: Uint8Array,
  options: ExportOptions = {},
): MetadataPackage {
  const format = options.format ?? "kvferry";
  const kvferry = format === "kvferry";
  if (!kvferry) refuseUnsayable(format, options);
  const wanted = options.layouts ?? null;
  const records = wanted === null ? localLayouts(snapshot) : subset(snapshot, wanted);
  const chosen = kvferry
    ? records
    : records.filter((record) => !record.stagedOnly && !record.components.some(isOnDisk));
  return {
    format,
    workerId: snapshot.workerId,
    agentName: kvferry ? snapshot.agentName : snapshot.wireName,
    wireName: snapshot.wireName,
    incarnation: kvferry ? snapshot.incarnation : 0,
    sequence: kvferry ? (options.sequence ?? snapshot.revision) : 0,
    issuedAtMs: options.issuedAtMs ?? null,
    expiresAtMs: options.expiresAtMs ?? null,
    audience: options.audience ?? null,
    nixlMetadata,
    host: kvferry ? (options.host ?? null) : null,
    layouts: chosen.map((record) => packageLayout(record, kvferry)),
  };
}

function subset(snapshot: RegistrySnapshot, handles: readonly LayoutHandle[]): readonly LayoutRecord[] {
  const records = new Map(handles.map((handle) => [handle, getLocal(snapshot, handle, "export")]));
  return [...records.values()].sort((a, b) => a.layoutId - b.layoutId);
}

function refuseUnsayable(format: PackageFormat, options: ExportOptions): void {
  for (const field of ["layouts", "expiresAtMs", "audience"] as const)
    if ((options[field] ?? null) !== null)
      throw new KvferryError(
        "INVALID_CONFIG",
        "export",
        `format ${format} has no place for ${field}`,
        `Leave ${field} out, or export in kvferry's own format.`,
        { field, format },
      );
}

function packageLayout(record: LayoutRecord, kvferry: boolean): PackageLayout {
  return {
    // A layout of this process, so the worker id in the handle is the exporter's.
    handle: kvferry ? record.handle : withoutGeneration(record),
    name: record.name,
    tier: record.tier,
    access: record.access,
    fingerprint: record.fingerprint,
    stagedOnly: record.stagedOnly || record.components.some(isOnDisk),
    components: record.components.map(packageComponent),
  };
}

function withoutGeneration(record: LayoutRecord): LayoutHandle {
  return record.generation === 0
    ? record.handle
    : makeHandle(BigInt.asUintN(64, record.handle), record.layoutId);
}

function packageComponent(component: ComponentRecord): PackageComponent {
  const { shape, storage, nixlDevice } = component;
  const absent = isOnDisk(component);
  return {
    name: shape.name,
    config: shape.config,
    arrangement: shape.arrangement,
    order: shape.order,
    view: shape.view,
    group: shape.group,
    wholeBlocks: shape.wholeBlocks,
    alias: shape.alias,
    storage,
    regionAddresses: absent ? NOWHERE : component.regionAddresses,
    regionSizes: absent ? NOWHERE : component.regionSizes,
    nixlDevice,
  };
}

function isOnDisk(component: ComponentRecord): boolean {
  return component.storage.kind === "disk";
}

const NOWHERE = new Float64Array(0);
