import { KvferryError } from "../core/errors.ts";
import type { MetadataPackage } from "../core/package.ts";
import { macOf } from "./authentication.ts";
import { loadedExchange, loadExchange, type ExchangeParts } from "./exchange.ts";
import type { ResolvedOptions } from "./options.ts";

/** A package that was read and found good, and what goes on with it. */
export interface ReadPackage {
  readonly metadata: MetadataPackage;
  readonly exchange: ExchangeParts;
}

/**
 * Reads a package: it must say who made it, be meant for this worker, and name what its NIXL metadata register.
 *
 * @throws KvferryError `METADATA_MALFORMED`, `METADATA_UNAUTHENTICATED`, `METADATA_EXPIRED`, `ACCESS`, `AGENT_MISMATCH`.
 */
export async function readPackage(
  bytes: Uint8Array,
  options: ResolvedOptions,
  operation: string,
): Promise<ReadPackage> {
  if (!(bytes instanceof Uint8Array)) {
    throw new KvferryError(
      "METADATA_MALFORMED",
      operation,
      "a metadata package is bytes",
      "Give the Uint8Array that the peer's exportMetadata made.",
      { found: typeof bytes },
    );
  }
  // A copy: the caller may change its buffer while the import is under way.
  const copy = new Uint8Array(bytes);
  const exchange = loadedExchange() ?? (await loadExchange());
  const decoded = exchange.decodePackage(copy, {
    acceptUnauthenticated: options.acceptUnauthenticated,
    ...(options.secrets.length === 0 ? undefined : { mac: macOf(options.secrets) }),
  });
  const metadata = exchange.checkPackage(decoded, options, Date.now(), operation);
  exchange.checkBlob(metadata, operation);
  return { metadata, exchange };
}
