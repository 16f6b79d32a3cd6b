import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { type ComponentPair, intersectComponents } from "../core/intersect.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import { sumConfig, sumShape, sumWindows, type SumShape, type SumSide } from "../core/sum-shape.ts";
import type { BlockIo } from "./block-io.ts";
import type { BlockGroups } from "./leases.ts";
import { sideSums, SUM_BYTES, type MoveRequest } from "./side-sums.ts";
import type { TransferOptions } from "./submit.ts";
import { MOST_SUM_IDS, MOST_SUM_LAYERS, MOST_SUMS } from "./sum-words.ts";

/** What peers do for a comparison. */
export interface SumPeers {
  /** Why a peer cannot sum; null when it can be asked. */
  readonly unable: (agent: string) => KvferryError | null;
  /**
   * Resolves once the peer has said that it has the layout, and that those blocks may be read.
   *
   * @throws KvferryError what the peer said, `CHECKSUM` for blocks that are bad.
   */
  readonly ready: (agent: string, layout: LayoutHandle, blocks: BlockGroups) => Promise<void>;
  /** The peer's sums of its side of a window. */
  readonly sums: (
    agent: string,
    layout: LayoutHandle,
    component: string,
    shape: SumShape,
    side: SumSide,
    count: number,
  ) => Promise<Uint8Array>;
  /** Tells the owner of a layout that blocks are bad, or good again. */
  readonly tell: (layout: LayoutRecord, group: string, ids: readonly number[], bad: boolean) => void;
}

/** A component that is compared. */
export interface ComparedPart {
  readonly pair: ComponentPair;
  readonly shape: SumShape;
  /** Bytes of what is summed of one destination block. */
  readonly blockBytes: number;
}

/** Bytes of blocks that are summed at a time, unless one alone is larger. */
const WINDOW_BYTES = 16 * 2 ** 20;

/** Bytes of a block that a peer sums at most. */
export const MOST_SUMMED_BYTES: number = 2 ** 28;

/** Compares both ends of what was moved, each side's sums made where its bytes can be reached. */
export class Comparison {
  readonly #io: BlockIo;
  readonly #move: MoveRequest;
  /** How peers are asked; null where no peer can be. */
  peers: SumPeers | null = null;

  constructor(io: BlockIo, move: MoveRequest) {
    this.#io = io;
    this.#move = move;
  }

  /**
   * What is compared of a transfer.
   *
   * @throws KvferryError `NO_ROUTE` where a side's owner cannot sum it.
   */
  parts(source: LayoutRecord, destination: LayoutRecord, options: TransferOptions): readonly ComparedPart[] {
    const parts: ComparedPart[] = [];
    for (const to of destination.components) {
      const { name, config } = to.shape;
      const from = source.components.find((other) => other.shape.name === name);
      if (from === undefined || options.components?.includes(name) === false) continue;
      const pair = intersectComponents(name, from, to, options.layers ?? null);
      if (pair === null) continue;
      const shape = sumShape(pair);
      const { blockBytes } = sumConfig(config, shape, 1);
      const agent = agentOf(from) ?? agentOf(to);
      if (agent !== null) this.#demandAble(agent, pair, shape, blockBytes);
      parts.push({ pair, shape, blockBytes });
    }
    return parts;
  }

  /** Asks the peers that take part whether they are there. */
  async ready(
    source: LayoutRecord,
    destination: LayoutRecord,
    parts: readonly ComparedPart[],
    from: BlockGroups,
  ): Promise<void> {
    for (const [layout, side] of [
      [source, "source"],
      [destination, "destination"],
    ] as const) {
      const agent = parts.map(({ pair }) => agentOf(pair[side])).find((found) => found !== null);
      if (agent === undefined || agent === null || this.peers === null) continue;
      await this.peers.ready(agent, layout.handle, side === "source" ? from : new Map());
    }
  }

