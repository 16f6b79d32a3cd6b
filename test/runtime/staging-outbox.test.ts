// How words of staged transfers are packed: lists of numbers come back as they were and claim no more than there is, a part
// as large as may be fits one message, and words that share a message keep their order and their fate.
import { expect, test } from "bun:test";
import fc from "fast-check";
import { makeHandle } from "../../lib/core/handle.ts";
import { stagePieces } from "../../lib/core/staging.ts";
import { MAX_CONTROL_BODY } from "../../lib/runtime/control-message.ts";
import { ListReader, roomForList, writeList } from "../../lib/runtime/number-lists.ts";
import { MOST_LISTED, readStaging, stagedProgram, writeStaging } from "../../lib/runtime/staged-protocol.ts";
import { alone, StagingOutbox, wordsOf } from "../../lib/runtime/staging-outbox.ts";
import { copyProgram } from "../copy-program.ts";

function written(list: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(roomForList(list)));
  return bytes.subarray(0, writeList(new DataView(bytes.buffer), 0, list)) as Uint8Array<ArrayBuffer>;
}

function read(bytes: Uint8Array): number[] | null {
  const reader = new ListReader(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0);
  const list = reader.next();
  return reader.ok && reader.at === bytes.byteLength ? Array.from(list) : null;
}

const whole = fc.integer({ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER });
const lists = fc.oneof(
  fc.array(whole, { maxLength: 12 }),
  fc
    .tuple(
      fc.integer({ min: -(2 ** 45), max: 2 ** 45 }),
      fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
      fc.nat({ max: 40 }),
    )
    .map(([first, step, count]) => Array.from({ length: count }, (_unused, index) => first + index * step)),
  fc
    .tuple(fc.nat({ max: 20 }), fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { maxLength: 40 }))
    .map(([shift, ids]) => ids.map((id) => id * 2 ** shift)),
);

test("a list of whole numbers is read as it was written, and takes no more room than was said", () => {
  fc.assert(
    fc.property(lists, (list) => {
      const bytes = written(list);
      expect(read(bytes)).toEqual(list);
      expect(read(bytes.subarray(0, bytes.length - 1))).toBeNull();
    }),
    { numRuns: 500 },
  );
});

test("block offsets take 4 bytes each, and evenly spaced ones none", () => {
  const scattered = Array.from({ length: 1000 }, (_unused, index) => ((index * 7919) % 100_003) * 16_384);
  expect(written(scattered).length).toBe(5 + 8 + 4000);
  const even = Array.from({ length: 1000 }, (_unused, index) => 2 ** 40 + index * 16_384);
  expect(written(even).length).toBe(5 + 16);
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
    // The second half of 1 as a 64-bit number is 2^29 and more.
    [2, 2, 2 ** 40, 1],
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
      program: stagedProgram(outward, "destination"),
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
