import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { BlockSelection } from "../core/request.ts";
import type { Expiring } from "./deadlines.ts";
import type { BlockGroups } from "./leases.ts";
import type { LocalLayout } from "./local-layout.ts";
import { payloadBytes, type Notification } from "./notifications.ts";
import type { Peer } from "./peer.ts";
import type { SettledTransfer } from "./transfer.ts";

/** What `Transport.expect` takes. */
export interface ExpectOptions {
  /** The local layout that the peer writes into. */
  readonly layout: LocalLayout;
  readonly blocks: BlockSelection;
  readonly from: Peer;
  /** The notification that the peer sends after its data. */
  readonly tag: Uint8Array | string;
  /** The notification that the peer sends after each layer, for `layers()`. */
  readonly layerTag?: (layer: number) => Uint8Array | string;
  readonly deadlineMs?: number;
}

/** What an awaited arrival gives. */
export interface ArrivalResult {
  readonly settlement: "done";
  readonly from: string;
  readonly durationMicros: number;
}

/** What an arrival does to the transport that it belongs to. */
export interface ArrivalEffects {
  now(): number;
  quarantine(reason: string): void;
  lift(reason: string): void;
  concluded(bucket: number): void;
}

/**
 * A push of a peer that is awaited here. Awaitable; rejects with `TIMEOUT` or `PEER_LOST` when the notification does
 * not come, and the blocks are then in quarantine: a late write must not land in a block that was given to others.
 * Rejects with `CHECKSUM` when the peer has found that blocks do not hold what it sent, also before they were awaited.
 * Blocks that are bad stay so, whatever arrives, until somebody has written the whole of them.
 */
export class Arrival implements PromiseLike<ArrivalResult>, Expiring {
  /** @internal */
  bucket = -1;
  /** Agent name of the peer. */
  readonly from: string;
  /** @internal Name on NIXL's wire of the incarnation that writes. */
  readonly wireName: string;
  /** @internal The layout that is written to. */
  readonly layout: LayoutHandle;
  readonly #tag: Uint8Array;
  readonly #layerTag: ((layer: number) => Uint8Array | string) | undefined;
  readonly #layerCount: number;
  readonly #blocks: BlockGroups;
  readonly #effects: ArrivalEffects;
  readonly #startedAt: number;
  readonly #result: PromiseWithResolvers<ArrivalResult> = Promise.withResolvers<ArrivalResult>();
  readonly #settled: PromiseWithResolvers<SettledTransfer> = Promise.withResolvers<SettledTransfer>();
  #layers: number[] = [];
  #layerWaiters: (() => void)[] = [];
  #state: "waiting" | "done" | "failed" = "waiting";
  #failure: unknown;

