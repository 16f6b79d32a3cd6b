import type { LayoutHandle } from "../core/handle.ts";
import { MAX_LOOPS } from "../core/program.ts";
import type { StagePiece } from "../core/stage-piece.ts";
import {
  boundsOf,
  countOf,
  ListReader,
  MOST_UNIT,
  type NumberList,
  roomForList,
  valuesOf,
  writeList,
} from "./number-lists.ts";

/**
 * The words by which two transports move bytes that only one of them can touch, several in one control message of type
 * `staging`. `moved`, and the `ended` of a fetch, leave with NIXL's write where that can carry them: in a message of type
 * `landed`, which may overtake others and be overtaken.
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
  readonly stageBase: NumberList;
  readonly farBase: Float64Array;
  readonly stageOffset: NumberList;
  readonly farOffset: NumberList;
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

const VERSION = 3;
const OPERATIONS: readonly StagedOperation[] = ["read", "write", "fetch"];
const KINDS: readonly StagingWord["word"][] = ["ask", "credit", "moved", "ended", "cancel", "refused"];
const HEAD_BYTES = 8;
/** Devices have numbers below this; in the head they stand raised by one, with 0 for host memory. */
const MOST_DEVICES = 255;

/** Whether a device's number can stand in words. */
export function canName(device: number): boolean {
  return device < MOST_DEVICES;
}

/** The most bases and pairs together that fit one message, at 8 bytes each: where they lie in a chunk takes few. */
export const MOST_LISTED = 7_000;

/** The far side's half of a piece, as the message says it. */
export function stagedProgram(piece: StagePiece, far: "source" | "destination"): StagedProgram {
  const [inward, outward] = piece.hops(0);
  const reads = far === "source";
  const program = reads ? inward : outward;
  const { srcStride, dstStride, count, rowBytes, bytes, pairs, blocks } = program;
  const unit = (reads ? blocks?.sourceStride : blocks?.destinationStride) ?? 0;
  const farBase = reads ? program.srcBase : program.dstBase;
  // Offsets are made only where they are asked for.
  const offsets = (): Float64Array => (reads ? program.srcOffset : program.dstOffset);
  return {
    stageBase: { first: 0, step: piece.pairBytes / farBase.length, count: farBase.length },
    farBase,
    stageOffset: { first: 0, step: piece.pairBytes, count: pairs },
    farOffset: blocks !== null && unit <= MOST_UNIT ? { unit, times: blocks[far] } : offsets(),
    count,
    stageStride: reads ? dstStride : srcStride,
    farStride: reads ? srcStride : dstStride,
    rowBytes,
    bytes,
  };
}

/** Writes a word. */
export function writeStaging(word: StagingWord): Uint8Array<ArrayBuffer> {
  const lists: NumberList[] = [];
  let text = "";
  if (word.word === "credit") lists.push([word.address]);
  if (word.word === "refused") text = `${word.code}\n${word.message.slice(0, 1_000)}`;
  if (word.word === "ask") {
    const { program } = word;
    text = word.component;
    lists.push(
      [OPERATIONS.indexOf(word.operation), word.address, program.rowBytes, program.bytes],
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
  let room = HEAD_BYTES + 16 + letters.byteLength;
  for (const list of lists) room += roomForList(list);
  const bytes = new Uint8Array(new ArrayBuffer(room));
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
  for (const list of lists) at = writeList(view, at, list);
  bytes.set(letters, at);
  return bytes.subarray(0, at + letters.byteLength);
}

/** Reads a word; null for what is malformed. Numbers are whole and not above 2^53, lists have the lengths they claim. */
export function readStaging(body: Uint8Array): StagingWord | null {
  if (body.byteLength < HEAD_BYTES || body[0] !== VERSION) return null;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const word = KINDS[body[1] ?? 255];
  const id = view.getUint32(4, true);
  if (word === undefined) return null;
  const place = body[2] ?? 0;
  const where = place === 0 ? undefined : { device: place - 1 };
  if (word === "credit") {
    const reader = new ListReader(view, HEAD_BYTES);
    const [address, ...more] = valuesOf(reader.next());
    const whole = reader.ok && more.length === 0 && reader.at === body.byteLength;
    return whole && address !== undefined && address > 0 ? { word, id, address, ...where } : null;
  }
  if (word === "refused") {
    const [code = "", ...message] = new TextDecoder().decode(body.subarray(HEAD_BYTES)).split("\n");
    return { word, id, code, message: message.join(" ") };
  }
  if (word !== "ask") return body.byteLength === HEAD_BYTES ? { word, id } : null;
  if (body.byteLength < HEAD_BYTES + 16) return null;
  const layout = view.getBigUint64(HEAD_BYTES, true) | (view.getBigUint64(HEAD_BYTES + 8, true) << 64n);
  const reader = new ListReader(view, HEAD_BYTES + 16);
  const facts = valuesOf(reader.next());
  const [which = -1, address = 0, rowBytes = 0, bytes = 0] = facts;
  const program = readProgram(reader, rowBytes, bytes);
  if (program === null || facts.length !== FACTS) return null;
  const operation = OPERATIONS[which];
  if (operation === undefined || address < 0 || address > 0 !== (operation === "fetch")) return null;
  return {
    word,
    id,
    operation,
    layout: layout as LayoutHandle,
    component: new TextDecoder().decode(body.subarray(reader.at)),
    program,
    address,
    ...where,
  };
}

const FACTS = 4;

function readProgram(reader: ListReader, rowBytes: number, bytes: number): StagedProgram | null {
  const plain = (): Float64Array => valuesOf(reader.next());
  const [count, stageStride, farStride] = [plain(), plain(), plain()];
  const [stageBase, farBase] = [reader.next(), plain()];
  const [stageOffset, farOffset] = [reader.next(), reader.next()];
  const loops = count.length;
  if (!reader.ok || loops > MAX_LOOPS || stageStride.length !== loops || farStride.length !== loops)
    return null;
  const [bases, pairs] = [countOf(stageBase), countOf(stageOffset)];
  if (bases < 1 || pairs < 1 || farBase.length !== bases || countOf(farOffset) !== pairs) return null;
  if (rowBytes < 1 || bytes < 1) return null;
  let rows = bases * pairs;
  for (const times of count) {
    if (times < 1) return null;
    rows *= times;
  }
  if (rows * rowBytes !== bytes) return null;
  return {
    stageBase,
    farBase,
    stageOffset,
    farOffset,
    count: Array.from(count),
    stageStride: Array.from(stageStride),
    farStride: Array.from(farStride),
    rowBytes,
    bytes,
  };
}

/** The lowest and the highest start of a row on one side: each term of a start counts by itself. */
export function startsOfRows(
  bases: NumberList,
  offsets: NumberList,
  count: readonly number[],
  strides: readonly number[],
): { readonly lowest: number; readonly highest: number } {
  const [base, offset] = [boundsOf(bases), boundsOf(offsets)];
  let lowest = base.lowest + offset.lowest;
  let highest = base.highest + offset.highest;
  count.forEach((times, loop) => {
    const furthest = (times - 1) * (strides[loop] ?? 0);
    if (furthest < 0) lowest += furthest;
    else highest += furthest;
  });
  return { lowest, highest };
}

/** Calls for the start of each row on one side; stops and answers false when the call does. */
export function everyRow(
  bases: NumberList,
  offsets: NumberList,
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
  const pairs = valuesOf(offsets);
  for (const base of valuesOf(bases)) for (const offset of pairs) if (!walk(0, base + offset)) return false;
  return true;
}
