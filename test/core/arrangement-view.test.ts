import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type {
  Arrangement,
  EnginePreset,
  LayoutConfig,
  Order,
  OrderAxis,
  StridedView,
} from "../../lib/core/index.ts";
import {
  arrangementView,
  ENGINE_AXES,
  ORDER_AXES,
  orderName,
  resolveArrangement,
  resolveConfig,
  resolveOrder,
} from "../../lib/core/index.ts";
import { refusalOf, SMALL } from "./builders.ts";

/** A cell by its coordinates. */
interface Cell {
  readonly block: number;
  readonly layer: number;
  readonly outer: number;
  readonly page: number;
  readonly head: number;
}

type Sizes = Readonly<Record<keyof Cell, number>>;

function sizesOf(config: LayoutConfig): Sizes {
  return {
    block: config.numBlocks,
    layer: config.numLayers,
    outer: config.outerDim,
    page: config.pageSize,
    head: config.numHeads ?? 1,
  };
}

function* cells(sizes: Sizes): Generator<Cell> {
  for (let block = 0; block < sizes.block; block++)
    for (let layer = 0; layer < sizes.layer; layer++)
      for (let outer = 0; outer < sizes.outer; outer++)
        for (let page = 0; page < sizes.page; page++)
          for (let head = 0; head < sizes.head; head++) yield { block, layer, outer, page, head };
}

/** Where a view puts a cell: region and offset. */
function placeOf(view: StridedView, cell: Cell): { region: number; offset: number } {
  const region =
    view.regionScheme === "one"
      ? 0
      : view.regionScheme === "per-layer"
        ? cell.layer
        : cell.layer * view.outers + cell.outer;
  const offset =
    cell.block * view.strideBlock +
    cell.layer * view.strideLayer +
    cell.outer * view.strideOuter +
    cell.page * view.stridePage +
    cell.head * view.strideHead;
  return { region, offset };
}

/** The definition: the row-major index of a cell over a sequence of axes, outermost first. */
function rowMajor(sequence: readonly (keyof Cell)[], sizes: Sizes, cell: Cell): number {
  let index = 0;
  for (const axis of sequence) index = index * sizes[axis] + cell[axis];
  return index;
}

/** Every byte of every region is covered exactly once. */
function expectDense(view: StridedView, sizes: Sizes): void {
  const seen = Array.from({ length: view.regionCount }, () => new Uint8Array(view.regionBytes));
  for (const cell of cells(sizes)) {
    const { region, offset } = placeOf(view, cell);
    const bytes = seen[region];
    if (bytes === undefined) throw new Error(`region ${region} does not exist`);
    for (let byte = 0; byte < view.rowBytes; byte++) bytes[offset + byte] = (bytes[offset + byte] ?? 99) + 1;
  }
  for (const bytes of seen) expect(bytes.every((count) => count === 1)).toBe(true);
}

const axisSize = fc.integer({ min: 1, max: 4 });
const anyConfig: fc.Arbitrary<LayoutConfig> = fc.record({
  numBlocks: axisSize,
  numLayers: axisSize,
  outerDim: fc.constantFrom<1 | 2>(1, 2),
  pageSize: axisSize,
  numHeads: axisSize,
  headDim: axisSize,
  dtypeWidthBytes: fc.constantFrom(1, 2),
});
const anyOrder: fc.Arbitrary<Order> = fc.oneof(
  fc.constantFrom<Order>("nhd", "hnd", "universal-tp", "universal-pp"),
  fc.shuffledSubarray([...ORDER_AXES], { minLength: 4, maxLength: 4 }),
);

