import { describe, expect, test } from "bun:test";
import { descriptorsOf } from "../../lib/core/compile.ts";
import type { TransferPlan } from "../../lib/core/plan.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import type { BlockList } from "../../lib/core/request.ts";
import { cellOf, ORIGIN, runPlan, type TestLayout, World } from "./planner-fixture.ts";

function planOf(
  source: TestLayout,
  destination: TestLayout,
  sourceBlocks: BlockList,
  destinationBlocks: BlockList,
  options: object = {},
): { readonly plan: TransferPlan; readonly programs: readonly CopyProgram[] } {
  const world = new World();
  const from = world.add(source);
  const to = world.add(destination);
  const plan = world.plan({
    source: from.handle,
    destination: to.handle,
    sourceBlocks,
    destinationBlocks,
    ...options,
  });
  return { plan, programs: plan.legs.flatMap((leg) => leg.hops.flatMap((hop) => hop.programs)) };
}

/** A program without its arrays' identity. */
function shapeOf(program: CopyProgram | undefined): object {
  return {
    bases: program?.srcBase.length,
    sources: [...(program?.srcOffset ?? [])],
    destinations: [...(program?.dstOffset ?? [])],
    run: program?.run === null ? null : [...(program?.run ?? [])],
    loops: program?.count.map((count, index) => [count, program.srcStride[index], program.dstStride[index]]),
    row: program?.rowBytes,
  };
}

const LAYERS = "layer-separate/block-second";

describe("axes are fused as far as both sides allow", () => {
  test("contiguous to contiguous: one row for each block", () => {
    const { plan, programs } = planOf({}, {}, [5, 2], [0, 6]);
    expect(programs.map(shapeOf)).toEqual([
      { bases: 1, sources: [2560, 1024], destinations: [0, 3072], run: null, loops: [], row: 512 },
    ]);
    expect(plan.legs[0]?.hops[0]).toMatchObject({ descriptorsBefore: 16, descriptorsAfter: 2, bytes: 1024 });
  });

  test("layers of their own to contiguous: a base for each layer, a loop over keys and values", () => {
    const { programs } = planOf({ arrangement: LAYERS }, {}, [5], [1]);
    expect(programs.map(shapeOf)).toEqual([
      { bases: 4, sources: [320], destinations: [512], run: null, loops: [[2, 512, 64]], row: 64 },
    ]);
  });

  test("evenly spaced layers become a loop, and are never joined into a row", () => {
    const even = { arrangement: LAYERS, gap: 0, config: { numBlocks: 1, outerDim: 1 } } as const;
    const { programs } = planOf(even, even, [0], [0]);
    expect(programs.map(shapeOf)).toEqual([
      { bases: 1, sources: [0], destinations: [0], run: null, loops: [[4, 64, 64]], row: 64 },
    ]);
  });

  test("nhd to hnd: rows of one head, the destination written upwards", () => {
    const { programs } = planOf({}, { order: "hnd" }, [0], [0]);
    expect(shapeOf(programs[0])).toMatchObject({
      row: 8,
      loops: [
        [8, 64, 64],
        [2, 8, 32],
        [4, 16, 8],
      ],
    });
    const back = planOf({ order: "hnd" }, {}, [0], [0]);
    expect(shapeOf(back.programs[0])).toMatchObject({
      row: 8,
      loops: [
        [8, 64, 64],
        [4, 8, 16],
        [2, 32, 8],
      ],
    });
  });

  test("nhd to universal: layers and outers continue each other on one side only", () => {
    const { programs } = planOf({}, { order: "universal-tp" }, [0], [0]);
    expect(shapeOf(programs[0])).toMatchObject({
      row: 8,
      loops: [
        [2, 8, 256],
        [32, 16, 8],
      ],
    });
  });

  test("a layer range of a contiguous block is one row", () => {
    const { programs } = planOf({}, {}, [3], [4], { layers: { start: 1, end: 3 } });
    expect(programs.map(shapeOf)).toEqual([
      { bases: 1, sources: [1536], destinations: [2048], run: null, loops: [], row: 256 },
    ]);
    expect(programs[0]?.srcBase[0]).toBe(ORIGIN + 128);
  });

  test("layers listed backwards are walked so that the destination is written upwards", () => {
    const { programs } = planOf(
      { config: { layers: [3, 2, 1, 0] } },
      { config: { layers: [0, 1, 2, 3] } },
      [0],
      [0],
    );
    expect(shapeOf(programs[0])).toMatchObject({ loops: [[4, -128, 128]], row: 128 });
    expect(programs[0]?.srcBase[0]).toBe(ORIGIN + 3 * 128);
    const turned = planOf(
      { config: { layers: [0, 1, 2, 3] } },
      { config: { layers: [3, 2, 1, 0] } },
      [0],
      [0],
    );
    expect(shapeOf(turned.programs[0])).toMatchObject({ loops: [[4, -128, 128]], row: 128 });
  });

  test("an irregular layer list has a base for each layer", () => {
    const { programs } = planOf({}, { config: { numLayers: 3, layers: [0, 1, 3] } }, [0], [0]);
    expect(shapeOf(programs[0])).toMatchObject({ bases: 3, loops: [], row: 128 });
    expect([...(programs[0]?.srcBase ?? [])].map((base) => base - ORIGIN)).toEqual([0, 128, 384]);
  });

  test("a shard of heads moves the rows that both sides hold", () => {
    const half = { config: { numHeads: 1, headWindow: { start: 1, total: 2 } } };
    const { programs } = planOf({}, half, [0], [0]);
    expect(shapeOf(programs[0])).toMatchObject({ bases: 1, row: 8, loops: [[32, 16, 8]] });
    expect(programs[0]?.srcBase[0]).toBe(ORIGIN + 8);
  });
});

