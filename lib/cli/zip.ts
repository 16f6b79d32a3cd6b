import { crc32, inflateRawSync } from "node:zlib";

import { KvferryError } from "../core/errors.ts";

/** A file in a zip archive. */
export interface ZipEntry {
  /** Path with `/` between its parts, as the archive has it. */
  readonly name: string;
  readonly compressedBytes: number;
  readonly bytes: number;
  readonly crc: number;
  /** 0 stored, 8 deflated. */
  readonly method: number;
  /** Where the entry's own header stands in the archive. */
  readonly headerOffset: number;
}

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;
const LOCAL_HEADER = 0x04034b50;

/**
 * Lists the files of a zip archive (PKWARE APPNOTE sections 4.3.12 and 4.3.16; no zip64, no encryption). Directories
 * are left out.
 *
 * @throws KvferryError `IO` when the archive is cut short, malformed, or holds a path that leaves its directory.
 */
export function zipEntries(archive: Uint8Array): readonly ZipEntry[] {
  const view = new DataView(archive.buffer, archive.byteOffset, archive.byteLength);
  const end = endOfDirectory(view);
  const count = view.getUint16(end + 10, true);
  let position = view.getUint32(end + 16, true);
  if (count === 0xffff || position === 0xffffffff) throw malformed("it is a zip64 archive");
  const entries: ZipEntry[] = [];
  for (let index = 0; index < count; index += 1) {
    if (position + 46 > end || view.getUint32(position, true) !== DIRECTORY_ENTRY)
      throw malformed(`its directory ends after ${index} of ${count} entries`);
    const nameBytes = view.getUint16(position + 28, true);
    const skip = view.getUint16(position + 30, true) + view.getUint16(position + 32, true);
    const name = new TextDecoder().decode(archive.subarray(position + 46, position + 46 + nameBytes));
    if (name.startsWith("/") || name.includes("\\") || name.split("/").includes(".."))
      throw malformed(`the path ${JSON.stringify(name)} leaves its directory`);
    if ((view.getUint16(position + 8, true) & 1) !== 0) throw malformed(`${name} is encrypted`);
    if (!name.endsWith("/"))
      entries.push({
        name,
        method: view.getUint16(position + 10, true),
        crc: view.getUint32(position + 16, true),
        compressedBytes: view.getUint32(position + 20, true),
        bytes: view.getUint32(position + 24, true),
        headerOffset: view.getUint32(position + 42, true),
      });
    position += 46 + nameBytes + skip;
  }
  return entries;
}

/**
 * Unpacks one file and checks its length and CRC-32.
 *
 * @throws KvferryError `IO` when the bytes are not what the directory says.
 */
export function readZipEntry(archive: Uint8Array, entry: ZipEntry): Uint8Array {
  const view = new DataView(archive.buffer, archive.byteOffset, archive.byteLength);
  if (
    entry.headerOffset + 30 > archive.byteLength ||
    view.getUint32(entry.headerOffset, true) !== LOCAL_HEADER
  )
    throw malformed(`${entry.name} has no header`);
  const start =
    entry.headerOffset +
    30 +
    view.getUint16(entry.headerOffset + 26, true) +
    view.getUint16(entry.headerOffset + 28, true);
  const packed = archive.subarray(start, start + entry.compressedBytes);
  if (packed.byteLength !== entry.compressedBytes) throw malformed(`${entry.name} is cut short`);
  const bytes = unpack(packed, entry);
  if (bytes.byteLength !== entry.bytes || crc32(bytes) !== entry.crc)
    throw malformed(`${entry.name} does not match its checksum`);
  return bytes;
}

function unpack(packed: Uint8Array, entry: ZipEntry): Uint8Array {
  if (entry.method === 0) return packed;
  if (entry.method !== 8) throw malformed(`${entry.name} is packed by method ${entry.method}`);
  try {
    return inflateRawSync(packed, { maxOutputLength: Math.max(entry.bytes, 1) });
  } catch (error) {
    throw malformed(`${entry.name} cannot be inflated`, error);
  }
}

function endOfDirectory(view: DataView): number {
  // The record is the last thing in the file but for a comment of at most 65,535 bytes.
  const lowest = Math.max(0, view.byteLength - 22 - 0xffff);
  for (let position = view.byteLength - 22; position >= lowest; position -= 1)
    if (view.getUint32(position, true) === END_OF_DIRECTORY) return position;
  throw malformed("it has no directory");
}

function malformed(what: string, cause?: unknown): KvferryError {
  return new KvferryError(
    "IO",
    "setup",
    `The archive cannot be read: ${what}.`,
    "Remove the file and let setup fetch it again, or give another copy with --wheel.",
    {},
    cause,
  );
}
