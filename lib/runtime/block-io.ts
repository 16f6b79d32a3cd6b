import type { ResolvedConfig } from "../core/config.ts";
import { KvferryError } from "../core/errors.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import type { NativeContext } from "../native/context.ts";
import { nativeError } from "../native/native-error.ts";
import { mapMemory, releaseMemory } from "../native/memory.ts";
import { toArrayBuffer } from "bun:ffi";
import { KVF_OK } from "../native/symbols.ts";
import { blockId, blockIds, firstIds, layerRange, resolvePattern } from "./block-arguments.ts";
import type { BlockRange, FillPattern } from "./block-arguments.ts";
import type { Leases } from "./leases.ts";
import { stageRecord, type StageMemory } from "./stage-record.ts";

/** Moves blocks between two layouts that need not be registered. */
export type MoveBlocks = (
  source: LayoutRecord,
  destination: LayoutRecord,
  blocks: {
    readonly source: Uint32Array;
    readonly destination: Uint32Array;
    readonly layers: { readonly start: number; readonly end: number } | undefined;
  },
) => Promise<void>;

/** Pinned memory for blocks of a GPU; see `CudaStages`. */
export interface DeviceStages {
  take(device: number, bytes: number): Promise<{ readonly address: number; release(): Promise<void> }>;
}

/** Host memory that one fill or checksum goes through at a time. */
const STAGE_BYTES = 16 * 2 ** 20;

/** Patterns up to this size are written on the calling thread: handing them over would take longer. */
const FILL_INLINE_BYTES = 2 ** 16;
const FILL_THREADS = 2;

/**
 * Reads, writes, fills and hashes blocks of every memory kind, through a host buffer in logical order
 * (layer, outer, page, head, element) and the same copy programs as transfers.
 */
export class BlockIo {
  readonly #context: NativeContext;
  readonly #leases: Leases;
  readonly #move: MoveBlocks;
  readonly #stages: DeviceStages | null;

  constructor(context: NativeContext, leases: Leases, move: MoveBlocks, stages: DeviceStages | null = null) {
    this.#context = context;
    this.#leases = leases;
    this.#move = move;
    this.#stages = stages;
  }