describe("neighbouring blocks are merged in whatever order the lists name them", () => {
  test("one long run is one row, over layers and outers too when nothing lies between", () => {
    const all = [0, 1, 2, 3, 4, 5, 6, 7];
    expect(planOf({}, {}, all, all).programs.map(shapeOf)).toMatchObject([
      { row: 4096, sources: [0], loops: [] },
    ]);
    // Keys and values of all blocks continue each other when every block moves.
    const layers = planOf({ arrangement: LAYERS }, { arrangement: LAYERS }, all, all);
    expect(layers.programs.map(shapeOf)).toMatchObject([{ bases: 4, row: 1024, loops: [] }]);
    expect(layers.plan.legs[0]?.hops[0]).toMatchObject({ descriptorsBefore: 64, descriptorsAfter: 4 });
  });

  test.each([
    ["falling", [5, 4, 3], [2, 1, 0]],
    ["shuffled", [4, 3, 5], [1, 0, 2]],
  ])("%s", (_, source, destination) => {
    const { programs } = planOf({}, {}, source, destination);
    expect(programs.map(shapeOf)).toMatchObject([
      { sources: [1536], destinations: [0], row: 1536, run: null },
    ]);
  });

  test("more than a few blocks: the same by a table", () => {
    const config = { numBlocks: 64 };
    const ids = Array.from({ length: 20 }, (_, index) => (index * 7) % 20);
    const { programs } = planOf(
      { config },
      { config },
      ids,
      ids.map((id) => id + 40),
    );
    expect(programs.map(shapeOf)).toMatchObject([{ sources: [0], destinations: [40 * 512], row: 20 * 512 }]);
  });

  test("runs of different lengths keep their lengths and fold into one row each", () => {
    const { plan, programs } = planOf({}, {}, [0, 1, 5, 3, 6], [2, 3, 6, 0, 7]);
    expect(programs.map(shapeOf)).toEqual([
      {
        bases: 1,
        sources: [0, 2560, 1536],
        destinations: [1024, 3072, 0],
        run: [2, 2, 1],
        loops: [],
        row: 512,
      },
    ]);
    expect(programs[0]).toMatchObject({ srcRunStride: 512, dstRunStride: 512, rows: 5, bytes: 2560 });
    expect(plan.legs[0]?.hops[0]).toMatchObject({ descriptorsBefore: 40, descriptorsAfter: 3 });
  });

  test("runs inside layers: outers become bases so that runs lie innermost", () => {
    const { plan, programs } = planOf({ arrangement: LAYERS }, { arrangement: LAYERS }, [0, 1, 5], [2, 3, 7]);
    expect(shapeOf(programs[0])).toEqual({
      bases: 8,
      sources: [0, 320],
      destinations: [128, 448],
      run: [2, 1],
      loops: [],
      row: 64,
    });
    expect(plan.legs[0]?.hops[0]).toMatchObject({ descriptorsBefore: 24, descriptorsAfter: 16 });
    expect(descriptorsOf(programs[0] as CopyProgram)).toBe(16);
  });

  test("loops that would make too many bases stay loops", () => {
    const config = {
      numBlocks: 3,
      numLayers: 70,
      pageSize: 1,
      outerDim: 1,
      numHeads: 1000,
      headDim: 1,
    } as const;
    const strides = { strides: { block: 2, layer: 8, page: 2, head: 1024 }, regions: "one" } as const;
    const { programs } = planOf(
      { config, arrangement: strides },
      { config, arrangement: strides },
      [0, 1],
      [0, 1],
    );
    // All runs are equal, so they join; with unequal ones 70,000 bases would be needed.
    expect(programs[0]?.rowBytes).toBe(4);
    const odd = planOf(
      { config: { ...config, numBlocks: 4 }, arrangement: strides },
      { config: { ...config, numBlocks: 4 }, arrangement: strides },
      [0, 1, 3],
      [0, 1, 3],
    );
    expect(odd.programs[0]).toMatchObject({ rowBytes: 2, run: null, pairs: 3 });
  });

  test("runs that cannot fold shorten the lists when that pays", () => {
    const { programs } = planOf({}, { order: "hnd" }, [0, 1, 2, 6], [1, 2, 3, 0]);
    expect(shapeOf(programs[0])).toMatchObject({
      sources: [0, 3072],
      destinations: [512, 0],
      run: [3, 1],
      row: 8,
    });
    expect(descriptorsOf(programs[0] as CopyProgram)).toBe(4 * 64);
    const short = planOf({}, { order: "hnd" }, [0, 1, 6], [1, 2, 0]);
    expect(short.programs[0]).toMatchObject({ run: null, pairs: 3 });
  });

  test("a repeated source block is never taken for a neighbour", () => {
    const { programs } = planOf({}, {}, [2, 3, 2, 3], [4, 5, 6, 7]);
    expect(shapeOf(programs[0])).toMatchObject({
      sources: [1024, 1024],
      destinations: [2048, 3072],
      row: 1024,
    });
  });
});

