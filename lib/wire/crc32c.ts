/**
 * CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected, as in RFC 3720): finds every change of up to 32 neighbouring
 * bits, so every change of one byte. Four bytes a step by three tables.
 *
 * @returns Unsigned 32 bits.
 */
export function crc32c(bytes: Uint8Array, start: number, end: number): number {
  // Whole words where the memory allows.
  const head = Math.min(end, start + ((4 - ((bytes.byteOffset + start) & 3)) & 3));
  const tail = head + ((end - head) & ~3);
  let crc = overBytes(~0, bytes, start, head);
  if (tail > head)
    crc = overWords(crc, new Int32Array(bytes.buffer, bytes.byteOffset + head, (tail - head) >>> 2));
  return ~overBytes(crc, bytes, tail, end) >>> 0;
}

/** A few bytes, bit by bit. */
function overBytes(before: number, bytes: Uint8Array, start: number, end: number): number {
  let crc = before;
  for (let at = start; at < end; at++) {
    crc ^= bytes[at] as number;
    for (let bit = 0; bit < 8; bit++) crc = shifted(crc);
  }
  return crc;
}

/**
 * A function of its own, short, and with all that it reads in variables: in a process that decodes its first package
 * most of this loop runs before the engine's better compilers are done with it. Three lookups of 11, 11 and 10 bits are
 * the fewest for which the tables can still be made while the module is loaded.
 */
function overWords(before: number, words: Int32Array): number {
  const low = LOW;
  const middle = MIDDLE;
  const high = HIGH;
  const count = words.length;
  let crc = before;
  // The indices stay inside by construction.
  for (let index = 0; index < count; index++) {
    crc ^= words[index] as number;
    crc =
      (low[crc & 2_047] as number) ^ (middle[(crc >>> 11) & 2_047] as number) ^ (high[crc >>> 22] as number);
  }
  return crc;
}

/** One bit further. */
function shifted(crc: number): number {
  return (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ 0x82f6_3b78;
}

// What the lower, the middle and the upper bits of a word do to the checksum by its end.
const LOW: Int32Array = makeTable(0, 11);
const MIDDLE: Int32Array = makeTable(11, 11);
const HIGH: Int32Array = makeTable(22, 10);

function makeTable(first: number, bits: number): Int32Array {
  const table = new Int32Array(new ArrayBuffer(2 ** bits * 4));
  for (let bit = 0; bit < bits; bit++) {
    // The bit reaches the end of the register in as many steps as lie below it; the rest of the 32 change it.
    let value = 1;
    for (let step = first + bit; step < 32; step++) value = shifted(value);
    // What several bits do is what each of them does.
    const size = 1 << bit;
    for (let index = 0; index < size; index++) table[size + index] = value ^ (table[index] as number);
  }
  return table;
}
