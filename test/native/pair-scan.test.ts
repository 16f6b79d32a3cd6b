import { expect, test } from "bun:test";
import fc from "fast-check";
import { Transport } from "../../index.ts";
import { KvferryError } from "../../lib/core/errors.ts";
import { pairRuns, runsApart } from "../../lib/core/blocks.ts";
import { shuffled } from "../../bench/statistics.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { pairScan, PairTable } from "../../lib/native/pair-scan.ts";

const table = new PairTable(openLibrary());
const scan = table.continued.bind(table);
const LIMIT = 90;

/** Lists in which runs are likely, and now and then a repeat or an id past the end. */
const lists = fc
  .tuple(
    fc.shuffledSubarray(Array.from({ length: LIMIT }, (_, id) => id)),
    fc.array(fc.nat(3), { minLength: LIMIT, maxLength: LIMIT }),
    fc.option(fc.tuple(fc.nat(LIMIT - 1), fc.nat(LIMIT + 1)), { freq: 3 }),
  )
  .map(([ids, shifts, wrong]) => {
    const destination = Uint32Array.from(ids);
    const source = Uint32Array.from(ids, (id, index) => Math.max(0, id - (shifts[index] ?? 0)));
    if (wrong !== null && ids.length > 0) destination[wrong[0] % ids.length] = wrong[1];
    return { source, destination };
  });

/** The same by its definition. */
function defined(
  source: Uint32Array,
  destination: Uint32Array,
  limits: readonly [number, number],
): number | undefined {
  const inRange = source.every((id) => id < limits[0]) && destination.every((id) => id < limits[1]);
  if (!inRange || new Set(destination).size < destination.length) return undefined;
  const pairs = new Set(Array.from(source, (id, index) => `${id}:${destination[index]}`));
  return [...source].filter((id, index) => pairs.has(`${id - 1}:${(destination[index] ?? 0) - 1}`)).length;
}

test("the library finds what is wrong and what continues, whatever it looked at before", () => {
  let refused = 0;
  let continuing = 0;
  fc.assert(
    fc.property(lists, fc.constantFrom(LIMIT, LIMIT + 2, 60_000), (given, limit) => {
      const { source, destination } = given;
      const found = scan(source, destination, LIMIT, limit);
      expect(found).toBe(defined(source, destination, [LIMIT, limit]));
      if (found === undefined) refused++;
      else {
        const { total, runs } = pairRuns(source, destination, limit, "default");
        if (source.length <= 64) expect(found).toBe(total - runs);
        if (found > 0) continuing++;
      }
    }),
    { numRuns: 2_000 },
  );
  expect(refused).toBeGreaterThan(100);
  expect(continuing).toBeGreaterThan(100);
});

test("the first and the last id of every list count", () => {
  const ids = Uint32Array.from({ length: 1_000 }, (_, index) => index);
  expect(scan(ids, ids, 1_000, 1_000)).toBe(999);
  expect(scan(ids, ids.toReversed(), 1_000, 1_000)).toBe(0);
  expect(scan(ids, ids, 999, 1_000)).toBeUndefined();
  expect(scan(ids, ids, 1_000, 999)).toBeUndefined();
  expect(scan(ids, ids.with(0, 999), 1_000, 1_000)).toBeUndefined();
  expect(scan(ids, ids, 1_000, 1_000)).toBe(999);
});

test("of many pairs none that continues is missed, and too few seem to that do not to take lists apart for", () => {
  const total = 20_000;
  let apart = 0;
  fc.assert(
    fc.property(
      fc.integer(),
      fc.integer({ min: 2_048, max: 12_000 }),
      fc.constantFrom(0, 100, 60_000, 131_000),
      fc.integer({ min: 1, max: 400 }),
      (seed, count, first, run) => {
        // Runs of so many, in any order; and as many pairs in no order at all.
        const heads = shuffled(Math.floor(total / run), seed);
        const destination = Uint32Array.from(
          { length: count },
          (_, index) => (heads[Math.floor(index / run)] ?? 0) * run + (index % run),
        );
        const source = destination.map((id) => first + id);
        const wanted = defined(source, destination, [2 ** 24, total]);
        expect(scan(source, destination, 2 ** 24, total)).toBeGreaterThanOrEqual(wanted ?? Number.NaN);
        const mixed = shuffled(total, seed + 1)
          .subarray(0, count)
          .map((id) => first + id);
        const found = scan(mixed, destination, 2 ** 24, total) ?? Number.NaN;
        expect(found).toBeGreaterThanOrEqual(defined(mixed, destination, [2 ** 24, total]) ?? Number.NaN);
        if (runsApart(count, found) !== undefined) apart++;
        expect(
          scan(source, destination.with(count - 1, destination[0] ?? 0), 2 ** 24, total),
        ).toBeUndefined();
        expect(scan(source.with(count >> 1, 2 ** 24), destination, 2 ** 24, total)).toBeUndefined();
      },
    ),
    { numRuns: 100 },
  );
  expect(apart).toBeGreaterThan(90);
});

