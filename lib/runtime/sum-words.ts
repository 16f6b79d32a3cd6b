import type { LayoutHandle } from "../core/handle.ts";
import type { SumShape, SumSide } from "../core/sum-shape.ts";
import { SUM_BYTES } from "./side-sums.ts";

/**
 * The words by which two transports compare what one of them moved, in control messages of type `sums`.
 *
 *     near                                  far
 *     ready { layout, group, blocks }  ->   has it the layout, and are the blocks (if it is the source) good?
 *                                      <-   sums { } without any
 *     ... moves the bytes ...
 *     ask { layout, shape, blocks }    ->   sums its side of a window
 *                                      <-   sums { one for each destination block }
 *     mark { layout, group, blocks }   ->   they are bad, or good again
 *
 * `refused` instead of sums ends a request. All numbers little-endian.
 */
export type SumWord =
  | {
      readonly word: "ready";
      readonly id: number;
      readonly layout: LayoutHandle;
      readonly group: string;
      /** Blocks that will be read. */
      readonly blocks: Uint32Array;
    }
  | {
      readonly word: "ask";
      readonly id: number;
      readonly layout: LayoutHandle;
      readonly component: string;
      readonly shape: SumShape;
      readonly side: SumSide;
      /** Destination blocks of the window. */
      readonly count: number;
    }
  | { readonly word: "sums"; readonly id: number; readonly sums: Uint8Array }
  | { readonly word: "refused"; readonly id: number; readonly code: string; readonly message: string }
  | {
      readonly word: "mark";
      readonly id: number;
      readonly layout: LayoutHandle;
      readonly group: string;
      readonly blocks: Uint32Array;
      readonly bad: boolean;
    };

/** What one message may name. */
export const MOST_SUM_LAYERS = 4_096;
export const MOST_SUM_IDS = 8_192;
/** Destination blocks of one window. */
export const MOST_SUMS = 1_024;

const VERSION = 1;
const KINDS: readonly SumWord["word"][] = ["ready", "ask", "sums", "refused", "mark"];
const HEAD_BYTES = 8;
const HANDLE_BYTES = 16;
const MOST_TEXT = 1_024;
/** Numbers of an `ask` before its lists. */
const FACTS = 10;
const KNOWS_HEADS = 1;
const HAS_TOKENS = 2;

/** Writes a word as the body of a control message: head, handle, numbers with their count, then text or sums. */
export function writeSumWord(word: SumWord): Uint8Array<ArrayBuffer> {
  const numbers = numbersOf(word);
  const tail = word.word === "sums" ? word.sums : new TextEncoder().encode(textOf(word));
  const bytes = new Uint8Array(
    new ArrayBuffer(HEAD_BYTES + HANDLE_BYTES + 4 + numbers.length * 4 + tail.byteLength),
  );
  const view = new DataView(bytes.buffer);
  view.setUint8(0, VERSION);
  view.setUint8(1, KINDS.indexOf(word.word));
  view.setUint32(4, word.id, true);
  const layout = "layout" in word ? word.layout : 0n;
  view.setBigUint64(HEAD_BYTES, BigInt.asUintN(64, layout), true);
  view.setBigUint64(HEAD_BYTES + 8, BigInt.asUintN(64, layout >> 64n), true);
  let at = HEAD_BYTES + HANDLE_BYTES;
  view.setUint32(at, numbers.length, true);
  for (const number of numbers) view.setUint32((at += 4), number, true);
  bytes.set(tail, at + 4);
  return bytes;
}

