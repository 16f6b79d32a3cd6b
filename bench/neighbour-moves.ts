// Blocks that move to and from a neighbour's memory.
import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, OpenOptions, RemoteLayout, TransferRequest } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import { NeighbourPeer } from "./neighbour-peer.ts";
import { alternate } from "./processes.ts";
import type { Contender } from "./processes.ts";
import { shuffled } from "./statistics.ts";

/** Chunks of a scattered move. */
export const CHUNKS = 10_000;
/** Bytes that scattered chunks are spread over at least. */
export const REGION: number = 256 * 2 ** 20;
/** Samples of NIXL's that are shown, and not compared: one may take a second. */
export const SLOW_NIXL = "slow NIXL";
/** Transfers before the first that counts, between GPUs and over the link. */
const WARM_TRANSFERS = 600;
/**
 * Between memories of GPUs a transfer takes tenths of a millisecond, in which one pause of the engine would decide: a sample
 * is as many of them, one after the other, as move so many bytes.
 */
const SAMPLE_BYTES = 2 ** 31;
const SLOW_SAMPLES = 3;
/** Seeds of more lists than are remembered. */
const OTHERS: readonly number[] = [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23];

type Storage = "system" | "pinned" | "device";

/** Where the bytes of a row lie here and at the neighbour, and how they are cut. */
export interface Move {
  readonly here: Storage;
  readonly there: Storage;
  /** GPU of the neighbour's memory. */
  readonly device: number;
  readonly push: boolean;
  readonly chunk: number;
  readonly chunks: number;
  readonly scattered: boolean;
  /** Transfers of all that which are under way at once, the limit's as well; default 1. */
  readonly deep?: number;
  /** Every transfer takes lists that were not seen for a while; otherwise all take the same, as layer after layer does. */
  readonly fresh?: boolean;
}

/** Samples of one move, beside the same copy inside this process and beside NIXL. */
export async function moves(move: Move, samples: number, slow: boolean): Promise<Record<string, number[]>> {
  const gpu = move.here === "device" || move.there === "device";
  const cuda: Partial<OpenOptions> = gpu ? {} : { cuda: false };
  const bytes = move.chunk * move.chunks;
  const lists = listsOf(move);
  await using far = new NeighbourPeer();
  await using here = await Transport.open({ workerId: 1n, nixl: false, ...cuda });
  const own = await here.register(specOf("own", move, move.here, 0));
  const theirs = specOf("pool", move, move.there, move.device);
  const exported = await far.call<Uint8Array>({
    do: "open",
    options: { nixl: false, ...cuda },
    specs: [theirs],
  });
  const pool = (await here.importMetadata(exported)).layout("pool");
  if (pool.distance !== "neighbour") throw new Error("the neighbour's memory is not mapped");
  // The same memory kinds in this process, for the limit.
  const double = await here.register(specOf("double", move, move.there, move.device));
  await double.fill(1);
  if (move.there === "pinned") await pinned(here, own, pool);
  const ours = requestOf(move, own, pool, lists);
  await verify(far, here, own, ours, move);
  const limit = gpu ? await oneDma(here, move) : requestOf(move, own, double, lists);
  const requests =
    move.fresh === true ? OTHERS.map((seed) => requestOf(move, own, pool, listsOf(move, seed))) : [ours];
  let turn = 0;
  const times = timesOf(move);
  const contenders: Record<string, Contender> = {
    ours: () =>
      inTurn(times, () => rateOf(here, requests[turn++ % requests.length] ?? ours, bytes, move.deep)),
    limit: () => inTurn(times, () => rateOf(here, limit, bytes, move.deep)),
  };
  // JavaScript's engine compiles what runs often: what is measured in microseconds is measured after that.
  const taken = await alternate(contenders, samples, gpu ? Math.ceil(WARM_TRANSFERS / times) : 5);
  if (slow && move.deep === undefined && move.fresh === undefined && findNixl() !== null) {
    // A NIXL that cannot reach this memory leaves our own figures as they are.
    const rates = await overNixl(move, theirs, lists, cuda).catch((error: unknown) => {
      process.stderr.write(`NOT RUN: NIXL: ${error instanceof Error ? error.message : String(error)}\n`);
      return [];
    });
    if (rates.length > 0) taken[SLOW_NIXL] = rates;
  }
  return taken;
}

/** The same work through NIXL, between two other processes' agents. */
async function overNixl(
  move: Move,
  theirs: LayoutSpec,
  lists: Lists,
  cuda: Partial<OpenOptions>,
): Promise<number[]> {
  const options: Partial<OpenOptions> = {
    nixl: {},
    neighbours: false,
    capabilities: { gpuRdma: true },
    ...cuda,
  };
  await using far = new NeighbourPeer();
  await using here = await Transport.open({ workerId: 1n, ...options });
  const own = await here.register(specOf("own", move, move.here, 0));
  const exported = await far.call<Uint8Array>({ do: "open", options, specs: [theirs] });
  // A descriptor for each chunk, as NIXL itself moves them.
  const request = {
    ...requestOf(move, own, (await here.importMetadata(exported)).layout("pool"), lists),
    method: move.push ? "nixl/write" : "nixl/read",
  };
  const rates: number[] = [];
  for (let count = 0; count <= SLOW_SAMPLES; count += 1)
    rates.push(await rateOf(here, request, move.chunk * move.chunks));
  return rates.slice(1);
}

