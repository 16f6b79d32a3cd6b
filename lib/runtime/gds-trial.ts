import { constants } from "node:fs";
import { open, unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { encodeHop } from "../core/encode.ts";
import type { CopyProgram, ProgramMemory } from "../core/program.ts";
import { NixlAgent } from "../native/agent.ts";
import { cString, NativeContext } from "../native/context.ts";
import { CudaDriver } from "../native/cuda.ts";
import type { NixlLocation } from "../native/find-nixl.ts";
import { openLibrary } from "../native/library.ts";
import { mapMemory, unmapMemory, ViewSet } from "../native/memory.ts";
import {
  KVF_CUDA_METHOD_DMA,
  KVF_MEM_FILE,
  KVF_MEM_VRAM,
  KVF_NIXL_READ,
  KVF_NIXL_WRITE,
} from "../native/symbols.ts";

/** What a trial needs. */
export interface GdsTrialOptions {
  readonly nixl: NixlLocation;
  /** NIXL's plugin: `GDS` or `GDS_MT`. */
  readonly backend: string;
  /** The CUDA driver's library; null for the system's. */
  readonly cuda: string | null;
  /** The directory that the temporary file is made in. */
  readonly folder: string;
}

/** What a trial showed. */
export interface GdsTrial {
  /** Every byte was where it belongs, both ways. */
  readonly proven: boolean;
  /** Where it ended: no CUDA device, no backend, no file or memory, bytes written to the file, bytes read from it. */
  readonly stage: "device" | "backend" | "memory" | "write" | "read";
  /** What was found, in words. */
  readonly found: string;
}

const ROWS = 16;
const ROW_BYTES = 65_536;
const BYTES: number = ROWS * ROW_BYTES;
const AGENT = "gds-trial";
/** The first device: whether the plugin works is no question of which. */
const DEVICE = 0;

/**
 * Writes device memory to a temporary file and reads the file into device memory through NIXL's plugin for GPUDirect
 * Storage, and compares every byte with what plain reads and copies say. For a process of its own: plugins that lack
 * something have been seen to hang and to crash.
 */
export async function tryGds(options: GdsTrialOptions): Promise<GdsTrial> {
  const context = NativeContext.open(openLibrary(), 64);
  let stage: GdsTrial["stage"] = "device";
  const reach = (next: GdsTrial["stage"]): void => {
    stage = next;
  };
  try {
    return await trial(context, options, reach);
  } catch (error) {
    return { proven: false, stage, found: error instanceof Error ? error.message : String(error) };
  } finally {
    context.close(1_000);
  }
}

async function trial(
  context: NativeContext,
  options: GdsTrialOptions,
  reach: (stage: GdsTrial["stage"]) => void,
): Promise<GdsTrial> {
  const driver = await CudaDriver.load(context, options.cuda);
  await using undo = new AsyncDisposableStack();
  await driver.openDevice(DEVICE);
  undo.defer(() => driver.closeDevice(DEVICE));
  reach("backend");
  const agent = await NixlAgent.create(context, options.nixl, AGENT, 1);
  undo.defer(async () => void (await agent.close()));
  await agent.addBackend(options.backend, {});

  reach("memory");
  const device = await driver.allocate(DEVICE, BYTES);
  undo.defer(() => driver.free(DEVICE, device));
  const host = mapMemory(context, BYTES, false);
  const views = new ViewSet();
  undo.defer(() => {
    views.detach();
    unmapMemory(context, host);
  });
  const bytes = views.view(host.address, BYTES);
  const file = await temporaryFile(options.folder);
  undo.defer(async () => {
    await file.handle.close();
    await unlink(file.path);
  });
  await writeAll(file.handle, new Uint8Array(BYTES));
  for (const [memory, region] of [
    [KVF_MEM_VRAM, { address: device, bytes: BYTES, device: DEVICE }],
    [KVF_MEM_FILE, { address: 0, bytes: BYTES, device: file.handle.fd }],
  ] as const) {
    await agent.register(memory, [region]);
    undo.defer(() => agent.deregister(memory, [region]));
  }
  const place = { file: { kind: 2, device: file.handle.fd }, gpu: { kind: 1, device: DEVICE } } as const;
  const copy = (out: boolean): Promise<void> =>
    copyRows(
      context,
      out
        ? rows(host.address, { kind: 0, device: 0 }, device, place.gpu, false)
        : rows(device, place.gpu, host.address, { kind: 0, device: 0 }, false),
    );

  reach("write");
  const written = crypto.getRandomValues(new Uint8Array(new ArrayBuffer(ROW_BYTES)));
  for (let row = 0; row < ROWS; row++) bytes.set(turned(written, row), row * ROW_BYTES);
  await copy(true);
  await transferRows(context, agent, KVF_NIXL_WRITE, rows(device, place.gpu, 0, place.file, true));
  const there = await readAll(file.handle);
  const lost = differing(there, (row) => turned(written, ROWS - 1 - row));
  if (lost > 0)
    return { proven: false, stage: "write", found: `${lost} of ${BYTES} bytes of the file differ` };

  reach("read");
  const again = there.map((byte) => byte ^ 0xff);
  await writeAll(file.handle, again);
  await transferRows(context, agent, KVF_NIXL_READ, rows(0, place.file, device, place.gpu, true));
  bytes.fill(0);
  await copy(false);
  const wrong = differing(bytes, (row) => turned(written, row).map((byte) => byte ^ 0xff));
  if (wrong > 0)
    return { proven: false, stage: "read", found: `${wrong} of ${BYTES} bytes of device memory differ` };
  const name = driver.info.devices.find(({ ordinal }) => ordinal === DEVICE)?.name ?? `device ${DEVICE}`;
  return { proven: true, stage: "read", found: name };
}

/** The random row, different for each row. */
function turned(row: Uint8Array<ArrayBuffer>, by: number): Uint8Array<ArrayBuffer> {
  return row.map((byte) => byte + by * 7);
}

function differing(bytes: Uint8Array, wanted: (row: number) => Uint8Array): number {
  let count = 0;
  for (let row = 0; row < ROWS; row++) {
    const expected = wanted(row);
    for (let at = 0; at < ROW_BYTES; at++) if (bytes[row * ROW_BYTES + at] !== expected[at]) count++;
  }
  return count;
}

/** Rows of one side to rows of the other, in order or, for storage, in reverse. */
function rows(
  source: number,
  srcMemory: ProgramMemory,
  destination: number,
  dstMemory: ProgramMemory,
  reversed: boolean,
): Float64Array {
  const offsets = Float64Array.from({ length: ROWS }, (_unused, row) => row * ROW_BYTES);
  const program: CopyProgram = {
    srcBase: Float64Array.of(source),
    dstBase: Float64Array.of(destination),
    srcOffset: offsets,
    dstOffset: reversed ? offsets.toReversed() : offsets,
    blocks: null,
    run: null,
    pairs: ROWS,
    srcRunStride: 0,
    dstRunStride: 0,
    count: [],
    srcStride: [],
    dstStride: [],
    rowBytes: ROW_BYTES,
    bytes: BYTES,
    rows: ROWS,
    srcMemory,
    dstMemory,
    layers: null,
  };
  return encodeHop([program]);
}

function copyRows(context: NativeContext, hop: Float64Array): Promise<void> {
  return context.job(
    "transfer",
    (slot) =>
      context.library.kvf_cuda_copy_job(
        context.address,
        slot,
        DEVICE,
        hop,
        hop.length,
        KVF_CUDA_METHOD_DMA,
        0,
        0,
        0,
        null,
        0,
      ),
    () => undefined,
  );
}

/** Storage is reached by the agent's own name. */
function transferRows(
  context: NativeContext,
  agent: NixlAgent,
  operation: number,
  hop: Float64Array,
): Promise<void> {
  const nothing = new Uint8Array(new ArrayBuffer(8));
  return context.job(
    "transfer",
    (slot) =>
      context.library.kvf_nixl_transfer_job(
        context.address,
        slot,
        agent.address,
        cString(AGENT),
        operation,
        hop,
        hop.length,
        0,
        0,
        nothing,
        0,
        0,
      ),
    () => undefined,
  );
}

interface TemporaryFile {
  readonly path: string;
  readonly handle: FileHandle;
}

/** It keeps its name while it is used: the plugin's libraries look at it. */
async function temporaryFile(folder: string): Promise<TemporaryFile> {
  const path = join(folder, `kvferry-gds-trial-${process.pid}`);
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  const handle = await open(path, flags | constants.O_DIRECT, 0o600).catch(() => open(path, flags, 0o600));
  return { path, handle };
}

/** Plain reads and writes, by a descriptor of their own: what another program would see. */
async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  const plain = await open(`/proc/self/fd/${file.fd}`, "r+");
  try {
    await plain.write(bytes, 0, bytes.byteLength, 0);
    await plain.sync();
  } finally {
    await plain.close();
  }
}

async function readAll(file: FileHandle): Promise<Uint8Array<ArrayBuffer>> {
  const plain = await open(`/proc/self/fd/${file.fd}`, "r");
  try {
    const bytes = new Uint8Array(new ArrayBuffer(BYTES));
    const { bytesRead } = await plain.read(bytes, 0, BYTES, 0);
    return bytes.subarray(0, bytesRead);
  } finally {
    await plain.close();
  }
}