/** Reads a word; null for what is malformed: another version, lists that are too long or not as long as they claim. */
export function readSumWord(body: Uint8Array): SumWord | null {
  const listAt = HEAD_BYTES + HANDLE_BYTES;
  if (body.byteLength < listAt + 4 || body[0] !== VERSION) return null;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const word = KINDS[body[1] ?? 255];
  const id = view.getUint32(4, true);
  const layout = (view.getBigUint64(HEAD_BYTES, true) |
    (view.getBigUint64(HEAD_BYTES + 8, true) << 64n)) as LayoutHandle; // 128 bits
  const length = view.getUint32(listAt, true);
  const tailAt = listAt + 4 + length * 4;
  if (length > FACTS + MOST_SUM_LAYERS + MOST_SUM_IDS || tailAt > body.byteLength) return null;
  const numbers = Uint32Array.from({ length }, (_unused, index) =>
    view.getUint32(listAt + 4 + index * 4, true),
  );
  const tail = body.subarray(tailAt);
  if (word === "sums") {
    const whole = tail.byteLength % SUM_BYTES === 0 && tail.byteLength <= MOST_SUMS * SUM_BYTES;
    return length === 0 && whole ? { word, id, sums: tail.slice() } : null;
  }
  if (tail.byteLength > MOST_TEXT * 4) return null;
  const text = new TextDecoder().decode(tail);
  if (word === "refused") {
    const [code = "", ...message] = text.split("\n");
    return length === 0 ? { word, id, code, message: message.join(" ") } : null;
  }
  if (word === "ready")
    return length <= MOST_SUM_IDS ? { word, id, layout, group: text, blocks: numbers } : null;
  if (word === "mark") {
    const bad = numbers[0];
    if (length < 2 || length > MOST_SUM_IDS + 1 || (bad !== 0 && bad !== 1)) return null;
    return { word, id, layout, group: text, blocks: numbers.slice(1), bad: bad === 1 };
  }
  return word === "ask" ? readAsk(id, layout, text, numbers) : null;
}

function numbersOf(word: SumWord): readonly number[] | Uint32Array {
  if (word.word === "ready") return word.blocks;
  if (word.word === "mark") return [word.bad ? 1 : 0, ...word.blocks];
  if (word.word !== "ask") return [];
  const { shape, side, count } = word;
  const { heads } = shape;
  const { tokens } = side;
  return [
    (heads === null ? 0 : KNOWS_HEADS) + (tokens === null ? 0 : HAS_TOKENS),
    shape.pageSize,
    count,
    heads?.start ?? 0,
    heads?.count ?? 0,
    heads?.total ?? 0,
    tokens?.start ?? 0,
    tokens?.at ?? 0,
    tokens?.count ?? 0,
    shape.layers.length,
    ...shape.layers,
    ...side.blocks,
  ];
}

function textOf(word: SumWord): string {
  if (word.word === "ask") return word.component;
  if (word.word === "refused") return `${word.code}\n${word.message.slice(0, MOST_TEXT)}`;
  return word.word === "sums" ? "" : word.group;
}

function readAsk(
  id: number,
  layout: LayoutHandle,
  component: string,
  numbers: Uint32Array,
): Extract<SumWord, { word: "ask" }> | null {
  const [flags = 0, pageSize = 0, count = 0, headStart = 0, headCount = 0, headTotal = 0] = numbers;
  const [start = 0, at = 0, tokens = 0, layers = 0] = numbers.subarray(6);
  const ids = numbers.length - FACTS - layers;
  if (flags > KNOWS_HEADS + HAS_TOKENS || count < 1 || count > MOST_SUMS || pageSize < 1) return null;
  if (layers < 1 || layers > MOST_SUM_LAYERS || ids < 1 || ids > MOST_SUM_IDS) return null;
  const knowsHeads = (flags & KNOWS_HEADS) !== 0;
  return {
    word: "ask",
    id,
    layout,
    component,
    shape: {
      pageSize,
      layers: Array.from(numbers.subarray(FACTS, FACTS + layers)),
      heads: knowsHeads ? { start: headStart, count: headCount, total: headTotal } : null,
    },
    side: {
      blocks: numbers.slice(FACTS + layers),
      tokens: (flags & HAS_TOKENS) === 0 ? null : { start, at, count: tokens },
    },
    count,
  };
}
