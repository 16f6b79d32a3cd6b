import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { LayoutConfig } from "../../lib/core/index.ts";
import { configOf, DTYPE_BITS, dtypeBits, isDTypeName, resolveConfig } from "../../lib/core/index.ts";
import { refusalOf, SMALL } from "./builders.ts";

const resolve = (config: unknown): ReturnType<typeof resolveConfig> =>
  resolveConfig(config as LayoutConfig, "register");
const refuse = (config: unknown): { field: unknown; message: string } => {
  const error = refusalOf("INVALID_CONFIG", () => resolve(config));
  return { field: error.details["field"], message: error.message };
};

describe("sizes", () => {
  test("every size follows from the axes and the element width", () => {
    const config = resolve(SMALL);
    expect(config.headBytes).toBe(16);
    expect(config.tokenBytes).toBe(32);
    expect(config.cellBytes).toBe(128);
    expect(config.blockBytes).toBe(512);
    expect(config.totalBytes).toBe(1536);
    expect(config.innerDim).toBe(16);
  });

  test("the defaults are two-byte elements and no alignment", () => {
    const config = resolve({ numBlocks: 10, numLayers: 4, outerDim: 2, pageSize: 16, innerDim: 128 });
    expect(config.elementBits).toBe(16);
    expect(config.alignment).toBe(1);
    expect(config.dtype).toBeNull();
    expect(config.headsKnown).toBe(false);
    expect(config.numHeads).toBe(1);
    expect(config.totalBytes).toBe(10 * 4 * 2 * 16 * 128 * 2);
  });

  test("sub-byte elements count whole bytes for each head or are refused", () => {
    expect(resolve({ ...SMALL, dtype: "fp4" }).headBytes).toBe(4);
    expect(resolve({ ...SMALL, dtype: "fp6" }).headBytes).toBe(6);
    expect(refuse({ ...SMALL, headDim: 7, dtype: "fp4" }).field).toBe("headDim");
    expect(
      refuse({ ...SMALL, numHeads: undefined, headDim: undefined, innerDim: 3, dtypeBits: 6 }).field,
    ).toBe("innerDim");
  });

  test("a product past 2^53 is refused, one just below is not", () => {
    const huge = {
      numBlocks: 2 ** 20,
      numLayers: 64,
      outerDim: 2,
      pageSize: 2 ** 10,
      innerDim: 2 ** 14,
      dtypeWidthBytes: 1,
    };
    expect(resolve(huge).totalBytes).toBe(2 ** 51);
    expect(refuse({ ...huge, numBlocks: 2 ** 22 }).message).toContain("2^53");
    expect(refuse({ ...huge, numBlocks: 2 ** 32 - 1, pageSize: 2 ** 32 - 1 }).message).toContain("2^53");
  });

  test("any sizes multiply as their definition says", () => {
    const size = fc.integer({ min: 1, max: 64 });
    fc.assert(
      fc.property(
        size,
        size,
        fc.constantFrom(1, 2),
        size,
        size,
        size,
        fc.constantFrom(1, 2, 4, 8),
        (b, l, o, p, h, d, w) => {
          const config = resolve({
            numBlocks: b,
            numLayers: l,
            outerDim: o,
            pageSize: p,
            numHeads: h,
            headDim: d,
            dtypeWidthBytes: w,
          });
          expect(config.totalBytes).toBe(b * l * o * p * h * d * w);
          expect(config.blockBytes).toBe(l * o * p * h * d * w);
          expect(resolve(configOf(config))).toEqual(config);
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe("fields", () => {
  test("an unknown field is refused by its name, also where the rest is known already", () => {
    resolve(SMALL);
    expect(refuse({ ...SMALL, numBlock: 3 }).field).toBe("numBlock");
    resolve({ ...SMALL, headWindow: { start: 0, total: 4 } });
    expect(refuse({ ...SMALL, headWindow: { start: 0, total: 4, end: 2 } }).field).toBe("end");
    expect(refuse({ ...SMALL, layerWindow: { begin: 0, total: 4 } }).field).toBe("begin");
  });

  test.each(["numBlocks", "numLayers", "outerDim", "pageSize", "numHeads", "headDim"])(
    "%s must be a whole number from 1 up",
    (field) => {
      for (const value of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, "3", 3n, null])
        expect(refuse({ ...SMALL, [field]: value }).field).toBe(field);
      const { [field as "numBlocks"]: _, ...rest } = SMALL;
      expect(refuse(rest).message).toContain(field);
    },
  );

  test("outerDim is 1 or 2, block ids have 32 bits, layers end at 65,536", () => {
    expect(refuse({ ...SMALL, outerDim: 3 }).field).toBe("outerDim");
    expect(refuse({ ...SMALL, numBlocks: 2 ** 32 }).field).toBe("numBlocks");
    expect(refuse({ ...SMALL, numLayers: 65_537 }).field).toBe("numLayers");
  });

  test("innerDim excludes heads, and one of the two is needed", () => {
    expect(refuse({ ...SMALL, innerDim: 16 }).field).toBe("innerDim");
    expect(refuse({ ...SMALL, numHeads: undefined, headDim: undefined }).field).toBe("innerDim");
    expect(refuse({ ...SMALL, headDim: undefined }).field).toBe("headDim");
    expect(refuse({ ...SMALL, numHeads: undefined }).field).toBe("numHeads");
  });

  test("no object at all is refused", () => {
    for (const value of [null, undefined, 3, "config"]) expect(refuse(value).field).toBe("config");
  });

  test("alignment must be a power of two", () => {
    for (const alignment of [1, 2, 4096, 2 ** 40])
      expect(resolve({ ...SMALL, alignment }).alignment).toBe(alignment);
    for (const alignment of [0, 3, 4095, 2 ** 40 + 1, -2])
      expect(refuse({ ...SMALL, alignment }).field).toBe("alignment");
  });
});

describe("element width", () => {
  test("every named type has its bits", () => {
    for (const [name, bits] of Object.entries(DTYPE_BITS)) {
      expect(isDTypeName(name)).toBe(true);
      expect(dtypeBits(name as "f16")).toBe(bits);
      expect(resolve({ ...SMALL, dtype: name }).elementBits).toBe(bits);
    }
    expect(isDTypeName("toString")).toBe(false);
  });

  test("widths that contradict each other are refused", () => {
    expect(resolve({ ...SMALL, dtype: "bf16", dtypeBits: 16, dtypeWidthBytes: 2 }).elementBits).toBe(16);
    expect(refuse({ ...SMALL, dtype: "bf16", dtypeBits: 8 }).field).toBe("dtypeBits");
    expect(refuse({ ...SMALL, dtype: "fp8", dtypeWidthBytes: 2 }).field).toBe("dtypeWidthBytes");
    expect(refuse({ ...SMALL, dtypeBits: 4, dtypeWidthBytes: 1 }).field).toBe("dtypeWidthBytes");
    expect(refuse({ ...SMALL, dtypeWidthBytes: 3 }).field).toBe("dtypeWidthBytes");
    expect(refuse({ ...SMALL, dtypeWidthBytes: 16 }).field).toBe("dtypeWidthBytes");
    expect(refuse({ ...SMALL, dtype: "float16" }).field).toBe("dtype");
    expect(refuse({ ...SMALL, dtypeBits: 65 }).field).toBe("dtypeBits");
  });
});

describe("shards", () => {
  test("a head window must end inside its total and needs heads", () => {
    expect(resolve({ ...SMALL, headWindow: { start: 6, total: 8 } }).headWindow).toEqual({
      start: 6,
      total: 8,
    });
    expect(refuse({ ...SMALL, headWindow: { start: 7, total: 8 } }).field).toBe("headWindow");
    expect(refuse({ ...SMALL, headWindow: { start: -1, total: 8 } }).field).toBe("headWindow.start");
    expect(refuse({ ...SMALL, headWindow: [0, 8] }).field).toBe("0");
    expect(refuse({ ...SMALL, headWindow: 3 }).field).toBe("headWindow");
    const { numHeads: _, headDim: __, ...rest } = SMALL;
    expect(refuse({ ...rest, innerDim: 16, headWindow: { start: 0, total: 8 } }).field).toBe("headWindow");
  });

  test("a layer window becomes the list of its model layers", () => {
    const config = resolve({ ...SMALL, layerWindow: { start: 30, total: 32 } });
    expect(config.modelLayers).toEqual([30, 31]);
    expect(config.modelLayerTotal).toBe(32);
    expect(resolve(configOf(config))).toEqual(config);
    expect(refuse({ ...SMALL, layerWindow: { start: 31, total: 32 } }).field).toBe("layerWindow");
    expect(refuse({ ...SMALL, layerWindow: { start: 0, total: 32 }, layers: [0, 1] }).field).toBe("layers");
  });

  test("a list of layers must be as long as numLayers, without repeats or negatives", () => {
    const config = resolve({ ...SMALL, layers: [9, 3] });
    expect(config.modelLayers).toEqual([9, 3]);
    expect(config.modelLayerTotal).toBeNull();
    expect(resolve(configOf(config))).toEqual(config);
    expect(resolve({ ...SMALL, layers: [9, 4] }).modelLayers).toEqual([9, 4]);
    expect(refuse({ ...SMALL, layers: [1, 2, 3] }).field).toBe("layers");
    expect(refuse({ ...SMALL, layers: [4, 4] }).field).toBe("layers");
    expect(refuse({ ...SMALL, layers: [4, -1] }).field).toBe("layers[1]");
    expect(refuse({ ...SMALL, layers: "01" }).field).toBe("layers");
  });
});

describe("memoising", () => {
  test("changing the caller's object afterwards changes nothing that was resolved", () => {
    const layers = [4, 5];
    const headWindow = { start: 2, total: 8 };
    const config = { ...SMALL, layers, headWindow };
    const before = resolve(config);
    layers[1] = 7;
    headWindow.start = 4;
    expect(before.modelLayers).toEqual([4, 5]);
    expect(before.headWindow).toEqual({ start: 2, total: 8 });
    const after = resolve(config);
    expect(after.modelLayers).toEqual([4, 7]);
    expect(after.headWindow).toEqual({ start: 4, total: 8 });
  });

  test("configs that say the same share one frozen object; others do not", () => {
    const first = resolve({ ...SMALL });
    expect(resolve({ ...SMALL })).toBe(first);
    expect(Object.isFrozen(first)).toBe(true);
    expect(resolve({ ...SMALL, dtype: "bf16" })).not.toBe(first);
    expect(resolve({ ...SMALL, alignment: 64 }).alignment).toBe(64);
  });

  test("an invalid config stays invalid however often it is given", () => {
    for (let round = 0; round < 3; round++) expect(refuse({ ...SMALL, pageSize: 0 }).field).toBe("pageSize");
  });
});
