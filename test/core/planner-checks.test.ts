import { describe, expect, test } from "bun:test";
import { preparePair } from "../../lib/core/prepare.ts";
import { planPrepared, planTransfer } from "../../lib/core/planner.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import type { PlanRequest } from "../../lib/core/request.ts";
import { HOST, HOST_AND_NIXL, World } from "./planner-fixture.ts";

/** Two layouts of one shape and a request that moves two blocks. */
function pairOf(source = {}, destination = {}): { readonly world: World; readonly request: PlanRequest } {
  const world = new World();
  const from = world.add(source);
  const to = world.add(destination);
  const request = {
    source: from.handle,
    destination: to.handle,
    sourceBlocks: [1, 2],
    destinationBlocks: [3, 4],
  };
  return { world, request };
}

describe("block lists that would move the wrong bytes are refused with the ids", () => {
  test("lists of unequal length", () => {
    const { world, request } = pairOf();
    const error = world.refusal("LENGTH_MISMATCH", { ...request, destinationBlocks: [3] });
    expect(error.details).toMatchObject({ component: "kv", unit: "blocks", source: 2, destination: 1 });
    expect(error.settlement).toBe("never-started");
    expect(error.remedy).not.toBe("");
  });

  test("lists that name unequally many tokens at different page sizes", () => {
    const { world, request } = pairOf({}, { config: { pageSize: 8 } });
    const error = world.refusal("LENGTH_MISMATCH", request);
    expect(error.details).toMatchObject({ unit: "tokens", source: 8, destination: 16 });
    expect(world.plan({ ...request, destinationBlocks: [3] }).bytes).toBe(1024);
  });

  test.each([
    ["past the end", [1, 8]],
    ["negative", [-1, 2]],
    ["fractional", [1.5, 2]],
    ["above 2^32", [2 ** 32 + 1, 2]],
    ["not a number", [Number.NaN, 2]],
    ["infinite", [1, Number.POSITIVE_INFINITY]],
    ["a string", ["1", 2] as unknown as number[]],
    ["a bigint", [1n, 2] as unknown as number[]],
    ["a hole", [undefined, 2] as unknown as number[]],
  ])("ids that are %s, on either side", (_, ids) => {
    const { world, request } = pairOf();
    const bad = ids.find((id) => id !== 2 && id !== 1);
    for (const side of ["source", "destination"] as const) {
      const error = world.refusal("BLOCK_OUT_OF_RANGE", { ...request, [`${side}Blocks`]: ids });
      expect(error.details).toMatchObject({ side, group: "default", count: 1, limit: 8 });
      expect(error.details["ids"]).toEqual([typeof bad === "number" ? bad : String(bad)]);
    }
  });

  test("typed arrays are checked against the block count as well", () => {
    const { world, request } = pairOf();
    const error = world.refusal("BLOCK_OUT_OF_RANGE", {
      ...request,
      sourceBlocks: Uint32Array.of(4, 4_294_967_295),
    });
    expect(error.details["ids"]).toEqual([4_294_967_295]);
  });

  test("what is no list at all", () => {
    const { world, request } = pairOf();
    const typed = { default: Int32Array.of(1, 2) } as unknown as Record<string, number[]>;
    world.refusal("BLOCK_OUT_OF_RANGE", { ...request, sourceBlocks: typed });
    world.refusal("LENGTH_MISMATCH", { ...request, sourceBlocks: null as unknown as number[] });
    world.refusal("LENGTH_MISMATCH", { ...request, sourceBlocks: 5 as unknown as number[] });
  });

  test.each([
    [
      [3, 3, 4, 4, 3],
      [3, 4],
    ],
    [
      [0, 1, 2, 3, 4, 5, 6, 7, 7, 0],
      [7, 0],
    ],
  ])("destination ids that repeat, each named once in order of its first repeat: %p", (ids, repeated) => {
    const { world, request } = pairOf();
    const sourceBlocks = ids.map(() => 1);
    const error = world.refusal("DUPLICATE_BLOCK", { ...request, sourceBlocks, destinationBlocks: ids });
    expect(error.details).toMatchObject({ side: "destination", ids: repeated, count: repeated.length });
    // The same list is fine once the repeats are gone: nothing of the refused call stays behind.
    const unique = [...new Set(ids)];
    const plan = world.plan({ ...request, sourceBlocks: unique.map(() => 1), destinationBlocks: unique });
    expect(plan.bytes).toBe(unique.length * 512);
  });

  test("destination ids that repeat where page sizes differ", () => {
    const { world, request } = pairOf(
      { config: { numBlocks: 40 } },
      { config: { pageSize: 8, numBlocks: 30 } },
    );
    const sourceBlocks = Array.from({ length: 24 }, (_, index) => index);
    for (const ids of [[1, 2, 1], Array.from({ length: 12 }, (_, index) => (index === 11 ? 0 : index))]) {
      const error = world.refusal("DUPLICATE_BLOCK", {
        ...request,
        sourceBlocks: sourceBlocks.slice(0, ids.length * 2),
        destinationBlocks: ids,
      });
      expect(error.details["ids"]).toEqual([ids[ids.length - 1] as number]);
    }
  });

  test("ids beyond the size of any table are still checked for repeats", () => {
    const far = {
      config: { numBlocks: 40_000_000, numLayers: 1, outerDim: 1, pageSize: 1, numHeads: 1, headDim: 1 },
    } as const;
    const { world, request } = pairOf(far, far);
    const ids = Array.from({ length: 12 }, (_, index) => 39_999_999 - index);
    expect(world.plan({ ...request, sourceBlocks: ids, destinationBlocks: ids }).bytes).toBe(24);
    const twice = [...ids.slice(0, 11), ids[3] as number];
    world.refusal("DUPLICATE_BLOCK", { ...request, sourceBlocks: ids, destinationBlocks: twice });
    const tokens = { sourceStart: 0, destinationStart: 0, count: 12 };
    world.refusal("DUPLICATE_BLOCK", { ...request, sourceBlocks: ids, destinationBlocks: twice, tokens });
    const same = { ...request, destination: request.source, sourceBlocks: ids.slice(0, 6) };
    expect(world.plan({ ...same, destinationBlocks: ids.slice(6) }).bytes).toBe(12);
    const error = world.refusal("OVERLAP", { ...same, destinationBlocks: ids.slice(5, 11) });
    expect(error.details["ids"]).toEqual([ids[5] as number]);
  });

  test("source ids may repeat", () => {
    const { world, request } = pairOf();
    expect(world.plan({ ...request, sourceBlocks: [5, 5] }).bytes).toBe(1024);
  });

  test("empty lists are a plan of nothing", () => {
    const { world, request } = pairOf();
    const plan = world.plan({ ...request, sourceBlocks: [], destinationBlocks: new Uint32Array(0) });
    expect(plan).toMatchObject({ bytes: 0, coverage: 1, predictedMicros: 0 });
    expect(plan.legs).toEqual([{ destination: request.destination, hops: [] }]);
  });

  test("blocks in quarantine, on the side where they are", () => {
    const { world, request } = pairOf();
    const held = new Set([4]);
    const quarantined = (layout: bigint): ReadonlySet<number> | null =>
      layout === request.destination ? held : null;
    const error = world.refusal("QUARANTINED", request, { ...HOST, quarantined });
    expect(error.details).toMatchObject({ side: "destination", ids: [4], count: 1 });
    expect(world.plan({ ...request, destinationBlocks: [3, 5] }, { ...HOST, quarantined }).bytes).toBe(1024);
  });
});

