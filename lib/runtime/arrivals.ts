import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { Arrival, type ExpectOptions } from "./arrival.ts";
import { Deadlines, type Clock } from "./deadlines.ts";
import type { EventHub } from "./events.ts";
import { expectedBlocks } from "./expected-blocks.ts";
import type { BlockGroups, Leases } from "./leases.ts";
import type { LocalLayout } from "./local-layout.ts";
import type { Messenger } from "./messenger.ts";
import type { NotificationQueue } from "./notifications.ts";
import type { Peer } from "./peer.ts";
import type { TransportState } from "./state.ts";
import { deadlineOf } from "./submit.ts";
import type { SettledTransfer } from "./transfer.ts";
import { UnheardMarks } from "./unheard-marks.ts";

/** The receiving sides of peers' pushes. */
export class Arrivals {
  readonly #state: TransportState;
  readonly #leases: Leases;
  readonly #queue: NotificationQueue;
  readonly #messenger: Messenger;
  readonly #events: EventHub;
  readonly #clock: Clock;
  readonly #deadlineMillis: number;
  readonly #deadlines: Deadlines;
  readonly #open: Set<Arrival> = new Set();
  /** Failed arrivals whose blocks are in quarantine. */
  readonly #doubtful: Set<Arrival> = new Set();
  readonly #unheard: UnheardMarks = new UnheardMarks();
  /** Told of blocks that a peer is awaited to write. */
  onExpected: ((layout: LayoutHandle, blocks: BlockGroups, from: Peer) => void) | undefined;
  /** Told of arrivals that failed: somebody may be able to prove that their blocks are quiet. */
  onDoubt: ((arrival: Arrival) => void) | undefined;

  constructor(
    state: TransportState,
    leases: Leases,
    queue: NotificationQueue,
    messenger: Messenger,
    events: EventHub,
    clock: Clock,
    deadlineMillis: number,
  ) {
    this.#state = state;
    this.#leases = leases;
    this.#queue = queue;
    this.#messenger = messenger;
    this.#events = events;
    this.#clock = clock;
    this.#deadlineMillis = deadlineMillis;
    this.#deadlines = new Deadlines(clock);
  }

  /**
   * @throws KvferryError `CLOSED`, `STALE_HANDLE`, `PEER_LOST`, `BLOCK_OUT_OF_RANGE`, `DUPLICATE_BLOCK`,
   * `LENGTH_MISMATCH`, `QUARANTINED`, `INVALID_CONFIG` for a deadline or a tag that is none.
   */
  expect(options: ExpectOptions): Arrival {
    this.#state.demandOpen("expect");
    options.layout.demandRegistered("expect");
    const { handle } = options.layout.record;
    const { from } = options;
    if (from.loss !== undefined) {
      throw new KvferryError(
        "PEER_LOST",
        "expect",
        `peer ${from.agentName} is not imported any more: ${from.loss.reason}`,
        "Import its metadata again.",
        { workerId: from.workerId.toString() },
      );
    }
    const deadlineMillis = deadlineOf(options, this.#deadlineMillis, "expect");
    const blocks = expectedBlocks(options.layout.record, options.blocks);
    this.#leases.demandUsable("expect", handle, "expected", blocks);
    const arrival: Arrival = new Arrival(options, blocks, {
      now: () => this.#clock.now(),
      quarantine: (reason) => {
        this.#leases.quarantine(handle, blocks, reason, Date.now());
        this.#doubtful.add(arrival);
        this.#tell("begin", options.layout, blocks, reason);
      },
      lift: (reason) => {
        this.#leases.lift(handle, blocks);
        this.#tell("end", options.layout, blocks, reason);
      },
      concluded: (bucket) => {
        this.#open.delete(arrival);
        this.#messenger.wait(false);
        this.#leases.release(handle);
        stop();
        this.#deadlines.remove(bucket, arrival);
        if (this.#doubtful.has(arrival)) this.onDoubt?.(arrival);
      },
    });
    this.#leases.acquire(handle);
    const stop = this.#queue.intercept((notification) => arrival.offer(notification));
    arrival.bucket = this.#deadlines.add(deadlineMillis, arrival);
    this.#open.add(arrival);
    // Comes last: it may take messages in at once, and with the word that the peer leaves the arrival has ended.
    this.#messenger.wait(true);
    // The message may have come before anybody expected it.
    while (arrival.waiting) {
      const early = this.#queue.takeMatching((notification) => arrival.matches(notification));
      if (early === undefined) break;
      arrival.offer(early);
    }
    // So may the word that its bytes are not what was sent.
    if (arrival.waiting)
      for (const [group, ids] of this.#unheard.take(arrival.wireName, handle, blocks))
        arrival.spoilt(group, ids);
    if (arrival.waiting) this.onExpected?.(handle, blocks, from);
    return arrival;
  }

  /** It is proven that nobody writes for these arrivals any more. */
  proveQuiet(match: (arrival: Arrival) => boolean, proof: SettledTransfer["proof"]): void {
    for (const arrival of this.#doubtful) {
      if (!match(arrival)) continue;
      this.#doubtful.delete(arrival);
      arrival.proven(proof);
    }
  }

  /** Failed arrivals of a peer whose blocks are in quarantine. */
  doubtful(wireName: string): Arrival[] {
    return [...this.#doubtful].filter((arrival) => arrival.wireName === wireName);
  }

  /** Ends what is still awaited from a peer that is being let go. */
  lose(wireName: string, reason: string): void {
    this.#unheard.forget(wireName);
    for (const arrival of this.#open) if (arrival.wireName === wireName) arrival.lost(reason);
  }

  /** The peer has found that what it wrote is not what it sent. */
  spoilt(wireName: string, layout: LayoutHandle, group: string, ids: Uint32Array): void {
    const unheard = new Set(ids);
    for (const arrival of this.#open)
      if (arrival.wireName === wireName && arrival.layout === layout)
        for (const id of arrival.spoilt(group, ids)) unheard.delete(id);
    this.#unheard.add(wireName, layout, group, unheard);
  }

  /** Blocks that were bad were written again. */
  mended(layout: LayoutHandle, group: string, ids: readonly number[]): void {
    this.#unheard.mended(layout, group, ids);
  }

  /** Settles what is still in doubt without proof: the transport is gone, and the blocks stay where they are. */
  settleClosed(): void {
    for (const arrival of this.#doubtful) arrival.settledWithoutProof();
  }

  /** Ends every arrival; its blocks stay in quarantine until the transport is gone. */
  close(): void {
    for (const arrival of this.#open) arrival.closed();
    this.#deadlines.clear();
  }

  #tell(change: "begin" | "end", layout: LocalLayout, blocks: BlockGroups, reason: string): void {
    for (const [group, ids] of blocks)
      this.#events.emit("quarantine", {
        change,
        layout: layout.handle,
        group,
        blocks: Array.from(ids),
        reason,
      });
  }
}
