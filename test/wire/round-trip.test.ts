import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { decodePackage, encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import { randomOf } from "../random.ts";
import { makePackage, makeRawPackage, randomBytes } from "./generate.ts";
import { changedBytesHold, DYNAMO_FORMATS, dynamoFormatHolds, ownFormatHolds, rawFormHolds } from "./laws.ts";

const seeds: fc.Arbitrary<number> = fc.integer({ min: 0, max: 2 ** 31 - 1 });
const dynamo = fc.constantFrom(...DYNAMO_FORMATS);

describe("round trips of random values", () => {
  test("kvferry's format", () => {
    fc.assert(
      fc.property(seeds, (seed) => expect(ownFormatHolds(randomOf(seed, 0))).toBeNull()),
      { numRuns: 300 },
    );
  });

  test("Dynamo's formats, and kvferry's after them", () => {
    fc.assert(
      fc.property(seeds, dynamo, (seed, format) =>
        expect(dynamoFormatHolds(randomOf(seed, 1), format)).toBeNull(),
      ),
      { numRuns: 300 },
    );
  });

  test("Dynamo's raw form, against a second encoder", () => {
    fc.assert(
      fc.property(seeds, dynamo, (seed, format) =>
        expect(rawFormHolds(randomOf(seed, 2), format)).toBeNull(),
      ),
      { numRuns: 300 },
    );
  });
});

describe("changed bytes of Dynamo's formats", () => {
  test("every change of one byte and every truncation is refused or means exactly what it says", () => {
    fc.assert(
      fc.property(seeds, dynamo, fc.boolean(), (seed, format, sensible) => {
        const random = randomOf(seed, 3);
        const bytes = sensible
          ? encodePackage(makePackage(random, { format, layouts: 2 }), format)
          : encodeDynamoPackage(makeRawPackage(random, format), format);
        const places = Array.from({ length: Math.min(bytes.length, 40) }, () =>
          random.between(0, bytes.length - 1),
        );
        for (const at of places) {
          const changed = bytes.slice();
          changed[at] = random.between(0, 255);
          expect(changedBytesHold(changed, format)).toBeNull();
          expect(changedBytesHold(bytes.slice(0, at), format)).toBeNull();
        }
      }),
      { numRuns: 60 },
    );
  });

  test("bytes of no package at all", () => {
    fc.assert(
      fc.property(seeds, dynamo, (seed, format) => {
        const random = randomOf(seed, 4);
        expect(changedBytesHold(randomBytes(random, random.between(0, 200)), format)).toBeNull();
      }),
      { numRuns: 300 },
    );
  });

  test("parts of two packages", () => {
    fc.assert(
      fc.property(seeds, dynamo, dynamo, (seed, left, right) => {
        const random = randomOf(seed, 5);
        const head = encodePackage(makePackage(random, { format: left, layouts: 3 }), left);
        const tail = encodePackage(makePackage(random, { format: right, layouts: 3 }), right);
        const spliced = new Uint8Array([
          ...head.slice(0, random.between(0, head.length)),
          ...tail.slice(random.between(0, tail.length)),
        ]);
        expect(changedBytesHold(spliced, left)).toBeNull();
      }),
      { numRuns: 200 },
    );
  });

  test("a package is read the same twice: nothing is remembered between two", () => {
    const bytes = encodePackage(makePackage(randomOf(11, 0), { format: null, layouts: 4 }), "kvferry");
    expect(decodePackage(bytes)).toStrictEqual(decodePackage(bytes));
  });
});