test("the library finds the same runs, whatever it looked at before", () => {
  const limit = 9_000;
  const look = pairScan(openLibrary());
  let merged = 0;
  let apart = 0;
  const unlike = new Set<boolean>();
  fc.assert(
    fc.property(
      fc.integer(),
      fc.integer({ min: 1, max: 3_000 }),
      fc.constantFrom(1, 2, 3, 64, 700, 3_000),
      fc.constantFrom(1, 2, 3, 64, 700),
      fc.constantFrom(0, 5, 4_000),
      fc.constantFrom(limit, limit + 1, 70_000),
      (seed, count, run, other, first, destinationLimit) => {
        const heads = shuffled(Math.floor(limit / run), seed);
        // Runs of the one length, of which some break where those of the other end.
        const destination = Uint32Array.from(
          { length: Math.min(count, heads.length * run) },
          (_, index) => (heads[Math.floor(index / run)] ?? 0) * run + (index % run),
        );
        const source = destination.map((id, index) => first + id + 2 * Math.floor(index / other));
        for (const [from, to] of [
          [source, destination],
          [source.toReversed(), destination.toReversed()],
          [destination, destination],
        ] as const) {
          const wanted = pairRuns(from, to, destinationLimit, "default");
          const found = look(from, to, 2 ** 20, destinationLimit);
          // Few pairs are compared one by one here, and merged however few continue.
          if (from.length > 8) expect(found).toEqual(wanted);
          if (wanted.runs < wanted.total) merged++;
          else apart++;
          unlike.add(wanted.uniform > 0);
        }
      },
    ),
    { numRuns: 400 },
  );
  expect(merged).toBeGreaterThan(200);
  expect(apart).toBeGreaterThan(100);
  expect(unlike.size).toBe(2);
});

test("runs are not looked for where the table does not hold what is asked for", () => {
  const call = openLibrary().kvf_pairs_runs;
  const room = (): Uint32Array<ArrayBuffer> => new Uint32Array(new ArrayBuffer(4 * 12));
  const [marks, heads, lengths, out] = [room(), room(), room(), new Float64Array(new ArrayBuffer(16))];
  const ids = Uint32Array.of(1, 2, 9);
  expect(call(ids, ids, 3, 10, marks, 11, heads, lengths, out)).toBe(-1);
  expect(call(ids, ids.with(1, 10), 3, 10, marks, 12, heads, lengths, out)).toBe(-1);
  expect(call(ids.with(0, 2 ** 32 - 2), ids, 3, 10, marks, 12, heads, lengths, out)).toBe(-1);
  expect([marks, heads, lengths].every((numbers) => numbers.every((number) => number === 0))).toBe(true);
  expect(call(ids, ids, 3, 10, marks, 12, heads, lengths, out)).toBe(0);
  expect([...out, ...heads.subarray(0, 2), ...lengths.subarray(0, 2)]).toEqual([2, 0, 0, 2, 2, 1]);
  expect(marks.every((mark) => mark === 0)).toBe(true);
});

test("a table that would be too large, or is too small, is never written", () => {
  const ids = Uint32Array.of(1, 2, 3);
  expect(scan(ids, ids, 2 ** 24 + 1, 10)).toBeUndefined();
  expect(scan(ids, ids, 10, 2 ** 24)).toBeUndefined();
  const marks = new Uint32Array(new ArrayBuffer(4 * 11));
  const out = new Float64Array(new ArrayBuffer(8));
  expect(openLibrary().kvf_pairs_scan(ids, ids, 3, 10, 10, marks, 11, out)).toBe(-1);
  expect(marks.every((mark) => mark === 0)).toBe(true);
});

const layout = { numBlocks: 600, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 8 } as const;

test("long lists with something wrong are refused by name, and what is right is moved to the byte", async () => {
  await using transport = await Transport.open({ workerId: 1n, nixl: false, cuda: false });
  const source = await transport.register({ name: "a", config: layout, memory: { kind: "system" } });
  const destination = await transport.register({ name: "b", config: layout, memory: { kind: "system" } });
  await source.fill({ random: 7 });
  await destination.fill(0);
  const from = Uint32Array.from({ length: 500 }, (_, index) => (index * 7) % 600);
  const to = Uint32Array.from({ length: 500 }, (_, index) => (index * 11) % 600);
  const move = async (sourceBlocks: Uint32Array, destinationBlocks: Uint32Array): Promise<unknown> =>
    await transport.transfer({ source, destination, sourceBlocks, destinationBlocks }).then(
      () => null,
      (error: unknown) => error,
    );
  for (const [sources, destinations, code] of [
    [from.with(499, 600), to, "ERR_KVF_BLOCK_OUT_OF_RANGE"],
    [from, to.with(0, 600), "ERR_KVF_BLOCK_OUT_OF_RANGE"],
    [from, to.with(499, to[3] ?? 0), "ERR_KVF_DUPLICATE_BLOCK"],
    [from.subarray(1), to, "ERR_KVF_LENGTH_MISMATCH"],
  ] as const) {
    const error = await move(sources, destinations);
    expect(error).toBeInstanceOf(KvferryError);
    expect((error as KvferryError).code).toBe(code);
  }
  expect((await destination.read(0)).every((byte) => byte === 0)).toBe(true);
  expect(await move(from, to)).toBeNull();
  for (let index = 0; index < 500; index += 1)
    expect(await destination.read(to[index] ?? 0)).toEqual(await source.read(from[index] ?? 0));
});
