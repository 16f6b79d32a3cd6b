import { KvferryError } from "../core/errors.ts";
import { handleWorkerId, type LayoutHandle } from "../core/handle.ts";
import type { LayoutRecord } from "../core/layout.ts";
import { getLocal, isLocal, remoteLayouts } from "../core/registry-queries.ts";
import type { Arrivals } from "./arrivals.ts";
import { CONTROL } from "./control-message.ts";
import type { Fences } from "./fences.ts";
import type { Integrity } from "./integrity.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";
import { MOST_SUM_IDS, writeSumWord } from "./sum-words.ts";

/** What both ends of comparisons with peers are connected to. */
export interface SumsParts {
  readonly session: Session;
  readonly state: TransportState;
  readonly messenger: Messenger;
  readonly peers: PeerBook;
  readonly integrity: Integrity;
  readonly arrivals: Arrivals;
  readonly fences: Fences;
}

/** Blocks of a layout that somebody found bad, or wrote again. */
export interface BlockMark {
  readonly layout: LayoutHandle;
  readonly group: string;
  readonly blocks: Uint32Array;
  readonly bad: boolean;
}

/**
 * Connects comparisons of both ends with peers: sums are asked for and answered in control messages, and a block that
 * is found bad is bad at its owner too, until somebody writes it again. Neighbours say so on their own connection.
 *
 * @returns Takes the mark of a neighbour, by its wire name.
 */
export function openSums(parts: SumsParts): (from: string, mark: BlockMark) => void {
  const { integrity } = parts;
  const { overNixl } = parts.session;
  const marks = new Marks(parts);
  if (overNixl === null) {
    integrity.comparison.peers = {
      unable: notThere,
      ready: (name) => Promise.reject(notThere(name)),
      sums: (name) => Promise.reject(notThere(name)),
      tell: (layout, group, ids, bad) => marks.tellOwner(layout, group, ids, bad),
    };
    return (from, mark) => marks.take(from, mark);
  }
  overNixl.openPeerSums(parts, marks);
  return (from, mark) => marks.take(from, mark);
}

/** Says and hears which blocks are bad. */
export class Marks {
  readonly #parts: SumsParts;
  /** Who knows of bad blocks of this process: they are told when the blocks are written again. */
  readonly #sayers: Map<LayoutHandle, Set<string>> = new Map();

  constructor(parts: SumsParts) {
    this.#parts = parts;
    parts.integrity.bad.onGood = (layout, group, ids) => {
      parts.arrivals.mended(layout, group, ids);
      const sayers = this.#sayers.get(layout);
      if (sayers === undefined) return;
      for (const wireName of sayers) this.#tell(wireName, layout, group, ids, false);
      if (!parts.integrity.bad.has(layout)) this.#sayers.delete(layout);
    };
    // That a push is complete does not say that it wrote whole blocks: its peer knows, and says so if it knows that they
    // were bad.
    parts.arrivals.onExpected = (layout, blocks, from) => {
      if (!from.understandsControl || !parts.integrity.bad.has(layout)) return;
      for (const [group, ids] of blocks) {
        const bad = parts.integrity.bad.among(layout, group, ids);
        if (bad.length === 0) continue;
        this.#sayersOf(layout).add(from.wireName);
        this.#tell(from.wireName, layout, group, bad, true);
      }
    };
  }

  tellOwner(layout: LayoutRecord, group: string, ids: readonly number[], bad: boolean): void {
    const owner = layout.owner === null ? undefined : this.#parts.peers.peer(layout.owner);
    if (owner?.understandsControl === true) this.#tell(owner.wireName, layout.handle, group, ids, bad);
  }

  /**
   * Takes what a peer says: of a layout of this process if peers may write to it, and of its own.
   */
  take(from: string, { layout, group, blocks, bad }: BlockMark): void {
    const { state, peers, integrity, arrivals } = this.#parts;
    const local = isLocal(state.snapshot, layout);
    if (!local && peers.byWireName(from)?.workerId !== handleWorkerId(layout)) return;
    const record = local
      ? getLocal(state.snapshot, layout, "transfer")
      : remoteLayouts(state.snapshot).find(({ handle }) => handle === layout);
    if (record === undefined || !hasBlocks(record, group, blocks)) return;
    if (local && record.access !== "read-write") return;
    if (!bad) {
      integrity.bad.clear(layout, new Map([[group, blocks]]));
      return;
    }
    integrity.bad.mark(layout, group, blocks);
    if (!local) return;
    this.#sayersOf(layout).add(from);
    arrivals.spoilt(from, layout, group, blocks);
  }

  #sayersOf(layout: LayoutHandle): Set<string> {
    const sayers = this.#sayers.get(layout) ?? new Set<string>();
    this.#sayers.set(layout, sayers);
    return sayers;
  }

  #tell(wireName: string, layout: LayoutHandle, group: string, ids: readonly number[], bad: boolean): void {
    const { session, messenger } = this.#parts;
    for (let at = 0; at < ids.length; at += MOST_SUM_IDS) {
      const blocks = Uint32Array.from(ids.slice(at, at + MOST_SUM_IDS));
      if (session.neighbours?.mark(wireName, { layout, group, blocks, bad }) === true) continue;
      const body = writeSumWord({ word: "mark", id: 0, layout, group, blocks, bad });
      messenger.controlTo(wireName, CONTROL.sums, body).catch(() => undefined);
    }
  }
}

function hasBlocks(layout: LayoutRecord, group: string, blocks: Uint32Array): boolean {
  const limit = layout.components.reduce(
    (most, { shape }) => (shape.group === group ? Math.max(most, shape.config.numBlocks) : most),
    0,
  );
  return blocks.every((id) => id < limit);
}

/** Sums of a peer that nothing here can ask. */
export function notThere(agent: string): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `checksum: true needs the sums of peer ${agent}, which cannot be asked here`,
    "Leave checksum out, or open both transports with NIXL and import each other's metadata.",
    { agent },
  );
}
