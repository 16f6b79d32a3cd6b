import { expect, test } from "bun:test";
import {
  encodeHop,
  HOP_HEADER_WORDS,
  HOP_MAGIC,
  HOP_VERSION,
  listsBeside,
  PROGRAM_WORDS,
} from "../../lib/core/encode.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import { copyProgram } from "../copy-program.ts";

function program(change: Partial<CopyProgram> = {}): CopyProgram {
  return {
    ...copyProgram({
      srcBase: Float64Array.of(10),
      dstBase: Float64Array.of(20),
      srcOffset: Float64Array.of(1, 2, 3),
      dstOffset: Float64Array.of(4, 5, 6),
      count: [2, 3],
      srcStride: [-7, 8],
      dstStride: [9, 11],
      rowBytes: 16,
      dstMemory: { kind: 1, device: 3 },
    }),
    ...change,
  };
}

/** Reads one program of a block as `cshim/kvf.h` describes it. */
function decode(block: Float64Array, index: number): object {
  const at = HOP_HEADER_WORDS + index * PROGRAM_WORDS;
  const word = (offset: number): number => block[at + offset] ?? Number.NaN;
  const array = (offset: number, length: number): number[] =>
    Array.from(block.slice(word(offset), word(offset) + length));
  const numbers = (offset: number): number[] => [
    ...new Uint32Array(block.buffer, block.byteOffset + word(offset) * 8, word(1)),
  ];
  const places = (offset: number, stride: number): number[] =>
    word(34) === 0 ? array(offset, word(1)) : numbers(offset).map((id) => id * word(stride));
  return {
    rowBytes: word(3),
    runStrides: [word(4), word(5)],
    counts: Array.from(block.slice(at + 6, at + 6 + word(2))),
    sourceStrides: Array.from(block.slice(at + 12, at + 12 + word(2))),
    destinationStrides: Array.from(block.slice(at + 18, at + 18 + word(2))),
    source: [word(24), word(25)],
    destination: [word(26), word(27)],
    srcBase: array(28, word(0)),
    dstBase: array(29, word(0)),
    srcOffset: places(30, 35),
    dstOffset: places(31, 36),
    runs: word(32) === 0 ? null : numbers(32),
    bytes: word(33),
    rest: Array.from(block.slice(at + (word(34) === 0 ? 34 : 37), at + PROGRAM_WORDS)).every(
      (value) => value === 0,
    ),
  };
}

const DECODED = {
  rowBytes: 16,
  runStrides: [0, 0],
  counts: [2, 3],
  sourceStrides: [-7, 8],
  destinationStrides: [9, 11],
  source: [0, 0],
  destination: [1, 3],
  srcBase: [10],
  dstBase: [20],
  srcOffset: [1, 2, 3],
  dstOffset: [4, 5, 6],
  runs: null,
  bytes: 288,
  rest: true,
};

test("one program is written as the native side reads it", () => {
  const block = encodeHop([program()]);
  expect(Array.from(block.slice(0, HOP_HEADER_WORDS))).toEqual([
    HOP_MAGIC,
    HOP_VERSION,
    1,
    8 + 40 + 8,
    288,
    0,
    0,
    0,
  ]);
  expect(block.length).toBe(56);
  expect(decode(block, 0)).toEqual(DECODED);
});

test.each([[1], [2], [3], [40]])("%d runs are packed two to a word, the odd one padded", (pairs) => {
  const run = Uint32Array.from({ length: pairs }, (_, index) => index * 1000 + 4_000_000_000);
  const offsets = Float64Array.from(run, (_, index) => index);
  const given = program({
    run,
    pairs,
    srcOffset: offsets,
    dstOffset: offsets.slice(),
    srcRunStride: -64,
    dstRunStride: 32,
  });
  const scratch = new Float64Array(400).fill(Number.NaN);
  const block = encodeHop([given], scratch.subarray(3));
  expect(block.length).toBe(50 + 2 * pairs + Math.ceil(pairs / 2));
  expect(decode(block, 0)).toMatchObject({ runs: [...run], runStrides: [-64, 32], srcOffset: [...offsets] });
  if (pairs % 2 === 1) expect(new Uint32Array(block.buffer, block.byteOffset)[2 * block.length - 1]).toBe(0);
});

test("programs share what is one array, and nothing else", () => {
  const first = program();
  const run = Uint32Array.of(1, 2, 3);
  const second = program({
    srcBase: Float64Array.of(30),
    srcOffset: first.srcOffset,
    dstOffset: first.dstOffset,
    run,
    bytes: 12,
  });
  const third = program({ srcOffset: first.srcOffset, dstOffset: first.srcOffset, run, bytes: 30 });
  const block = encodeHop([first, second, third]);
  expect(block[4]).toBe(330);
  expect(block.length).toBe(8 + 3 * 40 + 6 + 2 * 3 + 2);
  expect(decode(block, 0)).toEqual(DECODED);
  expect(decode(block, 1)).toEqual({ ...DECODED, srcBase: [30], runs: [1, 2, 3], bytes: 12 });
  expect(decode(block, 2)).toEqual({ ...DECODED, dstOffset: [1, 2, 3], runs: [1, 2, 3], bytes: 30 });
});

test("large arrays are written in full", () => {
  const srcOffset = Float64Array.from({ length: 5000 }, (_, index) => index * 3);
  const dstOffset = srcOffset.map((value) => value + 1);
  const block = encodeHop([program({ srcOffset, dstOffset, pairs: 5000 })]);
  expect(decode(block, 0)).toMatchObject({ srcOffset: [...srcOffset], dstOffset: [...dstOffset] });
});

