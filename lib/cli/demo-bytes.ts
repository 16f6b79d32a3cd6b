// What must stand in memory, by definition: address arithmetic row by row. It shares nothing with the planner that it
// checks.
import type { OrderAxis } from "../core/arrangement.ts";
import { MODEL } from "./demo-cases.ts";
import type { DemoCase, DemoSide } from "./demo-cases.ts";

/** The elements of one head of one token: what every order keeps together. */
const ROW_BYTES = MODEL.headDim * MODEL.elementBytes;
const ROW_WORDS = ROW_BYTES / 4;

const ORDERS: Readonly<Record<DemoSide["order"], readonly OrderAxis[]>> = {
  nhd: ["layer", "outer", "page", "head"],
  hnd: ["layer", "outer", "head", "page"],
  "universal-tp": ["head", "layer", "outer", "page"],
  "universal-pp": ["layer", "head", "outer", "page"],
};

/** A row's place in a side's logical shape; `head` counts from the side's own first head. */
interface Place {
  readonly block: number;
  readonly layer: number;
  readonly outer: number;
  readonly page: number;
  readonly head: number;
}

/** Bytes that a case moves. */
export function movedBytes(one: DemoCase): number {
  const layers = one.layers === undefined ? one.numLayers : one.layers.end - one.layers.start;
  const tokens = one.source.blocks.length * one.source.pageSize;
  const heads = Math.min(one.source.heads[1], one.destination.heads[1]);
  return tokens * layers * MODEL.outers * heads * ROW_BYTES;
}

/** Fills a side's memory with bytes that tell every row of every side of every case apart. */
export function fillSide(one: DemoCase, which: DemoSide, seed: number, regions: readonly Uint8Array[]): void {
  const words = regions.map(wordsOf);
  forEachRow(one, which, (place, region, word) => {
    const target = words[region];
    if (target === undefined) throw new Error(`the layout has no region ${region}`);
    const key = rowKey(seed, place);
    for (let index = 0; index < ROW_WORDS; index += 1) target[word + index] = mix(key + index);
  });
}

/**
 * Counts the rows of a side that do not hold what they must: for a destination the source's bytes in the rows that
 * moved and its own old bytes everywhere else, for a source its own bytes.
 *
 * @returns Rows that are wrong, and the place of the first one in words.
 */
export function wrongRows(
  one: DemoCase,
  role: "source" | "destination",
  seeds: { readonly source: number; readonly destination: number },
  regions: readonly Uint8Array[],
): { readonly rows: number; readonly wrong: number; readonly first: string | null } {
  const which = one[role];
  const words = regions.map(wordsOf);
  const origin = role === "destination" ? tokenOrigins(one) : new Map<string, never>();
  let rows = 0;
  let wrong = 0;
  let first: string | null = null;
  forEachRow(one, which, (place, region, word) => {
    rows += 1;
    const from = origin.get(`${place.block}/${place.page}`);
    const moved = from !== undefined && layerMoves(one, place.layer) && sourceHolds(one, place.head);
    const key = moved
      ? rowKey(seeds.source, { ...place, ...from, head: place.head + which.heads[0] - one.source.heads[0] })
      : rowKey(seeds[role], place);
    const found = words[region];
    for (let index = 0; index < ROW_WORDS; index += 1) {
      if (found?.[word + index] === mix(key + index)) continue;
      wrong += 1;
      first ??= `${moved ? "moved" : "guard"} row at block ${place.block}, layer ${place.layer}, outer ${place.outer}, token ${place.page}, head ${place.head}`;
      break;
    }
  });
  return { rows, wrong, first };
}

/** For every (block, token) of the destination that is written: the source's block and token. */
function tokenOrigins(one: DemoCase): Map<string, { readonly block: number; readonly page: number }> {
  const { source, destination } = one;
  const origins = new Map<string, { readonly block: number; readonly page: number }>();
  const tokens = source.blocks.length * source.pageSize;
  for (let token = 0; token < tokens; token += 1) {
    const block = destination.blocks[Math.floor(token / destination.pageSize)];
    const from = source.blocks[Math.floor(token / source.pageSize)];
    if (block === undefined || from === undefined)
      throw new Error("the two lists name different numbers of tokens");
    origins.set(`${block}/${token % destination.pageSize}`, { block: from, page: token % source.pageSize });
  }
  return origins;
}

function layerMoves(one: DemoCase, layer: number): boolean {
  return one.layers === undefined || (layer >= one.layers.start && layer < one.layers.end);
}

function sourceHolds(one: DemoCase, destinationHead: number): boolean {
  const head = destinationHead + one.destination.heads[0];
  return head >= one.source.heads[0] && head < one.source.heads[0] + one.source.heads[1];
}

/** Visits every row of a side with its region and its offset there in 32-bit words. */
function forEachRow(
  one: DemoCase,
  which: DemoSide,
  visit: (place: Place, region: number, word: number) => void,
): void {
  const separate = which.arrangement !== "fully-contiguous";
  const outside = which.arrangement === "layer-separate/block-second" ? ["outer", "block"] : ["block"];
  const inside = ORDERS[which.order].filter(
    (axis) => !outside.includes(axis) && !(separate && axis === "layer"),
  );
  const size = {
    block: which.numBlocks,
    layer: one.numLayers,
    outer: MODEL.outers,
    page: which.pageSize,
    head: which.heads[1],
  };
  const axes = [...outside, ...inside] as (keyof Place)[];
  for (let block = 0; block < size.block; block += 1)
    for (let layer = 0; layer < size.layer; layer += 1)
      for (let outer = 0; outer < size.outer; outer += 1)
        for (let page = 0; page < size.page; page += 1)
          for (let head = 0; head < size.head; head += 1) {
            const place: Place = { block, layer, outer, page, head };
            let row = 0;
            for (const axis of axes) row = row * size[axis] + place[axis];
            visit(place, separate ? layer : 0, row * ROW_WORDS);
          }
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

function rowKey(seed: number, place: Place): number {
  let key = mix(seed);
  for (const part of [place.block, place.layer, place.outer, place.page, place.head])
    key = mix(key ^ (part + 1));
  return key;
}

/** A bijection of 32-bit words in which neighbours have nothing in common (the finaliser of MurmurHash3). */
function mix(value: number): number {
  let word = value | 0;
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}
