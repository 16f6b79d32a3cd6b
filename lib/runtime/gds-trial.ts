import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { encodeHop } from "../core/encode.ts";
import type { CopyProgram, ProgramMemory } from "../core/program.ts";
import type { NixlAgent } from "../native/agent.ts";
import { cString } from "../native/c-string.ts";
import type { NativeContext } from "../native/context.ts";
import type { CudaDriver } from "../native/cuda.ts";
import { mapMemory, unmapMemory, ViewSet } from "../native/memory.ts";
import {
  KVF_CUDA_METHOD_DMA,
  KVF_MEM_FILE,
  KVF_MEM_VRAM,
  KVF_NIXL_READ,
  KVF_NIXL_WRITE,
} from "../native/symbols.ts";

/** NIXL's plugins for GPUDirect Storage; the one that NVIDIA recommends first. */
export const GDS_BACKENDS: readonly string[] = ["GDS_MT", "GDS"];

/** What a trial needs. */
export interface GdsTrialParts {
  readonly context: NativeContext;
  readonly driver: CudaDriver;
  /** CUDA ordinal of a device that is open. */
  readonly device: number;
  /** Has the plugin as its one backend. */
  readonly agent: NixlAgent;
  /** The directory that the temporary file is made in. */
  readonly folder: string;
}

/** What a trial showed. */
export interface GdsTrial {
  /** Every byte was where it belongs, both ways. */
  readonly proven: boolean;
  /** Where it ended: no file or memory, bytes written to the file, bytes read from it. */
  readonly stage: "memory" | "write" | "read";
  /** What was found, in words. */
  readonly found: string;
  /** Device number of the directory's file system; -1 where it was not reached. */
  readonly fileSystem: number;
  /** The plugin has ended all that it was asked to do. */
  readonly quiet: boolean;
}

const ROWS = 16;
const ROW_BYTES = 65_536;
const BYTES: number = ROWS * ROW_BYTES;

/**
 * Writes device memory to a temporary file and reads the file into device memory through NIXL's plugin for GPUDirect
 * Storage, and compares every byte with what plain reads and copies say. Never fails.
 *
 * @param held - Gets what the trial holds. To be disposed of at once when the plugin is quiet, else when its agent is
 *   gone: until then it may touch the memory.
 */
export async function tryGds(parts: GdsTrialParts, held: AsyncDisposableStack): Promise<GdsTrial> {
  const at: Reached = { stage: "memory", fileSystem: -1, quiet: true };
  try {
    const problem = await trial(parts, held, at);
    return { ...at, proven: problem === null, found: problem ?? nameOf(parts) };
  } catch (error) {
    return { ...at, proven: false, found: error instanceof Error ? error.message : String(error) };
  }
}

/** How far it came. */
interface Reached {
  stage: GdsTrial["stage"];
  fileSystem: number;
  quiet: boolean;
}

/** @returns What is wrong, or null. */
async function trial(
  { context, driver, device, agent, folder }: GdsTrialParts,
  held: AsyncDisposableStack,
  at: Reached,
): Promise<string | null> {
  const memory = await driver.allocate(device, BYTES);
  held.defer(() => driver.free(device, memory));
  const host = mapMemory(context, BYTES, false);
  const views = new ViewSet();
  held.defer(() => {
    views.detach();
    unmapMemory(context, host);
  });
  const bytes = views.view(host.address, BYTES);
  const path = join(folder, `kvferry-gds-trial-${process.pid}-${crypto.randomUUID()}`);
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_DIRECT;
  // No handle of Node's: a trial that hangs keeps the file, and what is forgotten with a handle is closed behind its back.
  const file = openSync(path, flags, 0o600);
  held.defer(() => closeSync(file));
  try {
    at.fileSystem = fstatSync(file).dev;
    await writeAll(file, new Uint8Array(BYTES));
    for (const [kind, region] of [
      [KVF_MEM_VRAM, { address: memory, bytes: BYTES, device }],
      [KVF_MEM_FILE, { address: 0, bytes: BYTES, device: file }],
    ] as const) {
      await agent.register(kind, [region]);
      // An agent that was destroyed has let its registrations go by itself.
      held.defer(async () => void (agent.isOpen && (await agent.deregister(kind, [region]))));
    }
  } finally {
    // The plugin's library looks at a file's name when it is told of it; as with layouts, it has none after that.
    await unlink(path);
  }
  const onFile: ProgramMemory = { kind: 2, device: file };
  const onDevice: ProgramMemory = { kind: 1, device };
  const onHost: ProgramMemory = { kind: 0, device: 0 };
  const move = async (operation: number, hop: Float64Array): Promise<void> => {
    at.quiet = false;
    await transferRows(context, agent, operation, hop);
    at.quiet = true;
  };

  at.stage = "write";
  const written = crypto.getRandomValues(new Uint8Array(new ArrayBuffer(ROW_BYTES)));
  for (let row = 0; row < ROWS; row++) bytes.set(turned(written, row), row * ROW_BYTES);
  await copyRows(context, device, rows(host.address, onHost, memory, onDevice, false));
  await move(KVF_NIXL_WRITE, rows(memory, onDevice, 0, onFile, true));
  const there = await readAll(file);
  const lost = differing(there, (row) => turned(written, ROWS - 1 - row));
  if (lost > 0) return `${lost} of ${BYTES} bytes of the file differ`;

  at.stage = "read";
  await writeAll(
    file,
    there.map((byte) => byte ^ 0xff),
  );
  await move(KVF_NIXL_READ, rows(0, onFile, memory, onDevice, true));
  bytes.fill(0);
  await copyRows(context, device, rows(memory, onDevice, host.address, onHost, false));
  const wrong = differing(bytes, (row) => turned(written, row).map((byte) => byte ^ 0xff));
  return wrong > 0 ? `${wrong} of ${BYTES} bytes of device memory differ` : null;
}

function nameOf({ driver, device }: GdsTrialParts): string {
  return driver.info.devices.find(({ ordinal }) => ordinal === device)?.name ?? `device ${device}`;
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

function copyRows(context: NativeContext, device: number, hop: Float64Array): Promise<void> {
  return context.job(
    "transfer",
    (slot) =>
      context.library.kvf_cuda_copy_job(
        context.address,
        slot,
        device,
        hop,
        hop.length,
        KVF_CUDA_METHOD_DMA,
        0,
        0,
        0,
        null,
        0,
        null,
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
        cString(agent.name),
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

/** Plain reads and writes, by a descriptor of their own: what another program would see. */
async function writeAll(file: number, bytes: Uint8Array): Promise<void> {
  const plain = await open(`/proc/self/fd/${file}`, "r+");
  try {
    await plain.write(bytes, 0, bytes.byteLength, 0);
    await plain.sync();
  } finally {
    await plain.close();
  }
}

async function readAll(file: number): Promise<Uint8Array<ArrayBuffer>> {
  const plain = await open(`/proc/self/fd/${file}`, "r");
  try {
    const bytes = new Uint8Array(new ArrayBuffer(BYTES));
    const { bytesRead } = await plain.read(bytes, 0, BYTES, 0);
    return bytes.subarray(0, bytesRead);
  } finally {
    await plain.close();
  }
}
