import { describe, expect, test } from "bun:test";
import { fillSide, movedBytes, wrongRows } from "../../lib/cli/demo-bytes.ts";
import { DEMO_CASES, MODEL } from "../../lib/cli/demo-cases.ts";
import type { DemoCase, DemoSide } from "../../lib/cli/demo-cases.ts";

const ROW = MODEL.headDim * MODEL.elementBytes;
const SEEDS = { source: 5, destination: 6 };

/** Memory for a side: one region for each layer where layers are separate. */
function memory(one: DemoCase, side: DemoSide): Uint8Array[] {
  const cell = side.numBlocks * MODEL.outers * side.pageSize * side.heads[1] * ROW;
  return side.arrangement === "fully-contiguous"
    ? [new Uint8Array(cell * one.numLayers)]
    : Array.from({ length: one.numLayers }, () => new Uint8Array(cell));
}

/** Moves by the simplest means: reads and writes rows by names, through addresses written out for one case. */
const CASE: DemoCase = {
  name: "written out",
  direction: "push",
  initiator: "a",
  numLayers: 2,
  source: {
    numBlocks: 3,
    pageSize: 2,
    heads: [0, 8],
    arrangement: "layer-separate/block-second",
    order: "nhd",
    blocks: [2, 0],
  },
  destination: {
    numBlocks: 2,
    pageSize: 4,
    heads: [4, 4],
    arrangement: "fully-contiguous",
    order: "hnd",
    blocks: [1],
  },
};

function moveByHand(source: Uint8Array[], destination: Uint8Array[]): void {
  for (let token = 0; token < 4; token += 1)
    for (let layer = 0; layer < 2; layer += 1)
      for (let outer = 0; outer < 2; outer += 1)
        for (let head = 0; head < 4; head += 1) {
          const block = CASE.source.blocks[token >> 1] ?? 0;
          // layer-separate, outer before block: [outer 2][block 3][page 2][head 8]
          const from = ((outer * 3 + block) * 2 + (token & 1)) * 8 + head + 4;
          // contiguous, heads before tokens: [block 2][layer 2][outer 2][head 4][page 4]
          const to = (((1 * 2 + layer) * 2 + outer) * 4 + head) * 4 + token;
          const row = source[layer]?.subarray(from * ROW, (from + 1) * ROW);
          destination[0]?.set(row ?? [], to * ROW);
        }
}

describe("the demo's own definition of what must stand in memory", () => {
  test("agrees with addresses written out by hand", () => {
    const source = memory(CASE, CASE.source);
    const destination = memory(CASE, CASE.destination);
    fillSide(CASE, CASE.source, SEEDS.source, source);
    fillSide(CASE, CASE.destination, SEEDS.destination, destination);
    expect(wrongRows(CASE, "destination", SEEDS, destination).wrong).toBe(4 * 2 * 2 * 4);
    moveByHand(source, destination);
    expect(wrongRows(CASE, "destination", SEEDS, destination)).toEqual({
      rows: 2 * 2 * 2 * 4 * 4,
      wrong: 0,
      first: null,
    });
    expect(wrongRows(CASE, "source", SEEDS, source).wrong).toBe(0);
    expect(movedBytes(CASE)).toBe(4 * 2 * 2 * 4 * ROW);
  });

  test("one wrong byte is found wherever it stands, in moved rows and in the guard rows beside them", () => {
    const source = memory(CASE, CASE.source);
    const destination = memory(CASE, CASE.destination);
    fillSide(CASE, CASE.source, SEEDS.source, source);
    fillSide(CASE, CASE.destination, SEEDS.destination, destination);
    moveByHand(source, destination);
    const bytes = destination[0] ?? new Uint8Array();
    for (let at = 0; at < bytes.length; at += 509) {
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      expect(wrongRows(CASE, "destination", SEEDS, destination).wrong).toBe(1);
      bytes[at] = (bytes[at] ?? 0) ^ 1;
    }
  });

  test("no two rows of a side hold the same bytes", () => {
    const source = memory(CASE, CASE.source);
    fillSide(CASE, CASE.source, SEEDS.source, source);
    const rows = new Set<string>();
    for (const region of source)
      for (let at = 0; at < region.length; at += ROW) rows.add(region.subarray(at, at + ROW).toHex());
    expect(rows.size).toBe(2 * 2 * 3 * 2 * 8);
  });

  test("the cases go both ways, by both processes, between unlike arrangements, orders and page sizes", () => {
    const kinds = new Set(DEMO_CASES.map((one) => `${one.direction} by ${one.initiator}`));
    expect([...kinds].toSorted()).toEqual(["pull by a", "pull by b", "push by a", "push by b"]);
    for (const key of ["arrangement", "order", "pageSize"] as const)
      expect(DEMO_CASES.some((one) => one.source[key] !== one.destination[key])).toBe(true);
    for (const one of DEMO_CASES)
      expect(one.source.blocks.length * one.source.pageSize).toBe(
        one.destination.blocks.length * one.destination.pageSize,
      );
  });
});
