/**
 * Lists of whole numbers in as few bytes as they need: as they are (8 bytes each), as a first one and a step where they are
 * evenly spaced, or as multiples of one unit (4 bytes each).
 *
 *     form (u8), count (u32), then  0: f64 each  |  1: first f64, step f64  |  2: unit f64, u32 each
 */
const PLAIN = 0;
const STEPS = 1;
const UNITS = 2;

const HEAD_BYTES = 5;
/** Evenly spaced ones are few bytes however many they are: more than this are not read. */
const MOST_NUMBERS = 8_192;

/** The most bytes that a list takes. */
export function roomForList(list: ArrayLike<number>): number {
  return HEAD_BYTES + 8 + 8 * Math.max(1, list.length);
}

/** Writes a list. @returns Where it ends. */
export function writeList(view: DataView, start: number, list: ArrayLike<number>): number {
  const count = list.length;
  view.setUint32(start + 1, count, true);
  let at = start + HEAD_BYTES;
  const step = stepOf(list);
  if (step !== null) {
    view.setUint8(start, STEPS);
    view.setFloat64(at, list[0] ?? 0, true);
    view.setFloat64(at + 8, step, true);
    return at + 16;
  }
  const unit = unitOf(list);
  if (unit > 0) {
    view.setUint8(start, UNITS);
    view.setFloat64(at, unit, true);
    at += 8;
    for (let index = 0; index < count; index++, at += 4)
      view.setUint32(at, (list[index] as number) / unit, true); // in bounds, and whole
    return at;
  }
  view.setUint8(start, PLAIN);
  for (let index = 0; index < count; index++, at += 8) view.setFloat64(at, list[index] as number, true); // in bounds
  return at;
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
  next(): Float64Array {
    const list = this.#read();
    if (list !== null) return list;
    this.ok = false;
    return new Float64Array(0);
  }

  #read(): Float64Array | null {
    const view = this.#view;
    let at = this.at + HEAD_BYTES;
    if (!this.ok || at > view.byteLength) return null;
    const form = view.getUint8(this.at);
    const count = view.getUint32(this.at + 1, true);
    const bytes = form === PLAIN ? 8 * count : form === STEPS ? 16 : form === UNITS ? 8 + 4 * count : -1;
    if (bytes < 0 || count > MOST_NUMBERS || bytes > view.byteLength - at) return null;
    this.at = at + bytes;
    const list = new Float64Array(count);
    if (form === PLAIN) {
      for (let index = 0; index < count; index++, at += 8) {
        const number = view.getFloat64(at, true);
        if (!Number.isSafeInteger(number)) return null;
        list[index] = number;
      }
      return list;
    }
    const first = view.getFloat64(at, true);
    at += 8;
    if (!Number.isSafeInteger(first)) return null;
    if (form === UNITS) {
      if (first < 1) return null;
      let most = 0;
      for (let index = 0; index < count; index++, at += 4) {
        const times = view.getUint32(at, true);
        if (times > most) most = times;
        list[index] = times * first;
      }
      return Number.isSafeInteger(most * first) ? list : null;
    }
    const step = view.getFloat64(at, true);
    if (!Number.isSafeInteger(step) || !Number.isSafeInteger(first + step * count)) return null;
    for (let index = 0; index < count; index++) list[index] = first + index * step;
    return list;
  }
}

/** The step of evenly spaced numbers, or null; what is the same in plain is left plain. */
function stepOf(list: ArrayLike<number>): number | null {
  if (list.length < 3) return null;
  const first = list[0] as number; // in bounds, as below
  const step = (list[1] as number) - first;
  for (let index = 2; index < list.length; index++)
    if ((list[index] as number) - (list[index - 1] as number) !== step) return null;
  return Number.isSafeInteger(first + step * list.length) ? step : null;
}

/** The largest power of two of which all are multiples by a number of 32 bits; 0 for none. */
function unitOf(list: ArrayLike<number>): number {
  if (list.length < 3) return 0;
  let bits = 0;
  let most = 0;
  for (let index = 0; index < list.length; index++) {
    const number = list[index] as number; // in bounds
    if (number < 0) return 0;
    if (number > most) most = number;
    bits |= number;
  }
  // Of the low 32 bits, which is what matters: a unit is not larger than 2^31.
  const unit = bits === 0 ? 2 ** 31 : (bits & -bits) >>> 0;
  return most / unit < 2 ** 32 ? unit : 0;
}
