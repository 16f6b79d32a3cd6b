import { getLocal } from "../core/registry-queries.ts";
import { KvferryError } from "../core/errors.ts";
import { CONTROL } from "./control-message.ts";
import type { Leases } from "./leases.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Session } from "./session.ts";
import { startProgram } from "./staged-executor.ts";
import { readStaging } from "./staged-protocol.ts";
import { StagingClient, type SendStaging } from "./staging-client.ts";
import { StagingServer } from "./staging-server.ts";
import type { TransportState } from "./state.ts";

/** Connects both sides of staged transfers with peers to the control messages that they travel in. */
export function openStaging(
  session: Session,
  state: TransportState,
  messenger: Messenger,
  peers: PeerBook,
  leases: Leases,
): void {
  const { staged, agent } = session;
  if (staged === null || agent === null) return;
  const watched = new WeakSet<object>();
  const send: SendStaging = async (wireName, body) => {
    const peer = peers.byWireName(wireName);
    if (peer === undefined || !peer.understandsControl) throw unknownPeer(wireName);
    if (!watched.has(peer)) {
      watched.add(peer);
      void peer.lost.then(() => {
        client.lost(wireName);
        server.lost(wireName);
      });
    }
    await messenger.control(peer, CONTROL.staging, body);
  };
  const client = new StagingClient(send);
  const server = new StagingServer({
    clock: session.clock,
    leases,
    send,
    waiting: (on) => messenger.wait(on),
    layout: (handle) => getLocal(state.snapshot, handle, "transfer"),
    chunks: (device) => session.staging.receive.source(device, agent),
    runProgram: (name, op, program, done) => startProgram(staged, name, op, null, program, false, done),
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
    return peer?.understandsControl === true && heard.has(wireName);
  };
  messenger.onControl(CONTROL.staging, (from, body) => {
    const word = readStaging(body);
    if (word === null) return;
    if (word.word === "credit" || word.word === "ended" || word.word === "refused") client.answer(from, word);
    // Only who was imported here can be answered.
    else if (peers.byWireName(from) !== undefined) server.take(from, word);
  });
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
