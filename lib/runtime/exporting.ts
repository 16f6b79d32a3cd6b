import { handleLayoutId, type LayoutHandle } from "../core/handle.ts";
import type { PackageFormat } from "../core/package.ts";
import type { Access, LayoutRecord } from "../core/layout.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { unregisterLayout } from "../core/registry-local.ts";
import { isLocal, localLayouts } from "../core/registry-queries.ts";
import { exportPackage } from "../core/registry-export.ts";
import { KvferryError } from "../core/errors.ts";
import { U64_MAX } from "../core/integers.ts";
import type { NixlAgent, NixlRegion } from "../native/agent.ts";
import { KVF_MEM_DRAM, KVF_MEM_VRAM } from "../native/symbols.ts";
import { packBlobs } from "./nixl-blobs.ts";
import { encodePackage } from "../wire/index.ts";
import { macOf } from "./authentication.ts";
import type { LocalLayout } from "./local-layout.ts";
import type { Session } from "./session.ts";
import type { SharedLayouts } from "./shared-layouts.ts";
import type { TransportState } from "./state.ts";

/** Options of `exportMetadata`. */
export interface ExportOptions {
  /** Default `"kvferry"`. */
  readonly format?: PackageFormat;
  /** Only these layouts; kvferry's own format only. */
  readonly layouts?: readonly (LocalLayout | LayoutHandle)[];
  /** Milliseconds after which importers refuse the package. */
  readonly expiresInMs?: number;
  /** Worker ids that may import the package; default everybody. */
  readonly audience?: readonly (bigint | number)[];
}

/** Exports rise by one within an incarnation, so that a replay of an older one is told. */
const sequences: WeakMap<TransportState, number> = new WeakMap();

/** See `Transport.exportMetadata`. */
export async function exportMetadata(
  session: Session,
  state: TransportState,
  options: ExportOptions,
  parts: ExportParts,
): Promise<Uint8Array> {
  state.demandOpen("exportMetadata");
  const format = formatOf(options);
  const handles = options.layouts?.map((layout) => (typeof layout === "bigint" ? layout : layout.handle));
  const now = Date.now();
  const expiresAtMs = expiry(options, now);
  const audience = options.audience?.map(workerIdOf);
  if (session.agent === null && format !== "kvferry") {
    throw (
      session.noNixl ??
      new KvferryError(
        "NO_NIXL",
        "exportMetadata",
        `format ${format} needs a NIXL agent`,
        "Open the transport without `nixl: false`.",
        { format },
      )
    );
  }
  const sequence = (sequences.get(state) ?? 0) + 1;
  sequences.set(state, sequence);
  // Peers reach files and GPUs without RDMA, and may send what is small and scattered, through staging memory of this
  // process: NIXL's blob must name it.
  // An export of some layouts names it only where they cannot be reached without: others' bytes go through it.
  if (
    session.agent !== null &&
    session.staged !== null &&
    format === "kvferry" &&
    (handles === undefined
      ? localLayouts(state.snapshot).length > 0
      : localLayouts(state.snapshot).some(
          (layout) => handles.includes(layout.handle) && needsStaging(layout),
        ))
  )
    await session.staging.receive.register(session.agent);
  if (session.agent !== null && format === "kvferry")
    await session.staging.devices?.register(devicesOf(state.snapshot, handles), session.agent);
  const described = await describe(session, state, parts, handles);
  const { blob } = described;
  const snapshot = withoutGone(described.snapshot, state.snapshot);
  const metadata = exportPackage(snapshot, blob, {
    format,
    sequence,
    issuedAtMs: now,
    host: session.neighbours?.identity() ?? session.place,
    ...(expiresAtMs === undefined ? undefined : { expiresAtMs }),
    ...(audience === undefined ? undefined : { audience }),
    ...(handles === undefined ? undefined : { layouts: handles }),
  });
  warnOnce(session, parts, metadata.layouts);
  if (format === "kvferry") session.neighbours?.exported(metadata);
  // From here on others may know of these layouts. Dynamo's formats say nothing of their generations.
  const own = new Map(localLayouts(snapshot).map(({ layoutId, handle }) => [layoutId, handle]));
  parts.shared.exported(
    metadata.layouts.map(({ handle }) => own.get(handleLayoutId(handle)) ?? handle),
    sequence,
    format,
  );
  const { secrets } = session.options;
  const first = secrets[0];
  // The first key signs; the others are for packages that were signed before the keys rotated.
  return encodePackage(
    metadata,
    format,
    first === undefined ? {} : { signing: { keyId: first.keyId, mac: macOf(secrets) } },
  );
}

/** What an export needs beside the session. */
export interface ExportParts {
  readonly shared: SharedLayouts;
  /** What NIXL has registered for layouts, by memory type. */
  readonly registrations: (handles: readonly LayoutHandle[]) => ReadonlyMap<number, readonly NixlRegion[]>;
  readonly warn: (code: string, message: string) => void;
}

/**
 * NIXL's blob, and a snapshot whose layouts it names: made after the snapshot, it knows at least what that has, and a
 * layout that was taken back meanwhile must not stand in the package.
 */
