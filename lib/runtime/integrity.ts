import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import type { TransferPlan } from "../core/plan.ts";
import type { BlockSelection } from "../core/request.ts";
import type { BlockIo } from "./block-io.ts";
import type { BlockSums } from "./block-sums.ts";
import type { BlockGroups } from "./leases.ts";
import type { TransferOptions } from "./submit.ts";

/** Work of a transfer beside its hops: checks what is read before, and what was written after. */
export interface IntegritySteps {
  /** An error refuses the transfer before its first byte moves. */
  readonly before: (() => Promise<KvferryError | null>) | null;
  /** An error fails it although every byte was moved. */
  readonly after: (() => Promise<KvferryError | null>) | null;
}

/** The blocks of both sides, by block-id space. */
export interface SideGroups {
  readonly source: () => BlockGroups;
  readonly destination: () => BlockGroups;
}

/** Moves a request's bytes between layouts that need not be registered. */
export type MoveRequest = (
  source: LayoutRecord,
  destination: LayoutRecord,
  blocks: {
    readonly source: BlockSelection;
    readonly destination: BlockSelection;
    readonly layers: { readonly start: number; readonly end: number } | undefined;
    readonly tokens?: NonNullable<TransferOptions["tokens"]>;
    readonly components?: readonly string[];
  },
) => Promise<void>;

/** Bytes of blocks that are compared at a time. */
const WINDOW_BYTES = 16 * 2 ** 20;

/** Ids that an error lists. */
const MOST_IDS = 64;

/** Of a transfer that needs no checks. */
export const NO_STEPS: IntegritySteps = { before: null, after: null };

/**
 * Knows which blocks are bad, and finds out: blocks of files by the hashes kept beside them, moved blocks by comparing
 * both ends.
 *
 * A bad block cannot be read by transfers until it was written again.
 */
export class Integrity {
  readonly #io: BlockIo;
  readonly #move: MoveRequest;
  readonly #sums: ReadonlyMap<number, BlockSums>;
  readonly #bad: Map<LayoutHandle, Map<string, Set<number>>> = new Map();

  /** @param io - Reads without asking this object again. */
  constructor(io: BlockIo, move: MoveRequest, sums: ReadonlyMap<number, BlockSums>) {
    this.#io = io;
    this.#move = move;
    this.#sums = sums;
  }

  /** Whether any block is known to be bad. */
  get anyBad(): boolean {
    return this.#bad.size > 0;
  }

  /** Whether there is anything to know: bad blocks, or hashes that are kept. */
  get concerned(): boolean {
    return this.#bad.size > 0 || this.#sums.size > 0;
  }

  /**
   * Refuses blocks that are known to be bad.
   *
   * @throws KvferryError `CHECKSUM` with the ids.
   */
  demandGood(layout: LayoutHandle, blocks: () => BlockGroups): void {
    const bad = this.#bad.get(layout);
    if (bad === undefined) return;
    for (const [group, ids] of blocks()) {
      const found = Array.from(ids).filter((id) => bad.get(group)?.has(id) === true);
      if (found.length > 0) throw mismatch(layout, group, found, "are bad and were not written since");
    }
  }

  /** What a transfer must do beside its hops. */
  steps(
    source: LayoutRecord,
    destination: LayoutRecord,
    plan: TransferPlan,
    blocks: SideGroups,
    options: TransferOptions,
  ): IntegritySteps {
    if (options.checksum === true && (source.owner !== null || destination.owner !== null))
      throw withoutPeers();
    const reads = this.#kept(source);
    const writes = this.#kept(destination);
    const known = this.#bad.has(destination.handle);
    if (reads.length === 0 && writes.length === 0 && options.checksum !== true && !known) return NO_STEPS;
    const whole = plan.coverage === 1 && options.layers === undefined && options.tokens === undefined;
    return {
      before: reads.length === 0 ? null : () => this.#checkRead(source, reads, blocks.source()),
      after: () => this.#afterWrite(source, destination, writes, blocks, options, whole),
    };
  }

