// What an operand of the staged bench asks for is what both ends are opened with, or it is refused.
import { expect, test } from "bun:test";
import { optionsOf, variantOf } from "../../bench/staged-variant.ts";

const MIB = 2 ** 20;

test.each([
  ["8", 8, 64, null],
  ["8x128", 8, 128, null],
  ["4@3", 4, 64, 3],
  ["16x256@4", 16, 256, 4],
] as const)("%s names chunk, pool and workers, and the options say so", (operand, chunk, pool, workers) => {
  const variant = variantOf(operand);
  expect(variant).toEqual({ name: operand, chunk, pool, workers });
  expect(optionsOf(variant)).toEqual({
    staging: { sendBytes: pool * MIB, receiveBytes: pool * MIB, chunkBytes: chunk * MIB },
    ...(workers === null ? {} : { nixl: { backends: { UCX: { num_workers: String(workers) } } } }),
  });
});

test.each(["", "0", "8x4", "8x", "x8", "8@0", "8@", "8 x 128", "-8", "8.5", "8x64x2"])(
  "%p is refused instead of measured as something else",
  (operand) => {
    expect(() => variantOf(operand)).toThrow("is no variant");
  },
);
