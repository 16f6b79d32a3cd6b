/**
 * CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected, as in RFC 3720): finds every change of up to 32 neighbouring
 * bits, so every change of one byte. Eight bytes a step by eight tables.
 *
 * @returns Unsigned 32 bits.
 */
export function crc32c(bytes: Uint8Array, start: number, end: number): number {
  let crc = 0xffff_ffff | 0;
  let at = start;
  // Whole words where the memory allows: a quarter of the loads counts while the loop is not compiled yet.
  const words = new Int32Array(bytes.buffer, 0, bytes.buffer.byteLength >>> 2);
  const offset = bytes.byteOffset;
  const aligned = Math.min(end, start + ((4 - ((offset + start) & 3)) & 3));
  for (; at < aligned; at++) crc = (crc >>> 8) ^ (TABLES[(crc ^ (bytes[at] as number)) & 255] as number);
  const last = (offset + at + ((end - at) & ~7)) >>> 2;
  for (let word = (offset + at) >>> 2; word < last; word += 2) {
    const low = crc ^ (words[word] as number);
    const high = words[word + 1] as number;
    crc =
      (TABLES[1792 + (low & 255)] as number) ^
      (TABLES[1536 + ((low >>> 8) & 255)] as number) ^
      (TABLES[1280 + ((low >>> 16) & 255)] as number) ^
      (TABLES[1024 + (low >>> 24)] as number) ^
      (TABLES[768 + (high & 255)] as number) ^
      (TABLES[512 + ((high >>> 8) & 255)] as number) ^
      (TABLES[256 + ((high >>> 16) & 255)] as number) ^
      (TABLES[high >>> 24] as number);
  }
  at += (end - at) & ~7;
  for (; at < end; at++) crc = (crc >>> 8) ^ (TABLES[(crc ^ (bytes[at] as number)) & 255] as number);
  return ~crc >>> 0;
}

// Table k, entry b: what byte b does to the checksum k bytes later. The indices above stay inside by construction.
const TABLES: Int32Array = makeTables();

function makeTables(): Int32Array {
  const tables = new Int32Array(new ArrayBuffer(8 * 256 * 4));
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f6_3b78 : value >>> 1;
    tables[byte] = value;
  }
  for (let index = 256; index < tables.length; index++) {
    const before = tables[index - 256] as number;
    tables[index] = (before >>> 8) ^ (tables[before & 255] as number);
  }
  return tables;
}