  /** @internal */
  constructor(options: ExpectOptions, blocks: BlockGroups, effects: ArrivalEffects) {
    this.#blocks = blocks;
    this.from = options.from.agentName;
    this.wireName = options.from.wireName;
    this.layout = options.layout.record.handle;
    this.#tag = payloadBytes(options.tag);
    this.#layerTag = options.layerTag;
    this.#layerCount = Math.max(
      ...options.layout.record.components.map((component) => component.shape.config.numLayers),
    );
    this.#effects = effects;
    this.#startedAt = effects.now();
    this.#result.promise.catch(() => undefined);
  }

  /** Resolves once nobody can touch the blocks any more; never rejects. */
  get settled(): Promise<SettledTransfer> {
    return this.#settled.promise;
  }

  /** @internal */
  get waiting(): boolean {
    return this.#state === "waiting";
  }

  // oxlint-disable-next-line unicorn/no-thenable -- being awaitable is the contract
  then<A = ArrivalResult, B = never>(
    onDone?: ((result: ArrivalResult) => A | PromiseLike<A>) | null,
    onFailed?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.promise.then(onDone, onFailed);
  }

  /** Each layer as its notification arrives; ends when the push is complete. Needs `layerTag`. */
  async *layers(): AsyncGenerator<number, void, undefined> {
    if (this.#layerTag === undefined) throw new TypeError("layers() needs `layerTag` in expect()");
    let at = 0;
    for (;;) {
      while (at < this.#layers.length) {
        const layer = this.#layers[at++];
        if (layer !== undefined) yield layer;
      }
      if (this.#state === "done") return;
      if (this.#state === "failed") throw this.#failure;
      await new Promise<void>((resolve) => this.#layerWaiters.push(resolve));
    }
  }

  /** @internal */
  matches(notification: Notification): boolean {
    return (
      notification.from === this.from &&
      (sameBytes(notification.payload, this.#tag) || this.#layerOf(notification) >= 0)
    );
  }

  /** @internal @returns Whether the message was for this arrival. */
  offer(notification: Notification): boolean {
    if (this.#state !== "waiting" || notification.from !== this.from) return false;
    if (sameBytes(notification.payload, this.#tag)) {
      this.#state = "done";
      this.#effects.concluded(this.bucket);
      this.#result.resolve({
        settlement: "done",
        from: this.from,
        durationMicros: (this.#effects.now() - this.#startedAt) * 1000,
      });
      this.#settled.resolve({ settlement: "done", proof: "completed" });
      this.#wake();
      return true;
    }
    const layer = this.#layerOf(notification);
    if (layer < 0) return false;
    this.#layers.push(layer);
    this.#wake();
    return true;
  }

  /** @internal The time is over. */
  expire(): void {
    this.#fail(
      new KvferryError(
        "TIMEOUT",
        "expect",
        `nothing arrived from ${this.from} in time`,
        "Ask the peer what became of its transfer, or give a longer deadlineMs.",
        {
          from: this.from,
        },
      ),
    );
  }

  /** @internal Nobody can write to the blocks any more. */
  proven(proof: SettledTransfer["proof"]): void {
    this.#effects.lift(proof);
    this.#settled.resolve({ settlement: "in-doubt", proof });
  }

  /** @internal */
  settledWithoutProof(): void {
    this.#settled.resolve({ settlement: "in-doubt", proof: "closed" });
  }

  /** @internal The peer is gone. */
  lost(reason: string): void {
    this.#fail(
      new KvferryError(
        "PEER_LOST",
        "expect",
        `${this.from} is gone before its data was complete: ${reason}`,
        "Import the peer again once it is back.",
        { from: this.from, reason },
      ),
    );
  }

  /**
   * @internal All bytes came, but not all of them as they were sent: nobody writes any more.
   * @returns The blocks of this arrival among them.
   */
  spoilt(group: string, ids: Uint32Array): readonly number[] {
    const expected = new Set(this.#blocks.get(group));
    const bad = Array.from(ids).filter((id) => expected.has(id));
    if (this.#state !== "waiting" || bad.length === 0) return [];
    const error = new KvferryError(
      "CHECKSUM",
      "expect",
      `${bad.length} blocks do not hold what ${this.from} sent: ${bad.slice(0, 16).join(", ")}`,
      "Ask the peer to send the blocks again; until they are written they are refused as a source.",
      { from: this.from, group, blocks: bad.slice(0, 64), count: bad.length },
    );
    error.settlement = "done";
    this.#state = "failed";
    this.#failure = error;
    this.#effects.concluded(this.bucket);
    this.#result.reject(error);
    this.#settled.resolve({ settlement: "done", proof: "completed" });
    this.#wake();
    return bad;
  }

  /** @internal The transport is closing. */
  closed(): void {
    this.#fail(
      new KvferryError(
        "CLOSED",
        "expect",
        `the transport was closed before the data of ${this.from} was complete`,
        "Await arrivals before closing.",
        { from: this.from },
      ),
    );
  }

  #fail(error: KvferryError): void {
    if (this.#state !== "waiting") return;
    this.#state = "failed";
    this.#failure = error;
    error.settlement = "in-doubt";
    this.#effects.quarantine(error.message);
    this.#effects.concluded(this.bucket);
    this.#result.reject(error);
    this.#wake();
  }

  #layerOf(notification: Notification): number {
    if (this.#layerTag === undefined) return -1;
    for (let layer = 0; layer < this.#layerCount; layer++) {
      if (sameBytes(notification.payload, payloadBytes(this.#layerTag(layer)))) return layer;
    }
    return -1;
  }

  #wake(): void {
    const waiters = this.#layerWaiters;
    this.#layerWaiters = [];
    for (const waiter of waiters) waiter();
  }
}

function sameBytes(left: Uint8Array, right: Uint8Array): boolean {
  if (left.byteLength !== right.byteLength) return false;
  for (let index = 0; index < left.byteLength; index++) if (left[index] !== right[index]) return false;
  return true;
}
