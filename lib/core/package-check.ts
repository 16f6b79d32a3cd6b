import type { ErrorWord } from "./errors.ts";
import { KvferryError } from "./errors.ts";
import type { MetadataPackage } from "./package.ts";
import type { ForgottenPeer, PeerRecord, RegistrySnapshot } from "./registry-snapshot.ts";

/** Who a package says it is from must neither be this worker nor contradict what is known. */
export function checkIdentity(snapshot: RegistrySnapshot, metadata: MetadataPackage): void {
  const { workerId, agentName, wireName } = metadata;
  const facts = { workerId: workerId.toString(), agentName };
  if (workerId === snapshot.workerId)
    throw refused("DUPLICATE_WORKER", `the package has this worker's own id ${workerId}`, GIVE_OWN_ID, facts);
  const own = [snapshot.agentName, snapshot.wireName];
  if (own.includes(agentName) || own.includes(wireName))
    throw refused(
      "AGENT_MISMATCH",
      `the package has this worker's own agent name ${agentName}`,
      GIVE_OWN_ID,
      facts,
    );
  const known = snapshot.peers.get(workerId);
  if (known !== undefined && known.agentName !== agentName)
    throw refused(
      "AGENT_MISMATCH",
      `worker ${workerId} is known as agent ${known.agentName}, the package calls it ${agentName}`,
      "Check which process the package is from; forget the peer first if its agent was renamed.",
      { ...facts, known: known.agentName },
    );
  for (const peer of snapshot.peers.values())
    if (peer.workerId !== workerId && (peer.agentName === agentName || peer.wireName === wireName))
      throw refused(
        "AGENT_MISMATCH",
        `agent ${agentName} is known as worker ${peer.workerId}, the package calls it worker ${workerId}`,
        GIVE_OWN_ID,
        { ...facts, known: peer.workerId.toString() },
      );
}

/** A package must be meant for this worker and still be valid. */
export function checkValidity(
  snapshot: RegistrySnapshot,
  metadata: MetadataPackage,
  nowMs: number | undefined,
): void {
  const { audience, expiresAtMs, workerId } = metadata;
  if (audience !== null && !audience.includes(snapshot.workerId))
    throw refused(
      "METADATA_UNAUTHENTICATED",
      `the package of worker ${workerId} is not meant for worker ${snapshot.workerId}`,
      "Ask the peer to export for this worker too (audience).",
      { workerId: workerId.toString(), audience: audience.map(String) },
    );
  if (nowMs !== undefined && expiresAtMs !== null && nowMs >= expiresAtMs)
    throw refused(
      "METADATA_EXPIRED",
      `the package of worker ${workerId} expired ${nowMs - expiresAtMs} ms ago`,
      "Ask the peer to export again, and check the clocks of both hosts.",
      { workerId: workerId.toString(), expiresAtMs, nowMs },
    );
}

/** A package must be news: of a worker that is not known, a later incarnation, or a later sequence where that was asked for. */
export function checkAge(
  snapshot: RegistrySnapshot,
  metadata: MetadataPackage,
  known: PeerRecord | undefined,
  updates: bigint | undefined,
): void {
  const { workerId, incarnation, sequence } = metadata;
  const facts = { workerId: workerId.toString(), incarnation, sequence };
  if (updates !== undefined) {
    if (updates !== workerId)
      throw refused(
        "AGENT_MISMATCH",
        `the package is of worker ${workerId}, not of ${updates}`,
        ASK_AGAIN,
        facts,
      );
    if (known === undefined)
      throw refused(
        "PEER_LOST",
        `worker ${workerId} is not imported`,
        "Import the package as a new peer.",
        facts,
      );
    if (metadata.format !== "kvferry" || known.format !== "kvferry")
      throw refused(
        "DUPLICATE_WORKER",
        `worker ${workerId} is known, and packages of Dynamo's formats cannot be told old from new`,
        "Forget the peer, then import the package.",
        { ...facts, format: metadata.format },
      );
    if (incarnation > known.incarnation)
      throw refused(
        "AGENT_MISMATCH",
        `worker ${workerId} restarted: the package is of a later incarnation`,
        "Import the package as a new peer instead of updating the old one.",
        { ...facts, known: known.incarnation },
      );
  }
  const last = known ?? snapshot.forgotten.get(workerId);
  if (last === undefined) return;
  // Formats without incarnations cannot be replays; they are duplicates while the worker is known.
  if (metadata.format === "kvferry" && isOlder(metadata, last, updates !== undefined))
    throw refused(
      "METADATA_EXPIRED",
      `the package of worker ${workerId} is older than the one imported before`,
      ASK_AGAIN,
      { ...facts, lastIncarnation: last.incarnation, lastSequence: last.sequence },
    );
  if (known !== undefined && updates === undefined && incarnation <= known.incarnation)
    throw refused(
      "DUPLICATE_WORKER",
      `worker ${workerId} is imported already`,
      "Update the peer with the package, or forget the peer first.",
      facts,
    );
}

/** Whether a package was made before the last one: an update must also be later than it. */
function isOlder(metadata: MetadataPackage, last: ForgottenPeer, strictly: boolean): boolean {
  if (metadata.incarnation !== last.incarnation) return metadata.incarnation < last.incarnation;
  return strictly ? metadata.sequence <= last.sequence : metadata.sequence < last.sequence;
}

const GIVE_OWN_ID = "Give each worker a worker id and an agent name of its own.";

const ASK_AGAIN = "Ask the peer to export its metadata again.";

function refused(
  word: ErrorWord,
  message: string,
  remedy: string,
  details: Record<string, unknown>,
): KvferryError {
  return new KvferryError(word, "import", message, remedy, details);
}
