// What the GPU rows are measured with: one transport, large pieces of memory, and the anchors in C.
import { Transport } from "../index.ts";
import type { LayoutConfig, LocalLayout, Order, TransferRequest } from "../index.ts";
import { openAnchors } from "./gpu-anchors.ts";
import type { Anchors, Tables } from "./gpu-anchors.ts";
import type { Goal, RowSpec } from "./result.ts";
import { shuffled } from "./statistics.ts";

export const KIB: number = 1024;
export const MIB: number = 1024 * KIB;
export const GIB: number = 1024 * MIB;
export const LAYERS: number = 80;
export const CHUNKS: number = 2 * LAYERS;
const ARENA = GIB + 96 * MIB;
/** Bytes that one sample of F4 moves: far beyond the cache, and long enough that submitting does not count. */
export const SCATTERED: number = 4 * GIB;
/** Transfers by each method before the first row. */
const WARM_ROUNDS = 2_000;
/** Slow anchors are shown, not compared: so many samples, in one process. */
const SLOW_SAMPLES = 3;

/** One row, and how a process measures it. */
export interface Row extends RowSpec {
  readonly measure: (world: World, samples: number, slow: boolean) => Promise<Record<string, number[]>>;
  /** CUDA devices that it needs. */
  readonly devices?: number;
  /** Needs python3 with PyTorch. */
  readonly torch?: boolean;
  /** Needs a cuBLAS that this process can load. */
  readonly cublas?: boolean;
}

/** Where the memory of a side is. */
type Storage = "pinned" | { readonly device: number };

/** Layers, blocks, and bytes of a chunk. */
interface Shape {
  readonly layers: number;
  readonly blocks: number;
  readonly chunk: number;
}

/** Blocks of one layout, and where each of their chunks lies. */
export interface Side {
  readonly layout: LocalLayout;
  readonly chunkAt: (block: number, layer: number, outer: number) => number;
}

/** What a process measures with: one transport, large pieces of memory, and the anchors in C. */
export class World {
  readonly transport: Transport;
  readonly anchors: Anchors;
  readonly #arenas: Map<string, number> = new Map();
  readonly #kept: Map<string, Promise<AsyncDisposable>> = new Map();

  private constructor(transport: Transport, anchors: Anchors) {
    this.transport = transport;
    this.anchors = anchors;
  }

  static async open(library: string): Promise<World> {
    const transport = await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: {} });
    const anchors = openAnchors(library);
    await warmUp(transport);
    return new World(transport, anchors);
  }

  /** What rows share, made by the first that asks and ended with the world. */
  keep<Kept extends AsyncDisposable>(name: string, make: () => Promise<Kept>): Promise<Kept> {
    const known = this.#kept.get(name) ?? make();
    this.#kept.set(name, known);
    return known as Promise<Kept>;
  }

  async close(): Promise<void> {
    for (const kept of this.#kept.values()) await (await kept)[Symbol.asyncDispose]();
    await this.transport.close();
  }

  /** A piece of memory that stays for the process. */
  async arena(kind: "device" | "pinned", number = 0, device = 0): Promise<number> {
    const name = `${kind} ${number} ${device}`;
    const known = this.#arenas.get(name);
    if (known !== undefined) return known;
    // The later device pieces are for copies within the device.
    const size = number >= 2 ? SCATTERED + 256 * MIB : ARENA;
    const config = {
      numBlocks: size / MIB,
      numLayers: 1,
      outerDim: 1,
      pageSize: 1,
      innerDim: MIB / 2,
    } as const;
    const layout = await this.transport.register({ config, memory: { kind, device } });
    const address = layout.regions[0]?.address ?? 0;
    if (kind === "device") await layout.fill({ random: 1 + number }, { blocks: [0, 1, 2, 3] });
    this.#arenas.set(name, address);
    return address;
  }

  /** As {@link sideOf}, of this world's transport. */
  side(
    at: number,
    storage: Storage,
    shape: Shape,
    contiguous: boolean,
    order?: { readonly order: Order; readonly config: LayoutConfig },
  ): Promise<Side> {
    return sideOf(this.transport, at, storage, shape, contiguous, order);
  }
}

/** Layers and outers with memory of their own, unevenly spaced, or whole blocks one after the other. */
export async function sideOf(
  transport: Transport,
  at: number,
  storage: Storage,
  shape: Shape,
  contiguous: boolean,
  order?: { readonly order: Order; readonly config: LayoutConfig },
): Promise<Side> {
  const { layers, blocks, chunk } = shape;
  const config = order?.config ?? {
    numBlocks: blocks,
    numLayers: layers,
    outerDim: 2 as const,
    pageSize: 1,
    innerDim: chunk / 2,
  };
  const regionBytes = contiguous ? layers * 2 * blocks * chunk : 2 * blocks * chunk;
  const regions = contiguous
    ? [{ address: at, size: regionBytes }]
    : Array.from({ length: layers }, (_, layer) => ({
        address: at + layer * regionBytes + (8 * layer + ((layer * layer) % 7)) * 256,
        size: regionBytes,
      }));
  const layout = await transport.register({
    config,
    arrangement: contiguous ? "fully-contiguous" : "layer-separate/block-second",
    ...(order === undefined ? undefined : { order: order.order }),
    memory: { kind: "external", storage, regions },
  });
  return {
    layout,
    chunkAt: contiguous
      ? (block, layer, outer) => at + ((block * layers + layer) * 2 + outer) * chunk
      : (block, layer, outer) => (regions[layer]?.address ?? 0) + (outer * blocks + block) * chunk,
  };
}