/** One DMA of as many bytes, of one block: nothing is planned for each chunk. */
async function oneDma(here: Transport, move: Move): Promise<TransferRequest> {
  const whole = { ...move, chunk: move.chunk * move.chunks, chunks: 1, scattered: false };
  const own = await here.register(specOf("whole", whole, move.here, 0));
  const other = await here.register(specOf("whole-double", whole, move.there, move.device));
  return { ...requestOf(whole, own, other, inOrder(whole)), method: "cuda/dma" };
}

/** Waits until the neighbour's pool is pinned here as well, which happens in the background. */
async function pinned(here: Transport, own: LocalLayout, pool: RemoteLayout): Promise<void> {
  const [sourceBlocks, destinationBlocks] = [[0], [0]];
  const end = performance.now() + 30_000;
  const plan = (): string =>
    here.explain({
      source: own,
      sourceBlocks,
      destination: pool.peer.layout(pool.name),
      destinationBlocks,
    }).route;
  while (!plan().includes("pinned")) {
    if (performance.now() > end) throw new Error("the neighbour's pool was not pinned within 30 s");
    await Bun.sleep(10);
  }
}

/** GB/s of one transfer, or of some that are under way at once. */
export async function rateOf(
  here: Transport,
  request: TransferRequest,
  bytes: number,
  deep = 1,
): Promise<number> {
  const asked = { ...request, deadlineMs: 120_000 };
  const begun = Bun.nanoseconds();
  if (deep === 1) await here.transfer(asked);
  else await Promise.all(Array.from({ length: deep }, () => here.transfer(asked)));
  return (deep * bytes) / (Bun.nanoseconds() - begun);
}

/** Transfers that make one sample. */
function timesOf({ here, there, chunk, chunks, deep = 1 }: Move): number {
  const short = here === "device" && there === "device";
  return short ? Math.max(1, Math.round(SAMPLE_BYTES / (chunk * chunks * deep))) : 1;
}

/** The rate of some transfers together, one after the other. */
async function inTurn(times: number, rate: () => Promise<number>): Promise<number> {
  let inverse = 0;
  for (let count = 0; count < times; count += 1) inverse += 1 / (await rate());
  return times / inverse;
}

/** Block ids of both sides. */
export interface Lists {
  readonly here: Uint32Array;
  readonly there: Uint32Array;
}

/** The blocks that a move takes, in the order in which it takes them. */
export function listsOf(move: Move, seed = 1): Lists {
  if (!move.scattered) return inOrder(move);
  const all = blocksOf(move);
  return {
    here: shuffled(all, seed).slice(0, move.chunks),
    there: shuffled(all, seed + 1).slice(0, move.chunks),
  };
}

function inOrder(move: Move): Lists {
  const ids = Uint32Array.from({ length: move.chunks }, (_unused, index) => index);
  return { here: ids, there: ids };
}

function blocksOf({ chunk, chunks }: Move): number {
  return Math.max(chunks, Math.floor(REGION / chunk));
}

/** A layout of as many blocks as a move takes, or more. */
export function specOf(name: string, move: Move, storage: Storage, device: number): LayoutSpec {
  return {
    name,
    config: { numBlocks: blocksOf(move), numLayers: 1, outerDim: 1, pageSize: 1, innerDim: move.chunk / 2 },
    arrangement: "fully-contiguous",
    memory: storage === "device" ? { kind: "device", device } : { kind: storage },
  };
}

/** A move between two layouts. */
export function requestOf(
  move: Move,
  own: LocalLayout,
  other: LocalLayout | RemoteLayout,
  lists: Lists,
): TransferRequest {
  // A layout that was pinned meanwhile is described anew.
  const theirs = "peer" in other ? other.peer.layout(other.name) : other;
  return move.push
    ? { source: own, sourceBlocks: lists.here, destination: theirs, destinationBlocks: lists.there }
    : { source: theirs, sourceBlocks: lists.there, destination: own, destinationBlocks: lists.here };
}

async function verify(
  far: NeighbourPeer,
  here: Transport,
  own: LocalLayout,
  request: TransferRequest,
  move: Move,
): Promise<void> {
  if (move.push) await own.fill({ random: 5 });
  else await far.call({ do: "fill", layout: "pool", seed: 5 });
  await here.transfer(request);
  const { sourceBlocks, destinationBlocks } = request;
  const [ownIds, farIds] = (
    move.push ? [sourceBlocks, destinationBlocks] : [destinationBlocks, sourceBlocks]
  ) as [Uint32Array, Uint32Array];
  const picked = [0, move.chunks >> 1, move.chunks - 1];
  const wanted = await own.checksums(picked.map((index) => ownIds[index] ?? 0));
  const found = await far.call<string[]>({
    do: "checksums",
    layout: "pool",
    blocks: picked.map((index) => farIds[index] ?? 0),
  });
  if (wanted.join() !== found.join()) throw new Error("the bytes did not arrive");
}