describe("memory that is read and written at once is refused", () => {
  test("one layout: shared ids", () => {
    const { world, request } = pairOf();
    const inside = { ...request, destination: request.source };
    const error = world.refusal("OVERLAP", {
      ...inside,
      sourceBlocks: [1, 2, 3],
      destinationBlocks: [4, 3, 2],
    });
    expect(error.details["ids"]).toEqual([3, 2]);
    expect(world.plan({ ...inside, sourceBlocks: [1, 2], destinationBlocks: [4, 3] }).bytes).toBe(1024);
  });

  test("one layout: different tokens of one block are apart, the same tokens are not", () => {
    const { world, request } = pairOf();
    const inside = { ...request, destination: request.source, sourceBlocks: [5], destinationBlocks: [5] };
    const apart = world.plan({ ...inside, tokens: { sourceStart: 0, destinationStart: 2, count: 2 } });
    expect(apart.bytes).toBe(256);
    world.refusal("OVERLAP", { ...inside, tokens: { sourceStart: 0, destinationStart: 1, count: 2 } });
  });

  test("two layouts over one memory in one arrangement", () => {
    const world = new World();
    const from = world.add();
    const at = [from.components[0]?.regionAddresses[0] ?? 0];
    const to = world.add({ at });
    const request = { source: from.handle, destination: to.handle };
    const error = world.refusal("OVERLAP", { ...request, sourceBlocks: [1, 2], destinationBlocks: [2, 7] });
    expect(error.details["ids"]).toEqual([2]);
    expect(world.plan({ ...request, sourceBlocks: [1, 2], destinationBlocks: [0, 7] }).bytes).toBe(1024);
  });

  test("two layouts over one memory in different arrangements, to the byte", () => {
    const world = new World();
    const from = world.add();
    const at = [from.components[0]?.regionAddresses[0] ?? 0];
    const to = world.add({ at, order: "hnd" });
    const shifted = world.add({ at: [(at[0] ?? 0) + 512], order: "hnd" });
    const request = { source: from.handle, destination: to.handle };
    world.refusal("OVERLAP", { ...request, sourceBlocks: [1, 2], destinationBlocks: [0, 2] });
    expect(world.plan({ ...request, sourceBlocks: [1, 2], destinationBlocks: [0, 7] }).bytes).toBe(1024);
    const moved = { ...request, destination: shifted.handle };
    world.refusal("OVERLAP", { ...moved, sourceBlocks: [3], destinationBlocks: [2] });
    expect(world.plan({ ...moved, sourceBlocks: [3], destinationBlocks: [3] }).bytes).toBe(512);
  });

  test("rows of several lengths under different views", () => {
    const world = new World();
    const from = world.add();
    const at = [from.components[0]?.regionAddresses[0] ?? 0];
    const to = world.add({ at, config: { pageSize: 6, numBlocks: 5 } });
    const request = { source: from.handle, destination: to.handle };
    world.refusal("OVERLAP", { ...request, sourceBlocks: [0, 1, 2], destinationBlocks: [1, 0] });
    expect(world.plan({ ...request, sourceBlocks: [0, 1, 2], destinationBlocks: [3, 4] }).bytes).toBe(1536);
  });

  test("components of one bundle that interleave in one allocation are apart", () => {
    const world = new World();
    const strides = (block: number): object => ({
      strides: { block, layer: 128, outer: 64, page: 16 },
      regions: "one",
    });
    const first = world.add({ arrangement: strides(1024) as never });
    const base = first.components[0]?.regionAddresses[0] ?? 0;
    const both = world.add({
      components: {
        kv: { arrangement: strides(1024) as never, at: [base] },
        idx: { arrangement: strides(1024) as never, at: [base + 512] },
      },
    });
    const request = {
      source: both.handle,
      destination: both.handle,
      sourceBlocks: [0, 1],
      destinationBlocks: [2, 3],
    };
    expect(world.plan(request).bytes).toBe(2048);
    world.refusal("OVERLAP", { ...request, destinationBlocks: [1, 2] });
  });

  test("components that alias are compared to the byte", () => {
    const world = new World();
    const kv = world.add({ alias: true });
    const at = [kv.components[0]?.regionAddresses[0] ?? 0];
    const both = world.add({
      components: { kv: { at, alias: true }, raw: { at, alias: true, config: { numHeads: 1, headDim: 8 } } },
    });
    const request = {
      source: both.handle,
      destination: both.handle,
      sourceBlocks: [0, 1],
      destinationBlocks: [2, 3],
    };
    const plan = world.plan(request);
    expect(plan.bytes).toBe(2048);
    expect(plan.warnings.join()).toContain("written twice");
    world.refusal("OVERLAP", { ...request, destinationBlocks: [3, 1] });
  });

  test("more rows than can be compared are refused, not trusted", () => {
    const world = new World();
    const config = { numBlocks: 60_000, numHeads: 8, headDim: 1, pageSize: 8, numLayers: 2 };
    const from = world.add({ config });
    const at = [from.components[0]?.regionAddresses[0] ?? 0];
    const to = world.add({ config, at, order: "hnd" });
    const half = Uint32Array.from({ length: 20_000 }, (_, index) => index);
    const request = { source: from.handle, destination: to.handle, sourceBlocks: half };
    const error = world.refusal("OVERLAP", { ...request, destinationBlocks: half.map((id) => id + 30_000) });
    expect(error.details).toMatchObject({ decided: false });
  });

  test("different files, and a file and memory, are never one memory", () => {
    const world = new World();
    const memory = world.add();
    const at = [memory.components[0]?.regionAddresses[0] ?? 0];
    const file = world.add({ at, reach: "file", storage: { kind: "disk" } });
    const request = {
      source: memory.handle,
      destination: file.handle,
      sourceBlocks: [1],
      destinationBlocks: [1],
    };
    expect(world.plan(request, { executors: ["file"] }).bytes).toBe(512);
    const other = { ...request, source: file.handle };
    world.refusal("OVERLAP", other, { executors: ["file", "staged"] });
  });
});

