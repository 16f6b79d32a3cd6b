// The copies that calibration measures, between pieces of memory that stay meanwhile.
import type { LocalLayout, Transport } from "../index.ts";
import type { CopyProgram } from "../lib/core/program.ts";
import { copyProgram } from "./copy-program.ts";
import { shuffled } from "./statistics.ts";

const MIB = 1024 * 1024;
/** Bytes of each piece of memory, and of one measured copy. */
const ARENA = 256 * MIB;
export const MOVED: number = 64 * MIB;
/** Few enough that a slow way does not take the whole time. */
export const MOST_ROWS = 16_384;
/** Places in each region that kernels are measured with: as layouts have them, many regions and one list of blocks. */
const PLACES = 1024;

/** A piece of memory that stays while the machine is measured. */
export interface Arena {
  readonly layout: LocalLayout;
  readonly address: number;
}

export async function arena(
  transport: Transport,
  memory: { readonly kind: "system" | "pinned" | "device" },
): Promise<Arena> {
  const config = {
    numBlocks: ARENA / MIB,
    numLayers: 1,
    outerDim: 1,
    pageSize: 1,
    innerDim: MIB / 2,
  } as const;
  const layout = await transport.register({ config, memory });
  return { layout, address: layout.regions[0]?.address ?? 0 };
}

export function kindOf({ layout }: Arena): 0 | 1 {
  return layout.storage.kind === "device" ? 1 : 0;
}

/** Rows of one size at places in random order on both sides. */
export function scattered(
  from: Arena,
  to: Arena,
  bytes: number,
  fromKind: 0 | 1,
  toKind: 0 | 1,
  rows: number,
): CopyProgram {
  return program(from, to, fromKind, toKind, {
    srcOffset: places(rows, bytes, 1),
    dstOffset: places(rows, bytes, 2),
    rowBytes: bytes,
  });
}

/** The same in many regions, each with a few of the rows. */
export function regions(from: Arena, to: Arena, bytes: number, total: number): CopyProgram {
  const rows = Math.floor(total / bytes);
  const each = Math.min(rows, PLACES);
  const count = Math.floor(rows / each);
  const bases = (at: number, order: (region: number) => number): Float64Array =>
    Float64Array.from({ length: count }, (_, region) => at + order(region) * each * bytes);
  return program(from, to, kindOf(from), kindOf(to), {
    srcBase: bases(from.address, (region) => region),
    dstBase: bases(to.address, (region) => count - 1 - region),
    srcOffset: places(each, bytes, 1),
    dstOffset: places(each, bytes, 2),
    rowBytes: bytes,
  });
}

/** Rows at a pitch of twice their size on the device, one after the other on the host. */
export function pitched(from: Arena, to: Arena, bytes: number): CopyProgram {
  const count = Math.min(MOST_ROWS, MOVED / 2 / bytes);
  return program(from, to, kindOf(from), kindOf(to), {
    count: [count],
    srcStride: [2 * bytes],
    dstStride: [bytes],
    rowBytes: bytes,
  });
}

/** Blocks of 64 pieces: on the device each piece in a region of its own, on the host whole. */
export function blocks(from: Arena, to: Arena, bytes: number): CopyProgram {
  const pieces = 64;
  const count = Math.max(1, Math.floor(MOVED / (pieces * bytes)));
  const apart = Float64Array.from(
    { length: pieces },
    (_, piece) => piece * count * bytes + piece * piece * 256,
  );
  const whole = Float64Array.from({ length: pieces }, (_, piece) => piece * bytes);
  const inward = kindOf(from) === 0;
  return program(from, to, kindOf(from), kindOf(to), {
    srcBase: (inward ? whole : apart).map((base) => from.address + base),
    dstBase: (inward ? apart : whole).map((base) => to.address + base),
    srcOffset: places(count, inward ? pieces * bytes : bytes, 1),
    dstOffset: places(count, inward ? bytes : pieces * bytes, 2),
    rowBytes: bytes,
  });
}

/** What of a program is not the same for all. */
type Change = Omit<Parameters<typeof copyProgram>[0], "srcMemory" | "dstMemory">;

function program(from: Arena, to: Arena, fromKind: 0 | 1, toKind: 0 | 1, change: Change): CopyProgram {
  return copyProgram({
    srcBase: Float64Array.of(from.address),
    dstBase: Float64Array.of(to.address),
    srcMemory: { kind: fromKind, device: 0 },
    dstMemory: { kind: toKind, device: 0 },
    ...change,
  });
}

/** The first `rows` places of that size in random order. */
function places(rows: number, bytes: number, seed: number): Float64Array {
  return Float64Array.from(shuffled(rows, seed), (place) => place * bytes);
}
