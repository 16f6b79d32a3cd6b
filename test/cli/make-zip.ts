import { crc32, deflateRawSync } from "node:zlib";

/** Writes a zip archive: files above 1 KiB deflated, the others stored. */
export function makeZip(files: Readonly<Record<string, Uint8Array>>): Uint8Array<ArrayBuffer> {
  const pieces: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const path = new TextEncoder().encode(name);
    const packed = bytes.byteLength > 1_024 ? deflateRawSync(bytes) : bytes;
    const method = packed === bytes ? 0 : 8;
    const common = [
      u16(20),
      u16(0),
      u16(method),
      u32(0),
      u32(crc32(bytes)),
      u32(packed.byteLength),
      u32(bytes.byteLength),
      u16(path.byteLength),
      u16(0),
    ];
    const header = joined([u32(0x04034b50), ...common, path]);
    directory.push(
      joined([u32(0x02014b50), u16(20), ...common, u16(0), u16(0), u16(0), u32(0), u32(offset), path]),
    );
    pieces.push(header, packed);
    offset += header.byteLength + packed.byteLength;
  }
  const list = joined(directory);
  const count = Object.keys(files).length;
  const end = [
    u32(0x06054b50),
    u16(0),
    u16(0),
    u16(count),
    u16(count),
    u32(list.byteLength),
    u32(offset),
    u16(0),
  ];
  return joined([...pieces, list, ...end]);
}

function u16(value: number): Uint8Array {
  return new Uint8Array(Uint16Array.of(value).buffer);
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function joined(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.byteLength, 0));
  let offset = 0;
  for (const piece of pieces) {
    whole.set(piece, offset);
    offset += piece.byteLength;
  }
  return whole;
}
