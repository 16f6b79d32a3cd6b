/** A run of memory that a NIXL agent's metadata name. */
export interface NixlBlobRegion {
  /** NIXL's memory type: 0 DRAM, 1 VRAM, 2 block, 3 object, 4 file. */
  readonly memory: number;
  readonly address: number;
  readonly bytes: number;
  readonly device: number;
}

/** What NIXL's metadata say, as far as it can be read without NIXL. */
export interface NixlBlob {
  readonly agent: string;
  /** Backends with connection information. */
  readonly connections: readonly string[];
  readonly regions: readonly NixlBlobRegion[];
}

const OPENING = "nixlSerDes|";
const BAR = 0x7c;
/** More than any agent has; keeps the work on a hostile blob small. */
const MOST_ITEMS = 1 << 20;

/**
 * Reads the metadata that a NIXL agent made: a name, connections and registered regions, as tagged fields (tag, length
 * as 64 bits, bytes, a bar). Allocates no more than the input is long.
 *
 * @returns Null for anything that is not exactly of this form: another release may write another one.
 */
export function readNixlBlob(bytes: Uint8Array): NixlBlob | null {
  const cursor: Cursor = {
    bytes,
    view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
    at: 0,
  };
  if (!skip(cursor, OPENING)) return null;
  const agent = field(cursor, "Agent");
  const connections: string[] = [];
  const count = number(cursor, "Conns");
  if (agent === null || count === null) return null;
  for (let index = 0; index < count; index++) {
    const type = field(cursor, "t");
    if (type === null || field(cursor, "c") === null) return null;
    connections.push(textOf(type));
  }
  const section = field(cursor, "");
  const elements = number(cursor, "nixlSecElms");
  if (section === null || textOf(section) !== "MemSection" || elements === null) return null;
  const regions: NixlBlobRegion[] = [];
  for (let index = 0; index < elements; index++) if (!readElement(cursor, regions)) return null;
  return cursor.at === bytes.byteLength ? { agent: textOf(agent), connections, regions } : null;
}

interface Cursor {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  at: number;
}

/** One backend's regions of one memory type. */
function readElement(cursor: Cursor, into: NixlBlobRegion[]): boolean {
  const backend = field(cursor, "bknd");
  const list = field(cursor, "nixlDList");
  const type = field(cursor, "t");
  const count = number(cursor, "n");
  if (backend === null || list === null || textOf(list) !== "nixlSDList" || count === null) return false;
  if (type === null || type.byteLength !== 4) return false;
  const memory = new DataView(type.buffer, type.byteOffset, 4).getUint32(0, true);
  for (let index = 0; index < count; index++) {
    const region = field(cursor, "");
    if (region === null || region.byteLength < 24) return false;
    const view = new DataView(region.buffer, region.byteOffset, region.byteLength);
    into.push({
      memory,
      address: wordOf(view, 0),
      bytes: wordOf(view, 8),
      device: wordOf(view, 16),
    });
  }
  return true;
}

/** A field's bytes, or null when the next one is not of that tag or does not fit. */
function field(cursor: Cursor, tag: string): Uint8Array | null {
  if (!skip(cursor, tag) || cursor.at + 8 > cursor.bytes.byteLength) return null;
  const length = wordOf(cursor.view, cursor.at);
  const start = cursor.at + 8;
  // The comparison is exact: lengths past the input are far below 2^53 or already too large.
  if (!(length <= cursor.bytes.byteLength - start - 1)) return null;
  const end = start + length;
  if (cursor.bytes[end] !== BAR) return null;
  cursor.at = end + 1;
  return cursor.bytes.subarray(start, end);
}

function number(cursor: Cursor, tag: string): number | null {
  const bytes = field(cursor, tag);
  if (bytes === null || bytes.byteLength !== 8) return null;
  const value = wordOf(new DataView(bytes.buffer, bytes.byteOffset, 8), 0);
  return value <= MOST_ITEMS ? value : null;
}

function skip(cursor: Cursor, text: string): boolean {
  for (let index = 0; index < text.length; index++)
    if (cursor.bytes[cursor.at + index] !== text.charCodeAt(index)) return false;
  cursor.at += text.length;
  return true;
}

/** 64 bits as a number; above 2^53 it is only known to be large. */
function wordOf(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
}

function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