async function describe(
  session: Session,
  state: TransportState,
  parts: ExportParts,
  handles: readonly LayoutHandle[] | undefined,
): Promise<{ readonly snapshot: RegistrySnapshot; readonly blob: Uint8Array }> {
  for (let attempt = 1; ; attempt++) {
    const { snapshot } = state;
    const blob =
      session.agent === null
        ? new Uint8Array(0)
        : handles === undefined
          ? await session.agent.metadata()
          : await partialBlob(session, session.agent, parts, handles, snapshot);
    const gone =
      state.snapshot !== snapshot &&
      localLayouts(snapshot).some(({ handle }) => !isLocal(state.snapshot, handle));
    if (!gone || attempt === MOST_ATTEMPTS) return { snapshot, blob };
  }
}

/** Exports are made again so often while layouts come and go. */
const MOST_ATTEMPTS = 8;

/** What was taken back since a snapshot, also after the last attempt, is in no package: nobody would be told that it is gone. */
function withoutGone(snapshot: RegistrySnapshot, now: RegistrySnapshot): RegistrySnapshot {
  if (snapshot === now) return snapshot;
  const gone = localLayouts(snapshot).filter(({ handle }) => !isLocal(now, handle));
  return gone.reduce((left, { handle }) => unregisterLayout(left, handle), snapshot);
}

/** How to connect, and only the registrations of some layouts. */
async function partialBlob(
  session: Session,
  agent: NixlAgent,
  { registrations }: ExportParts,
  handles: readonly LayoutHandle[],
  snapshot: RegistrySnapshot,
): Promise<Uint8Array> {
  const blobs = [await agent.partialMetadata(KVF_MEM_DRAM, [])];
  const wanted = new Map(registrations(handles));
  const staged = localLayouts(snapshot).some(
    (layout) => handles.includes(layout.handle) && needsStaging(layout),
  );
  const pool = staged ? session.staging.receive.registration : null;
  if (pool !== null) wanted.set(KVF_MEM_DRAM, [...(wanted.get(KVF_MEM_DRAM) ?? []), pool]);
  const onDevices = session.staging.devices?.registrations(devicesOf(snapshot, handles)) ?? [];
  wanted.set(KVF_MEM_VRAM, [...(wanted.get(KVF_MEM_VRAM) ?? []), ...onDevices]);
  for (const [memory, regions] of wanted)
    if (regions.length > 0) blobs.push(await agent.partialMetadata(memory, regions));
  return packBlobs(blobs);
}

const warned: WeakMap<Session, Set<string>> = new WeakMap();

/** What peers are trusted with, said once. */
function warnOnce(
  session: Session,
  { warn }: ExportParts,
  layouts: readonly { readonly access: Access }[],
): void {
  if (session.agent === null) return;
  const told = warned.get(session) ?? new Set<string>();
  warned.set(session, told);
  const say = (code: string, message: string): void => {
    if (told.has(code)) return;
    told.add(code);
    warn(code, message);
  };
  if (session.options.secrets.length === 0) say("NO_SECRET", NO_SECRET_WARNING);
  if (layouts.some(({ access }) => access === "read"))
    say(
      "ACCESS",
      'layouts with access "read" leave this process: kvferry peers keep to it, and neighbours and staged routes enforce it, but a peer that reaches the memory through NIXL could write to it all the same',
    );
}

/** Said once in the log and by the doctor. */
export const NO_SECRET_WARNING: string =
  "no secret is configured: metadata packages and control messages are not authenticated, and whoever can reach NIXL's ports can read and overwrite this process's memory; give every worker the same `secret`";

/** CUDA ordinals of the devices that hold bytes of layouts; of all where none are named. */
function devicesOf(snapshot: RegistrySnapshot, handles: readonly LayoutHandle[] | undefined): Set<number> {
  const devices = new Set<number>();
  for (const { handle, components } of localLayouts(snapshot))
    if (handles === undefined || handles.includes(handle))
      for (const { storage } of components) if (storage.kind === "device") devices.add(storage.device);
  return devices;
}

/** Whether peers reach a layout only through staging memory. */
function needsStaging(layout: LayoutRecord): boolean {
  return layout.components.some(({ storage }) => storage.kind === "disk" || storage.kind === "device");
}

const FORMATS: readonly PackageFormat[] = ["kvferry", "dynamo-1.0", "kvbm-physical-1"];

function formatOf({ format = "kvferry" }: ExportOptions): PackageFormat {
  if (FORMATS.includes(format)) return format;
  throw new KvferryError(
    "INVALID_CONFIG",
    "exportMetadata",
    `there is no format ${JSON.stringify(format)}`,
    `Use one of ${FORMATS.join(", ")}.`,
    { format, formats: FORMATS },
  );
}

function expiry({ expiresInMs }: ExportOptions, now: number): number | undefined {
  if (expiresInMs === undefined) return undefined;
  if (Number.isFinite(expiresInMs) && expiresInMs > 0 && expiresInMs < 2 ** 52)
    return now + Math.ceil(expiresInMs);
  throw new KvferryError(
    "INVALID_CONFIG",
    "exportMetadata",
    `expiresInMs must be a positive number of milliseconds, found ${String(expiresInMs)}`,
    "Give milliseconds from now, or leave it out.",
    { expiresInMs },
  );
}

function workerIdOf(workerId: bigint | number): bigint {
  if (
    typeof workerId === "bigint"
      ? workerId >= 0n && workerId <= U64_MAX
      : Number.isSafeInteger(workerId) && workerId >= 0
  )
    return BigInt(workerId);
  throw new KvferryError(
    "INVALID_CONFIG",
    "exportMetadata",
    `audience must name worker ids, found ${String(workerId)}`,
    "Worker ids are unsigned 64-bit numbers.",
    { workerId: String(workerId) },
  );
}
