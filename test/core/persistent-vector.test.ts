import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  emptyVector,
  type PersistentVector,
  vectorAt,
  vectorPush,
  vectorSet,
  vectorValues,
} from "../../lib/core/index.ts";

function filled(count: number): PersistentVector<number> {
  let vector = emptyVector<number>();
  for (let value = 0; value < count; value++) vector = vectorPush(vector, value);
  return vector;
}

test("pushed values are found again across every change of depth", () => {
  for (const count of [0, 1, 31, 32, 33, 1023, 1024, 1025, 1056, 1057, 32_768, 32_800, 32_801, 65_535]) {
    const vector = filled(count);
    expect(vector.size).toBe(count);
    let next = 0;
    for (const value of vectorValues(vector))
      if (value !== next++) throw new Error(`value ${value} at ${next - 1}`);
    expect(next).toBe(count);
    for (const index of [0, 31, 32, 1023, 1024, 1056, 32_767, 32_799, count - 1])
      expect(vectorAt(vector, index)).toBe(index >= 0 && index < count ? index : undefined);
  }
});

test("an index outside, negative or fractional finds nothing and sets nothing", () => {
  const vector = filled(100);
  for (const index of [-1, 100, 1.5, Number.NaN, 2 ** 32, 2 ** 32 + 1]) {
    expect(vectorAt(vector, index)).toBeUndefined();
    expect(vectorSet(vector, index, 7)).toBe(vector);
  }
});

test("a change leaves every earlier version as it was", () => {
  const command = fc.oneof(fc.record({ push: fc.nat() }), fc.record({ set: fc.nat(1200), to: fc.nat() }));
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 1100 }),
      fc.array(command, { maxLength: 60 }),
      (start, commands) => {
        const versions: [PersistentVector<number>, number[]][] = [
          [filled(start), Array.from({ length: start }, (_, index) => index)],
        ];
        for (const step of commands) {
          const [vector, model] = versions.at(-1) ?? [emptyVector<number>(), []];
          if ("push" in step) versions.push([vectorPush(vector, step.push), [...model, step.push]]);
          else
            versions.push([
              vectorSet(vector, step.set, step.to),
              step.set < model.length ? model.with(step.set, step.to) : model,
            ]);
        }
        for (const [vector, model] of versions) expect([...vectorValues(vector)]).toEqual(model);
      },
    ),
    { numRuns: 100 },
  );
});

test("two versions grown from one do not see each other", () => {
  const trunk = filled(33);
  const left = vectorPush(trunk, -1);
  const right = vectorPush(trunk, -2);
  expect(vectorAt(left, 33)).toBe(-1);
  expect(vectorAt(right, 33)).toBe(-2);
  expect(vectorAt(trunk, 33)).toBeUndefined();
});
