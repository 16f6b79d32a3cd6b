import { getLocal } from "../core/registry-queries.ts";
import { KvferryError } from "../core/errors.ts";
import { CONTROL } from "./control-message.ts";
import type { Leases } from "./leases.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import type { Session } from "./session.ts";
import { startProgram } from "./staged-executor.ts";
import { readStaging, writeStaging } from "./staged-protocol.ts";
import { StagingClient, type SendStaging, type WithData } from "./staging-client.ts";
import { alone, StagingOutbox, wordsOf } from "./staging-outbox.ts";
import { StagingServer } from "./staging-server.ts";
import type { TransportState } from "./state.ts";

/** Both sides of staged transfers. */
export interface StagingSides {
  readonly client: StagingClient;
  readonly server: StagingServer;
  /** Told of workers that asked for something, are not imported, and could not be told so. */
  onUnanswered: ((wireName: string) => void) | undefined;
}

/**
 * Connects both sides of staged transfers with peers to the control messages that they travel in.
 *
 * @returns Both sides; null where there are none.
 */
export function openStaging(
  session: Session,
  state: TransportState,
  messenger: Messenger,
  peers: PeerBook,
  leases: Leases,
): StagingSides | null {
  const { staged, agent } = session;
  if (staged === null || agent === null) return null;
  const watched = new WeakSet<object>();
  const watch = (peer: Peer): void => {
    if (watched.has(peer)) return;
    watched.add(peer);
    void peer.lost.then(() => {
      client.lost(peer.wireName);
      server.lost(peer.wireName);
    });
  };
  const outbox = new StagingOutbox((wireName, body) => messenger.controlTo(wireName, CONTROL.staging, body));
  messenger.onOther = (wireName) => outbox.flush(wireName);
  const send: SendStaging = async (wireName, word) => {
    const peer = peers.byWireName(wireName);
    if (peer === undefined || !peer.understandsControl) throw unknownPeer(wireName);
    watch(peer);
    await outbox.say(wireName, word);
  };
  // Who asked can perhaps be answered even if it is not imported here any more.
  const answer: SendStaging = (wireName, word) => outbox.say(wireName, word);
  const withData: WithData = (wireName, word) => messenger.withData(wireName, alone(word));
  const client = new StagingClient(send, withData);
  const server = new StagingServer({
    clock: session.clock,
    leases,
    send: answer,
    withData,
    waiting: (on) => messenger.wait(on),
    layout: (handle) => getLocal(state.snapshot, handle, "transfer"),
    chunks: (device, peer) => session.staging.receive.source(device, agent, peer),
    sendChunks: (device, peer) => session.staging.send.source(device, agent, peer),
    deviceChunks: (device, peer, use) =>
      session.staging.devices?.pool(device, use)?.source(null, agent, peer) ?? null,
    runProgram: (name, op, program, done) => startProgram(staged, name, op, null, program, false, done),
    write: (wireName, program, notification, done) =>
      startProgram(staged, "nixl", "write", wireName, program, false, done, notification),
    keepsSums: (file) => session.sums.has(file),
    deadlineMillis: session.options.deadlineMillis,
  });
  staged.client = client;
  staged.waiting = (on) => messenger.wait(on);
  // Whoever sent anything knows this worker, and can answer it.
  const heard = new Set<string>();
  const before = messenger.onSign;
  messenger.onSign = (wireName) => {
    if (peers.byWireName(wireName) !== undefined) heard.add(wireName);
    before?.(wireName);
  };
  staged.assists = (wireName) => {
    const peer = peers.byWireName(wireName);
    if (peer === undefined) heard.delete(wireName);
    return peer?.understandsControl === true && peer.gathers && heard.has(wireName);
  };
  const take = (from: string, bytes: Uint8Array): void => {
    const word = readStaging(bytes);
    if (word === null) return;
    if (word.word === "credit" || word.word === "ended" || word.word === "refused") {
      client.answer(from, word);
      return;
    }
    const peer = peers.byWireName(from);
    if (peer !== undefined) watch(peer);
    // Only whose end is noticed is lent anything; what was lent can be given back later.
    if (peer !== undefined || word.word !== "ask") server.take(from, word);
    else {
      const message = "it has not imported this worker, or has forgotten it";
      answer(from, writeStaging({ word: "refused", id: word.id, code: "NO_ROUTE", message })).catch(() =>
        sides.onUnanswered?.(from),
      );
    }
  };
  const takeAll = (from: string, body: Uint8Array): void => {
    for (const word of wordsOf(body)) take(from, word);
  };
  messenger.onControl(CONTROL.staging, takeAll);
  messenger.onControl(CONTROL.landed, takeAll);
  const sides: StagingSides = { client, server, onUnanswered: undefined };
  return sides;
}

function unknownPeer(wireName: string): KvferryError {
  return new KvferryError(
    "PEER_LOST",
    "transfer",
    `peer ${wireName} is not imported, or is no kvferry transport that could help`,
    "Import its metadata in kvferry's own format; it must have imported this worker's as well.",
    { agent: wireName },
  );
}