test("scratch that is too small is left alone, one that fits leaves no trace of its earlier content", () => {
  const small = new Float64Array(55).fill(7);
  expect(decode(encodeHop([program()], small), 0)).toEqual(DECODED);
  expect(small.every((value) => value === 7)).toBe(true);
  const large = new Float64Array(100).fill(Number.NaN);
  const block = encodeHop([program()], large);
  expect(block.buffer).toBe(large.buffer);
  expect(block.length).toBe(56);
  expect(decode(block, 0)).toEqual(DECODED);
  expect(block.every((value) => !Number.isNaN(value))).toBe(true);
});

test("a hop without programs is a header", () => {
  expect([...encodeHop([])]).toEqual([HOP_MAGIC, HOP_VERSION, 0, 8, 0, 0, 0, 0]);
});

test("a few ids times a stride are written as the offsets that they stand for", () => {
  const [source, destination] = [Uint32Array.of(7, 0, 4_000_000_000), Uint32Array.of(1, 2, 3)];
  const [sourceStride, destinationStride] = [2 ** 20 + 1, 3];
  const apart = program({
    srcOffset: Float64Array.from(source, (id) => id * sourceStride),
    dstOffset: Float64Array.from(destination, (id) => id * destinationStride),
  });
  const asIds = { ...apart, blocks: { source, destination, sourceStride, destinationStride } };
  expect(encodeHop([asIds])).toEqual(encodeHop([apart]));
  // Programs that share arrays have them written once, whichever form they come in.
  expect(encodeHop([asIds, asIds])).toEqual(encodeHop([apart, apart]));
});

test("lists beside a block leave nothing but their numbers in it, whatever the memory held before", () => {
  const count = 600;
  const source = Uint32Array.from({ length: count }, (_, index) => 7 * index);
  const blocks = { source, destination: source.toReversed(), sourceStride: 48, destinationStride: 2 ** 21 };
  const given = program({ blocks, pairs: count });
  const beside = listsBeside([given, given], (list) => (list === source ? 11 : 12));
  expect(beside).toEqual({
    source,
    destination: blocks.destination,
    count,
    sourceNumber: 11,
    destinationNumber: 12,
  });
  expect(beside?.source).toBe(source);
  const block = encodeHop([given, given], new Float64Array(4_096).fill(Number.NaN), beside);
  expect(block).toHaveLength(HOP_HEADER_WORDS + 2 * PROGRAM_WORDS + 2);
  expect([...block.subarray(5, HOP_HEADER_WORDS)]).toEqual([11, 12, 0]);
  for (const start of [HOP_HEADER_WORDS, HOP_HEADER_WORDS + PROGRAM_WORDS])
    expect([...block.subarray(start + 30, start + PROGRAM_WORDS)]).toEqual([
      0,
      0,
      0,
      given.bytes,
      2,
      48,
      2 ** 21,
      0,
      0,
      0,
    ]);
  expect(block.every((word) => !Number.isNaN(word))).toBe(true);
});

test("lists that not all programs share, short ones, and offsets stay in the block", () => {
  const source = new Uint32Array(600);
  const blocks = { source, destination: source, sourceStride: 1, destinationStride: 1 };
  const given = program({ blocks, pairs: 600 });
  const other = program({ blocks: { ...blocks, destination: source.slice() }, pairs: 600 });
  expect(listsBeside([given, other])).toBeNull();
  expect(listsBeside([given, program({ pairs: 600 })])).toBeNull();
  expect(listsBeside([program({ pairs: 600 })])).toBeNull();
  expect(listsBeside([program({ blocks, pairs: 511 })])).toBeNull();
  expect(listsBeside([])).toBeNull();
  // A call is never told of more ids than both lists hold.
  const uneven = program({ blocks: { ...blocks, destination: source.subarray(1) }, pairs: 599 });
  expect(listsBeside([uneven])?.count).toBe(599);
});

test.each([17, 18, 1001])("%d ids stay ids, and stand for the same offsets", (count) => {
  const source = Uint32Array.from({ length: count }, (_, index) => 4_294_967_295 - 7 * index);
  const destination = Uint32Array.from({ length: count }, (_, index) => (index * 13) % 9_973);
  const [sourceStride, destinationStride] = [2 ** 20 + 1, 48];
  const given = program({
    // Nobody looks at these.
    srcOffset: new Float64Array(count).fill(Number.NaN),
    dstOffset: new Float64Array(count).fill(Number.NaN),
    blocks: { source, destination, sourceStride, destinationStride },
    pairs: count,
  });
  const offsets = {
    srcOffset: Array.from(source, (id) => id * sourceStride),
    dstOffset: Array.from(destination, (id) => id * destinationStride),
    rest: true,
  };
  // Memory that was used before holds anything.
  const block = encodeHop([given], new Float64Array(4_096).fill(Number.NaN));
  expect(block).toHaveLength(HOP_HEADER_WORDS + PROGRAM_WORDS + 2 + 2 * Math.ceil(count / 2));
  expect(decode(block, 0)).toMatchObject(offsets);
  if (count % 2 === 1)
    expect(new Uint32Array(block.buffer, block.byteOffset + block.length * 8 - 4, 1)[0]).toBe(0);
  const other = { ...given, blocks: { source, destination, sourceStride: 1, destinationStride } };
  const shared = encodeHop([given, other]);
  expect(shared).toHaveLength(HOP_HEADER_WORDS + 2 * PROGRAM_WORDS + 2 + 2 * Math.ceil(count / 2));
  expect(decode(shared, 0)).toMatchObject(offsets);
  expect(decode(shared, 1)).toMatchObject({ ...offsets, srcOffset: [...source] });
});
