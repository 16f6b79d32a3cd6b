import type { LayoutHandle } from "../core/handle.ts";
import { MAX_LOOPS, type CopyProgram } from "../core/program.ts";

/**
 * The words by which two transports move bytes that only one of them can touch, in control messages of type `staging`.
 *
 *     near                               far
 *     ask { program, bytes }        ->   checks it; takes a chunk of its receive pool; for a read, gathers into it
 *                                   <-   credit { address }
 *     takes a chunk of its own; writes it to the credit's address, or reads from there, through NIXL
 *     moved                         ->   for a write, scatters; gives the chunk back
 *                                   <-   ended
 *
 * A fetch is the other way to read. The near side takes a chunk of its receive pool first and names its address; the far
 * side takes one of its send pool, gathers into it, writes it to that address through NIXL, and says `ended`. Whoever
 * needs a chunk on both sides thus has the receiver's before it waits for the sender's, whichever side asked.
 *
 * Chunks lie in host memory, or, where the near side wants that and the far side has it, in memory of the GPUs that hold
 * the bytes: a device in an `ask` and in the `credit` that answers it. Who knows no devices in words lends host memory.
 *
 * `refused` instead of an answer ends a request; so does `cancel` from the near side, which it sends only when none of
 * its transfers touches the chunk. All numbers little-endian.
 */
export type StagingWord =
  | {
      readonly word: "ask";
      readonly id: number;
      readonly operation: StagedOperation;
      readonly layout: LayoutHandle;
      readonly component: string;
      readonly program: StagedProgram;
      /** Of the near side's chunk, for a fetch; else 0. */
      readonly address: number;
      /** Chunks in GPU memory: the device of the near side's chunk for a fetch, else of the far side's bytes. */
      readonly device?: number;
    }
  | {
      readonly word: "credit";
      readonly id: number;
      readonly address: number;
      /** The chunk lies in memory of this device. */
      readonly device?: number;
    }
  | { readonly word: "moved"; readonly id: number }
  | { readonly word: "ended"; readonly id: number }
  | { readonly word: "cancel"; readonly id: number }
  | { readonly word: "refused"; readonly id: number; readonly code: string; readonly message: string };

/** What the near side wants done with the far side's bytes. */
export type StagedOperation = "read" | "write" | "fetch";

/** A copy program between a chunk, in which addresses count from 0, and the far side's own bytes. */
export interface StagedProgram {
  readonly stageBase: Float64Array;
  readonly farBase: Float64Array;
  readonly stageOffset: Float64Array;
  readonly farOffset: Float64Array;
  readonly count: readonly number[];
  readonly stageStride: readonly number[];
  readonly farStride: readonly number[];
  readonly rowBytes: number;
  readonly bytes: number;
}

/** Code of a refusal after which the far side's own copy may still be writing. */
export const IN_DOUBT = "IN_DOUBT";

/** Code of a refused fetch: NIXL over there does not know the near side's chunk. */
export const NO_WAY = "NO_WAY";

const VERSION = 2;
const OPERATIONS: readonly StagedOperation[] = ["read", "write", "fetch"];
const KINDS: readonly StagingWord["word"][] = ["ask", "credit", "moved", "ended", "cancel", "refused"];
const HEAD_BYTES = 8;
/** Devices have numbers below this; in the head they stand raised by one, with 0 for host memory. */
const MOST_DEVICES = 255;

/** Whether a device's number can stand in words. */
export function canName(device: number): boolean {
  return device < MOST_DEVICES;
}

/** The most bases and pairs together that fit one message. */
export const MOST_LISTED = 3_500;

/** The far side's half of a piece, as the message says it. */
export function stagedProgram(program: CopyProgram, far: "source" | "destination"): StagedProgram {
  const [stageBase, farBase, stageOffset, farOffset, stageStride, farStride] =
    far === "source"
      ? [
          program.dstBase,
          program.srcBase,
          program.dstOffset,
          program.srcOffset,
          program.dstStride,
          program.srcStride,
        ]
      : [
          program.srcBase,
          program.dstBase,
          program.srcOffset,
          program.dstOffset,
          program.srcStride,
          program.dstStride,
        ];
  const { count, rowBytes, bytes } = program;
  return { stageBase, farBase, stageOffset, farOffset, count, stageStride, farStride, rowBytes, bytes };
}

