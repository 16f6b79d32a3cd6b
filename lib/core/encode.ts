import { type CopyProgram, MAX_LOOPS } from "./program.ts";

/** First word of a hop block. */
export const HOP_MAGIC = 0x4b564650;
/** Version of the block's layout. */
export const HOP_VERSION = 2;
/** Doubles in the hop header, and in each program header. */
export const HOP_HEADER_WORDS = 8;
export const PROGRAM_WORDS = 40;

/** Block ids that a native call is given beside a hop's block. */
export interface BesideLists {
  readonly source: Uint32Array;
  readonly destination: Uint32Array;
  /** Ids that both hold. */
  readonly count: number;
  /** Lists of one number hold the same ids; 0 where that is not known. */
  readonly sourceNumber: number;
  readonly destinationNumber: number;
}

/** Fewer ids are copied as quickly. */
const LEAST_BESIDE = 512;

/**
 * The lists of block ids that all programs share, where they are long: a call can be given them as they are.
 *
 * @param numberOf - The number of a list: lists of one number hold the same ids. 0 for none.
 */
export function listsBeside(
  [first, ...more]: readonly CopyProgram[],
  numberOf: (list: Uint32Array) => number = () => 0,
): BesideLists | null {
  const blocks = first?.blocks ?? null;
  if (first === undefined || blocks === null || first.pairs < LEAST_BESIDE) return null;
  const { source, destination } = blocks;
  for (const program of more)
    if (program.blocks?.source !== source || program.blocks.destination !== destination) return null;
  return {
    source,
    destination,
    count: Math.min(source.length, destination.length),
    sourceNumber: numberOf(source),
    destinationNumber: numberOf(destination),
  };
}

/**
 * Writes a hop's programs as the one block of doubles that the native side reads (`cshim/kvf.h`, "copy programs").
 *
 * Arrays that programs share by identity are written once. Small arrays are written element by element, large ones in
 * bulk; long lists of block ids stay ids.
 *
 * @param scratch - Memory to write into when the block fits; its content is lost with the next use.
 * @param beside - What `listsBeside` gave for the programs, where the call is given these lists; else null.
 * @returns The block, exactly as long as its words: a part of `scratch`, or a new array that the caller owns.
 */
export function encodeHop(
  programs: readonly CopyProgram[],
  scratch?: Float64Array,
  beside: BesideLists | null = null,
): Float64Array {
  const arrays = programs.length === 1 ? null : new Map<ArrayBufferView, number>();
  const first = HOP_HEADER_WORDS + PROGRAM_WORDS * programs.length;
  const words = layoutWords(programs, arrays, first, beside !== null);
  const block =
    scratch !== undefined && scratch.length >= words
      ? scratch.subarray(0, words)
      : new Float64Array(new ArrayBuffer(words * 8));
  let bytes = 0;
  for (const program of programs) bytes += program.bytes;
  block[0] = HOP_MAGIC;
  block[1] = HOP_VERSION;
  block[2] = programs.length;
  block[3] = words;
  block[4] = bytes;
  block[5] = beside?.sourceNumber ?? 0;
  block[6] = beside?.destinationNumber ?? 0;
  block[7] = 0;
  const placed = arrays === null ? null : new Set<ArrayBufferView>();
  let next = first;
  let at = HOP_HEADER_WORDS;
  for (const program of programs) {
    const { srcBase, dstBase, blocks, run, pairs } = program;
    writeHeader(block, at, program);
    const place = (array: Float64Array, index: number): void => {
      const known = arrays?.get(array);
      block[at + index] = known ?? next;
      if (known !== undefined && placed?.has(array) === true) return;
      write(block, known ?? next, array);
      placed?.add(array);
      if (known === undefined) next += array.length;
    };
    place(srcBase, 28);
    place(dstBase, 29);
    const placeNumbers = (numbers: Uint32Array, index: number): void => {
      const known = arrays?.get(numbers);
      block[at + index] = known ?? next;
      if (placed?.has(numbers) !== true) {
        writeNumbers(block, known ?? next, numbers, pairs);
        placed?.add(numbers);
      }
      if (known === undefined) next += wordsOf(pairs);
    };
    const ids = idsOf(program, beside !== null);
    if (blocks !== null && ids !== NO_IDS) {
      block[at + 34] = ids;
      block[at + 35] = blocks.sourceStride;
      block[at + 36] = blocks.destinationStride;
      if (ids === IDS) {
        placeNumbers(blocks.source, 30);
        placeNumbers(blocks.destination, 31);
      } else block.fill(0, at + 30, at + 32);
    } else if (blocks !== null && arrays === null) {
      block[at + 30] = next;
      block[at + 31] = next + pairs;
      writeScaled(block, next, blocks.source, blocks.sourceStride);
      writeScaled(block, next + pairs, blocks.destination, blocks.destinationStride);
      next += 2 * pairs;
    } else {
      place(program.srcOffset, 30);
      place(program.dstOffset, 31);
    }
    if (run !== null) placeNumbers(run, 32);
    at += PROGRAM_WORDS;
  }
  return block;
}

