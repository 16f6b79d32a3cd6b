import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { StridedSet } from "../../lib/core/index.ts";
import { stridedSetOverlapsItself, stridedSetsOverlap } from "../../lib/core/index.ts";

/** Every row start of a set. */
function starts(set: StridedSet): number[] {
  let offsets = [set.base];
  for (const { size, stride } of set.axes)
    offsets = offsets.flatMap((offset) =>
      Array.from({ length: size }, (_, index) => offset + index * stride),
    );
  return offsets;
}

/** Every byte of a set, once for each row that has it. */
function bytes(set: StridedSet): number[] {
  return starts(set).flatMap((start) => Array.from({ length: set.rowBytes }, (_, byte) => start + byte));
}

const axis = fc.record({ size: fc.integer({ min: 1, max: 4 }), stride: fc.integer({ min: 0, max: 40 }) });
const anySet: fc.Arbitrary<StridedSet> = fc.record({
  base: fc.integer({ min: 0, max: 120 }),
  rowBytes: fc.integer({ min: 1, max: 6 }),
  axes: fc.array(axis, { maxLength: 4 }),
});

describe("the decision is the definition's", () => {
  test("two sets overlap exactly when they have a byte in common", () => {
    fc.assert(
      fc.property(anySet, anySet, (left, right) => {
        const mine = new Set(bytes(left));
        const verdict = stridedSetsOverlap(left, right);
        expect(verdict.decided).toBe(true);
        expect(verdict.overlaps).toBe(bytes(right).some((byte) => mine.has(byte)));
        expect(stridedSetsOverlap(right, left).overlaps).toBe(verdict.overlaps);
      }),
      { numRuns: 5000 },
    );
  });

  test("a set overlaps itself exactly when two of its cells have a byte in common", () => {
    fc.assert(
      fc.property(anySet, (set) => {
        const all = bytes(set);
        const verdict = stridedSetOverlapsItself(set);
        expect(verdict.decided).toBe(true);
        expect(verdict.overlaps).toBe(new Set(all).size !== all.length);
      }),
      { numRuns: 5000 },
    );
  });
});

describe("what engines do", () => {
  test("components that interleave in one allocation are apart, though their bounding boxes meet", () => {
    const axes = [
      { size: 1_000_000, stride: 8192 },
      { size: 16, stride: 256 },
    ];
    const left = { base: 0x1000, rowBytes: 128, axes };
    expect(stridedSetsOverlap(left, { ...left, base: 0x1000 + 128 }).overlaps).toBe(false);
    expect(stridedSetsOverlap(left, { ...left, base: 0x1000 + 127 }).overlaps).toBe(true);
    expect(stridedSetsOverlap(left, { ...left, base: 0x1000 + 16 * 256 }).overlaps).toBe(false);
  });

  test("different block strides over one allocation are told within few steps", () => {
    const left = { base: 0, rowBytes: 64, axes: [{ size: 1_000_000, stride: 4096 }] };
    const right = { base: 64, rowBytes: 64, axes: [{ size: 500_000, stride: 12_288 }] };
    expect(stridedSetsOverlap(left, right)).toMatchObject({ overlaps: false, decided: true });
    expect(stridedSetsOverlap(left, { ...right, base: 4096 * 7 - 63 })).toMatchObject({
      overlaps: true,
      decided: true,
    });
  });

  test("boxes that only touch are apart", () => {
    const left = { base: 0, rowBytes: 16, axes: [] };
    expect(stridedSetsOverlap(left, { ...left, base: 16 }).overlaps).toBe(false);
    expect(stridedSetsOverlap({ ...left, base: 16 }, left).overlaps).toBe(false);
    expect(stridedSetsOverlap(left, { ...left, base: 15 }).overlaps).toBe(true);
  });
});

describe("when it cannot be told", () => {
  // Strides without common divisors, each with two values: a subset sum that has to be searched.
  const axes = [100_003, 99_991, 99_989, 99_971, 99_961, 99_929, 99_923, 99_907, 99_901, 99_881].map(
    (stride) => ({
      size: 3,
      stride: stride * 7919 + 1,
    }),
  );
  const set = { base: 0, rowBytes: 1, axes };

  test("a spent budget counts as overlapping, and says so", () => {
    const verdict = stridedSetsOverlap(set, { ...set, base: 1_234_567_890 }, 50);
    expect(verdict.overlaps).toBe(true);
    expect(verdict.decided).toBe(false);
    expect(verdict.reason).toContain("not decided");
    expect(stridedSetOverlapsItself(set, 10)).toMatchObject({ overlaps: true, decided: false });
  });

  test("sums that a number cannot hold count as overlapping", () => {
    const wide = {
      base: 0,
      rowBytes: 8,
      axes: [
        { size: 3, stride: 2 ** 51 + 8 },
        { size: 3, stride: 2 ** 51 },
      ],
    };
    expect(stridedSetsOverlap(wide, { ...wide, base: 4 })).toMatchObject({
      overlaps: true,
      decided: false,
      steps: 0,
    });
  });
});
