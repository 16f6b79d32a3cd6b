// How words of staged transfers are packed: lists of numbers come back as they were and claim no more than there is, a part
// as large as may be fits one message, and words that share a message keep their order and their fate.
import { expect, test } from "bun:test";
import fc from "fast-check";
import { makeHandle } from "../../lib/core/handle.ts";
import { stagePieces } from "../../lib/core/staging.ts";
import { MAX_CONTROL_BODY } from "../../lib/runtime/control-message.ts";
import {
  boundsOf,
  countOf,
  ListReader,
  MOST_UNIT,
  type NumberList,
  roomForList,
  valuesOf,
  writeList,
} from "../../lib/runtime/number-lists.ts";
import { MOST_LISTED, readStaging, stagedProgram, writeStaging } from "../../lib/runtime/staged-protocol.ts";
import { alone, StagingOutbox, wordsOf } from "../../lib/runtime/staging-outbox.ts";
import { copyProgram } from "../copy-program.ts";

function written(list: NumberList): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(roomForList(list)));
  return bytes.subarray(0, writeList(new DataView(bytes.buffer), 0, list));
}

function read(bytes: Uint8Array): number[] | null {
  const reader = new ListReader(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0);
  const list = reader.next();
  return reader.ok && reader.at === bytes.byteLength ? Array.from(valuesOf(list)) : null;
}

const whole = fc.integer({ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER });
const lists: fc.Arbitrary<NumberList> = fc.oneof(
  fc.array(whole, { maxLength: 12 }),
  fc.array(whole, { maxLength: 12 }).map((list) => Float64Array.from(list)),
  fc.record({
    first: fc.integer({ min: -(2 ** 45), max: 2 ** 45 }),
    step: fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
    count: fc.nat({ max: 40 }),
  }),
  fc.record({
    unit: fc.integer({ min: 1, max: MOST_UNIT }),
    times: fc.array(fc.nat({ max: 2 ** 32 - 1 }), { maxLength: 40 }).map((ids) => Uint32Array.from(ids)),
  }),
);

test("a list of whole numbers is read as it was written, with its count and its bounds, in the room that was said", () => {
  fc.assert(
    fc.property(lists, (list) => {
      const bytes = written(list);
      const values = Array.from(valuesOf(list));
      expect(read(bytes)).toEqual(values);
      expect(read(bytes.subarray(0, bytes.length - 1))).toBeNull();
      expect(countOf(list)).toBe(values.length);
      if (values.length > 0)
        expect(boundsOf(list)).toEqual({ lowest: Math.min(...values), highest: Math.max(...values) });
    }),
    { numRuns: 500 },
  );
});

test("a list that claims more than there is, or numbers beyond 2^53, is none: nothing is made for it", () => {
  const claim = (form: number, count: number, first: number, second: number): Uint8Array => {
    const bytes = new Uint8Array(new ArrayBuffer(21));
    const view = new DataView(bytes.buffer);
    view.setUint8(0, form);
    view.setUint32(1, count, true);
    view.setFloat64(5, first, true);
    view.setFloat64(13, second, true);
    return bytes;
  };
  expect(read(claim(1, 4, 8, 16))).toEqual([8, 24, 40, 56]);
  for (const [form, count, first, second] of [
    [0, 2 ** 32 - 1, 1, 1],
    [1, 2 ** 32 - 1, 1, 1],
    [2, 2 ** 32 - 1, 1, 1],
    [3, 1, 1, 1],
    [0, 2, 1, 0.5],
    [0, 2, Number.NaN, 1],
    [1, 5, 2 ** 53, 1],
    [1, 5, 1, 2 ** 52],
    [1, 5, 0.5, 1],
    [1, 5, 1, Number.POSITIVE_INFINITY],
    [2, 2, 0, 1],
    [2, 2, -8, 1],
    [2, 2, MOST_UNIT + 1, 1],
  ] as const)
    expect([form, count, first, second, read(claim(form, count, first, second))]).toEqual([
      form,
      count,
      first,
      second,
      null,
    ]);
});

