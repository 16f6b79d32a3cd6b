import { KvferryError } from "../core/errors.ts";
import { handleWorkerId } from "../core/handle.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { isRemote } from "../core/registry-queries.ts";
import {
  CONTROL,
  controlSequence,
  looksLikeControl,
  readControl,
  writeControl,
  type ControlMessage,
} from "./control-message.ts";
import { agentNameOf } from "./incarnation.ts";
import { payloadBytes, type NotificationQueue } from "./notifications.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/**
 * A neighbour's answer often comes sooner than a sleeping thread wakes: for so long after each message the next one is
 * looked for, if somebody awaits it.
 */
const ANSWER_MICROS = 100;

/** Sends notifications to peers and sorts what arrives: users' messages go to the queue. */
export class Messenger {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #peers: PeerBook;
  readonly #queue: NotificationQueue;
  // Kept when a peer is forgotten: it may be imported again in the same incarnation, and an old message must not pass.
  readonly #sent: Map<string, number> = new Map();
  readonly #seen: Map<string, SeenMessages> = new Map();
  readonly #sentAt: Map<string, number> = new Map();
  readonly #handlers: Map<number, ControlHandler> = new Map();
  #waiting = 0;
  #receiving = false;
  #wanted = false;
  /** Told of every message, with the sender's wire name: a sign of life. */
  onSign: ((wireName: string) => void) | undefined;
  /** Told when messages begin to be dropped because nobody reads them, with the sender's agent name. */
  onOverflow: ((from: string) => void) | undefined;
  #overflowing = false;
  /** Told before a control message leaves that is no word of staging: what was said before goes first. */
  onOther: ((wireName: string) => void) | undefined;
  /** Told of control messages that were dropped. */
  onDropped: ((wireName: string) => void) | undefined;

  constructor(session: Session, state: TransportState, peers: PeerBook, queue: NotificationQueue) {
    this.#session = session;
    this.#state = state;
    this.#peers = peers;
    this.#queue = queue;
    session.context.onNotifications = () => this.#receive();
    session.context.onLook = (here) => session.neighbours?.look(here);
  }

  async notify(peer: Peer, payload: Uint8Array | string): Promise<void> {
    this.#state.demandOpen("notify");
    const bytes = payloadBytes(payload);
    const { agent, neighbours } = this.#session;
    const near = neighbours?.reaches(peer.wireName) === true;
    if (agent === null && neighbours === null) throw this.#session.noNixl ?? withoutAgent();
    if (this.#peers.byWireName(peer.wireName) !== peer) {
      throw new KvferryError(
        "PEER_LOST",
        "notify",
        `peer ${peer.agentName} is not imported any more`,
        "Import its metadata again.",
        { workerId: peer.workerId.toString() },
      );
    }
    if (near) {
      await neighbours.notify(peer.wireName, bytes);
      this.#session.context.hasten(ANSWER_MICROS);
    } else if (agent === null) throw this.#session.noNixl ?? withoutAgent();
    else await agent.notify(peer.wireName, this.escape(peer.wireName, bytes));
  }

  /** Sends a control message to a peer that understands them. */
  control(peer: Peer, type: number, body: Uint8Array = NO_BYTES): Promise<void> {
    return this.controlTo(peer.wireName, type, body);
  }

