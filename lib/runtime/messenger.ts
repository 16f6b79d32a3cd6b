import { KvferryError } from "../core/errors.ts";
import { handleWorkerId } from "../core/handle.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { isRemote } from "../core/registry-queries.ts";
import { agentNameOf } from "./incarnation.ts";
import { payloadBytes, type NotificationQueue } from "./notifications.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/** Sends notifications to peers and sorts what arrives: users' messages go to the queue. */
export class Messenger {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #peers: PeerBook;
  readonly #queue: NotificationQueue;
  #waiting = 0;

  constructor(session: Session, state: TransportState, peers: PeerBook, queue: NotificationQueue) {
    this.#session = session;
    this.#state = state;
    this.#peers = peers;
    this.#queue = queue;
    session.context.onNotifications = () => this.#receive();
  }

  async notify(peer: Peer, payload: Uint8Array | string): Promise<void> {
    this.#state.demandOpen("notify");
    const bytes = payloadBytes(payload);
    const { agent } = this.#session;
    if (agent === null) throw this.#session.noNixl ?? withoutAgent();
    if (this.#peers.byWireName(peer.wireName) !== peer) {
      throw new KvferryError(
        "PEER_LOST",
        "notify",
        `peer ${peer.agentName} is not imported any more`,
        "Import its metadata again.",
        { workerId: peer.workerId.toString() },
      );
    }
    await agent.notify(peer.wireName, bytes);
  }

  /** A message of this transport to itself: the notification of a local transfer. */
  deliverHere(payload: Uint8Array): void {
    this.#queue.push({ from: this.#session.options.agentName, payload: Uint8Array.from(payload) });
  }

  /** The peer at the other side of a plan, or null for a local one. */
  peerOf(snapshot: RegistrySnapshot, plan: TransferPlan): Peer | null {
    for (const handle of [plan.destination, plan.source]) {
      if (isRemote(snapshot, handle)) return this.#peers.peer(handleWorkerId(handle)) ?? null;
    }
    return null;
  }

  /** Sends to the peer of that wire name without waiting, or delivers here when there is none. */
  sendOrDeliver(agent: string | null, payload: Uint8Array | string): void {
    const bytes = payloadBytes(payload);
    if (agent === null) this.deliverHere(bytes);
    else void this.#session.agent?.notify(agent, bytes).catch(() => undefined);
  }

  /** Somebody begins or ceases to wait for a message: the process is held and NIXL is asked eagerly meanwhile. */
  wait(on: boolean): void {
    this.#waiting += on ? 1 : -1;
    if (!this.#session.context.isOpen) return;
    this.#session.agent?.listen(this.#waiting > 0);
    this.#session.context.holdProcess(this.#waiting > 0);
    // Messages that found the queue full were left with the library.
    if (on) this.#receive();
  }

  /** Stops receiving. */
  close(): void {
    this.#session.context.onNotifications = undefined;
  }

  #receive(): void {
    const { agent } = this.#session;
    if (agent === null || this.#queue.full) return;
    for (const { from, payload } of agent.takeNotifications())
      this.#queue.push({ from: agentNameOf(from), payload });
  }
}

function withoutAgent(): KvferryError {
  return new KvferryError(
    "NO_NIXL",
    "notify",
    "this transport has no NIXL agent",
    "Open it without `nixl: false`, and run `kvferry setup` if NIXL is missing.",
  );
}
