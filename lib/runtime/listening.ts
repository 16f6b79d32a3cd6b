import { readAnswer } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import type { Liveness } from "./liveness.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";

/** Connects what arrives as control messages to who must know. */
export function listenForControl(
  messenger: Messenger,
  peers: PeerBook,
  liveness: Liveness<Peer>,
  reaches: (wireName: string) => boolean,
): void {
  messenger.onSign = (wireName) => {
    if (peers.byWireName(wireName) !== undefined) liveness.heard(wireName);
  };
  messenger.onControl(CONTROL.heartbeat, (from, body) => {
    const interval = readAnswer(body);
    // Somebody whom NIXL does not know here cannot be answered; it judges this worker by sending alone.
    if (interval === null || !reaches(from) || messenger.silentFor(from) < interval) return;
    messenger.controlTo(from, CONTROL.alive).catch(() => undefined);
  });
  messenger.onControl(CONTROL.alive, () => undefined);
  messenger.onControl(CONTROL.bye, (from) => {
    const peer = peers.byWireName(from);
    if (peer !== undefined) peers.lose(peer, "it closed");
  });
}
