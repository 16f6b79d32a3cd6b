import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import type { TransferPlan } from "../core/plan.ts";
import { BadBlocks } from "./bad-blocks.ts";
import type { BlockIo } from "./block-io.ts";
import type { BlockSums } from "./block-sums.ts";
import { Comparison, type ComparedPart } from "./comparison.ts";
import type { BlockGroups } from "./leases.ts";
import type { MoveRequest } from "./side-sums.ts";
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

/** Ids that an error lists. */
const MOST_IDS = 64;

/** Of a transfer that needs no checks. */
export const NO_STEPS: IntegritySteps = { before: null, after: null };

/**
 * Knows which blocks are bad, and finds out: blocks of files by the hashes kept beside them, moved blocks by comparing
 * both ends, wherever their bytes are.
 *
 * A bad block cannot be read by transfers until it was written again.
 */
export class Integrity {
  readonly bad: BadBlocks = new BadBlocks();
  readonly comparison: Comparison;
  readonly #io: BlockIo;
  readonly #sums: ReadonlyMap<number, BlockSums>;

  /** @param io - Reads without asking this object again. */
  constructor(io: BlockIo, move: MoveRequest, sums: ReadonlyMap<number, BlockSums>) {
    this.#io = io;
    this.#sums = sums;
    this.comparison = new Comparison(io, move);
  }

  /** Whether there is anything to know: bad blocks, or hashes that are kept. */
  get concerned(): boolean {
    return this.bad.any || this.#sums.size > 0;
  }

  /**
   * Refuses blocks that are known to be bad.
   *
   * @throws KvferryError `CHECKSUM` with the ids.
   */
  demandGood(layout: LayoutHandle, blocks: () => BlockGroups): void {
    if (!this.bad.has(layout)) return;
    for (const [group, ids] of blocks()) {
      const found = this.bad.among(layout, group, ids);
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
    const reads = this.#kept(source);
    const writes = this.#kept(destination);
    const known = this.bad.has(destination.handle);
    const parts = options.checksum === true ? this.comparison.parts(source, destination, options) : null;
    if (reads.length === 0 && writes.length === 0 && parts === null && !known) return NO_STEPS;
    const whole =
      plan.coverage === 1 &&
      options.layers === undefined &&
      options.tokens === undefined &&
      destination.components.every(({ shape }) => options.components?.includes(shape.name) !== false);
    const remote = source.owner !== null || destination.owner !== null;
    return {
      before:
        reads.length === 0 && (parts === null || !remote)
          ? null
          : async () => {
              if (parts !== null) await this.comparison.ready(source, destination, parts, blocks.source());
              return await this.#checkRead(source, reads, blocks.source());
            },
      after: () => this.#afterWrite(source, destination, writes, parts, blocks, options, whole),
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
    if (whole) this.bad.clear(destination.handle, groups);
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
      this.bad.mark(source.handle, component.shape.group, bad);
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
    parts: readonly ComparedPart[] | null,
    blocks: SideGroups,
    options: TransferOptions,
    whole: boolean,
  ): Promise<KvferryError | null> {
    const to = blocks.destination();
    if (parts !== null) {
      const found = await this.comparison.differing(
        source,
        destination,
        parts,
        blocks.source(),
        to,
        options.tokens,
      );
      let error: KvferryError | null = null;
      for (const [group, ids] of found) {
        this.bad.mark(destination.handle, group, ids);
        this.#tell(destination, group, ids, true);
        error ??= mismatch(destination.handle, group, ids, "do not hold what their source blocks hold");
      }
      if (error !== null) return error;
    }
    await this.#remember(destination, writes, to);
    if (!whole) return null;
    // Its owner may know of bad blocks that nobody told this process.
    if (parts !== null || this.bad.has(destination.handle))
      for (const [group, ids] of to) this.#tell(destination, group, Array.from(ids), false);
    this.bad.clear(destination.handle, to);
    return null;
  }

  /** Tells a layout's owner, when that is a peer. */
  #tell(layout: LayoutRecord, group: string, ids: readonly number[], bad: boolean): void {
    if (layout.owner !== null) this.comparison.peers?.tell(layout, group, ids, bad);
  }

  async #remember(layout: LayoutRecord, kept: readonly Kept[], groups: BlockGroups): Promise<void> {
    for (const { component, sums } of kept) {
      const ids = distinct(groups.get(component.shape.group));
      const hashes = await this.#io.checksums(layout, component, ids);
      await sums.set(ids.map((id, index) => [id, hashes[index] ?? null] as const));
    }
  }
}

interface Kept {
  readonly component: ComponentRecord;
  readonly sums: BlockSums;
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