  /** The same for blocks that are read or written one by one. */
  async checkMove(source: LayoutRecord, ids: Uint32Array): Promise<void> {
    const groups = groupsOver(source, ids);
    this.demandGood(source.handle, () => groups);
    const reads = this.#kept(source);
    const error = reads.length === 0 ? null : await this.#checkRead(source, reads, groups);
    if (error !== null) throw error;
  }

  async afterMove(destination: LayoutRecord, ids: Uint32Array, whole: boolean): Promise<void> {
    const groups = groupsOver(destination, ids);
    await this.#remember(destination, this.#kept(destination), groups);
    if (whole) this.#good(destination.handle, groups);
  }

  /** Blocks of a layout that are bad. */
  badBlocks(layout: LayoutHandle, group: string): readonly number[] {
    return [...(this.#bad.get(layout)?.get(group) ?? [])];
  }

  /** Forgets what is known of a layout that is gone. */
  forget(layout: LayoutHandle): void {
    this.#bad.delete(layout);
  }

  #kept(layout: LayoutRecord): Kept[] {
    const kept: Kept[] = [];
    for (const component of layout.components) {
      if (component.attachment.kind !== "file") continue;
      const sums = this.#sums.get(component.attachment.file);
      if (sums !== undefined) kept.push({ component, sums });
    }
    return kept;
  }

  async #checkRead(
    source: LayoutRecord,
    kept: readonly Kept[],
    groups: BlockGroups,
  ): Promise<KvferryError | null> {
    for (const { component, sums } of kept) {
      const ids = distinct(groups.get(component.shape.group)).filter((id) => sums.get(id) !== null);
      if (ids.length === 0) continue;
      const hashes = await this.#io.checksums(source, component, ids);
      const bad = ids.filter((id, index) => sums.get(id) !== hashes[index]);
      if (bad.length === 0) continue;
      this.#mark(source.handle, component.shape.group, bad);
      const where = sums.path === "" ? "" : ` of ${sums.path}`;
      return mismatch(
        source.handle,
        component.shape.group,
        bad,
        `${where} do not match the checksums that were kept when they were written`,
      );
    }
    return null;
  }

  async #afterWrite(
    source: LayoutRecord,
    destination: LayoutRecord,
    writes: readonly Kept[],
    blocks: SideGroups,
    options: TransferOptions,
    whole: boolean,
  ): Promise<KvferryError | null> {
    const to = blocks.destination();
    if (options.checksum === true) {
      const error = await this.#compare(source, destination, blocks.source(), to, options);
      if (error !== null) return error;
    }
    await this.#remember(destination, writes, to);
    if (whole) this.#good(destination.handle, to);
    return null;
  }

  async #remember(layout: LayoutRecord, kept: readonly Kept[], groups: BlockGroups): Promise<void> {
    for (const { component, sums } of kept) {
      const ids = distinct(groups.get(component.shape.group));
      const hashes = await this.#io.checksums(layout, component, ids);
      await sums.set(ids.map((id, index) => [id, hashes[index] ?? null] as const));
    }
  }

  /**
   * Compares what was moved at both ends: the destination's blocks are read, the source's bytes are laid over a copy of
   * them in the same way once more, and nothing may have changed.
   */
  async #compare(
    source: LayoutRecord,
    destination: LayoutRecord,
    from: BlockGroups,
    to: BlockGroups,
    options: TransferOptions,
  ): Promise<KvferryError | null> {
    for (const component of destination.components) {
      const { name, group, config } = component.shape;
      if (options.components?.includes(name) === false) continue;
      const partner = source.components.find((other) => other.shape.name === name);
      if (partner === undefined) continue;
      const sourceIds = from.get(partner.shape.group) ?? new Uint32Array();
      const ids = to.get(group) ?? new Uint32Array();
      const bad: number[] = [];
      for (const window of windows(partner, component, sourceIds, ids, options.tokens)) {
        const count = window.destination.length;
        await this.#io.withStage(destination, component, count, async (stage) => {
          const identity = Uint32Array.from({ length: count }, (_unused, index) => index);
          const only = { ...destination, fingerprint: null, components: [component] };
          await this.#move(only, stage.record, {
            source: window.destination,
            destination: identity,
            layers: undefined,
          });
          const before = await this.#io.stageHashes(stage, config.blockBytes, count);
          await this.#move({ ...source, fingerprint: null, components: [partner] }, stage.record, {
            source: window.source,
            destination: identity,
            layers: options.layers,
            ...(window.tokens === undefined ? undefined : { tokens: window.tokens }),
          });
          const after = await this.#io.stageHashes(stage, config.blockBytes, count);
          for (const [index, id] of window.destination.entries())
            if (before[index] !== after[index]) bad.push(id);
        });
      }
      if (bad.length === 0) continue;
      this.#mark(destination.handle, group, bad);
      return mismatch(destination.handle, group, bad, "do not hold what their source blocks hold");
    }
    return null;
  }

  #mark(layout: LayoutHandle, group: string, ids: readonly number[]): void {
    const groups = this.#bad.get(layout) ?? new Map<string, Set<number>>();
    this.#bad.set(layout, groups);
    const known = groups.get(group) ?? new Set<number>();
    groups.set(group, known);
    for (const id of ids) known.add(id);
  }

  #good(layout: LayoutHandle, blocks: BlockGroups): void {
    const groups = this.#bad.get(layout);
    if (groups === undefined) return;
    for (const [group, ids] of blocks) {
      const known = groups.get(group);
      if (known === undefined) continue;
      for (const id of ids) known.delete(id);
      if (known.size === 0) groups.delete(group);
    }
    if (groups.size === 0) this.#bad.delete(layout);
  }
}