  /** Sends a control message to an agent that NIXL knows. */
  async controlTo(wireName: string, type: number, body: Uint8Array = NO_BYTES): Promise<void> {
    if (type !== CONTROL.staging) this.onOther?.(wireName);
    const { agent } = this.#session;
    if (agent !== null) await agent.notify(wireName, this.#write(wireName, type, body));
  }

  /** A control message that leaves with data: whenever that is complete, so that it may come before or after others. */
  withData(wireName: string, body: Uint8Array): Uint8Array<ArrayBuffer> {
    return this.#write(wireName, CONTROL.landed, body);
  }

  /** Milliseconds since a control message last went to a peer. */
  silentFor(wireName: string): number {
    return this.#session.clock.now() - (this.#sentAt.get(wireName) ?? Number.NEGATIVE_INFINITY);
  }

  /** Takes control messages of one type. */
  onControl(type: number, handler: ControlHandler): void {
    this.#handlers.set(type, handler);
  }

  /** A user's payload as it goes on the wire: itself, unless it begins like a control message. */
  escape(wireName: string, payload: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    return looksLikeControl(payload) ? this.#write(wireName, CONTROL.user, payload) : payload;
  }

  /** A message of this transport to itself: the notification of a local transfer. */
  deliverHere(payload: Uint8Array<ArrayBuffer>): void {
    this.#queue.push({ from: this.#session.options.agentName, payload });
  }

  /** The peer at the other side of a plan, or null for a local one. */
  peerOf(snapshot: RegistrySnapshot, plan: TransferPlan): Peer | null {
    for (const handle of [plan.destination, plan.source]) {
      if (isRemote(snapshot, handle)) return this.#peers.peer(handleWorkerId(handle)) ?? null;
    }
    return null;
  }

  /** Somebody begins or ceases to wait for a message: the process is held and NIXL is asked eagerly meanwhile. */
  wait(on: boolean): void {
    this.#waiting += on ? 1 : -1;
    if (!this.#session.context.isOpen) return;
    this.#session.agent?.listen(this.#waiting > 0);
    this.#session.context.holdProcess(this.#waiting > 0);
    // Messages that found the queue full were left with the neighbours who sent them.
    if (!on) return;
    this.#session.neighbours?.resume();
    this.#receive();
  }

  /** Takes a message that a neighbour sent. @returns Whether more may come. */
  deliverFrom(wireName: string, payload: Uint8Array<ArrayBuffer>): boolean {
    this.onSign?.(wireName);
    this.#queue.push({ from: agentNameOf(wireName), payload });
    this.#session.context.hasten(ANSWER_MICROS);
    return !this.#queue.full || this.#queue.intercepted;
  }

  /** Stops receiving; neighbours are still heard, for they give memory back. */
  close(): void {
    const { context, neighbours } = this.#session;
    context.onNotifications = neighbours === null ? undefined : () => neighbours.receive();
  }

  /** Messages of a batch can make somebody wait for more: those come after the batch, never in the middle of it. */
  #receive(): void {
    this.#wanted = true;
    if (this.#receiving) return;
    this.#receiving = true;
    try {
      while (this.#wanted) {
        this.#wanted = false;
        this.#receiveBatch();
      }
    } finally {
      this.#receiving = false;
    }
  }

  #receiveBatch(): void {
    const { agent, neighbours } = this.#session;
    neighbours?.receive();
    if (agent === null) return;
    // All of them, whoever reads: control messages come the same way, and must not wait behind users' messages.
    for (const { from, payload } of inSendingOrder(agent.takeNotifications())) {
      this.onSign?.(from);
      if (looksLikeControl(payload)) this.#take(from, payload);
      else this.#push(from, payload);
    }
  }

  /** NIXL cannot hold a sender back: what nobody reads is dropped beyond a limit, and that is said. */
  #push(from: string, payload: Uint8Array<ArrayBuffer>): void {
    if (this.#queue.overfull) {
      if (!this.#overflowing) this.onOverflow?.(agentNameOf(from));
      this.#overflowing = true;
      return;
    }
    this.#overflowing = false;
    this.#queue.push({ from: agentNameOf(from), payload });
  }

  #take(from: string, payload: Uint8Array): void {
    const message = readControl(
      payload,
      { sender: from, receiver: this.#session.wireName },
      this.#session.options.secrets,
    );
    if (message === null || !this.#isNew(from, message)) {
      this.onDropped?.(from);
      return;
    }
    if (message.type === CONTROL.user) this.#push(from, message.body);
    else this.#handlers.get(message.type)?.(from, message.body);
  }

  /**
   * Control messages of a sender are taken in the order in which they were sent. Those that leave after the data that they
   * belong to, as users' messages do, may be overtaken.
   */
  #isNew(from: string, { type, sequence }: ControlMessage): boolean {
    let seen = this.#seen.get(from);
    if (seen === undefined) {
      const oldest = this.#seen.keys().next();
      if (this.#seen.size >= MOST_SENDERS && oldest.done !== true) this.#seen.delete(oldest.value);
      seen = { last: 0, late: new Set(), lateFrom: 0 };
      this.#seen.set(from, seen);
    }
    if (type !== CONTROL.user && type !== CONTROL.landed) {
      if (sequence <= seen.last) return false;
      seen.last = sequence;
      return true;
    }
    if (sequence <= seen.lateFrom || seen.late.has(sequence)) return false;
    seen.late.add(sequence);
    if (seen.late.size > MOST_OVERTAKEN) {
      const least = leastOf(seen.late);
      seen.late.delete(least);
      seen.lateFrom = least;
    }
    return true;
  }

  #write(wireName: string, type: number, body: Uint8Array): Uint8Array<ArrayBuffer> {
    const sequence = (this.#sent.get(wireName) ?? 0) + 1;
    this.#sent.set(wireName, sequence);
    this.#sentAt.set(wireName, this.#session.clock.now());
    return writeControl(
      type,
      sequence,
      body,
      { sender: this.#session.wireName, receiver: wireName },
      this.#session.options.secrets,
    );
  }
}

/**
 * The same messages with control messages in the places of control messages, by their numbers.
 *
 * NIXL receives on several threads and may hand over what came at once in another order than it was sent in.
 */
export function inSendingOrder<Message extends { readonly payload: Uint8Array }>(
  messages: readonly Message[],
): readonly Message[] {
  const control = messages.filter(({ payload }) => looksLikeControl(payload));
  if (control.length < 2) return messages;
  control.sort((a, b) => controlSequence(a.payload) - controlSequence(b.payload));
  let next = 0;
  return messages.map((message) =>
    looksLikeControl(message.payload) ? (control[next++] ?? message) : message,
  );
}

/** Takes a control message; `from` is the sender's wire name. */
export type ControlHandler = (from: string, body: Uint8Array<ArrayBuffer>) => void;

/** Numbers of a sender's messages that were taken. */
interface SeenMessages {
  last: number;
  /** Of those that leave after data. */
  readonly late: Set<number>;
  lateFrom: number;
}

/** Senders whose numbers are remembered; the longest known go first. */
const MOST_SENDERS = 65_536;

/** Messages after data of one sender that may be on their way at once without any being taken for a replay. */
const MOST_OVERTAKEN = 1_024;

function leastOf(numbers: Iterable<number>): number {
  let least = Number.POSITIVE_INFINITY;
  for (const number of numbers) if (number < least) least = number;
  return least;
}

const NO_BYTES: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(0));

function withoutAgent(): KvferryError {
  return new KvferryError(
    "NO_NIXL",
    "notify",
    "this transport has no NIXL agent",
    "Open it without `nixl: false`, and run `kvferry setup` if NIXL is missing.",
  );
}
