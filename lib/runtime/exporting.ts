import type { LayoutHandle } from "../core/handle.ts";
import type { PackageFormat } from "../core/package.ts";
import { exportPackage } from "../core/registry-export.ts";
import { encodePackage } from "../wire/index.ts";
import { KvferryError } from "../core/errors.ts";
import { macOf } from "./authentication.ts";
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
): Promise<Uint8Array> {
  state.demandOpen("exportMetadata");
  const format = options.format ?? "kvferry";
  const handles = options.layouts?.map((layout) => (typeof layout === "bigint" ? layout : layout.handle));
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
  const blob = session.agent === null ? new Uint8Array(0) : await session.agent.metadata();
  const sequence = (sequences.get(state) ?? 0) + 1;
  sequences.set(state, sequence);
  const now = Date.now();
  const metadata = exportPackage(state.snapshot, blob, {
    format,
    sequence,
    issuedAtMs: now,
    ...(options.expiresInMs === undefined ? undefined : { expiresAtMs: now + options.expiresInMs }),
    ...(options.audience === undefined ? undefined : { audience: options.audience.map(BigInt) }),
    ...(handles === undefined ? undefined : { layouts: handles }),
  });
  const { secrets } = session.options;
  const first = secrets[0];
  // The first key signs; the others are for packages that were signed before the keys rotated.
  return encodePackage(
    metadata,
    format,
    first === undefined ? {} : { signing: { keyId: first.keyId, mac: macOf(secrets) } },
  );
}