  /** Destination blocks, by block-id space, that do not hold what their source blocks hold. */
  async differing(
    source: LayoutRecord,
    destination: LayoutRecord,
    parts: readonly ComparedPart[],
    from: BlockGroups,
    to: BlockGroups,
    tokens: TransferOptions["tokens"],
  ): Promise<ReadonlyMap<string, readonly number[]>> {
    const bad = new Map<string, Set<number>>();
    for (const { pair, shape, blockBytes } of parts) {
      const { group } = pair.destination.shape;
      const windows = sumWindows(
        pair,
        from.get(pair.source.shape.group) ?? new Uint32Array(),
        to.get(group) ?? new Uint32Array(),
        tokens ?? null,
        blockBytes,
        { bytes: WINDOW_BYTES, blocks: MOST_SUMS, ids: MOST_SUM_IDS },
      );
      for (const window of windows) {
        const count = window.blocks.length;
        const [there, here] = await Promise.all([
          this.sums(source, pair.source, shape, window.source, count),
          this.sums(destination, pair.destination, shape, window.destination, count),
        ]);
        for (const [index, id] of window.blocks.entries()) {
          if (sameSum(there, here, index)) continue;
          const known = bad.get(group) ?? new Set<number>();
          bad.set(group, known.add(id));
        }
      }
    }
    return new Map(Array.from(bad, ([group, ids]) => [group, [...ids].sort((a, b) => a - b)]));
  }

  /** Sums of one side of a window: made here, or by the peer that owns the bytes. */
  async sums(
    layout: LayoutRecord,
    component: ComponentRecord,
    shape: SumShape,
    side: SumSide,
    count: number,
  ): Promise<Uint8Array> {
    const agent = agentOf(component);
    if (agent === null) return await sideSums(this.#io, this.#move, layout, component, shape, side, count);
    const sums = await this.peers?.sums(agent, layout.handle, component.shape.name, shape, side, count);
    if (sums?.byteLength === count * SUM_BYTES) return sums;
    throw new KvferryError(
      "IO",
      "transfer",
      `peer ${agent} answered ${(sums?.byteLength ?? 0) / SUM_BYTES} checksums for ${count} blocks`,
      "Both sides must run releases of kvferry that understand each other.",
      { agent },
    );
  }

  #demandAble(agent: string, pair: ComponentPair, shape: SumShape, blockBytes: number): void {
    const unable = this.peers === null ? withoutPeers(agent) : this.peers.unable(agent);
    if (unable !== null) throw unable;
    const ids = pair.wholeBlocks ? 1 : Math.ceil(pair.destinationPage / pair.sourcePage) + 1;
    if (shape.layers.length <= MOST_SUM_LAYERS && ids <= MOST_SUM_IDS && blockBytes <= MOST_SUMMED_BYTES)
      return;
    throw new KvferryError(
      "NO_ROUTE",
      "transfer",
      `a block of component ${pair.name} is more than a peer sums at a time`,
      `Leave checksum out, or move at most ${MOST_SUM_LAYERS} layers and ${MOST_SUMMED_BYTES} bytes of a block at a time.`,
      { layers: shape.layers.length, blockBytes, sourceBlocks: ids },
    );
  }
}

/** The wire name of the peer that alone can read a component; null when this process can. */
function agentOf({ attachment }: ComponentRecord): string | null {
  return attachment.kind === "nixl" || attachment.kind === "staged" ? attachment.agent : null;
}

function sameSum(left: Uint8Array, right: Uint8Array, index: number): boolean {
  for (let at = index * SUM_BYTES; at < (index + 1) * SUM_BYTES; at++)
    if (left[at] !== right[at]) return false;
  return true;
}

function withoutPeers(agent: string): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `checksum: true needs the sums of peer ${agent}, which cannot be asked here`,
    "Leave checksum out, or compare `checksums(blocks)` at both workers.",
    { agent },
  );
}
