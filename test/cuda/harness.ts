// What the CUDA cases share: a transport, layouts with their oracle's description, raw access to their memory by one
// plain copy of the driver, and whole transfers compared byte for byte. The same cases run on a GPU and on the stand-in.
import { dlopen, ptr } from "bun:ffi";
import { expect } from "bun:test";
import {
  KvferryError,
  Transport,
  type Transfer,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type MemorySpec,
  type TransferOptions,
} from "../../index.ts";
import type { TransferResult } from "../../lib/runtime/transfer.ts";
import { encodeHop } from "../../lib/core/encode.ts";
import { openLibrary, type NativeLibrary } from "../../lib/native/library.ts";
import { KVF_CUDA_METHOD_DMA } from "../../lib/native/symbols.ts";
import { oneRun } from "../copy-program.ts";
import { expectedRows, type OracleComponent, type OracleRequest } from "../oracle.ts";

/** Path of the stand-in for the driver; null on a real one. */
export const STANDIN: string | null = process.env["KVFERRY_CUDA_LIBRARY"] ?? null;

/** The kinds of memory that the matrices go over. */
export const KINDS: readonly MemorySpec["kind"][] = ["system", "pinned", "device"];
export const METHODS: readonly string[] = [
  "cuda/dma",
  "cuda/pitched",
  "cuda/batch",
  "cuda/kernel",
  "cuda/slab",
  "cuda/bulk",
];

/** Dynamo's standard shape: 2 layers x K,V x 16 tokens x 128 elements of 2 bytes: blocks of 16 KiB. */
export const STANDARD = { numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 128 } as const;

export async function openCuda(
  options: Partial<Parameters<typeof Transport.open>[0]> = {},
): Promise<Transport> {
  return await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: {}, ...options });
}

/** Tells the stand-in what to do next; see test/standin/cuda.c. */
export function tell(what: string, value: string): void {
  if (STANDIN === null) throw new Error("only the stand-in can be told what to do");
  const { symbols } = dlopen(STANDIN, { standin_tell: { args: ["cstring", "cstring"], returns: "i32" } });
  symbols.standin_tell(cString(what) as never, cString(value) as never);
}

/** How often an entry of the stand-in was called. */
export function calls(name: string): number {
  if (STANDIN === null) throw new Error("only the stand-in counts calls");
  const { symbols } = dlopen(STANDIN, { standin_calls: { args: ["cstring"], returns: "u64" } });
  return Number(symbols["standin_calls"]?.(cString(name) as never));
}

/** The native library, for what only tests call. */
export function native(): NativeLibrary {
  return openLibrary();
}

/** A number that a call of the native library answers with. */
export function answer(call: (out: Float64Array<ArrayBuffer>) => number): number {
  const out = new Float64Array(new ArrayBuffer(64));
  const status = call(out);
  if (status !== 0) {
    const text = new Uint8Array(new ArrayBuffer(512));
    openLibrary().kvf_last_error(text, 512);
    throw new Error(`status ${status}: ${new TextDecoder().decode(text.subarray(0, text.indexOf(0)))}`);
  }
  return out[0] ?? 0;
}

/** Bytes at an address of any kind of memory, fetched by one plain copy. */
export function fetchBytes(
  address: number,
  bytes: number,
  kind: string,
  device = 0,
): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(new ArrayBuffer(bytes));
  plainCopy(address, addressOf(copy), bytes, kind === "device", false, device);
  return copy;
}

export function putBytes(address: number, bytes: Uint8Array<ArrayBuffer>, kind: string, device = 0): void {
  plainCopy(addressOf(bytes), address, bytes.byteLength, false, kind === "device", device);
}

/** All regions of a layout's component. */
export function regionsOf(layout: LocalLayout, component = "kv"): Uint8Array<ArrayBuffer>[] {
  const part = layout.components[component];
  if (part === undefined) throw new Error(`no component ${component}`);
  const device = part.storage.kind === "device" ? part.storage.device : 0;
  return part.regions.map(({ address, size }) => fetchBytes(address, size, part.storage.kind, device));
}

/** Writes bytes that differ at nearly every address, gaps included. */
export function scribble(layout: LocalLayout, seed: number, component = "kv"): void {
  const part = layout.components[component];
  if (part === undefined) throw new Error(`no component ${component}`);
  const device = part.storage.kind === "device" ? part.storage.device : 0;
  for (const [index, { address, size }] of part.regions.entries()) {
    const words = new Uint32Array(new ArrayBuffer(Math.ceil(size / 4) * 4));
    let state = (seed * 0x9e3779b1 + index * 0x85ebca6b) >>> 0;
    for (let at = 0; at < words.length; at++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      words[at] = state ^ (state >>> 15);
    }
    putBytes(address, new Uint8Array(words.buffer, 0, size), part.storage.kind, device);
  }
}

/** The oracle's description of a layout's component. */
export function described(layout: LocalLayout, component = "kv"): OracleComponent {
  const part = layout.components[component];
  if (part === undefined) throw new Error(`no component ${component}`);
  return {
    name: component,
    config: {
      numBlocks: part.config.numBlocks,
      numLayers: part.config.numLayers,
      outerDim: part.config.outerDim,
      pageSize: part.config.pageSize,
      dtypeBits: part.config.elementBits,
      ...(part.config.headsKnown
        ? { numHeads: part.config.numHeads, headDim: part.config.headDim }
        : { innerDim: part.config.innerDim }),
      ...(part.config.headWindow === null ? undefined : { headWindow: part.config.headWindow }),
      ...(part.config.modelLayers === null ? undefined : { layers: part.config.modelLayers }),
    },
    arrangement: part.arrangement as OracleComponent["arrangement"],
    order: part.order,
    group: "default",
    wholeBlocks: false,
    regions: part.regions.map(({ address }) => address),
  };
}