function withoutPeers(): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    "checksum: true compares blocks of this process, and one side is a peer's",
    "Leave checksum out, or compare `checksums(blocks)` at both workers.",
  );
}

interface Kept {
  readonly component: ComponentRecord;
  readonly sums: BlockSums;
}

interface Window {
  readonly source: Uint32Array;
  readonly destination: Uint32Array;
  readonly tokens: NonNullable<TransferOptions["tokens"]> | undefined;
}

/** Parts of a transfer of one component, each of whole destination blocks that fit a stage. */
function* windows(
  from: ComponentRecord,
  to: ComponentRecord,
  source: Uint32Array,
  destination: Uint32Array,
  tokens: TransferOptions["tokens"],
): Generator<Window, void> {
  const { pageSize, blockBytes } = to.shape.config;
  const page = from.shape.config.pageSize;
  const step = Math.max(1, Math.floor(WINDOW_BYTES / blockBytes));
  const pair = from.shape.wholeBlocks || to.shape.wholeBlocks || (tokens === undefined && page === pageSize);
  const start = tokens?.destinationStart ?? 0;
  const end = start + (tokens?.count ?? source.length * page);
  for (let at = 0; at < destination.length; at += step) {
    const blocks = destination.slice(at, at + step);
    if (pair) {
      yield { source: source.slice(at, at + step), destination: blocks, tokens: undefined };
      continue;
    }
    const low = Math.max(start, at * pageSize);
    const high = Math.min(end, (at + blocks.length) * pageSize);
    if (low >= high) continue;
    const sourceStart = (tokens?.sourceStart ?? 0) + low - start;
    const first = Math.floor(sourceStart / page);
    yield {
      source: source.slice(first, Math.ceil((sourceStart + high - low) / page)),
      destination: blocks,
      tokens: {
        sourceStart: sourceStart - first * page,
        destinationStart: low - at * pageSize,
        count: high - low,
      },
    };
  }
}

function groupsOver(layout: LayoutRecord, ids: Uint32Array): BlockGroups {
  return new Map(layout.components.map((component) => [component.shape.group, ids]));
}

function distinct(ids: Uint32Array | undefined): number[] {
  return [...new Set(ids ?? [])];
}

function mismatch(layout: LayoutHandle, group: string, ids: readonly number[], what: string): KvferryError {
  const error = new KvferryError(
    "CHECKSUM",
    "transfer",
    `${ids.length} blocks of ${formatHandle(layout)} ${what.trimStart()}: ${ids.slice(0, 16).join(", ")}`,
    "Write the blocks again from a good copy; until then they are refused as a source.",
    { layout: layout.toString(), group, blocks: ids.slice(0, MOST_IDS), count: ids.length },
  );
  error.settlement = "done";
  return error;
}
