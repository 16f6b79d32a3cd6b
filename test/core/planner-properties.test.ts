import { expect, test } from "bun:test";
import fc from "fast-check";
import { pairRuns, sharedIds } from "../../lib/core/blocks.ts";
import { ARENA_BYTES, makeBench, tryCase } from "../proof/planner-check.ts";

const bench = makeBench(new Uint8Array(ARENA_BYTES), 65_536, []);

test("random transfers move every byte that is meant and no other", () => {
  const kinds = new Map<string, number>();
  fc.assert(
    fc.property(fc.nat(), fc.nat(1_000_000), (seed, index) => {
      const outcome = tryCase(bench, seed, index);
      kinds.set(outcome.kind, (kinds.get(outcome.kind) ?? 0) + 1);
      expect(outcome.problem).toBeNull();
    }),
    { numRuns: 3000 },
  );
  // The law must have been tried on plans, and on refusals of several kinds.
  expect(kinds.get("moved") ?? 0).toBeGreaterThan(1000);
  expect(kinds.get("OVERLAP") ?? 0).toBeGreaterThan(10);
  expect(kinds.get("PARTIAL") ?? 0).toBeGreaterThan(10);
});

/** Pairs with distinct destinations, in which runs are likely. */
const lists = fc
  .uniqueArray(fc.nat(60), { maxLength: 40 })
  .chain((destination) =>
    fc.tuple(
      fc.constant(destination),
      fc.array(fc.nat(3), { minLength: destination.length, maxLength: destination.length }),
    ),
  )
  .map(([destination, shifts]) => ({
    destination: Uint32Array.from(destination),
    source: Uint32Array.from(destination, (id, index) => id + (shifts[index] ?? 0)),
  }));

test("runs cover exactly the pairs that were given, and are as long as they can be", () => {
  fc.assert(
    // With a limit far above the ids their largest one is looked for.
    fc.property(lists, fc.constantFrom(61, 100_000), ({ source, destination }, limit) => {
      const found = pairRuns(source, destination, limit, "default");
      const pairs = new Set(Array.from(source, (id, index) => `${id}:${destination[index]}`));
      const covered: string[] = [];
      for (let run = 0; run < found.runs; run++) {
        const head = found.head?.[run] ?? run;
        const length = found.length?.[run] ?? 1;
        const from = source[head] ?? 0;
        const to = destination[head] ?? 0;
        for (let index = 0; index < length; index++) covered.push(`${from + index}:${to + index}`);
        expect(pairs.has(`${from - 1}:${to - 1}`)).toBe(false);
        expect(pairs.has(`${from + length}:${to + length}`)).toBe(false);
      }
      expect(covered.toSorted()).toEqual([...pairs].toSorted());
      if (found.length !== null) {
        const lengths = new Set(found.length);
        expect(found.uniform).toBe(lengths.size === 1 ? (found.length[0] ?? 0) : 0);
      }
    }),
    { numRuns: 500 },
  );
});

test("long lists in which hardly anything continues are left apart", () => {
  const spread = (continued: number): Uint32Array =>
    Uint32Array.from(
      { length: 640 },
      (_, index) => 2 * index - (index % 2 === 1 && index < 2 * continued ? 1 : 0),
    );
  expect(pairRuns(spread(9), spread(9), 2_000, "default")).toMatchObject({
    runs: 640,
    head: null,
    length: null,
  });
  expect(pairRuns(spread(10), spread(10), 2_000, "default").runs).toBe(630);
  // The table is clean again, whichever way it was cleared.
  expect(pairRuns(spread(0), spread(0), 100_000, "default").runs).toBe(640);
  expect(pairRuns(spread(320), spread(320), 1_280, "default").runs).toBe(320);
});

test("a repeated destination is found wherever it stands", () => {
  fc.assert(
    fc.property(lists, fc.nat(), fc.nat(), ({ source, destination }, from, to) => {
      fc.pre(destination.length > 1);
      const first = from % destination.length;
      const second = to % destination.length;
      fc.pre(first !== second);
      destination[first] = destination[second] ?? 0;
      expect(() => pairRuns(source, destination, 61, "default")).toThrow(`repeats: ${destination[second]}`);
    }),
    { numRuns: 500 },
  );
});

test("shared ids are those of both lists, whatever came before", () => {
  const ids = fc.array(fc.nat(80), { maxLength: 30 }).map((list) => Uint32Array.from(list));
  fc.assert(
    fc.property(ids, ids, (source, destination) => {
      const expected = [...new Set(destination)].filter((id) => source.includes(id));
      expect(sharedIds(source, destination)).toEqual(expected);
    }),
    { numRuns: 500 },
  );
});