/**
 * Moves blocks of little memory many times, by every method that rows meet: JavaScript's engine compiles what runs often,
 * and an application that moves blocks all day has that behind it.
 */
async function warmUp(transport: Transport): Promise<void> {
  const config = { numBlocks: 64, numLayers: 8, outerDim: 2, pageSize: 1, innerDim: 512 } as const;
  const device = { kind: "device" } as const;
  const apart = await transport.register({
    config,
    arrangement: "layer-separate/block-second",
    memory: device,
  });
  const other = await transport.register({
    config,
    arrangement: "layer-separate/block-first",
    memory: device,
  });
  const whole = await transport.register({
    config,
    arrangement: "fully-contiguous",
    memory: { kind: "pinned" },
  });
  const ids = shuffled(config.numBlocks, 1);
  const places = shuffled(config.numBlocks, 2);
  const pairs = [
    [apart, whole],
    [whole, apart],
    [apart, other],
  ] as const;
  for (const [source, destination] of pairs) {
    const prepared = transport.prepare({ source, destination });
    for (const method of [undefined, "cuda/kernel", ...(destination === other ? [] : ["cuda/slab"])])
      for (let round = 0; round < WARM_ROUNDS; round += 1) {
        const count = 1 + (round % config.numBlocks);
        const [sourceBlocks, destinationBlocks] = [ids.slice(0, count), places.slice(0, count)];
        await transport.transfer({
          source,
          sourceBlocks,
          destination,
          destinationBlocks,
          ...(method === undefined ? undefined : { method }),
        });
        if (method === undefined) await prepared.run(sourceBlocks, destinationBlocks);
      }
  }
  for (const layout of [apart, other, whole]) await layout.unregister();
}

/** One plain copy of as many bytes between the same pieces of memory. */
export async function dmaOf(world: World, from: Side, to: Side, bytes: number): Promise<() => number> {
  const source = from.layout.regions[0]?.address ?? 0;
  const destination = to.layout.regions[0]?.address ?? 0;
  return () => world.anchors.dma(destination, source, bytes);
}

export function tablesOf(
  { anchors }: Pick<World, "anchors">,
  from: Side,
  to: Side,
  ids: Uint32Array,
  places: Uint32Array,
  layers: number,
): Tables {
  const count = ids.length * layers * 2;
  const src = new BigUint64Array(count);
  const dst = new BigUint64Array(count);
  let at = 0;
  for (const [index, id] of ids.entries())
    for (let layer = 0; layer < layers; layer += 1)
      for (let outer = 0; outer < 2; outer += 1) {
        src[at] = BigInt(from.chunkAt(id, layer, outer));
        dst[at] = BigInt(to.chunkAt(places[index] ?? 0, layer, outer));
        at += 1;
      }
  return anchors.tables(src, dst);
}

/**
 * Layouts on both ends of the link: layers with memory of their own on the GPU, whole blocks in pinned memory.
 *
 * @param whole - On the GPU too whole blocks follow each other.
 */
export async function acrossLink(
  transport: Transport,
  direction: "d2h" | "h2d",
  { bytes, layers, chunk }: { readonly bytes: number; readonly layers: number; readonly chunk: number },
  whole = false,
): Promise<{ readonly source: LocalLayout; readonly destination: LocalLayout; readonly numBlocks: number }> {
  const numBlocks = Math.floor(bytes / (2 * layers * chunk));
  const config = { numBlocks, numLayers: layers, outerDim: 2, pageSize: 1, innerDim: chunk / 2 } as const;
  const gpu = await transport.register({
    config,
    arrangement: whole ? "fully-contiguous" : "layer-separate/block-second",
    memory: { kind: "device" },
  });
  const pool = await transport.register({
    config,
    arrangement: "fully-contiguous",
    memory: { kind: "pinned" },
  });
  const [source, destination] = direction === "d2h" ? [gpu, pool] : [pool, gpu];
  return { source, destination, numBlocks };
}

/** Moves once and compares some of the blocks. */
export async function verify(world: Pick<World, "transport">, request: TransferRequest): Promise<void> {
  const { source, destination } = request;
  if (typeof source === "bigint" || typeof destination === "bigint")
    throw new TypeError("layouts, not handles");
  const [from, to] = [source as LocalLayout, destination as LocalLayout];
  const ids = [...(request.sourceBlocks as Uint32Array)];
  const places = [...(request.destinationBlocks as Uint32Array)];
  const picked = [0, ids.length >> 1, ids.length - 1];
  const blocks = [...new Set(picked.map((index) => ids[index] ?? 0))];
  await from.fill({ random: ids.length }, { blocks });
  await world.transport.transfer(request);
  const wanted = await from.checksums(picked.map((index) => ids[index] ?? 0));
  const found = await to.checksums(picked.map((index) => places[index] ?? 0));
  if (wanted.join() !== found.join()) throw new Error("the bytes did not arrive");
}

export async function timed(work: () => PromiseLike<unknown>): Promise<number> {
  const begun = Bun.nanoseconds();
  await work();
  return (Bun.nanoseconds() - begun) / 1000;
}

/** The second of two in a row: the first one wakes threads that slept while others were measured. */
export async function again(work: () => number | Promise<number>): Promise<number> {
  await work();
  return await work();
}

export function few(work: () => number): number[] {
  work();
  return Array.from({ length: SLOW_SAMPLES }, work);
}

export async function release(sides: readonly Side[]): Promise<void> {
  for (const { layout } of sides) await layout.unregister();
}

export function least(value: number): Goal {
  return { figure: "ratioToLimit", value };
}