describe("presets put every cell where their definition says", () => {
  test("fully contiguous: block outermost, then the order", () => {
    fc.assert(
      fc.property(anyConfig, anyOrder, (given, order) => {
        const config = resolveConfig(given, "register");
        const view = arrangementView(config, "fully-contiguous", order);
        const sizes = sizesOf(given);
        expect(view.regionCount).toBe(1);
        expect(view.regionBytes).toBe(config.totalBytes);
        for (const cell of cells(sizes))
          expect(placeOf(view, cell)).toEqual({
            region: 0,
            offset: rowMajor(["block", ...resolveOrder(order)], sizes, cell) * config.headBytes,
          });
        expectDense(view, sizes);
      }),
      { numRuns: 100 },
    );
  });

  test("layer separate: a region for each layer, block or outer outermost, the rest in the order's sequence", () => {
    fc.assert(
      fc.property(anyConfig, anyOrder, fc.boolean(), (given, order, blockFirst) => {
        const config = resolveConfig(given, "register");
        const view = arrangementView(
          config,
          blockFirst ? "layer-separate/block-first" : "layer-separate/block-second",
          order,
        );
        const sizes = sizesOf(given);
        const inner = resolveOrder(order).filter((axis) => axis !== "layer");
        const sequence: (keyof Cell)[] = blockFirst
          ? ["block", ...inner]
          : ["outer", "block", ...inner.filter((axis) => axis !== "outer")];
        expect(view.regionCount).toBe(given.numLayers);
        expect(view.regionBytes * given.numLayers).toBe(config.totalBytes);
        for (const cell of cells(sizes))
          expect(placeOf(view, cell)).toEqual({
            region: cell.layer,
            offset: rowMajor(sequence, sizes, cell) * config.headBytes,
          });
        expectDense(view, sizes);
      }),
      { numRuns: 100 },
    );
  });

  test("in the default order a cell is one run, at the offsets of Dynamo's arithmetic", () => {
    const config = resolveConfig(SMALL, "register");
    const run = config.cellBytes;
    const whole = arrangementView(config, "fully-contiguous");
    expect([whole.strideBlock, whole.strideLayer, whole.strideOuter]).toEqual([run * 4, run * 2, run]);
    const first = arrangementView(config, "layer-separate/block-first");
    expect([first.strideBlock, first.strideLayer, first.strideOuter]).toEqual([run * 2, 0, run]);
    const second = arrangementView(config, "layer-separate/block-second");
    expect([second.strideBlock, second.strideLayer, second.strideOuter]).toEqual([run, 0, run * 3]);
  });

  test("each engine preset is dense and follows its letters", () => {
    const letters = { L: "layer", B: "block", H: "head", N: "page", C: "outer" } as const;
    fc.assert(
      fc.property(
        anyConfig,
        fc.constantFrom("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"),
        (given, preset) => {
          const config = resolveConfig(given, "register");
          const { view } = resolveArrangement(config, preset as EnginePreset, undefined);
          const sizes = sizesOf(given);
          const sequence = [...preset].map((letter) => letters[letter as "L"] as keyof Cell);
          const perLayer = preset.startsWith("L");
          expect(view.regionCount).toBe(perLayer ? given.numLayers : 1);
          const inRegion = perLayer ? sequence.slice(1) : sequence;
          for (const cell of cells(sizes))
            expect(placeOf(view, cell)).toEqual({
              region: perLayer ? cell.layer : 0,
              offset: rowMajor(inRegion, sizes, cell) * config.headBytes,
            });
          expectDense(view, sizes);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("the documented stride table holds for every engine preset", () => {
    const given: LayoutConfig = {
      numBlocks: 5,
      numLayers: 3,
      outerDim: 2,
      pageSize: 4,
      numHeads: 7,
      headDim: 8,
    };
    const config = resolveConfig(given, "register");
    const row = 16;
    const [B, L, N, H, C] = [5, 3, 4, 7, 32];
    const table: Record<string, [number, number, number, number, number]> = {
      LBHNC: [H * N * C, 0, N * C, C, row],
      LBNHC: [N * H * C, 0, C, H * C, row],
      LHBNC: [N * C, 0, B * N * C, C, row],
      BLHNC: [L * H * N * C, H * N * C, N * C, C, row],
      BLNHC: [L * N * H * C, N * H * C, C, H * C, row],
      BHLNC: [H * L * N * C, N * C, L * N * C, C, row],
      NHD: [2 * N * H * row, 0, row, H * row, N * H * row],
      HND: [2 * H * N * row, 0, N * row, row, H * N * row],
    };
    for (const [preset, strides] of Object.entries(table)) {
      const view = arrangementView(config, preset as EnginePreset);
      expect([
        view.strideBlock,
        view.strideLayer,
        view.strideHead,
        view.stridePage,
        view.strideOuter,
      ]).toEqual(strides);
    }
    expect(Object.keys(ENGINE_AXES).toSorted()).toEqual([...Object.keys(table), "MLA"].toSorted());
  });

  test("NHD and HND equal layer-separate/block-first in those orders; MLA is one latent row a token", () => {
    const config = resolveConfig(SMALL, "register");
    expect(arrangementView(config, "NHD")).toEqual(
      arrangementView(config, "layer-separate/block-first", "nhd"),
    );
    expect(arrangementView(config, "HND")).toEqual(
      arrangementView(config, "layer-separate/block-first", "hnd"),
    );
    const latent = resolveConfig(
      { numBlocks: 3, numLayers: 2, outerDim: 1, pageSize: 4, innerDim: 576 },
      "register",
    );
    const view = arrangementView(latent, "MLA");
    expect([view.strideBlock, view.stridePage, view.regionCount]).toEqual([4 * 1152, 1152, 2]);
    expect(refusalOf("INVALID_CONFIG", () => arrangementView(config, "MLA")).details["field"]).toBe(
      "outerDim",
    );
    const heads = resolveConfig({ ...SMALL, outerDim: 1 }, "register");
    expect(refusalOf("INVALID_CONFIG", () => arrangementView(heads, "MLA")).details["field"]).toBe(
      "numHeads",
    );
  });
});

describe("strides as they are", () => {
  const config = resolveConfig(SMALL, "register");
  const strided = (strides: Record<string, unknown>, regions: unknown = "one"): Arrangement =>
    ({ strides, regions }) as unknown as Arrangement;
  const dense = { block: 512, layer: 256, outer: 128, page: 32, head: 16 };
  const axisOf = (arrangement: Arrangement, order?: Order): unknown =>
    refusalOf("INVALID_CONFIG", () => arrangementView(config, arrangement, order)).details["field"];

  test("dense strides equal the preset; padded ones only need more bytes", () => {
    expect(arrangementView(config, strided(dense))).toEqual(arrangementView(config, "fully-contiguous"));
    const padded = arrangementView(config, strided({ ...dense, block: 1000 }));
    expect(padded.regionBytes).toBe(2 * 1000 + 512);
    expect(padded.strideBlock).toBe(1000);
  });

  test("regions for each layer, and for each layer and outer", () => {
    const perLayer = arrangementView(
      config,
      strided({ block: 256, outer: 128, page: 32, head: 16 }, "per-layer"),
    );
    expect(perLayer).toEqual(arrangementView(config, "layer-separate/block-first"));
    const apart = arrangementView(config, strided({ block: 128, page: 32 }, "per-layer-and-outer"));
    expect(apart.regionCount).toBe(4);
    expect(apart.regionBytes).toBe(3 * 128);
    expect([apart.strideLayer, apart.strideOuter, apart.strideHead]).toEqual([0, 0, 16]);
    expectDense(apart, sizesOf(SMALL));
  });

  test("a refusal names the axis that is wrong", () => {
    expect(axisOf(strided({ ...dense, layer: undefined }))).toBe("layer");
    expect(axisOf(strided({ ...dense, outer: undefined }))).toBe("outer");
    expect(axisOf(strided({ ...dense, block: 0 }))).toBe("strides.block");
    expect(axisOf(strided({ ...dense, page: -32 }))).toBe("strides.page");
    expect(axisOf(strided({ ...dense, page: 32.5 }))).toBe("strides.page");
    expect(axisOf(strided({ ...dense, page: 31 }))).toBe("page");
    expect(axisOf(strided({ ...dense, head: 15 }))).toBe("head");
    expect(axisOf(strided({ ...dense, block: 511 }))).toBe("block");
    expect(axisOf(strided(dense, "per-layer"))).toBe("layer");
    expect(axisOf(strided({ block: 256, outer: 128, page: 32 }, "per-layer-and-outer"))).toBe("outer");
    expect(axisOf(strided({ ...dense, token: 3 }))).toBe("token");
    expect(axisOf(strided(dense, "two"))).toBe("regions");
    expect(axisOf({ ...(strided(dense) as object), order: 1 } as unknown as Arrangement)).toBe("order");
    expect(axisOf({ regions: "one" } as unknown as Arrangement)).toBe("strides");
    expect(axisOf("fully-contigous" as Arrangement)).toBe("arrangement");
    expect(axisOf(null as unknown as Arrangement)).toBe("arrangement");
  });

  test("strides whose reach passes 2^53 are refused", () => {
    expect(() => arrangementView(config, strided({ ...dense, block: 2 ** 52 }))).toThrow("2^53");
    expect(() =>
      arrangementView(config, strided({ block: 2 ** 51, outer: 128, page: 32 }, "per-layer")),
    ).toThrow("2^53");
  });

  test("rows may share bytes only under alias", () => {
    const folded = strided({ ...dense, layer: 120 });
    expect(axisOf(folded)).toBe("layer");
    expect(arrangementView(config, folded, undefined, "register", true).strideLayer).toBe(120);
  });

  test("interleaved strides that do not nest are accepted when no byte is shared", () => {
    // Two tokens' rows alternate with two layers' rows: strides 16 (head), 64 (page), 32 (layer).
    const woven = strided({ block: 512, layer: 32, outer: 256, page: 64, head: 16 });
    expectDense(arrangementView(config, woven), sizesOf(SMALL));
  });

  test("any strides are accepted exactly when no two rows share a byte", () => {
    const stride = fc.integer({ min: 1, max: 40 });
    fc.assert(
      fc.property(
        anyConfig,
        stride,
        stride,
        stride,
        stride,
        stride,
        (given, block, layer, outer, page, head) => {
          const own = resolveConfig(given, "register");
          const sizes = sizesOf(given);
          const starts = [...cells(sizes)]
            .map(
              (cell) =>
                cell.block * block +
                cell.layer * layer +
                cell.outer * outer +
                cell.page * page +
                cell.head * head,
            )
            .toSorted((a, b) => a - b);
          const apart = starts.every(
            (start, index) => index === 0 || start - (starts[index - 1] ?? 0) >= own.headBytes,
          );
          const make = (): StridedView => arrangementView(own, strided({ block, layer, outer, page, head }));
          if (apart) expect(make().regionBytes).toBe((starts.at(-1) ?? 0) + own.headBytes);
          else expect(make).toThrow();
        },
      ),
      { numRuns: 2000 },
    );
  });
});

describe("orders", () => {
  test("names and lists resolve to the same axes", () => {
    expect(resolveOrder("nhd")).toEqual(["layer", "outer", "page", "head"]);
    expect(resolveOrder("hnd")).toEqual(["layer", "outer", "head", "page"]);
    expect(resolveOrder("universal-tp")).toEqual(["head", "layer", "outer", "page"]);
    expect(resolveOrder("universal-pp")).toEqual(["layer", "head", "outer", "page"]);
    expect(resolveOrder(["layer", "outer", "head", "page"])).toBe(resolveOrder("hnd"));
    expect(orderName(["head", "layer", "outer", "page"])).toBe("universal-tp");
    expect(orderName(["page", "layer", "outer", "head"])).toBeNull();
  });

  test("a list that misses, repeats or invents an axis is refused by its name", () => {
    const axisOf = (order: unknown): unknown =>
      refusalOf("INVALID_CONFIG", () => resolveOrder(order as Order)).details["axis"];
    expect(axisOf(["layer", "outer", "page"])).toBe("head");
    expect(axisOf(["layer", "outer", "page", "page"])).toBe("page");
    expect(axisOf(["layer", "outer", "page", "token"])).toBe("token");
    expect(axisOf(["layer", "outer", "page", "head", "head"])).toBe("head");
    expect(() => resolveOrder("ndh" as Order)).toThrow("ndh");
    expect(() => resolveOrder({} as Order)).toThrow("name or a list");
    expect(() => resolveOrder(null as unknown as Order)).toThrow("name or a list");
  });

  test("an order beside strides or an engine preset must agree with them", () => {
    const config = resolveConfig(SMALL, "register");
    expect(resolveArrangement(config, "LBHNC", undefined).order).toEqual(["layer", "head", "page", "outer"]);
    expect(arrangementView(config, "HND", "hnd")).toEqual(arrangementView(config, "HND"));
    expect(() => arrangementView(config, "HND", "nhd")).toThrow("sequence");
    const arrangement: Arrangement = {
      strides: { block: 512, layer: 256, outer: 128, page: 16, head: 64 },
      regions: "one",
    };
    const resolved = resolveArrangement(config, arrangement, undefined);
    expect(resolved.order).toEqual(resolveOrder("hnd"));
    expect(resolveArrangement(config, arrangement, resolved.order)).toEqual(resolved);
    expect(() => resolveArrangement(config, arrangement, "nhd")).toThrow("sequence");
    // With one head both orders put the same bytes in the same places.
    const single = resolveConfig({ ...SMALL, numHeads: 1 }, "register");
    expect(arrangementView(single, "HND", "nhd").strideBlock).toBe(128);
  });

  test("any arrangement's own order, given back, changes nothing", () => {
    const presets: Arrangement[] = [
      "fully-contiguous",
      "layer-separate/block-first",
      "layer-separate/block-second",
      "LBHNC",
      "BHLNC",
      "NHD",
    ];
    fc.assert(
      fc.property(anyConfig, fc.constantFrom(...presets), (given, arrangement) => {
        const config = resolveConfig(given, "register");
        const resolved = resolveArrangement(config, arrangement, undefined);
        expect(resolveArrangement(config, arrangement, resolved.order)).toEqual(resolved);
        expect([...resolved.order].toSorted()).toEqual([...ORDER_AXES].toSorted() as OrderAxis[]);
      }),
      { numRuns: 100 },
    );
  });
});
