import { checkDistinct, checkedIds } from "../core/blocks.ts";
import { KvferryError } from "../core/errors.ts";
import { formatHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { BlockSelection } from "../core/request.ts";
import type { Leases } from "./leases.ts";
import type { Chunk, ChunkSource, ChunkWaiter } from "./chunks.ts";

/** A caller's blocks as staging memory: the runs of bytes that they have, each a chunk. */
export interface BounceBlocks {
  readonly layout: LayoutRecord;
  readonly chunks: readonly Chunk[];
  readonly pinned: boolean;
}

/**
 * Checks the blocks that a caller lends for a transfer.
 *
 * @throws KvferryError `LENGTH_MISMATCH` without blocks, `BLOCK_OUT_OF_RANGE`, `DUPLICATE_BLOCK`, `QUARANTINED`,
 *   `OVERLAP` with blocks of the transfer itself, `INCOMPATIBLE_LAYOUTS` for memory that is not host memory of this
 *   process.
 */
export function checkedBounce(
  layout: LayoutRecord,
  blocks: readonly number[] | Uint32Array,
  sides: {
    readonly plan: TransferPlan;
    readonly source: BlockSelection;
    readonly destination: BlockSelection;
  },
  leases: Leases,
): BounceBlocks {
  const component = layout.components[0];
  const kind = component?.storage.kind;
  if (
    component === undefined ||
    layout.components.length !== 1 ||
    component.attachment.kind !== "addresses" ||
    (kind !== "system" && kind !== "pinned")
  ) {
    throw new KvferryError(
      "INCOMPATIBLE_LAYOUTS",
      "transfer",
      `bounce layout ${layout.name} is not one tensor in host memory of this process`,
      "Lend blocks of a layout of kind pinned (or system) with one component, or leave bounce out.",
      { layout: layout.name, kind, components: layout.components.length },
    );
  }
  const { config, group } = component.shape;
  const ids = checkedIds(blocks, config.numBlocks, "bounce", group);
  if (ids.length === 0) {
    throw new KvferryError(
      "LENGTH_MISMATCH",
      "transfer",
      "bounce names no blocks",
      "Lend at least one block, or leave bounce out.",
      { layout: layout.name },
    );
  }
  checkDistinct(ids, "bounce", group);
  leases.demandUsable("transfer", layout.handle, "bounce", new Map([[group, ids]]));
  demandApart(layout, ids, sides);
  return { layout, chunks: chunksOf(component, ids), pinned: kind === "pinned" };
}

/** Lends callers' blocks to their transfers: a run of bytes that two transfers were given serves one after the other. */
export class BounceLedger {
  readonly #busy: Set<number> = new Set();
  readonly #waiters: Set<Waiting> = new Set();

  /** The blocks as a source of chunks for one transfer. */
  source(blocks: BounceBlocks): ChunkSource {
    const { chunks } = blocks;
    return {
      chunkBytes: chunks.reduce((least, chunk) => Math.min(least, chunk.bytes), Number.MAX_SAFE_INTEGER),
      count: chunks.length,
      device: null,
      pageable: !blocks.pinned,
      request: (waiter) => {
        this.#waiters.add({ waiter, chunks });
        this.#serve();
      },
      cancel: (waiter) => {
        for (const waiting of this.#waiters) if (waiting.waiter === waiter) this.#waiters.delete(waiting);
      },
      release: (chunk) => {
        this.#busy.delete(chunk.address);
        this.#serve();
      },
      // What hangs keeps its block: there is no other one to take its place.
      giveUp: () => undefined,
    };
  }

  #serve(): void {
    for (const waiting of this.#waiters) {
      const chunk = waiting.chunks.find(({ address }) => !this.#busy.has(address));
      if (chunk === undefined) continue;
      this.#waiters.delete(waiting);
      this.#busy.add(chunk.address);
      waiting.waiter.grant(chunk);
    }
  }
}

interface Waiting {
  readonly waiter: ChunkWaiter;
  readonly chunks: readonly Chunk[];
}

function demandApart(
  layout: LayoutRecord,
  ids: Uint32Array,
  { plan, source, destination }: Parameters<typeof checkedBounce>[2],
): void {
  const own = new Set(ids);
  for (const [handle, selection] of [
    [plan.source, source],
    [plan.destination, destination],
  ] as const) {
    if (handle !== layout.handle) continue;
    const lists =
      selection instanceof Uint32Array || Array.isArray(selection)
        ? [selection as readonly number[]]
        : Object.values(selection as Readonly<Record<string, readonly number[]>>);
    const shared = lists.flatMap((list) => Array.from(list).filter((id) => own.has(id)));
    if (shared.length === 0) continue;
    throw new KvferryError(
      "OVERLAP",
      "transfer",
      `${shared.length} bounce blocks of ${formatHandle(layout.handle)} are blocks of the transfer itself: ${shared.slice(0, 16).join(", ")}`,
      "Lend blocks that the transfer neither reads nor writes.",
      { blocks: shared.slice(0, 64), count: shared.length },
    );
  }
}

/** The runs of bytes of blocks: whole blocks where they are one run, else cells, else rows. */
function chunksOf(component: ComponentRecord, ids: Uint32Array): Chunk[] {
  const { view, config } = component.shape;
  const axes = [
    { count: view.heads, stride: view.strideHead },
    { count: view.pages, stride: view.stridePage },
    // Layers and outers with regions of their own have no stride in common: they are walked as regions.
    ...(view.regionScheme === "per-layer-and-outer"
      ? []
      : [{ count: view.outers, stride: view.strideOuter }]),
    ...(view.regionScheme === "one" ? [{ count: view.layers, stride: view.strideLayer }] : []),
  ]
    .filter(({ count }) => count > 1)
    .sort((a, b) => a.stride - b.stride);
  const perRegion = view.regionCount;
  let run = view.rowBytes;
  const rest: { count: number; stride: number }[] = [];
  for (const axis of axes) {
    if (rest.length === 0 && axis.stride === run) run *= axis.count;
    else rest.push(axis);
  }
  const total = config.blockBytes / perRegion;
  const chunks: Chunk[] = [];
  for (const id of ids) {
    for (let region = 0; region < perRegion; region++) {
      let starts = [(component.regionAddresses[region] ?? 0) + id * view.strideBlock];
      for (const { count, stride } of rest)
        starts = starts.flatMap((start) =>
          Array.from({ length: count }, (_unused, index) => start + index * stride),
        );
      if (starts.length * run !== total) throw notRuns(component);
      for (const address of starts) chunks.push({ address, bytes: run });
    }
  }
  return chunks;
}

function notRuns(component: ComponentRecord): KvferryError {
  return new KvferryError(
    "INCOMPATIBLE_LAYOUTS",
    "transfer",
    "the bounce blocks have no runs of bytes of their own",
    "Lend blocks of a fully contiguous layout.",
    { component: component.shape.name },
  );
}
