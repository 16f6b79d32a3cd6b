import { expect, test } from "bun:test";
import fc from "fast-check";
import { Transport } from "../../index.ts";
import { IdLists } from "../../lib/runtime/id-lists.ts";

const ids = (length: number, first = 0): Uint32Array =>
  Uint32Array.from({ length }, (_unused, index) => first + index);

test("lists in use keep their ids whatever is copied, changed or given back around them", () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ length: fc.integer({ min: 1, max: 5000 }), back: fc.boolean() }), {
        maxLength: 60,
      }),
      (steps) => {
        const lists = new IdLists();
        const used: { readonly list: Uint32Array; readonly wanted: Uint32Array }[] = [];
        for (const [index, { length, back }] of steps.entries()) {
          const given = ids(length, index * 1000);
          const list = lists.copy(given) as Uint32Array;
          used.push({ list, wanted: given.slice() });
          given.fill(7);
          if (back) {
            const [gone] = used.splice(index % used.length, 1);
            if (gone !== undefined) {
              lists.giveBack(gone.list);
              lists.giveBack(gone.list);
            }
          }
          for (const { list: kept, wanted } of used) expect(kept).toEqual(wanted);
        }
      },
    ),
    { numRuns: 60 },
  );
});

test("memory that was given back is used again, and a caller's own list never is", () => {
  const lists = new IdLists();
  const first = lists.copy(ids(2000)) as Uint32Array;
  lists.giveBack(first);
  expect((lists.copy(ids(1500)) as Uint32Array).buffer).toBe(first.buffer);
  const own = ids(2000);
  lists.giveBack(own);
  expect((lists.copy(ids(2000)) as Uint32Array).buffer).not.toBe(own.buffer);
  expect(lists.copy([1, 2.5, -3])).toEqual([1, 2.5, -3]);
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