  async read(
    layout: LayoutRecord,
    component: ComponentRecord,
    block: number,
    range: BlockRange = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { start, end } = layerRange(component, range, "read");
    const layerBytes = component.shape.config.blockBytes / component.shape.config.numLayers;
    const id = blockId(component, block, "read");
    return this.#staged(layout, component, 1, async (stage) => {
      await this.#move(oneComponent(layout, component), stage.record, {
        source: id,
        destination: ZERO,
        layers: range.layers,
      });
      return stage.bytes.slice(start * layerBytes, end * layerBytes);
    });
  }

  async write(
    layout: LayoutRecord,
    component: ComponentRecord,
    block: number,
    data: Uint8Array,
    range: BlockRange = {},
  ): Promise<void> {
    const { start, end } = layerRange(component, range, "write");
    const layerBytes = component.shape.config.blockBytes / component.shape.config.numLayers;
    const id = blockId(component, block, "write");
    if (data.byteLength !== (end - start) * layerBytes) {
      throw new KvferryError(
        "LENGTH_MISMATCH",
        "write",
        `${data.byteLength} bytes were given for ${(end - start) * layerBytes}`,
        "Give the bytes of all layers that are written.",
        {
          given: data.byteLength,
          needed: (end - start) * layerBytes,
        },
      );
    }
    await this.#staged(layout, component, 1, async (stage) => {
      stage.bytes.set(data, start * layerBytes);
      await this.#move(stage.record, oneComponent(layout, component), {
        source: ZERO,
        destination: id,
        layers: range.layers,
      });
    });
  }

  async fill(
    layout: LayoutRecord,
    component: ComponentRecord,
    pattern: FillPattern,
    blocks?: readonly number[],
  ): Promise<void> {
    const { kind, seed } = resolvePattern(pattern);
    const ids = blockIds(component, blocks, "fill");
    await this.#chunks(layout, component, ids, async (stage, part) => {
      await this.#write(stage, component, kind, seed, part);
      await this.#move(stage.record, oneComponent(layout, component), {
        source: firstIds(part.length),
        destination: part,
        layers: undefined,
      });
    });
  }

  async checksums(
    layout: LayoutRecord,
    component: ComponentRecord,
    blocks: readonly number[] | Uint32Array,
  ): Promise<string[]> {
    const ids = blockIds(component, blocks, "checksums");
    const { blockBytes } = component.shape.config;
    const hashes: string[] = [];
    await this.#chunks(layout, component, ids, async (stage, part) => {
      await this.#move(oneComponent(layout, component), stage.record, {
        source: part,
        destination: firstIds(part.length),
        layers: undefined,
      });
      hashes.push(...(await this.stageHashes(stage, blockBytes, part.length)));
    });
    return hashes;
  }

  /** Does work with a stage for blocks of a config of its own, while the layout cannot be unregistered. */
  withStage<T>(
    layout: LayoutRecord,
    component: ComponentRecord,
    config: ResolvedConfig,
    work: (stage: Stage) => Promise<T>,
  ): Promise<T> {
    return this.#stagedAs(layout, component, config, work);
  }

  /** BLAKE3 of the blocks of a stage, lower-case hex. */
  async stageHashes(stage: Stage, blockBytes: number, count: number): Promise<string[]> {
    const digests = await this.stageDigests(stage, blockBytes, count);
    return Array.from({ length: count }, (_unused, index) =>
      digests.subarray(index * 32, index * 32 + 32).toHex(),
    );
  }

  /** The same as bytes, 32 for each block. */
  async stageDigests(stage: Stage, blockBytes: number, count: number): Promise<Uint8Array> {
    return await this.#context.job(
      "checksums",
      (slot) =>
        this.#context.library.kvf_blake3_job(
          this.#context.address,
          slot,
          stage.memory.address,
          blockBytes,
          blockBytes,
          count,
          2,
        ),
      (_completion, slot) => this.#context.resultBytes(slot),
    );
  }

  /** Writes a pattern into a stage. */
  async #write(
    stage: Stage,
    component: ComponentRecord,
    kind: number,
    seed: number,
    blocks: Uint32Array,
  ): Promise<void> {
    const { library } = this.#context;
    const { blockBytes, numLayers, outerDim, cellBytes } = component.shape.config;
    const { address } = stage.memory;
    if (blocks.length * blockBytes > FILL_INLINE_BYTES) {
      const ids = new Uint32Array(new ArrayBuffer(blocks.length * 4));
      ids.set(blocks);
      await this.#context.job(
        "fill",
        (slot) =>
          library.kvf_fill_job(
            this.#context.address,
            slot,
            address,
            blockBytes,
            kind,
            seed,
            ids,
            ids.length,
            numLayers,
            outerDim,
            cellBytes,
            FILL_THREADS,
          ),
        () => undefined,
      );
      return;
    }
    for (const [index, block] of blocks.entries()) {
      const at = address + index * blockBytes;
      const status = library.kvf_fill_block(at, kind, seed, block, numLayers, outerDim, cellBytes);
      if (status !== KVF_OK) throw nativeError(library, status, "fill", "the pattern could not be written");
    }
  }

  async #chunks(
    layout: LayoutRecord,
    component: ComponentRecord,
    ids: Uint32Array,
    work: (stage: Stage, part: Uint32Array) => Promise<void>,
  ): Promise<void> {
    if (ids.length === 0) return;
    const size = Math.max(
      1,
      Math.min(ids.length, Math.floor(STAGE_BYTES / component.shape.config.blockBytes)),
    );
    await this.#staged(layout, component, size, async (stage) => {
      for (let at = 0; at < ids.length; at += size) await work(stage, ids.slice(at, at + size));
    });
  }

  /** Does work with a stage of whole blocks, while the layout cannot be unregistered. */
  #staged<T>(
    layout: LayoutRecord,
    component: ComponentRecord,
    blocks: number,
    work: (stage: Stage) => Promise<T>,
  ): Promise<T> {
    const { config } = component.shape;
    const totalBytes = config.blockBytes * blocks;
    return this.#stagedAs(
      layout,
      component,
      { ...config, numBlocks: blocks, alignment: 1, totalBytes },
      work,
    );
  }

  async #stagedAs<T>(
    layout: LayoutRecord,
    component: ComponentRecord,
    config: ResolvedConfig,
    work: (stage: Stage) => Promise<T>,
  ): Promise<T> {
    const stageBytes = config.totalBytes;
    this.#leases.acquire(layout.handle);
    let stage: StageMemory | undefined;
    let mayBeTouched = false;
    try {
      const memory = (stage = await this.#stageMemory(component, stageBytes));
      const bytes = new Uint8Array(toArrayBuffer(memory.address as never, 0, stageBytes));
      return await work({ memory, bytes, record: stageRecord(component, config, memory) });
    } catch (error) {
      mayBeTouched = error instanceof KvferryError && error.settlement === "in-doubt";
      throw error;
    } finally {
      this.#leases.release(layout.handle);
      // A stage that somebody may still write to stays mapped for good.
      if (!mayBeTouched) await stage?.release();
    }
  }

  /** Blocks of a GPU go through pinned memory, which kernels can reach. */
  async #stageMemory(component: ComponentRecord, bytes: number): Promise<StageMemory> {
    const { storage } = component;
    if (storage.kind === "device" && this.#stages !== null) {
      const pinned = await this.#stages.take(storage.device, bytes);
      return { address: pinned.address, storage: "pinned", release: () => pinned.release() };
    }
    const mapped = mapMemory(this.#context, bytes, false);
    return {
      address: mapped.address,
      storage: "system",
      release: async () => releaseMemory(this.#context, mapped),
    };
  }
}

/** Host memory that holds blocks in logical order for a moment. */
export interface Stage {
  readonly memory: { readonly address: number };
  /** Only inside the work that was given the stage. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly record: LayoutRecord;
}

const ZERO: Uint32Array = new Uint32Array(1);

function oneComponent(layout: LayoutRecord, component: ComponentRecord): LayoutRecord {
  return layout.components.length === 1
    ? { ...layout, fingerprint: null }
    : { ...layout, fingerprint: null, components: [component] };
}
