// The program that ncu watches: moves blocks by the kernels whose goals are missed, twice each, and prints what it moved.
// A kernel that sleeps for a microsecond goes before each move, so that launches can be told apart by their order.
//
//   bun test/gpu/ncu-launches.ts [--only TEXT] [--anchors LIBRARY] [--bytes N] [--devices N]
import { parseArgs } from "node:util";
import { openAnchors } from "../../bench/gpu-anchors.ts";
import { GIB, KIB, MIB, sideOf, tablesOf } from "../../bench/gpu-world.ts";
import type { Side } from "../../bench/gpu-world.ts";
import { shuffled } from "../../bench/statistics.ts";
import { Transport, type LayoutConfig, type Order, type TransferRequest } from "../../index.ts";
import { answer, native } from "../cuda/harness.ts";
import type { Move, Moves } from "./ncu-output.ts";

/** Moves of each case: the first one may meet memory that was never touched. */
const ROUNDS = 2;
/** A list of more block ids is split in two launches. */
const MOST_BLOCKS = 2047;
/** The program ends itself when it hangs, milliseconds. */
const LIMIT = 45_000;

/** What one case moves, and how; `null` method: what the planner takes. */
interface Case {
  readonly name: string;
  readonly method: string | null;
  readonly sides: () => Promise<readonly [Side, Side]>;
  /** Ids of so many blocks; all when missing. */
  readonly blocks?: number;
  /** The plain kernel over tables of addresses moves the same chunks of so many bytes, for comparison. */
  readonly plain?: { readonly chunk: number; readonly layers: number };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      anchors: { type: "string", default: "" },
      bytes: { type: "string", default: String(GIB) },
      devices: { type: "string", default: "1" },
    },
  });
  setTimeout(() => process.exit(3), LIMIT).unref();
  const transport = await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: {} });
  const stream = answer((out) => native().kvf_cuda_test_stream(0, out));
  const mark = (): void => void answer(() => native().kvf_cuda_test_sleep(0, stream as never, 1 as never));
  const moves: Move[] = [];
  const cases = casesOf(transport, Number(values.bytes), Number(values.devices));
  for (const one of cases.filter(({ name }) => name.includes(values.only))) {
    const [from, to] = await one.sides();
    const all = from.layout.config.numBlocks;
    const request: TransferRequest = {
      source: from.layout,
      sourceBlocks: shuffled(all, 1).slice(0, one.blocks ?? all),
      destination: to.layout,
      destinationBlocks: shuffled(all, 2).slice(0, one.blocks ?? all),
      ...(one.method === null ? undefined : { method: one.method }),
    };
    const [hop] = transport.explain(request).legs[0]?.hops ?? [];
    for (let round = 0; round < ROUNDS; round += 1) {
      mark();
      const { bytes } = await transport.transfer(request);
      moves.push({ name: one.name, round, bytes, method: hop?.method ?? "", width: hop?.width ?? 0 });
    }
    if (one.plain !== undefined && values.anchors !== "") {
      const { chunk, layers } = one.plain;
      const anchors = openAnchors(values.anchors);
      const ids = request.sourceBlocks as Uint32Array;
      const places = request.destinationBlocks as Uint32Array;
      const table = tablesOf({ anchors }, from, to, ids, places, layers);
      for (let round = 0; round < ROUNDS; round += 1) {
        mark();
        anchors.kernel(table, chunk, 4 * 132, 512);
        const bytes = ids.length * layers * 2 * chunk;
        moves.push({ name: one.name, round, bytes, method: "plain kernel over tables", width: 4 * 132 });
      }
      table.release();
    }
    await from.layout.unregister();
    await to.layout.unregister();
  }
  await transport.close();
  const said: Moves = { moves };
  process.stdout.write(`\n${JSON.stringify(said)}\n`);
}

