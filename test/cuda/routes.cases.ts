// The route table, cell by cell: every pair of memory kinds, here and at a peer, with whole blocks, one layer, a reordering
// and a change of the page size. A cell either moves the right bytes or is refused with a code and a remedy. Run by
// runtime/routes.test.ts against the stand-in for the driver, and by gpu.test.ts on a GPU.
import { expect, test } from "bun:test";
import {
  isKvferryError,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type RemoteLayout,
  type TransferRequest,
  type Transport,
} from "../../index.ts";
import { nixlTest, openNeighbours, openPair, type Pair } from "../runtime/helpers/transports.ts";

const KINDS = ["system", "pinned", "device", "disk"] as const;
type Kind = (typeof KINDS)[number];
type Where = "local" | "peer";

const CONFIG = { numBlocks: 12, numLayers: 3, outerDim: 2, pageSize: 8, numHeads: 2, headDim: 32 } as const;
const WIDE: LayoutConfig = { ...CONFIG, pageSize: 16, numBlocks: 6 };

const SHAPES = ["whole", "layer", "order", "pages"] as const;
type Shape = (typeof SHAPES)[number];

interface Side {
  readonly transport: Transport;
  readonly source: Map<Kind, LocalLayout>;
  readonly target: Map<string, LocalLayout>;
}

function targetSpec(kind: Kind, shape: Shape): LayoutSpec {
  return {
    name: `target ${kind} ${shape}`,
    config: shape === "pages" ? WIDE : CONFIG,
    arrangement: shape === "whole" ? "fully-contiguous" : "layer-separate/block-second",
    ...(shape === "order" ? { order: "hnd" } : {}),
    memory: { kind },
  };
}

async function side(transport: Transport, seed: number): Promise<Side> {
  const source = new Map<Kind, LocalLayout>();
  const target = new Map<string, LocalLayout>();
  for (const kind of KINDS) {
    const layout = await transport.register({
      name: `source ${kind}`,
      config: CONFIG,
      arrangement: "layer-separate/block-first",
      memory: { kind },
    });
    await layout.fill({ random: seed });
    source.set(kind, layout);
    for (const shape of SHAPES)
      target.set(`${kind} ${shape}`, await transport.register(targetSpec(kind, shape)));
  }
  return { transport, source, target };
}

/** What every target block should hold, made by reads and array copies alone. */
async function expected(
  from: LocalLayout,
  before: readonly Uint8Array[],
  shape: Shape,
): Promise<Uint8Array[]> {
  const wanted = before.map((bytes) => bytes.slice());
  const { blockBytes } = from.config;
  const layerBytes = blockBytes / CONFIG.numLayers;
  const sources: Uint8Array[] = [];
  for (const block of SOURCE_BLOCKS) sources.push(await from.read(block));
  if (shape === "pages") {
    // Two source blocks follow each other inside each wide one, cell by cell.
    const cell = blockBytes / (CONFIG.numLayers * CONFIG.outerDim);
    for (const [index, bytes] of sources.entries()) {
      const target = wanted[WIDE_BLOCKS[index >> 1] ?? 0];
      for (let at = 0; at < blockBytes / cell; at++)
        target?.set(bytes.subarray(at * cell, (at + 1) * cell), (at * 2 + (index & 1)) * cell);
    }
    return wanted;
  }
  for (const [index, bytes] of sources.entries()) {
    const target = wanted[TARGET_BLOCKS[index] ?? 0];
    if (shape === "layer") target?.set(bytes.subarray(layerBytes, 2 * layerBytes), layerBytes);
    else target?.set(bytes);
  }
  return wanted;
}

const SOURCE_BLOCKS = [1, 7, 2, 9];
const TARGET_BLOCKS = [8, 0, 3, 2];
const WIDE_BLOCKS = [4, 1];

async function contents(layout: LocalLayout): Promise<Uint8Array[]> {
  const blocks: Uint8Array[] = [];
  // One after the other: reads of a GPU at once would each pin memory of their own.
  for (let block = 0; block < layout.config.numBlocks; block++) blocks.push(await layout.read(block));
  return blocks;
}

