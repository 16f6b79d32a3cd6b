/**
 * CRC-32 (polynomial 0x04C11DB7, reflected, as in Ethernet) of the first bytes: finds every change of up to 32
 * neighbouring bits, so every change of one byte.
 *
 * Bun has its own, which costs the first package of a process, for which nothing is compiled, as little as any later one.
 *
 * @param end - How many bytes.
 * @returns Unsigned 32 bits.
 */
export function crc32(bytes: Uint8Array, end: number): number {
  return typeof Bun === "undefined" ? portableCrc32(bytes, end) : Bun.hash.crc32(bytes.subarray(0, end));
}

/** The same wherever JavaScript runs. */
export function portableCrc32(bytes: Uint8Array, end: number): number {
  table ??= makeTable();
  let crc = -1;
  for (let at = 0; at < end; at++) crc = (crc >>> 8) ^ (table[(crc ^ (bytes[at] ?? 0)) & 255] ?? 0);
  return ~crc >>> 0;
}

let table: Int32Array | undefined;

/** What each value of a byte does to the checksum. */
function makeTable(): Int32Array {
  return Int32Array.from({ length: 256 }, (_, byte) => {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ 0xedb8_8320;
    return crc;
  });
}
