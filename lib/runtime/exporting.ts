import type { LayoutHandle } from "../core/handle.ts";
import type { PackageFormat } from "../core/package.ts";
import type { LayoutRecord } from "../core/layout.ts";
import { localLayouts } from "../core/registry-queries.ts";
import { exportPackage } from "../core/registry-export.ts";
import { KvferryError } from "../core/errors.ts";
import { U64_MAX } from "../core/integers.ts";
import { macOf } from "./authentication.ts";
import { loadCodecs, loadedCodecs } from "./codecs.ts";
import type { Fences } from "./fences.ts";
import type { LocalLayout } from "./local-layout.ts";
import type { Session } from "./session.ts";
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
  fences: Fences,
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
  const codecs = loadedCodecs() ?? (await loadCodecs());
  // The snapshot of before: NIXL's blob, made after it, names at least what its layouts need.
  const { snapshot } = state;
  const sequence = (sequences.get(state) ?? 0) + 1;
  sequences.set(state, sequence);
  // Peers reach files, and GPUs without RDMA, through staging memory of this process: NIXL's blob must name it.
  if (session.agent !== null && format === "kvferry" && localLayouts(snapshot).some(needsStaging))
    await session.staging.receive.register(session.agent);
  const blob = session.agent === null ? new Uint8Array(0) : await session.agent.metadata();
  const metadata = exportPackage(snapshot, blob, {
    format,
    sequence,
    issuedAtMs: now,
    host: session.neighbours?.identity() ?? session.place,
    ...(expiresAtMs === undefined ? undefined : { expiresAtMs }),
    ...(audience === undefined ? undefined : { audience }),
    ...(handles === undefined ? undefined : { layouts: handles }),
  });
  if (format === "kvferry") session.neighbours?.exported(metadata);
  // From here on others may know of these layouts.
  fences.exported(
    metadata.layouts.map(({ handle }) => handle),
    sequence,
    format,
  );
  const { secrets } = session.options;
  const first = secrets[0];
  // The first key signs; the others are for packages that were signed before the keys rotated.
  return codecs.encodePackage(
    metadata,
    format,
    first === undefined ? {} : { signing: { keyId: first.keyId, mac: macOf(secrets) } },
  );
}

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