describe("layouts that do not fit each other are refused with both values", () => {
  test.each([
    ["element widths", {}, { config: { dtype: "f32" } }, "elementBits"],
    ["outer dimensions", {}, { config: { outerDim: 1 } }, "outerDim"],
    ["head counts", {}, { config: { numHeads: 4 } }, "numHeads"],
    ["head sizes", {}, { config: { headDim: 8 } }, "headDim"],
    ["layer counts", {}, { config: { numLayers: 3 } }, "numLayers"],
    ["fingerprints", { fingerprint: "a" }, { fingerprint: "b" }, "fingerprint"],
    [
      "layers of the model",
      {},
      { config: { numLayers: 2, layerWindow: { start: 0, total: 6 } } },
      "layerWindow.total",
    ],
    ["layers past the model's end", {}, { config: { numLayers: 2, layers: [1, 9] } }, "layers"],
  ] as const)("%s", (_, source, destination, field) => {
    const { world, request } = pairOf(source, destination);
    const error = world.refusal("INCOMPATIBLE_LAYOUTS", request);
    expect(error.details["field"]).toBe(field);
  });

  test("windows that do not meet", () => {
    const heads = pairOf(
      { config: { numHeads: 1, headWindow: { start: 0, total: 2 } } },
      { config: { numHeads: 1, headWindow: { start: 1, total: 2 } } },
    );
    expect(heads.world.refusal("INCOMPATIBLE_LAYOUTS", heads.request).details).toMatchObject({
      field: "headWindow",
      source: [0, 1],
      destination: [1, 2],
    });
    const layers = pairOf(
      { config: { numLayers: 2, layerWindow: { start: 0, total: 4 } } },
      { config: { numLayers: 2, layerWindow: { start: 2, total: 4 } } },
    );
    expect(layers.world.refusal("INCOMPATIBLE_LAYOUTS", layers.request).details).toMatchObject({
      field: "layers",
      source: [0, 1],
      destination: [2, 3],
    });
  });

  test("a side without heads fits a side whose heads lie side by side, and no other", () => {
    const flat = { config: { numHeads: undefined, headDim: undefined, innerDim: 8 } as never };
    const fits = pairOf(flat, {});
    expect(fits.world.plan(fits.request).bytes).toBe(1024);
    const apart = pairOf(flat, { order: "hnd" });
    expect(apart.world.refusal("INCOMPATIBLE_LAYOUTS", apart.request).details).toMatchObject({
      field: "innerDim",
      side: "destination",
    });
    const shard = pairOf({ config: { headWindow: { start: 0, total: 4 } } }, flat);
    expect(shard.world.refusal("INCOMPATIBLE_LAYOUTS", shard.request).details).toMatchObject({
      side: "source",
    });
    const other = pairOf({ config: { numHeads: undefined, headDim: undefined, innerDim: 9 } as never }, {});
    other.world.refusal("INCOMPATIBLE_LAYOUTS", other.request);
  });

  test("whole blocks of different shape", () => {
    const { world, request } = pairOf({ wholeBlocks: true }, { config: { pageSize: 8 } });
    expect(world.refusal("INCOMPATIBLE_LAYOUTS", request).details["field"]).toBe("pageSize");
  });

  test("no component of one name, and components that a side lacks", () => {
    const { world, request } = pairOf({ components: { a: {} } }, { components: { b: {} } });
    expect(world.refusal("INCOMPATIBLE_LAYOUTS", request).details).toMatchObject({
      source: ["a"],
      destination: ["b"],
    });
    world.refusal("INCOMPATIBLE_LAYOUTS", { ...request, components: [] });
    const error = world.refusal("INCOMPATIBLE_LAYOUTS", { ...request, components: ["b"] });
    expect(error.details).toMatchObject({ component: "b", side: "source" });
    expect(world.refusal("INCOMPATIBLE_LAYOUTS", { ...request, components: ["a"] }).details["side"]).toBe(
      "destination",
    );
  });

  test("one side without a fingerprint, or other element types of one width, is a warning", () => {
    const { world, request } = pairOf({ fingerprint: "a", config: { dtype: "f16" } }, {});
    const plan = world.plan(request);
    expect(plan.warnings[0]).toContain("Only the source has a fingerprint");
    expect(plan.warnings[1]).toContain("f16 at the source and bf16 at the destination");
    const other = pairOf({}, { fingerprint: "a" });
    expect(other.world.plan(other.request).warnings[0]).toContain("Only the destination");
  });
});