/** Counts the block's words and, with several programs, gives each distinct array its place. */
function layoutWords(
  programs: readonly CopyProgram[],
  arrays: Map<ArrayBufferView, number> | null,
  first: number,
  beside: boolean,
): number {
  let words = first;
  const give = (array: ArrayBufferView, length: number): void => {
    if (arrays !== null) {
      if (arrays.has(array)) return;
      arrays.set(array, words);
    }
    words += length;
  };
  for (const program of programs) {
    const { srcBase, dstBase, blocks, run, pairs } = program;
    give(srcBase, srcBase.length);
    give(dstBase, dstBase.length);
    const ids = idsOf(program, beside);
    if (blocks !== null && ids !== NO_IDS) {
      if (ids === IDS) {
        give(blocks.source, wordsOf(pairs));
        give(blocks.destination, wordsOf(pairs));
      }
    } else if (blocks !== null && arrays === null) words += 2 * pairs;
    else {
      give(program.srcOffset, pairs);
      give(program.dstOffset, pairs);
    }
    if (run !== null) give(run, wordsOf(pairs));
  }
  return words;
}

function writeHeader(block: Float64Array, at: number, program: CopyProgram): void {
  const loops = program.count.length;
  block[at] = program.srcBase.length;
  block[at + 1] = program.pairs;
  block[at + 2] = loops;
  block[at + 3] = program.rowBytes;
  block[at + 4] = program.srcRunStride;
  block[at + 5] = program.dstRunStride;
  for (let loop = 0; loop < MAX_LOOPS; loop++) {
    const used = loop < loops;
    block[at + 6 + loop] = used ? (program.count[loop] as number) : 0; // in bounds
    block[at + 12 + loop] = used ? (program.srcStride[loop] as number) : 0;
    block[at + 18 + loop] = used ? (program.dstStride[loop] as number) : 0;
  }
  block[at + 24] = program.srcMemory.kind;
  block[at + 25] = program.srcMemory.device;
  block[at + 26] = program.dstMemory.kind;
  block[at + 27] = program.dstMemory.device;
  block[at + 32] = 0;
  block[at + 33] = program.bytes;
  for (let word = 34; word < PROGRAM_WORDS; word++) block[at + word] = 0;
}

/** How a program says where its pairs lie: by offsets, by ids in the block, or by the ids beside it. */
const NO_IDS = 0;
const IDS = 1;
const IDS_BESIDE = 2;

function idsOf({ blocks, pairs }: CopyProgram, beside: boolean): number {
  if (blocks === null) return NO_IDS;
  return beside ? IDS_BESIDE : pairs > SMALL ? IDS : NO_IDS;
}

/** Up to here a loop beats the call of a bulk copy, and a list of ids of its own. */
const SMALL = 16;

function write(block: Float64Array, at: number, array: Float64Array): void {
  if (array.length > SMALL) block.set(array, at);
  else for (let index = 0; index < array.length; index++) block[at + index] = array[index] as number; // in bounds
}

/** Ids become offsets where the native side reads them; programs that share arrays have them made once instead. */
function writeScaled(block: Float64Array, at: number, ids: Uint32Array, stride: number): void {
  for (let index = 0; index < ids.length; index++) block[at + index] = (ids[index] as number) * stride; // in bounds
}

/** 32-bit numbers stand two to a word; an odd last word is filled with a zero. */
function writeNumbers(block: Float64Array, at: number, numbers: Uint32Array, pairs: number): void {
  block[at + wordsOf(pairs) - 1] = 0;
  const whole = numbers.length === pairs ? numbers : numbers.subarray(0, pairs);
  new Uint32Array(block.buffer, block.byteOffset + at * 8, pairs).set(whole);
}

function wordsOf(numbers: number): number {
  return Math.ceil(numbers / 2);
}
