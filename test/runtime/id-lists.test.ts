import { expect, test } from "bun:test";
import fc from "fast-check";
import { Transport } from "../../index.ts";
import type { BlockRuns } from "../../lib/core/blocks.ts";
import { idComparison } from "../../lib/native/id-lists.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { IdLists } from "../../lib/runtime/id-lists.ts";

const ids = (length: number, first = 0): Uint32Array =>
  Uint32Array.from({ length }, (_unused, index) => first + index);

const compare = idComparison(openLibrary());

function numbered(): IdLists {
  let last = 0;
  return new IdLists(() => ++last, compare);
}

test("lists in use keep their ids, and lists of one number hold the same ids, whatever is copied, changed or given back", () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          length: fc.oneof(fc.constantFrom(600, 601, 3000), fc.integer({ min: 1, max: 5000 })),
          first: fc.integer({ min: 0, max: 2 }),
          // One id differs, in most places too few to be seen by looking at the ends.
          changed: fc.option(fc.integer({ min: 0, max: 4999 }), { nil: undefined }),
          back: fc.boolean(),
        }),
        { maxLength: 80 },
      ),
      (steps) => {
        const lists = numbered();
        const used: { readonly list: Uint32Array; readonly wanted: Uint32Array }[] = [];
        const byNumber = new Map<number, Uint32Array>();
        for (const [index, { length, first, changed, back }] of steps.entries()) {
          const given = ids(length, first);
          if (changed !== undefined && changed < length) given[changed] = 9_000_000;
          const list = lists.copy(given) as Uint32Array;
          const wanted = given.slice();
          used.push({ list, wanted });
          const number = lists.numberOf(list);
          expect(number > 0).toBe(length >= 512);
          if (number > 0) {
            expect(byNumber.get(number) ?? wanted).toEqual(wanted);
            byNumber.set(number, wanted);
          }
          given.fill(7);
          if (back) {
            const [gone] = used.splice(index % used.length, 1);
            if (gone !== undefined) lists.giveBack(gone.list);
          }
          for (const { list: kept, wanted: ids } of used) {
            expect(kept).toEqual(ids);
            expect(byNumber.get(lists.numberOf(kept)) ?? ids).toEqual(ids);
          }
        }
      },
    ),
    { numRuns: 100 },
  );
});

test("a list that comes again is lent again and not copied, while it is used and afterwards", () => {
  const lists = numbered();
  const first = lists.copy(ids(2000)) as Uint32Array;
  const again = lists.copy(ids(2000)) as Uint32Array;
  expect(again.buffer).toBe(first.buffer);
  expect(lists.numberOf(again)).toBe(lists.numberOf(first));
  lists.giveBack(first);
  lists.giveBack(again);
  const later = lists.copy(ids(2000)) as Uint32Array;
  expect(later.buffer).toBe(first.buffer);
  // Part of a larger array, and only its middle differs.
  const other = ids(2200, -100);
  other[1100] = 5;
  const differs = lists.copy(other.subarray(100, 2100)) as Uint32Array;
  expect(differs.buffer).not.toBe(first.buffer);
  expect(differs[1000]).toBe(5);
  expect(lists.numberOf(differs)).not.toBe(lists.numberOf(later));
});

test("memory of lists that nobody has and that are not among the last ones is used again, and a caller's own never is", () => {
  const lists = numbered();
  const first = lists.copy(ids(2000)) as Uint32Array;
  lists.giveBack(first);
  const buffers = new Set<ArrayBufferLike>();
  for (let index = 1; index <= 12; index += 1) {
    const list = lists.copy(ids(2000, index)) as Uint32Array;
    buffers.add(list.buffer);
    lists.giveBack(list);
  }
  expect(buffers.has(first.buffer)).toBe(true);
  expect(buffers.size).toBeLessThan(7);
  const own = ids(2000, 3);
  lists.giveBack(own);
  expect((lists.copy(ids(2000, 3)) as Uint32Array).buffer).not.toBe(own.buffer);
  expect(lists.copy([1, 2.5, -3])).toEqual([1, 2.5, -3]);
});

test("lists are scanned anew when an id, a limit or their order changes, and only then", () => {
  const lists = numbered();
  const asked: string[] = [];
  const scan = lists.remembering((source, destination, sourceLimit, destinationLimit) => {
    asked.push([source[0], destination[0], sourceLimit, destinationLimit].join());
    return sourceLimit < 700 ? undefined : runs((source[0] ?? 0) * 10 + (destination[0] ?? 0));
  });
  const runs = (count: number): BlockRuns => ({
    total: 700,
    runs: count,
    head: null,
    length: null,
    uniform: 0,
  });
  const list = (first: number): Uint32Array => lists.copy(ids(700, first)) as Uint32Array;
  expect([scan(list(1), list(2), 900, 900), scan(list(1), list(2), 900, 900)]).toEqual([runs(12), runs(12)]);
  expect(asked).toEqual(["1,2,900,900"]);
  expect(scan(list(2), list(1), 900, 900)).toEqual(runs(21));
  expect([scan(list(1), list(2), 600, 900), scan(list(1), list(2), 600, 900)]).toEqual([
    undefined,
    undefined,
  ]);
  expect(scan(list(1), list(2), 900, 901)).toEqual(runs(12));
  expect(asked.slice(1)).toEqual(["2,1,900,900", "1,2,600,900", "1,2,900,901"]);
  // Whose lists nobody keeps, their ids may change at any time.
  const own = ids(700, 5);
  scan(own, own, 900, 900);
  scan(own, own, 900, 900);
  expect(asked.slice(4)).toEqual(["5,5,900,900", "5,5,900,900"]);
});

test("transfers with long lists that overlap in time, and whose lists the caller changes, move their own blocks", async () => {
  await using transport = await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: false });
  const blocks = 60_000;
  const config = { numBlocks: blocks, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 8 } as const;
  const source = await transport.register({ config, memory: { kind: "system" } });
  const destination = await transport.register({ config, memory: { kind: "system" } });
  const words = (bytes: Uint8Array | undefined): Uint32Array =>
    new Uint32Array(bytes?.buffer ?? new ArrayBuffer(0), bytes?.byteOffset, (bytes?.byteLength ?? 0) / 4);
  const [from, to] = [words(source.bytes[0]), words(destination.bytes[0])];
  for (let block = 0; block < blocks; block += 1) from.fill(block + 1, block * 4, block * 4 + 4);
  const prepared = transport.prepare({ source, destination });
  for (let round = 0; round < 6; round += 1) {
    to.fill(0);
    const parts = Array.from({ length: 24 }, (_unused, part) => {
      const length = 600 + ((part * 331 + round * 77) % 1800);
      // Places that no other part writes to, from blocks in another order.
      const places = ids(length, part * 2500);
      const sources = Uint32Array.from(places, (place) => (place * 7 + round) % blocks);
      const wanted = sources.slice();
      const transfer =
        part % 2 === 0
          ? transport.transfer({
              source,
              sourceBlocks: sources,
              destination,
              destinationBlocks: places,
            })
          : prepared.run(sources, places);
      sources.fill(0);
      places.fill(1);
      return { transfer, wanted, first: part * 2500 };
    });
    await Promise.all(parts.map(({ transfer }) => transfer));
    for (const { wanted, first } of parts)
      for (const [index, block] of wanted.entries())
        if (to[(first + index) * 4] !== block + 1)
          throw new Error(
            `round ${round}: place ${first + index} holds ${to[(first + index) * 4]}, not ${block + 1}`,
          );
  }
});
