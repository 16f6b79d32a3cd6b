import { KvferryError } from "../core/errors.ts";
import type { MetadataPackage } from "../core/package.ts";
import type { ResolvedOptions } from "./options.ts";

/** No agent has a longer name, and no host. */
const LONGEST_NAME = 1_024;

/**
 * Decides whether a decoded package may be imported: its time, its audience, and what a secret demands.
 *
 * The code of an authenticated package was compared when it was decoded; here only what carries none is judged.
 *
 * @throws KvferryError `METADATA_MALFORMED` for a name that is none, `METADATA_EXPIRED`, `METADATA_UNAUTHENTICATED`, `ACCESS` for another audience.
 */
export function checkPackage(
  metadata: MetadataPackage,
  options: ResolvedOptions,
  nowMillis: number,
  operation: string,
): MetadataPackage {
  const { agentName, wireName, host } = metadata;
  const texts = [
    agentName,
    wireName,
    ...(host === null ? [] : [host.bootId, host.rendezvous, ...Object.values(host.namespaces)]),
  ];
  if (agentName === "" || wireName === "" || texts.some((text) => text.length > LONGEST_NAME)) {
    throw new KvferryError(
      "METADATA_MALFORMED",
      operation,
      `the package has a name that is empty or longer than ${LONGEST_NAME} characters`,
      "Give agents names of at most 256 characters.",
      { limit: LONGEST_NAME, agentName: agentName.slice(0, 64) },
    );
  }
  if (options.secrets.length > 0 && metadata.format !== "kvferry" && !options.acceptUnauthenticated) {
    throw new KvferryError(
      "METADATA_UNAUTHENTICATED",
      operation,
      `a package in format ${metadata.format} carries no proof of who made it`,
      "Use kvferry's own format, or open the transport with acceptUnauthenticated: true.",
      { format: metadata.format },
    );
  }
  if (metadata.expiresAtMs !== null && metadata.expiresAtMs <= nowMillis) {
    throw new KvferryError(
      "METADATA_EXPIRED",
      operation,
      `the package expired ${nowMillis - metadata.expiresAtMs} ms ago`,
      "Ask the worker for a new one.",
      {
        expiresAtMs: metadata.expiresAtMs,
        nowMs: nowMillis,
      },
    );
  }
  if (metadata.audience !== null && !metadata.audience.includes(options.workerId)) {
    throw new KvferryError(
      "ACCESS",
      operation,
      `the package is not meant for worker ${options.workerId}`,
      "Export it with this worker's id in `audience`.",
      {
        audience: metadata.audience.map(String),
        workerId: options.workerId.toString(),
      },
    );
  }
  return metadata;
}