test("a part of as many pairs or bases as may be listed fits one message, wherever its rows lie", () => {
  // Odd addresses far apart and in no order: nothing about the far side is short.
  const scattered = (count: number): Float64Array =>
    Float64Array.from({ length: count }, (_unused, index) => ((index * 7919) % count) * 2 ** 38 + index);
  for (const [bases, pairs] of [
    [1, 20_000],
    [9_000, 3],
    [3_000, 9_000],
  ] as const) {
    const program = copyProgram({
      srcBase: scattered(bases),
      dstBase: scattered(bases),
      srcOffset: scattered(pairs),
      dstOffset: scattered(pairs),
      rowBytes: 8,
    });
    const { value: piece } = stagePieces(program, 2 ** 30, MOST_LISTED).next();
    if (piece === undefined) throw new Error("there is a first piece");
    const [, outward] = piece.hops(0);
    expect(outward.srcBase.length + outward.pairs).toBeGreaterThanOrEqual(MOST_LISTED / 2);
    const word = {
      word: "ask",
      id: 1,
      operation: "write",
      layout: makeHandle(2n, 0),
      component: "c".repeat(1_000),
      program: stagedProgram(piece, "destination"),
      address: 0,
    } as const;
    const body = alone(writeStaging(word));
    expect(body.length).toBeLessThanOrEqual(MAX_CONTROL_BODY);
    expect(Array.from(wordsOf(body), readStaging)).toEqual([word]);
  }
});

/** An outbox, and the messages that left it: the words of each, by their first bytes. */
function outboxOf(send: () => Promise<void> = () => Promise.resolve()) {
  const left: [string, number[]][] = [];
  const outbox = new StagingOutbox((wireName, body) => {
    left.push([wireName, Array.from(wordsOf(body), (word) => word[0] ?? -1)]);
    return send();
  });
  return { outbox, left };
}

test("a part of blocks is told by 4 bytes a block", () => {
  const ids = Uint32Array.from({ length: 6_999 }, (_unused, index) => (index * 7919) % 100_003);
  const program = {
    ...copyProgram({
      rowBytes: 16_384,
      srcOffset: new Float64Array(6_999),
      dstOffset: new Float64Array(6_999),
    }),
    blocks: { source: ids, destination: ids.toReversed(), sourceStride: 16_384, destinationStride: 32_768 },
  };
  const [piece, ...more] = stagePieces(program, 2 ** 30, MOST_LISTED);
  if (piece === undefined) throw new Error("there is a piece");
  const far = stagedProgram(piece, "destination");
  expect([more.length, piece.bytes]).toEqual([0, 6_999 * 16_384]);
  expect(Array.from(valuesOf(far.farOffset))).toEqual(Array.from(ids.toReversed(), (id) => id * 32_768));
  expect(Array.from(valuesOf(stagedProgram(piece, "source").farOffset))).toEqual(
    Array.from(ids, (id) => id * 16_384),
  );
  const ask = { word: "ask", id: 1, operation: "write", layout: makeHandle(2n, 0), component: "kv" } as const;
  const body = writeStaging({ ...ask, program: far, address: 0 });
  expect(body.length).toBeLessThan(6_999 * 4 + 250);
  expect(readStaging(body)).toMatchObject({
    program: { farOffset: { unit: 32_768, times: ids.toReversed() } },
  });
});

const word = (number: number, bytes = 12): Uint8Array => new Uint8Array(bytes).fill(number);

test("words of one turn leave in one message to each peer, in order; those of the next turn in another", async () => {
  const { outbox, left } = outboxOf();
  const said = [outbox.say("a", word(1)), outbox.say("b", word(2)), outbox.say("a", word(3))];
  expect(left).toEqual([]);
  await Promise.all(said);
  await outbox.say("a", word(4));
  expect(left).toEqual([
    ["a", [1, 3]],
    ["b", [2]],
    ["a", [4]],
  ]);
});

test("no message outgrows its limit, and what is flushed leaves at once and once only", async () => {
  const { outbox, left } = outboxOf();
  const said = [1, 2, 3, 4, 5].map((number) => outbox.say("a", word(number, 7_000)));
  expect(left).toEqual([
    ["a", [1, 2]],
    ["a", [3, 4]],
  ]);
  outbox.flush("a");
  outbox.flush("a");
  await Promise.all(said);
  expect(left.slice(2)).toEqual([["a", [5]]]);
  const large = outbox.say("a", word(6, 60_000));
  outbox.flush("a");
  await large;
  expect(left.slice(3)).toEqual([["a", [6]]]);
});

test("whoever said a word hears that its message could not be sent", async () => {
  const { outbox } = outboxOf(() => Promise.reject(new Error("no way")));
  const said = await Promise.allSettled([outbox.say("a", word(1)), outbox.say("a", word(2))]);
  expect(said.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
});

test("a message that is cut off gives the words before the cut, and no more", () => {
  const body = alone(word(7));
  expect(Array.from(wordsOf(body.subarray(0, body.length - 1)))).toEqual([]);
  expect(Array.from(wordsOf(body), ([first]) => first)).toEqual([7]);
});