describe("ranges that would half fill a destination in silence are refused", () => {
  test.each([
    [{ start: 2, end: 2 }],
    [{ start: 3, end: 1 }],
    [{ start: 0, end: 5 }],
    [{ start: -1, end: 2 }],
    [{ start: 0.5, end: 2 }],
    [{ start: 0, end: Number.NaN }],
    [null as unknown as { start: number; end: number }],
  ])("layers %p", (layers) => {
    const { world, request } = pairOf();
    expect(world.refusal("LAYER_RANGE", { ...request, layers }).details["limit"]).toBe(4);
  });

  test("layers that only one side holds", () => {
    const { world, request } = pairOf({ config: { numLayers: 2, layerWindow: { start: 0, total: 4 } } });
    world.refusal("LAYER_RANGE", { ...request, layers: { start: 2, end: 4 } });
    world.refusal("PARTIAL", { ...request, layers: { start: 1, end: 3 } });
    expect(world.plan({ ...request, layers: { start: 0, end: 2 } })).toMatchObject({
      bytes: 512,
      coverage: 1,
    });
  });

  test.each([[{ every: 0 }], [{ every: 1.5 }], [{ every: -1 }], [null as unknown as { every: number }]])(
    "layer steps %p",
    (layerwise) => {
      const { world, request } = pairOf();
      world.refusal("LAYER_RANGE", { ...request, layerwise });
    },
  );

  test.each([
    [{ sourceStart: -1, destinationStart: 0, count: 1 }],
    [{ sourceStart: 0, destinationStart: 0.5, count: 1 }],
    [{ sourceStart: 0, destinationStart: 0, count: Number.NaN }],
    [{ sourceStart: 7, destinationStart: 0, count: 2 }],
    [{ sourceStart: 0, destinationStart: 8, count: 1 }],
    [null as unknown as { sourceStart: number; destinationStart: number; count: number }],
  ])("tokens %p", (tokens) => {
    const { world, request } = pairOf();
    world.refusal("LENGTH_MISMATCH", { ...request, tokens });
  });

  test("coverage below 1 needs partial, and is told with the components that fall short", () => {
    const { world, request } = pairOf({ config: { numHeads: 1, headWindow: { start: 0, total: 2 } } });
    const error = world.refusal("PARTIAL", request);
    expect(error.details).toMatchObject({
      coverage: 0.5,
      components: [{ name: "kv", coverage: 0.5 }],
      missing: 0,
    });
    const plan = world.plan({ ...request, partial: true });
    expect(plan).toMatchObject({ coverage: 0.5, bytes: 512 });
    expect(plan.warnings.at(-1)).toContain("50.0 %");
  });

  test("a component that the source lacks counts, unless it was not asked for", () => {
    const { world, request } = pairOf(
      {},
      { components: { kv: {}, scales: { config: { numHeads: 6 }, group: "s" } } },
    );
    expect(world.refusal("PARTIAL", request).details).toMatchObject({ coverage: 0.25, missing: 1 });
    expect(world.plan({ ...request, components: ["kv"] })).toMatchObject({ coverage: 1, bytes: 1024 });
    const lists = { default: [3, 4], s: [1] };
    // 2 blocks of 512 bytes moved; 1 block of 1,536 bytes asked for and missing.
    expect(world.plan({ ...request, partial: true, destinationBlocks: lists }).coverage).toBe(
      1024 / (1024 + 1536),
    );
    expect(world.plan({ ...request, partial: true, destinationBlocks: { default: [3, 4] } }).coverage).toBe(
      1,
    );
    const nothing = { ...request, partial: true, sourceBlocks: [], destinationBlocks: [] };
    expect(world.plan(nothing).coverage).toBe(0.25);
  });

  test("a component without any of the asked layers takes no part", () => {
    const early = { config: { numLayers: 1, layers: [0] } };
    const { world, request } = pairOf({ components: { kv: {}, early } }, { components: { kv: {}, early } });
    expect(world.plan(request).bytes).toBe(2 * (512 + 128));
    const late = world.plan({ ...request, layers: { start: 1, end: 3 } });
    expect(late).toMatchObject({ bytes: 512, coverage: 1 });
  });
});

