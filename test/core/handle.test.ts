import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  checkedInteger,
  checkedProduct,
  checkedSum,
  formatHandle,
  greatestCommonDivisor,
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  isKvferryError,
  KvferryError,
  makeHandle,
  MAX_GENERATION,
} from "../../lib/core/index.ts";
import { refusalOf } from "./builders.ts";

describe("handles", () => {
  test("worker id, layout id and generation come back from any handle, at Dynamo's bits", () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        fc.nat(0xffff),
        fc.integer({ min: 0, max: MAX_GENERATION }),
        (worker, id, generation) => {
          const handle = makeHandle(worker, id, generation);
          expect(handleWorkerId(handle)).toBe(worker);
          expect(handleLayoutId(handle)).toBe(id);
          expect(handleGeneration(handle)).toBe(generation);
          expect(handle as bigint).toBe(worker + (BigInt(id) << 64n) + (BigInt(generation) << 80n));
        },
      ),
      { numRuns: 500 },
    );
    expect(handleWorkerId(makeHandle(0x123456789abcdef0n, 0x4242))).toBe(0x123456789abcdef0n);
    expect(handleLayoutId(makeHandle(0x123456789abcdef0n, 0x4242))).toBe(0x4242);
  });

  test("parts that do not fit are refused, not folded", () => {
    const field = (run: () => unknown): unknown => refusalOf("INVALID_CONFIG", run).details["field"];
    expect(field(() => makeHandle(-1n, 0))).toBe("workerId");
    expect(field(() => makeHandle(2n ** 64n, 0))).toBe("workerId");
    expect(field(() => makeHandle(1n, 65_536))).toBe("layoutId");
    expect(field(() => makeHandle(1n, 0.5))).toBe("layoutId");
    expect(field(() => makeHandle(1n, 0, MAX_GENERATION + 1))).toBe("generation");
  });

  test("the text form has both decimal numbers, and the generation only where there is one", () => {
    expect(formatHandle(makeHandle(42n, 100))).toBe("LayoutHandle(worker=42, layout=100)");
    expect(formatHandle(makeHandle(42n, 100, 7))).toBe("LayoutHandle(worker=42, layout=100, generation=7)");
  });
});

describe("checked integers", () => {
  test("products and sums past 2^53 are refused, exact ones kept", () => {
    expect(checkedProduct("op", "x", 2 ** 26, 2 ** 26)).toBe(2 ** 52);
    refusalOf("INVALID_CONFIG", () => checkedProduct("op", "x", 2 ** 27, 2 ** 26));
    expect(checkedSum("op", "x", 2 ** 52, 2 ** 52 - 1)).toBe(2 ** 53 - 1);
    refusalOf("INVALID_CONFIG", () => checkedSum("op", "x", 2 ** 52, 2 ** 52));
  });

  test("a refusal tells what was found, bigints included", () => {
    expect(checkedInteger(5, "f", 0, 5, "op")).toBe(5);
    expect(refusalOf("INVALID_CONFIG", () => checkedInteger(5n, "f", 0, 9, "op")).details).toMatchObject({
      field: "f",
      found: "5",
    });
    expect(refusalOf("INVALID_CONFIG", () => checkedInteger("5", "f", 0, 9, "op")).message).toContain('"5"');
  });

  test("the greatest common divisor divides both, and nothing larger does", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 500 }), fc.integer({ min: 1, max: 500 }), (left, right) => {
        let expected = 1;
        for (let candidate = 1; candidate <= Math.min(left, right); candidate++)
          if (left % candidate === 0 && right % candidate === 0) expected = candidate;
        expect(greatestCommonDivisor(left, right)).toBe(expected);
      }),
    );
  });
});

test("an error has a code that is told by its word, facts and cause", () => {
  const cause = new Error("inner");
  const error = new KvferryError("NO_ROUTE", "transfer", "text", "remedy", { a: 1 }, cause);
  expect(error.code).toBe("ERR_KVF_NO_ROUTE");
  expect(error.cause).toBe(cause);
  expect(isKvferryError(error)).toBe(true);
  expect(isKvferryError(error, "NO_ROUTE")).toBe(true);
  expect(isKvferryError(error, "PARTIAL")).toBe(false);
  expect(isKvferryError(cause)).toBe(false);
});