/** Writes a word as the body of a control message. */
export function writeStaging(word: StagingWord): Uint8Array<ArrayBuffer> {
  const lists: (readonly number[] | Float64Array)[] = [];
  let text = "";
  if (word.word === "credit") lists.push([word.address]);
  if (word.word === "refused") text = `${word.code}\n${word.message.slice(0, 1_000)}`;
  if (word.word === "ask") {
    const { program } = word;
    text = word.component;
    lists.push(
      [
        OPERATIONS.indexOf(word.operation),
        word.address,
        program.rowBytes,
        program.bytes,
        program.count.length,
        program.stageBase.length,
        program.stageOffset.length,
      ],
      program.count,
      program.stageStride,
      program.farStride,
      program.stageBase,
      program.farBase,
      program.stageOffset,
      program.farOffset,
    );
  }
  const letters = new TextEncoder().encode(text);
  const handle = word.word === "ask" ? 16 : 0;
  const count = lists.reduce((sum, list) => sum + list.length, 0);
  const bytes = new Uint8Array(new ArrayBuffer(HEAD_BYTES + handle + count * 8 + 4 + letters.byteLength));
  const view = new DataView(bytes.buffer);
  view.setUint8(0, VERSION);
  view.setUint8(1, KINDS.indexOf(word.word));
  if ((word.word === "ask" || word.word === "credit") && word.device !== undefined)
    view.setUint8(2, word.device + 1);
  view.setUint32(4, word.id, true);
  let at = HEAD_BYTES;
  if (word.word === "ask") {
    view.setBigUint64(at, BigInt.asUintN(64, word.layout), true);
    view.setBigUint64(at + 8, BigInt.asUintN(64, word.layout >> 64n), true);
    at += 16;
  }
  view.setUint32(at, count, true);
  at += 4;
  for (const list of lists) {
    // Machines that this runs on are little-endian, as the message is: long lists go as they lie.
    const { buffer, byteOffset, byteLength } = list instanceof Float64Array ? list : Float64Array.from(list);
    bytes.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  bytes.set(letters, at);
  return bytes;
}

/** Reads a word; null for what is malformed. Numbers are whole and not above 2^53, lists have the lengths they claim. */
export function readStaging(body: Uint8Array): StagingWord | null {
  if (body.byteLength < HEAD_BYTES + 4 || body[0] !== VERSION) return null;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const word = KINDS[body[1] ?? 255];
  const id = view.getUint32(4, true);
  if (word === undefined) return null;
  const place = body[2] ?? 0;
  const where = place === 0 ? undefined : { device: place - 1 };
  let at = HEAD_BYTES;
  let layout = 0n;
  if (word === "ask") {
    if (body.byteLength < at + 20) return null;
    layout = view.getBigUint64(at, true) | (view.getBigUint64(at + 8, true) << 64n);
    at += 16;
  }
  const count = view.getUint32(at, true);
  at += 4;
  if (count > (body.byteLength - at) / 8) return null;
  const numbers = new Float64Array(count);
  new Uint8Array(numbers.buffer).set(body.subarray(at, at + count * 8));
  at += count * 8;
  for (let index = 0; index < count; index++) if (!Number.isSafeInteger(numbers[index])) return null;
  const text = new TextDecoder().decode(body.subarray(at));
  if (word === "credit") {
    const [address] = numbers;
    return count === 1 && address !== undefined && address > 0 ? { word, id, address, ...where } : null;
  }
  if (word === "refused") {
    const [code = "", ...message] = text.split("\n");
    return count === 0 ? { word, id, code, message: message.join(" ") } : null;
  }
  if (word !== "ask") return count === 0 ? { word, id } : null;
  const program = readProgram(numbers);
  if (program === null) return null;
  const [which = -1, address = 0] = numbers;
  const operation = OPERATIONS[which];
  if (operation === undefined || address < 0 || address > 0 !== (operation === "fetch")) return null;
  return {
    word,
    id,
    operation,
    layout: layout as LayoutHandle,
    component: text,
    program,
    address,
    ...where,
  };
}

const FACTS = 7;

function readProgram(numbers: Float64Array): StagedProgram | null {
  const [, , rowBytes = 0, bytes = 0, loops = 0, bases = 0, pairs = 0] = numbers;
  if (loops < 0 || loops > MAX_LOOPS || bases < 1 || pairs < 1 || rowBytes < 1 || bytes < 1) return null;
  if (numbers.length !== FACTS + 3 * loops + 2 * bases + 2 * pairs) return null;
  let at = FACTS;
  const take = (length: number): Float64Array => numbers.slice(at, (at += length));
  const count = Array.from(take(loops));
  const stageStride = Array.from(take(loops));
  const farStride = Array.from(take(loops));
  const [stageBase, farBase, stageOffset, farOffset] = [take(bases), take(bases), take(pairs), take(pairs)];
  let rows = bases * pairs;
  for (const times of count) {
    if (times < 1) return null;
    rows *= times;
  }
  if (rows * rowBytes !== bytes) return null;
  return { stageBase, farBase, stageOffset, farOffset, count, stageStride, farStride, rowBytes, bytes };
}

/** The lowest and the highest start of a row on one side: each term of a start counts by itself. */
export function startsOfRows(
  bases: Float64Array,
  offsets: Float64Array,
  count: readonly number[],
  strides: readonly number[],
): { readonly lowest: number; readonly highest: number } {
  let lowest = leastOf(bases) + leastOf(offsets);
  let highest = -leastOf(bases, -1) - leastOf(offsets, -1);
  count.forEach((times, loop) => {
    const furthest = (times - 1) * (strides[loop] ?? 0);
    if (furthest < 0) lowest += furthest;
    else highest += furthest;
  });
  return { lowest, highest };
}

function leastOf(numbers: Float64Array, sign = 1): number {
  let least = Number.POSITIVE_INFINITY;
  for (let index = 0; index < numbers.length; index++) {
    const number = sign * (numbers[index] ?? 0);
    if (number < least) least = number;
  }
  return least;
}

/** Calls for the start of each row on one side; stops and answers false when the call does. */
export function everyRow(
  bases: Float64Array,
  offsets: Float64Array,
  count: readonly number[],
  strides: readonly number[],
  row: (start: number) => boolean,
): boolean {
  const walk = (loop: number, at: number): boolean => {
    const times = count[loop];
    if (times === undefined) return row(at);
    for (let index = 0; index < times; index++)
      if (!walk(loop + 1, at + index * (strides[loop] ?? 0))) return false;
    return true;
  };
  for (const base of bases) for (const offset of offsets) if (!walk(0, base + offset)) return false;
  return true;
}
