/**
 * Whole numbers as they are, evenly spaced from a first one on, or as multiples of one unit: what block ids times a stride
 * are, and where pieces lie in a chunk. The latter two are kept so, for they are short and many.
 */
export type NumberList =
  | Float64Array
  | readonly number[]
  | { readonly first: number; readonly step: number; readonly count: number }
  | { readonly unit: number; readonly times: Uint32Array };

// On the wire: form (u8), count (u32), then  0: f64 each  |  1: first f64, step f64  |  2: unit f64, u32 each
const PLAIN = 0;
const STEPS = 1;
const UNITS = 2;

const HEAD_BYTES = 5;
/** Evenly spaced ones are few bytes however many they are: more than this are not read. */
const MOST_NUMBERS = 8_192;

/** Every 32-bit multiple of a unit up to this is a safe integer. */
export const MOST_UNIT: number = 2 ** 21;

/** How many there are. */
export function countOf(list: NumberList): number {
  return "count" in list ? list.count : "times" in list ? list.times.length : list.length;
}

/** All of them. */
export function valuesOf(list: NumberList): Float64Array {
  if ("count" in list) {
    const { first, step, count } = list;
    const values = new Float64Array(count);
    for (let index = 0; index < count; index++) values[index] = first + index * step;
    return values;
  }
  if ("times" in list) {
    const { unit, times } = list;
    const values = new Float64Array(times.length);
    for (let index = 0; index < values.length; index++) values[index] = (times[index] as number) * unit; // in bounds
    return values;
  }
  return list instanceof Float64Array ? list : Float64Array.from(list);
}

/** The lowest and the highest of a list that is not empty. */
export function boundsOf(list: NumberList): { readonly lowest: number; readonly highest: number } {
  if ("count" in list) {
    const last = list.first + (list.count - 1) * list.step;
    return { lowest: Math.min(list.first, last), highest: Math.max(list.first, last) };
  }
  const numbers = "times" in list ? list.times : list;
  let lowest = Number.POSITIVE_INFINITY;
  let highest = Number.NEGATIVE_INFINITY;
  for (let index = 0; index < numbers.length; index++) {
    const number = numbers[index] as number; // in bounds
    if (number < lowest) lowest = number;
    if (number > highest) highest = number;
  }
  return "times" in list ? { lowest: lowest * list.unit, highest: highest * list.unit } : { lowest, highest };
}

/** The most bytes that a list takes. */
export function roomForList(list: NumberList): number {
  return HEAD_BYTES + 8 + 8 * Math.max(1, "count" in list ? 1 : countOf(list));
}

/** Writes a list into memory of its own that begins at 0. @returns Where it ends. */
export function writeList(view: DataView<ArrayBuffer>, start: number, list: NumberList): number {
  const at = start + HEAD_BYTES;
  view.setUint32(start + 1, countOf(list), true);
  if ("count" in list) {
    view.setUint8(start, STEPS);
    view.setFloat64(at, list.first, true);
    view.setFloat64(at + 8, list.step, true);
    return at + 16;
  }
  if ("times" in list) view.setFloat64(at, list.unit, true);
  view.setUint8(start, "times" in list ? UNITS : PLAIN);
  // Machines that this runs on are little-endian, as messages are: long lists go as they lie.
  const numbers =
    "times" in list ? list.times : list instanceof Float64Array ? list : Float64Array.from(list);
  const { buffer, byteOffset, byteLength } = numbers;
  const from = "times" in list ? at + 8 : at;
  new Uint8Array(view.buffer, from).set(new Uint8Array(buffer, byteOffset, byteLength));
  return from + byteLength;
}

/** Reads lists one after the other; once something is malformed all are empty and `ok` is false. */
export class ListReader {
  readonly #view: DataView;
  at: number;
  ok = true;

  constructor(view: DataView, at: number) {
    this.#view = view;
    this.at = at;
  }

  /** Numbers are whole and not above 2^53. */
  next(): NumberList {
    const list = this.ok ? this.#read() : null;
    if (list !== null) return list;
    this.ok = false;
    return [];
  }

  #read(): NumberList | null {
    const view = this.#view;
    const at = this.at + HEAD_BYTES;
    if (at > view.byteLength) return null;
    const form = view.getUint8(this.at);
    const count = view.getUint32(this.at + 1, true);
    const bytes = form === PLAIN ? 8 * count : form === STEPS ? 16 : form === UNITS ? 8 + 4 * count : -1;
    if (bytes < 0 || count > MOST_NUMBERS || bytes > view.byteLength - at) return null;
    this.at = at + bytes;
    if (form === PLAIN) {
      const list = new Float64Array(count);
      new Uint8Array(list.buffer).set(new Uint8Array(view.buffer, view.byteOffset + at, 8 * count));
      for (let index = 0; index < count; index++) if (!Number.isSafeInteger(list[index])) return null;
      return list;
    }
    const first = view.getFloat64(at, true);
    if (!Number.isSafeInteger(first)) return null;
    if (form === STEPS) {
      const step = view.getFloat64(at + 8, true);
      return Number.isSafeInteger(step) && Number.isSafeInteger(first + step * count)
        ? { first, step, count }
        : null;
    }
    const times = new Uint32Array(count);
    new Uint8Array(times.buffer).set(new Uint8Array(view.buffer, view.byteOffset + at + 8, 4 * count));
    return first >= 1 && first <= MOST_UNIT ? { unit: first, times } : null;
  }
}
