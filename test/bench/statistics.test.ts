import { describe, expect, test } from "bun:test";
import { alternate } from "../../bench/processes.ts";
import { summarize } from "../../bench/result.ts";
import { bootstrapRatio, median, quantile, seededRandom } from "../../bench/statistics.ts";

describe("statistics", () => {
  test("medians and quantiles by definition", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(quantile([10, 20, 30, 40, 50], 0.25)).toBe(20);
    expect(quantile([1, 2], 1)).toBe(2);
    expect(median([])).toBeNaN();
  });

  test("equal contenders have the ratio 1 inside their interval, a slower one has not", () => {
    const random = seededRandom(9);
    const noisy = (level: number): number[] =>
      Array.from({ length: 20 }, () => level * (0.9 + 0.2 * random()));
    const equal = bootstrapRatio(Array.from({ length: 5 }, () => ({ ours: noisy(10), other: noisy(10) })));
    expect(equal.interval[0]).toBeLessThan(1);
    expect(equal.interval[1]).toBeGreaterThan(1);
    const slower = bootstrapRatio(Array.from({ length: 5 }, () => ({ ours: noisy(8), other: noisy(10) })));
    expect(slower.ratio).toBeCloseTo(0.8, 1);
    expect(slower.interval[1]).toBeLessThan(1);
  });

  test("one process that differs widens the interval: processes are drawn, not only samples", () => {
    const flat = (ratio: number): { ours: number[]; other: number[] } => ({
      ours: Array(20).fill(ratio),
      other: Array(20).fill(1),
    });
    const { interval } = bootstrapRatio([flat(1), flat(1), flat(2), flat(2), flat(2)]);
    expect(interval).toEqual([1, 2]);
  });

  test("the same samples and seed give the same interval", () => {
    const sets = [{ ours: [1, 2, 3, 4], other: [2, 2, 2, 2] }];
    expect(bootstrapRatio(sets, 4)).toEqual(bootstrapRatio(sets, 4));
  });

  test("lists that do not pair are refused", () => {
    expect(() => bootstrapRatio([{ ours: [1, 2], other: [1] }])).toThrow(RangeError);
    expect(() => bootstrapRatio([])).toThrow(RangeError);
  });
});

describe("rows of a report", () => {
  test("more is better in both directions, and a goal is judged by the median", () => {
    const sets = [{ ours: [10, 10, 10], limit: [20, 20, 20], plain: [5, 5, 5] }];
    const goal = { figure: "ratioToLimit", value: 0.4 } as const;
    const rate = summarize({ id: "r", unit: "GB/s", direction: "rate", goal }, sets);
    expect(rate).toMatchObject({
      ours: 10,
      limit: 20,
      ratioToLimit: 0.5,
      ratioToPeer: 2,
      peers: { plain: 5 },
      met: true,
      samples: 3,
    });
    const time = summarize({ id: "t", unit: "ms", direction: "time", goal: { ...goal, value: 2.1 } }, sets);
    expect(time).toMatchObject({ ratioToLimit: 2, ratioToPeer: 0.5, met: false });
    const absolute = summarize(
      { id: "a", unit: "ms", direction: "time", goal: { figure: "ours", value: 9 } },
      [{ ours: [10] }],
    );
    expect(absolute).toMatchObject({ ours: 10, met: false, goal: "<= 9" });
  });

  test("contenders take turns, and another begins each round", async () => {
    const order: string[] = [];
    const one = (name: string) => () => order.push(name);
    const taken = await alternate({ a: one("a"), b: one("b"), c: one("c") }, 4, 2);
    expect(order).toHaveLength(18);
    expect(taken["a"]).toHaveLength(4);
    const begins = order.filter((_, index) => index % 3 === 0);
    expect(new Set(begins)).toEqual(new Set(["a", "b", "c"]));
    for (let round = 0; round < 6; round += 1)
      expect(order.slice(round * 3, round * 3 + 3).toSorted()).toEqual(["a", "b", "c"]);
  });
});