describe("page sizes and parts of streams", () => {
  test("small pages into large ones: runs inside a page join", () => {
    const one = { numLayers: 1, outerDim: 1 } as const;
    const { programs } = planOf({ config: one }, { config: { ...one, pageSize: 8 } }, [0, 1, 4, 2], [3, 1]);
    // Blocks 0 and 1 fill destination block 3; blocks 4 and 2 lie apart.
    expect(programs.map(shapeOf)).toMatchObject([
      { sources: [0, 256, 128], destinations: [384, 128, 192], run: [2, 1, 1], row: 64 },
    ]);
  });

  test("falling segments are walked upwards", () => {
    const one = { numLayers: 1, outerDim: 1 } as const;
    const options = { tokens: { sourceStart: 0, destinationStart: 0, count: 12 } };
    const { programs } = planOf({ config: one }, { config: one }, [4, 3, 2], [7, 6, 5], options);
    expect(programs.map(shapeOf)).toMatchObject([
      { sources: [128], destinations: [320], run: null, row: 192 },
    ]);
  });

  test("lengths that differ are programs of their own", () => {
    const { programs } = planOf({}, { config: { pageSize: 6 } }, [0, 1, 2], [0, 1]);
    expect(programs.map((program) => [program.pairs, program.rowBytes])).toEqual([
      [2, 64],
      [2, 32],
    ]);
  });

  test("a part of a stream touches its tokens and nothing else", () => {
    const world = new World();
    const from = world.add();
    const to = world.add({ order: "hnd" });
    const plan = world.plan({
      source: from.handle,
      destination: to.handle,
      sourceBlocks: [1, 2],
      destinationBlocks: [3, 4],
      tokens: { sourceStart: 3, destinationStart: 2, count: 3 },
    });
    expect(plan).toMatchObject({ bytes: 3 * 128, coverage: 1 });
    const memory = world.memory();
    const before = memory.slice();
    runPlan(plan, memory);
    const changed = [...memory.keys()].filter((index) => memory[index] !== before[index]);
    expect(changed.length).toBeGreaterThan(300);
    expect(changed.length).toBeLessThanOrEqual(384);
  });

  test("a count of 0 moves nothing", () => {
    const { plan } = planOf({}, {}, [1], [1], { tokens: { sourceStart: 4, destinationStart: 0, count: 0 } });
    expect(plan).toMatchObject({ bytes: 0, legs: [{ hops: [] }] });
  });
});