function casesOf(transport: Transport, bytes: number, devices: number): readonly Case[] {
  const arenas = new Map<string, Promise<number>>();
  const arena = (kind: "device" | "pinned", number: number, device = 0): Promise<number> => {
    const key = `${kind} ${number} ${device}`;
    const share = kind === "device" ? bytes : bytes / 4;
    const known = arenas.get(key) ?? makeArena(transport, kind, share + 96 * MIB, device);
    arenas.set(key, known);
    return known;
  };
  const local = async (
    shape: Shape,
    contiguous: boolean,
    orders?: Orders,
  ): Promise<readonly [Side, Side]> => [
    await sideOf(transport, await arena("device", 0), { device: 0 }, shape, contiguous, orders?.[0]),
    await sideOf(transport, await arena("device", 1), { device: 0 }, shape, contiguous, orders?.[1]),
  ];
  const link = async (shape: Shape, inward: boolean, whole: boolean): Promise<readonly [Side, Side]> => {
    const gpu = await sideOf(transport, await arena("device", 0), { device: 0 }, shape, false);
    const host = await sideOf(transport, await arena("pinned", 0), "pinned", shape, whole);
    return inward ? [host, gpu] : [gpu, host];
  };
  const scatter = (size: string, run: number, layers: number): Case => {
    const shape = { layers, blocks: Math.max(1, Math.floor(bytes / (2 * layers * run))), chunk: run };
    return {
      name: `F4.scatter.${size}`,
      method: null,
      sides: () => local(shape, false),
      ...(run < 2 * KIB ? {} : { plain: { chunk: run, layers } }),
    };
  };
  const order = (name: string, other: Order, headDim: number): Case => ({
    name: `F4.${name}.${headDim}`,
    method: null,
    sides: () => {
      const chunk = 16 * 8 * headDim * 2;
      const blocks = Math.min(MOST_BLOCKS, Math.max(1, Math.floor(bytes / (32 * chunk))));
      const heads = { numLayers: 16, outerDim: 2, pageSize: 16, numHeads: 8, headDim } as const;
      const config: LayoutConfig = { numBlocks: blocks, ...heads };
      return local({ layers: 16, blocks, chunk }, true, [
        { order: "nhd", config },
        { order: other, config },
      ]);
    },
  });
  /** 160 chunks a block: across the link, so that a quarter of the bytes takes long enough. */
  const across = (name: string, inward: boolean, run: number, whole: boolean, blocks?: number): Case => ({
    name,
    method: "cuda/kernel",
    sides: () => link({ layers: 80, blocks: Math.floor(bytes / 4 / (160 * run)), chunk: run }, inward, whole),
    ...(blocks === undefined ? {} : { blocks }),
  });
  const peer: Case = {
    name: "F19.peer.16k",
    method: null,
    sides: async () => {
      const shape = { layers: 80, blocks: Math.floor(bytes / 2 / (160 * 16 * KIB)), chunk: 16 * KIB };
      return [
        await sideOf(transport, await arena("device", 0), { device: 0 }, shape, false),
        await sideOf(transport, await arena("device", 0, 1), { device: 1 }, shape, false),
      ];
    },
  };
  return [
    scatter("256", 256, 2048),
    scatter("16k", 16 * KIB, 256),
    order("nhd-hnd", "hnd", 64),
    order("nhd-hnd", "hnd", 128),
    order("nhd-universal", "universal-tp", 64),
    order("nhd-universal", "universal-tp", 128),
    across("F1.d2h.scattered.16k", false, 16 * KIB, false),
    across("F1.h2d.scattered.16k", true, 16 * KIB, false),
    across("F3.d2h", false, 8 * KIB, true, 8),
    across("F3.h2d", true, 8 * KIB, true, 8),
    ...(devices < 2 ? [] : [peer]),
  ];
}

type Shape = Parameters<typeof sideOf>[3];
type Orders = readonly [Parameters<typeof sideOf>[5], Parameters<typeof sideOf>[5]];

async function makeArena(
  transport: Transport,
  kind: "device" | "pinned",
  size: number,
  device: number,
): Promise<number> {
  const numBlocks = Math.ceil(size / MIB);
  const config = { numBlocks, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: MIB / 2 } as const;
  const layout = await transport.register({ config, memory: { kind, device } });
  await layout.fill({ random: 1 }, { blocks: [0, 1, 2, 3] });
  return layout.regions[0]?.address ?? 0;
}

await main();
process.exit(0);
