import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { StridedView, TensorAxis, TensorDescription } from "../../lib/core/index.ts";
import { arrangementView, layoutFromTensor, resolveConfig } from "../../lib/core/index.ts";
import { refusalOf } from "./builders.ts";

/** vLLM's classic K/V tensor of one layer: [K/V, blocks, tokens, heads, elements]. */
const CLASSIC: TensorDescription = {
  shape: [2, 100, 16, 8, 128],
  axes: ["outer", "block", "page", "head", "element"],
  dtype: "torch.bfloat16",
  regions: "per-layer",
  numLayers: 4,
};

function viewOf(tensor: TensorDescription): StridedView {
  const { config, arrangement } = layoutFromTensor(tensor);
  return arrangementView(resolveConfig(config, "register"), arrangement);
}

function axisOf(tensor: unknown): unknown {
  return refusalOf("INVALID_CONFIG", () => layoutFromTensor(tensor as TensorDescription)).details["axis"];
}

describe("tensors that engines print", () => {
  test("a dense K/V tensor for each layer is layer-separate/block-second", () => {
    const { config } = layoutFromTensor(CLASSIC);
    expect(config).toMatchObject({
      numBlocks: 100,
      numLayers: 4,
      outerDim: 2,
      pageSize: 16,
      numHeads: 8,
      headDim: 128,
      dtype: "bf16",
    });
    expect(viewOf(CLASSIC)).toEqual(
      arrangementView(resolveConfig(config, "register"), "layer-separate/block-second"),
    );
  });

  test("PyTorch's printed shape and strides are read as they are", () => {
    const printed = {
      ...CLASSIC,
      shape: "torch.Size([2, 100, 16, 8, 128])",
      strides: "(1638400, 16384, 1024, 128, 1)",
    };
    expect(layoutFromTensor(printed)).toEqual(
      layoutFromTensor({ ...CLASSIC, strides: [1_638_400, 16_384, 1024, 128, 1] }),
    );
    expect(viewOf(printed)).toEqual(viewOf(CLASSIC));
    expect(
      layoutFromTensor({ shape: "[4, 8]", strides: "(8, 1,)", axes: ["block", "inner"], dtype: "fp8" }).config
        .numBlocks,
    ).toBe(4);
  });

  test("NumPy's strides in bytes give the same layout", () => {
    const bytes = { ...CLASSIC, strides: [3_276_800, 32_768, 2048, 256, 2], strideUnit: "bytes" as const };
    expect(viewOf(bytes)).toEqual(viewOf(CLASSIC));
  });

  test("a permuted view of a dense tensor keeps where its bytes are", () => {
    // HND in memory, printed in NHD's sequence.
    const view = viewOf({ ...CLASSIC, strides: [1_638_400, 16_384, 128, 2048, 1] });
    expect([view.stridePage, view.strideHead]).toEqual([256, 4096]);
  });

  test("keys and values side by side in the content become the outer axis", () => {
    const tensor: TensorDescription = {
      shape: [50, 3, 8, 16, 256],
      axes: ["block", "layer", "head", "page", "content"],
      dtype: "torch.float16",
    };
    const { config } = layoutFromTensor(tensor);
    expect(config).toMatchObject({ outerDim: 2, headDim: 128, numLayers: 3 });
    expect(viewOf(tensor)).toEqual(arrangementView(resolveConfig(config, "register"), "BLHNC"));
    expect(layoutFromTensor({ ...tensor, outerDim: 1 }).config).toMatchObject({ outerDim: 1, headDim: 256 });
  });

  test("MLA's latent rows, and keys and values in tensors of their own", () => {
    const latent: TensorDescription = {
      shape: [10, 64, 576],
      axes: ["block", "page", "inner"],
      dtype: "bf16",
      regions: "per-layer",
      numLayers: 2,
    };
    const { config } = layoutFromTensor(latent);
    expect(config).toMatchObject({ innerDim: 576, outerDim: 1, numLayers: 2 });
    // An axis of one has no stride to speak of.
    const { strideOuter: _, ...preset } = arrangementView(resolveConfig(config, "register"), "MLA");
    expect(viewOf(latent)).toMatchObject(preset);
    const apart = viewOf({
      shape: [10, 64, 8, 128],
      axes: ["block", "page", "head", "element"],
      dtype: "bf16",
      regions: "per-layer-and-outer",
      numLayers: 2,
    });
    expect([apart.regionCount, apart.outers]).toEqual([4, 2]);
  });

  test("DLPack's types: known ones by name, vectors by their bits, half-byte elements by whole bytes", () => {
    const make = (code: number, bits: number, lanes: number): object =>
      layoutFromTensor({ shape: [4, 8], axes: ["block", "inner"], dtype: { code, bits, lanes } }).config;
    expect(make(4, 16, 1)).toMatchObject({ dtype: "bf16" });
    expect(make(2, 32, 1)).toMatchObject({ dtype: "f32" });
    expect(make(10, 8, 1)).toMatchObject({ dtypeBits: 8 });
    expect(make(17, 4, 2)).toMatchObject({ dtypeBits: 8 });
    const fp4 = viewOf({ shape: [4, 6, 8], axes: ["block", "page", "inner"], dtype: "fp4" });
    expect([fp4.stridePage, fp4.strideBlock, fp4.rowBytes]).toEqual([4, 24, 4]);
    expect(axisOf({ shape: [4, 6, 9], axes: ["block", "page", "inner"], dtype: "fp4" })).toBe("page");
  });

  test("any permutation and padding of a tensor addresses the same bytes as its own strides", () => {
    const names: readonly TensorAxis[] = ["block", "layer", "outer", "page", "head"];
    const sizes = fc.tuple(...names.map((name) => fc.integer({ min: 1, max: name === "outer" ? 2 : 3 })));
    fc.assert(
      fc.property(
        sizes,
        fc.shuffledSubarray([0, 1, 2, 3, 4], { minLength: 5, maxLength: 5 }),
        fc.array(fc.nat(3), { minLength: 5, maxLength: 5 }),
        (size, sequence, padding) => {
          const shape = [...sequence.map((index) => size[index] ?? 1), 4];
          const strides = Array.from({ length: 6 }, () => 1);
          let elements = 4;
          for (let position = 4; position >= 0; position--) {
            elements += padding[position] ?? 0;
            strides[position] = elements;
            elements *= shape[position] ?? 1;
          }
          const axes = [...sequence.map((index) => names[index] ?? "block"), "element" as const];
          const view = viewOf({ shape, strides, axes, dtype: "f16" });
          const byAxis = {
            block: view.strideBlock,
            layer: view.strideLayer,
            outer: view.strideOuter,
            page: view.stridePage,
            head: view.strideHead,
          };
          for (const [position, axis] of axes.slice(0, 5).entries())
            if ((shape[position] ?? 1) > 1)
              expect(byAxis[axis as "block"]).toBe((strides[position] ?? 0) * 2);
          expect(view.rowBytes).toBe(8);
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe("a refusal names the axis", () => {
  const change = (more: object): unknown => ({ ...CLASSIC, ...more });

  test("missing, doubled, unknown and too many axes", () => {
    expect(axisOf({ shape: [2, 3], axes: ["page", "element"], dtype: "f16" })).toBe("block");
    expect(axisOf({ shape: [2, 3], axes: ["block", "page"], dtype: "f16" })).toBe("element");
    expect(axisOf({ shape: [2, 3, 4], axes: ["block", "block", "element"], dtype: "f16" })).toBe("block");
    expect(axisOf({ shape: [2, 3, 4], axes: ["block", "token", "element"], dtype: "f16" })).toBe("token");
    expect(axisOf({ shape: [2, 3], axes: ["block", "page", "element"], dtype: "f16" })).toBe("element");
    expect(axisOf({ shape: [2, 3, 4], axes: ["block", "element", "inner"], dtype: "f16" })).toBe("inner");
    expect(axisOf({ shape: [2, 3, 4], axes: ["block", "head", "inner"], dtype: "f16" })).toBe("head");
    expect(axisOf({ shape: [2, 3], axes: "bp", dtype: "f16" })).toBe("axes");
  });

  test("sizes and strides", () => {
    expect(axisOf(change({ shape: [2, 0, 16, 8, 128] }))).toBe("block");
    expect(axisOf(change({ shape: [3, 100, 16, 8, 128] }))).toBe("outer");
    expect(axisOf(change({ shape: [2, 100, 16, 8.5, 128] }))).toBe("head");
    expect(axisOf(change({ strides: [1_638_400, 16_384, 1024, 128, 2] }))).toBe("element");
    expect(axisOf(change({ strides: [1_638_400, 16_384, -1024, 128, 1] }))).toBe("page");
    expect(axisOf(change({ strides: [1_638_400, 0, 1024, 128, 1] }))).toBe("block");
    expect(axisOf(change({ strides: [1_638_400, 16_384, 1024, 64, 1] }))).toBe("head");
    expect(axisOf(change({ strides: [1, 2, 3] }))).toBe("head");
    expect(axisOf(change({ strides: "1;2" }))).toBe("strides");
    expect(axisOf(change({ shape: "" }))).toBe("shape");
    expect(axisOf(change({ shape: 5 }))).toBe("shape");
    expect(
      refusalOf("INVALID_CONFIG", () =>
        layoutFromTensor(change({ shape: [2, 0, 16, 8, 128] }) as TensorDescription),
      ).message,
    ).toContain("axis 1 of the tensor");
  });

  test("axes that contradict the regions or what was said beside them", () => {
    expect(
      axisOf({ shape: [2, 3, 4], axes: ["layer", "block", "inner"], dtype: "f16", regions: "per-layer" }),
    ).toBe("layer");
    expect(axisOf({ shape: [2, 3, 4], axes: ["layer", "block", "inner"], dtype: "f16", numLayers: 3 })).toBe(
      "layer",
    );
    expect(
      axisOf({
        shape: [2, 3, 4],
        axes: ["outer", "block", "inner"],
        dtype: "f16",
        regions: "per-layer-and-outer",
      }),
    ).toBe("outer");
    expect(axisOf({ shape: [2, 3, 4], axes: ["outer", "block", "content"], dtype: "f16" })).toBe("outer");
    expect(axisOf({ shape: [2, 3, 4], axes: ["outer", "block", "inner"], dtype: "f16", outerDim: 1 })).toBe(
      "outer",
    );
    expect(axisOf({ shape: [3, 4], axes: ["block", "inner"], dtype: "f16", outerDim: 2 })).toBe("outer");
    expect(axisOf({ shape: [3, 4], axes: ["block", "content"], dtype: "f16", outerDim: 3 })).toBe("outer");
    expect(axisOf({ shape: [3, 5], axes: ["block", "content"], dtype: "f16" })).toBe("content");
    expect(
      refusalOf("INVALID_CONFIG", () =>
        layoutFromTensor({ shape: [3, 4], axes: ["block", "inner"], dtype: "f16", numLayers: 2 }),
      ).details["field"],
    ).toBe("numLayers");
  });

  test("element types", () => {
    expect(axisOf(change({ dtype: "torch.complex64" }))).toBe("dtype");
    expect(axisOf(change({ dtype: null }))).toBe("dtype");
    expect(axisOf(change({ dtype: "constructor" }))).toBe("dtype");
    expect(
      refusalOf("INVALID_CONFIG", () =>
        layoutFromTensor({ ...CLASSIC, dtype: { code: 2, bits: 64, lanes: 2 } }),
      ).details["field"],
    ).toBe("dtype.bits x dtype.lanes");
  });
});
