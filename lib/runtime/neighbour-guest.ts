import type { LayoutHandle } from "../core/handle.ts";
import type { NeighbourProcess } from "../native/neighbour.ts";
import {
  type ExporterWord,
  freshNonce,
  type ImporterWord,
  type Meeting,
  NEIGHBOUR_VERSION,
  type NeighbourName,
  proofHolds,
  proofOf,
  sameName,
} from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";

/** A process that wants this one's memory, or has some of it mapped. */
export interface Guest {
  readonly process: NeighbourProcess;
  phase: "new" | "welcomed" | "ready" | "gone";
  name: NeighbourName | undefined;
  meeting: Meeting | undefined;
  key: string | null;
  /** Layouts whose memory this neighbour was given and has not given back. */
  readonly held: Set<LayoutHandle>;
  /** Requests that are being answered one after the other. */
  answering: Promise<void>;
  /** Bytes of messages that were dealt with and not yet told. */
  owed: number;
  connected: boolean;
}

/** A process that has connected and said nothing yet. */
export function newGuest(process: NeighbourProcess): Guest {
  return {
    process,
    phase: "new",
    name: undefined,
    meeting: undefined,
    key: null,
    held: new Set(),
    answering: Promise.resolve(),
    owed: 0,
    connected: true,
  };
}

/**
 * Answers a guest's first word with this worker's proof.
 *
 * @returns Why the guest is turned away, as the end of a sentence.
 */
export function welcome(
  guest: Guest,
  hello: Extract<ImporterWord, { say: "hello" }>,
  self: NeighbourName,
  secrets: readonly SecretKey[],
): ExporterWord | string {
  if (hello.version !== NEIGHBOUR_VERSION) return `it speaks version ${hello.version}`;
  if (!sameName(hello.to, self)) return "its package is stale: it is of another incarnation of this worker";
  const key = secrets.find((secret) => hello.keys.includes(secret.keyId))?.keyId ?? null;
  if (secrets.length > 0 && key === null) return "it knows none of this worker's keys";
  if (secrets.length === 0 && hello.keys.length > 0) return "it has a secret and this worker has none";
  guest.phase = "welcomed";
  guest.name = hello.from;
  guest.key = key;
  guest.meeting = {
    importer: hello.from,
    exporter: self,
    importerProcess: guest.process.processId,
    exporterProcess: process.pid,
    importerNonce: hello.nonce,
    exporterNonce: freshNonce(),
  };
  const proof = key === null ? null : proofOf("exporter", guest.meeting, secrets, key);
  return { say: "welcome", nonce: guest.meeting.exporterNonce, key, proof };
}

/** Whether a welcomed guest's proof is right; without a secret there is nothing to prove. */
export function proves(
  { key, meeting }: Guest,
  proof: string | null,
  secrets: readonly SecretKey[],
): boolean {
  if (key === null) return true;
  return meeting !== undefined && proofHolds(proofOf("importer", meeting, secrets, key), proof);
}