describe("block-id spaces are never mixed up", () => {
  const bundle = { components: { kv: { group: "a" }, state: { group: "b", wholeBlocks: true } } };

  test("each space has its own list, checked on its own", () => {
    const { world, request } = pairOf(bundle, bundle);
    const lists = {
      ...request,
      sourceBlocks: { a: [1, 2, 3], b: [7] },
      destinationBlocks: { a: [4, 5, 6], b: [0] },
    };
    expect(world.plan(lists).bytes).toBe(4 * 512);
    const error = world.refusal("DUPLICATE_BLOCK", { ...lists, destinationBlocks: { a: [4, 5, 4], b: [0] } });
    expect(error.details["group"]).toBe("a");
    world.refusal("LENGTH_MISMATCH", { ...lists, destinationBlocks: { a: [4, 5, 6], b: [0, 1] } });
  });

  test("one list for two spaces, a space without a list, a list without a space", () => {
    const { world, request } = pairOf(bundle, bundle);
    expect(world.refusal("LENGTH_MISMATCH", request).details["groups"]).toEqual(["a", "b"]);
    const lists = { ...request, destinationBlocks: { a: [4], b: [0] } };
    expect(world.refusal("LENGTH_MISMATCH", { ...lists, sourceBlocks: { a: [1] } }).details["group"]).toBe(
      "b",
    );
    const odd = { ...lists, sourceBlocks: { a: [1], b: [1], c: [1] } };
    expect(world.refusal("LENGTH_MISMATCH", odd).details["group"]).toBe("c");
  });

  test("a plain list serves the one space that is needed", () => {
    const { world, request } = pairOf(bundle, bundle);
    expect(world.plan({ ...request, components: ["kv"] }).bytes).toBe(1024);
  });

  test("whole blocks keep to their own lists when tokens move", () => {
    const { world, request } = pairOf(bundle, bundle);
    const tokens = { sourceStart: 1, destinationStart: 2, count: 3 };
    const lists = {
      ...request,
      tokens,
      sourceBlocks: { a: [1], b: [7] },
      destinationBlocks: { a: [4, 5], b: [0] },
    };
    expect(world.plan(lists)).toMatchObject({ bytes: 3 * 128 + 512, coverage: 1 });
  });

  test("a space is as long as its shortest component", () => {
    const short = { components: { kv: {}, idx: { config: { numBlocks: 4 } } } };
    const { world, request } = pairOf(short, short);
    expect(world.refusal("BLOCK_OUT_OF_RANGE", request).details).toMatchObject({
      side: "destination",
      limit: 4,
    });
  });
});