/**
 * Runs a transfer and compares every byte of the destination's regions, those around the blocks included, with what
 * the oracle says; the source must be as it was.
 */
export async function verified(
  transport: Transport,
  source: LocalLayout,
  sourceBlocks: readonly number[],
  destination: LocalLayout,
  destinationBlocks: readonly number[],
  options: TransferOptions = {},
): Promise<TransferResult> {
  scribble(source, 1 + sourceBlocks.length);
  scribble(destination, 77);
  const before = regionsOf(source);
  const wanted = regionsOf(destination);
  const request: OracleRequest = {
    source: [described(source)],
    destination: [described(destination)],
    sourceBlocks: { default: sourceBlocks },
    destinationBlocks: { default: destinationBlocks },
    ...(options.layers === undefined ? undefined : { layers: options.layers }),
  };
  const { rows, movedBytes } = expectedRows(request);
  const from = spaces(source, before);
  const to = spaces(destination, wanted);
  for (let row = 0; row < rows.length; row += 4) {
    const [sourceAt, destinationAt, bytes] = [rows[row + 1] ?? 0, rows[row + 2] ?? 0, rows[row + 3] ?? 0];
    const [here, there] = [from(sourceAt), to(destinationAt)];
    there.bytes.set(here.bytes.subarray(here.offset, here.offset + bytes), there.offset);
  }
  const result = await transport.transfer({
    source,
    sourceBlocks,
    destination,
    destinationBlocks,
    ...options,
  });
  expect(result.bytes).toBe(movedBytes);
  expectSame(regionsOf(destination), wanted, "destination");
  expectSame(regionsOf(source), before, "source");
  return result;
}

/** What a transfer failed with; fails itself when it did not. */
export async function failureOf(transfer: Transfer): Promise<KvferryError> {
  const failure: unknown = await transfer.then(
    () => null,
    (error: unknown) => error,
  );
  if (failure instanceof KvferryError) return failure;
  throw new Error(`the transfer did not fail with an error of ours: ${String(failure)}`);
}

/** A spec of the given memory kind in one of the plain arrangements. */
export function specOf(
  kind: MemorySpec["kind"] | MemorySpec,
  arrangement: "FC" | "LS" | "LS2",
  config: Partial<LayoutConfig> & { readonly numBlocks: number },
  order: "nhd" | "hnd" | "universal-tp" | "universal-pp" = "nhd",
): LayoutSpec {
  return {
    config: { ...STANDARD, ...config } as never,
    arrangement: {
      FC: "fully-contiguous",
      LS: "layer-separate/block-first",
      LS2: "layer-separate/block-second",
    }[arrangement] as never,
    order,
    memory: (typeof kind === "string" ? { kind } : kind) as MemorySpec,
  };
}

function expectSame(found: readonly Uint8Array[], wanted: readonly Uint8Array[], side: string): void {
  expect(found.length).toBe(wanted.length);
  for (const [index, bytes] of found.entries()) {
    const other = wanted[index] ?? new Uint8Array(0);
    if (Buffer.compare(bytes, other) === 0) continue;
    let wrong = 0;
    let first = -1;
    for (let at = 0; at < other.length; at++) {
      if (bytes[at] === other[at]) continue;
      if (first < 0) first = at;
      wrong++;
    }
    expect(`${side}, region ${index}: ${wrong} of ${other.length} bytes wrong, the first at ${first}`).toBe(
      "",
    );
  }
}

function spaces(
  layout: LocalLayout,
  copies: readonly Uint8Array[],
): (address: number) => { readonly bytes: Uint8Array; readonly offset: number } {
  const regions = layout.components["kv"]?.regions ?? [];
  return (address) => {
    const index = regions.findIndex(({ address: start, size }) => address >= start && address < start + size);
    const bytes = copies[index];
    if (bytes === undefined) throw new Error(`the oracle names ${address}, which is no byte of the layout`);
    return { bytes, offset: address - (regions[index]?.address ?? 0) };
  };
}

function plainCopy(
  source: number,
  destination: number,
  bytes: number,
  fromDevice: boolean,
  toDevice: boolean,
  device: number,
): void {
  const program = oneRun(source, destination, bytes, {
    srcMemory: { kind: fromDevice ? 1 : 0, device: fromDevice ? device : 0 },
    dstMemory: { kind: toDevice ? 1 : 0, device: toDevice ? device : 0 },
  });
  const hop = encodeHop([program]);
  if (!fromDevice && !toDevice) answer((out) => openLibrary().kvf_copy_run(hop, hop.length, 0, out));
  else
    answer((out) =>
      openLibrary().kvf_cuda_test_copy(device, hop, hop.length, KVF_CUDA_METHOD_DMA, 0, 1, out),
    );
}

function addressOf(bytes: Uint8Array<ArrayBuffer>): number {
  return pointerOf(bytes.buffer) + bytes.byteOffset;
}

function cString(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`);
}

const pointerOf = (buffer: ArrayBuffer): number => ptr(buffer) as unknown as number;