async function cell(
  own: Side,
  other: Side,
  remote: ReadonlyMap<string, RemoteLayout>,
  [fromKind, fromWhere]: readonly [Kind, Where],
  [toKind, toWhere]: readonly [Kind, Where],
  shape: Shape,
  seed: number,
  checksum: boolean,
): Promise<string> {
  const fromSide = fromWhere === "local" ? own : other;
  const toSide = toWhere === "local" ? own : other;
  const realFrom = fromSide.source.get(fromKind);
  const realTo = toSide.target.get(`${toKind} ${shape}`);
  if (realFrom === undefined || realTo === undefined) throw new Error("no such layout");
  await realTo.fill({ random: seed });
  const before = await contents(realTo);
  const source = fromWhere === "local" ? realFrom : remote.get(realFrom.name);
  const destination = toWhere === "local" ? realTo : remote.get(realTo.name);
  if (source === undefined || destination === undefined) return "not exported";
  const request: TransferRequest = {
    source,
    sourceBlocks: SOURCE_BLOCKS,
    destination,
    destinationBlocks: shape === "pages" ? WIDE_BLOCKS : TARGET_BLOCKS,
    ...(shape === "layer" ? { layers: { start: 1, end: 2 } } : {}),
    checksum,
  };
  try {
    await own.transport.transfer(request);
  } catch (error) {
    if (!isKvferryError(error)) throw error;
    expect(error.remedy).toMatch(/\S.*\.$/);
    expect(await contents(realTo)).toEqual(before);
    return error.code.replace("ERR_KVF_", "");
  }
  expect(await contents(realTo)).toEqual(await expected(realFrom, before, shape));
  return "moved";
}

async function table(pair: Pair, checksum: boolean): Promise<string[][]> {
  const own = await side(pair.a, 11);
  const other = await side(pair.b, 22);
  const { b } = await pair.meetBoth();
  const remote = new Map(b.layouts.map((layout) => [layout.name, layout]));
  const ends = (["local", "peer"] as const).flatMap((where) => KINDS.map((kind) => [kind, where] as const));
  const rows: string[][] = [["from \\ to", ...ends.map((end) => end.join(" "))]];
  let seed = 100;
  for (const from of ends) {
    const row = [from.join(" ")];
    for (const to of ends) {
      const found: string[] = [];
      for (const shape of SHAPES)
        found.push(await cell(own, other, remote, from, to, shape, ++seed, checksum));
      row.push([...new Set(found)].join("/"));
    }
    rows.push(row);
  }
  return rows;
}

/** Prints a table and looks at every cell. */
function demand(rows: readonly (readonly string[])[], wanted: (from: string, to: string) => string): void {
  console.error(rows.map((row) => `| ${row.map((text) => text.padEnd(13)).join(" | ")} |`).join("\n"));
  const [head = [], ...body] = rows;
  for (const [from = "", ...cells] of body)
    for (const [index, found] of cells.entries()) {
      const to = head[index + 1] ?? "";
      expect(`${from} -> ${to}: ${found}`).toBe(`${from} -> ${to}: ${wanted(from, to)}`);
    }
}

/** What belongs to the peer on both sides can be moved only by the peer. */
const overNixl = (from: string, to: string): string =>
  from.endsWith("peer") && to.endsWith("peer") ? "NO_ROUTE" : "moved";

/** Everything is mapped but a neighbour's file, which only its owner can touch. */
function betweenNeighbours(from: string, to: string): string {
  const files = [from, to].filter((end) => end === "disk peer").length;
  return ["moved", "NO_NIXL", "NO_ROUTE"][files] ?? "";
}

for (const checksum of [false, true])
  nixlTest(
    `all 8 x 8 pairs over NIXL move the right bytes, or are refused for being a peer's on both sides${checksum ? ", both ends compared" : ""}`,
    async () => {
      await using pair = await openPair({ cuda: {}, deadlineMs: 10_000 });
      demand(await table(pair, checksum), overNixl);
    },
    240_000,
  );

for (const checksum of [false, true])
  test(`all 8 x 8 pairs of neighbours move the right bytes; files of a neighbour need NIXL${checksum ? ", both ends compared" : ""}`, async () => {
    await using pair = await openNeighbours({ cuda: {}, deadlineMs: 10_000 });
    demand(await table(pair, checksum), betweenNeighbours);
  }, 240_000);