describe("who may be touched, and how", () => {
  test("a peer's layout that is shared for reading is no destination", () => {
    const { world, request } = pairOf({}, { owner: 2n, reach: "nixl", access: "read" });
    expect(world.refusal("ACCESS", request, HOST_AND_NIXL).details).toMatchObject({
      worker: "2",
      access: "read",
    });
    const pull = { ...request, source: request.destination, destination: request.source };
    expect(world.plan(pull, HOST_AND_NIXL).legs[0]?.hops[0]).toMatchObject({
      executor: "nixl",
      op: "read",
      agent: "peer",
    });
  });

  test("handles that name nothing", () => {
    const { world, request } = pairOf();
    world.refusal("UNKNOWN_HANDLE", { ...request, source: 99n as never });
    world.refusal("UNKNOWN_HANDLE", {
      ...request,
      destination: (request.destination + (5n << 64n)) as never,
    });
  });
});

test("a prepared pair plans as the planner does, list after list", () => {
  const { world, request } = pairOf({ arrangement: "layer-separate/block-second" }, {});
  const prepared = preparePair(world.snapshot, request, defaultProfile, HOST);
  for (const lists of [
    [
      [1, 2],
      [3, 4],
    ],
    [[7], [0]],
    [
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ],
    [[], []],
  ] as const) {
    const [sourceBlocks, destinationBlocks] = lists;
    const plan = planPrepared(prepared, sourceBlocks, destinationBlocks);
    expect(plan).toEqual(world.plan({ ...request, sourceBlocks, destinationBlocks }));
  }
  expect(() => planPrepared(prepared, [1], [8])).toThrow("outside 0 to 7");
});

test("plans of one destination are never taken from another source, profile or environment", () => {
  const world = new World();
  const first = world.add();
  const second = world.add({ order: "hnd" });
  const to = world.add({ arrangement: "layer-separate/block-first" });
  const lists = { destination: to.handle, sourceBlocks: [1], destinationBlocks: [2] };
  const base = (source: typeof first): number | undefined =>
    world.plan({ ...lists, source: source.handle }).legs[0]?.hops[0]?.programs[0]?.srcBase[0];
  for (const source of [first, second, first, second])
    expect(base(source)).toBe(source.components[0]?.regionAddresses[0] ?? 0);
  expect(() => world.plan({ ...lists, source: first.handle }, { executors: [] })).toThrow("host executor");
  const slow = { ...defaultProfile, host: { ...defaultProfile.host, inlineLimitMicros: 0 } };
  const request = { ...lists, source: first.handle };
  expect(world.plan(request).legs[0]?.hops[0]?.inline).toBe(true);
  expect(planTransfer(world.snapshot, request, slow, HOST).legs[0]?.hops[0]?.inline).toBe(false);
});