describe("layer-wise plans", () => {
  test("steps in layer order, arrays shared between them", () => {
    const { plan, programs } = planOf({ arrangement: LAYERS }, {}, [1, 2, 7], [4, 5, 0], { layerwise: true });
    expect(plan.layers).toEqual([0, 1, 2, 3]);
    expect(programs.map((program) => program.layers)).toEqual([
      { start: 0, end: 1 },
      { start: 1, end: 2 },
      { start: 2, end: 3 },
      { start: 3, end: 4 },
    ]);
    expect(new Set(programs.map((program) => program.srcOffset)).size).toBe(1);
    expect(new Set(programs.map((program) => program.dstOffset)).size).toBe(1);
  });

  test("a step of several layers, the last one shorter", () => {
    const { programs } = planOf({}, {}, [1], [4], { layerwise: { every: 3 } });
    expect(programs.map((program) => [program.layers?.start, program.layers?.end, program.bytes])).toEqual([
      [0, 3, 384],
      [3, 4, 128],
    ]);
  });

  test("only the last program of a step completes its layers", () => {
    const state = { config: { numLayers: 2, layers: [1, 3] } };
    const bundle = { components: { kv: {}, state } };
    const { plan, programs } = planOf(bundle, bundle, [1], [4], { layerwise: { every: 2 } });
    expect(plan.layers).toEqual([0, 1, 2, 3]);
    expect(programs.map((program) => program.layers)).toEqual([
      null,
      { start: 0, end: 2 },
      null,
      { start: 2, end: 4 },
    ]);
  });

  test("layer 0 stands in the destination when the first step is done", () => {
    const world = new World();
    const from = world.add();
    const to = world.add();
    const plan = world.plan({
      source: from.handle,
      destination: to.handle,
      sourceBlocks: [1],
      destinationBlocks: [6],
      layerwise: true,
    });
    const memory = world.memory();
    const untouched = cellOf(to, memory, 6, 1, 0);
    const [first] = plan.legs[0]?.hops[0]?.programs ?? [];
    runPlan(
      {
        ...plan,
        legs: [{ destination: to.handle, hops: [{ ...plan.legs[0]?.hops[0], programs: [first] } as never] }],
      },
      memory,
    );
    expect(cellOf(to, memory, 6, 0, 1)).toEqual(cellOf(from, memory, 1, 0, 1));
    expect(cellOf(to, memory, 6, 1, 0)).toEqual(untouched);
  });
});

test("every program says how much it moves", () => {
  const { plan, programs } = planOf({}, { order: "universal-pp" }, [0, 1, 2, 3], [3, 1, 0, 2]);
  for (const program of programs) expect(program.bytes).toBe(program.rows * program.rowBytes);
  expect(plan.bytes).toBe(2048);
});
