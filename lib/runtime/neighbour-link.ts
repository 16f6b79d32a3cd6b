import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage, PackageLayout } from "../core/package.ts";
import type { NeighbourProcess, NeighbourSockets } from "../native/neighbour.ts";
import { type HostPlace, strangerReason } from "./neighbour-host.ts";
import type { MappedLayout } from "./neighbour-mapping.ts";
import { Outbox } from "./neighbour-outbox.ts";
import {
  type ExporterWord,
  freshNonce,
  type ImporterWord,
  NEIGHBOUR_VERSION,
  type NeighbourName,
  proofHolds,
  proofOf,
  wordBytes,
} from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";

/** A neighbour that does not answer in this time is reached through NIXL. Milliseconds. */
export const MEETING_MILLIS = 2_000;

/** The end of a meeting: to wait for, and to bring about. Older libraries of TypeScript have no name for it. */
export interface MeetingEnd {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (reason: Error) => void;
}

/** A connection to a process whose memory is mapped here. */
export interface Link {
  readonly process: NeighbourProcess;
  readonly wireName: string;
  phase: "meeting" | "ready" | "ending" | "closed";
  readonly nonce: string;
  readonly exporter: NeighbourName;
  readonly meeting: MeetingEnd;
  readonly mapped: Map<LayoutHandle, MappedLayout>;
  /** Who waits for a layout: it, or why it is not there. */
  readonly wanted: Map<LayoutHandle, (found: MappedLayout | string) => void>;
  /** Packages' layouts by handle, to check what is handed over against. */
  readonly described: Map<LayoutHandle, PackageLayout>;
  readonly outbox: Outbox;
}

/**
 * Connects to the rendezvous that a package names, and makes sure of who listens there.
 *
 * @throws Error that says why the exporter is no neighbour.
 */
export async function openLink(
  sockets: () => NeighbourSockets,
  place: HostPlace | null,
  metadata: MetadataPackage,
): Promise<Link> {
  const { host, wireName } = metadata;
  if (host === null) throw new Error("The peer's package does not say on which host it is.");
  if (place === null) throw new Error("This kernel does not tell its processes where they are.");
  const stranger = strangerReason(place, host);
  if (stranger !== null) throw new Error(stranger);
  if (host.rendezvous === "") throw new Error("The peer shares its memory with no process of its host.");
  const process = await connect(sockets(), host.rendezvous);
  // An abstract name is anybody's: who listens must be the very process that made the package.
  if (process.userId !== place.userId || process.processId !== host.processId) {
    sockets().forget(process.connection);
    throw new Error(
      `Process ${process.processId} of user ${process.userId} listens at the peer's rendezvous instead of process ${host.processId}.`,
    );
  }
  const link: Link = {
    process,
    wireName,
    phase: "meeting",
    nonce: freshNonce(),
    exporter: {
      worker: metadata.workerId.toString(),
      agent: metadata.agentName,
      wire: wireName,
      incarnation: metadata.incarnation,
    },
    meeting: Promise.withResolvers<void>(),
    mapped: new Map(),
    wanted: new Map(),
    described: new Map(),
    outbox: new Outbox(wireName, (bytes) => sockets().send(process.connection, bytes)),
  };
  return link;
}

/** The first word to an exporter. */
export function helloOf(link: Link, self: NeighbourName, secrets: readonly SecretKey[]): ImporterWord {
  return {
    say: "hello",
    version: NEIGHBOUR_VERSION,
    from: self,
    to: link.exporter,
    nonce: link.nonce,
    keys: secrets.map((secret) => secret.keyId),
  };
}

/**
 * Checks the exporter's proof and answers with this worker's own.
 *
 * @returns Null when the exporter does not know the secret.
 */
export function answerTo(
  link: Link,
  { nonce, key, proof }: Extract<ExporterWord, { say: "welcome" }>,
  self: NeighbourName,
  secrets: readonly SecretKey[],
): ImporterWord | null {
  if (secrets.length === 0) return { say: "proof", proof: null };
  const meeting = {
    importer: self,
    exporter: link.exporter,
    importerProcess: process.pid,
    exporterProcess: link.process.processId,
    importerNonce: link.nonce,
    exporterNonce: nonce,
  };
  if (key === null || !proofHolds(proofOf("exporter", meeting, secrets, key), proof)) return null;
  return { say: "proof", proof: proofOf("importer", meeting, secrets, key) };
}

/** @returns False when the neighbour is gone. */
export function say(sockets: () => NeighbourSockets, link: Link, word: ImporterWord): boolean {
  return link.phase !== "closed" && sockets().send(link.process.connection, wordBytes(word));
}

/**
 * Asks for layouts' memory.
 *
 * @returns For each the mapped layout, or why there is none.
 */
export async function askFor(
  sockets: () => NeighbourSockets,
  link: Link,
  layouts: readonly PackageLayout[],
): Promise<(readonly [LayoutHandle, MappedLayout | string])[]> {
  if (link.phase !== "ready") return layouts.map(({ handle }) => [handle, "The peer is gone."] as const);
  const answers: (readonly [LayoutHandle, MappedLayout | string])[] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const names: string[] = [];
  for (const layout of layouts) {
    const { handle } = layout;
    link.described.set(handle, layout);
    link.wanted.set(handle, (found) => {
      link.described.delete(handle);
      if (answers.push([handle, found]) === layouts.length) resolve();
    });
    names.push(handle.toString());
  }
  say(sockets, link, { say: "want", layouts: names });
  await within(MEETING_MILLIS, promise, () => null).catch(() => {
    for (const { handle } of layouts) answerWaiting(link, handle, silent(MEETING_MILLIS));
  });
  return answers;
}

/** Gives whoever waits for a layout what came, or why nothing does. */
export function answerWaiting(link: Link, handle: LayoutHandle, answer: MappedLayout | string): void {
  const resolve = link.wanted.get(handle);
  link.wanted.delete(handle);
  resolve?.(answer);
}

/** Tells everybody who waits for the neighbour that it does not come. */
export function failLink(link: Link, reason: string): void {
  link.meeting.promise.catch(() => undefined);
  link.meeting.reject(new Error(`The peer is gone: ${reason}.`));
  for (const [handle] of link.wanted) answerWaiting(link, handle, `The peer is gone: ${reason}.`);
  link.outbox.fail();
}

/** What is said of a neighbour that does not answer. */
export function silent(millis: number): string {
  return `The peer did not answer at its rendezvous within ${millis} ms.`;
}

/** The promise's value; rejects with what `late` makes when it takes longer. Holds the process meanwhile. */
export function within<T>(millis: number, promise: Promise<T>, late: () => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(late()), millis);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

async function connect(sockets: NeighbourSockets, rendezvous: string): Promise<NeighbourProcess> {
  const until = performance.now() + MEETING_MILLIS;
  for (;;) {
    let process: NeighbourProcess | null;
    try {
      process = sockets.connect(rendezvous);
    } catch (error) {
      throw new Error(
        `Nobody listens at the peer's rendezvous: ${error instanceof Error ? error.message : String(error)}`,
        { cause: error },
      );
    }
    if (process !== null) return process;
    if (performance.now() > until) throw new Error(silent(MEETING_MILLIS));
    await Bun.sleep(5);
  }
}
