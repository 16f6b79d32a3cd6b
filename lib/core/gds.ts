import type { ComponentRecord } from "./layout.ts";
import type { MachineProfile } from "./profile.ts";
import type { CopyProgram } from "./program.ts";
import type { PlanEnvironment } from "./environment.ts";
import type { Option, Work } from "./work.ts";

/**
 * What GPUDirect Storage gets of addresses, offsets and lengths: multiples of this, in bytes. What is not aligned its
 * library would read, change and write back, and with it bytes of blocks that other transfers write meanwhile.
 */
export const GDS_ALIGNMENT = 4_096;

/** A way between GPU memory and a file that GPUDirect Storage might take. */
export interface GdsWay {
  /** A sentence: why it cannot; null when it can, as far as the layouts tell. */
  readonly problem: string | null;
}

/** How GPUDirect Storage stands to two components; undefined where they are not GPU memory and a file of this process. */
export function gdsWay(
  source: ComponentRecord,
  destination: ComponentRecord,
  environment: PlanEnvironment,
): GdsWay | undefined {
  const [memory, file] =
    destination.attachment.kind === "file" ? [source, destination] : [destination, source];
  if (file.attachment.kind !== "file" || memory.attachment.kind !== "addresses") return undefined;
  if (memory.storage.kind !== "device") return undefined;
  return { problem: environment.gds === undefined ? OFF : environment.gds(memory, file) };
}

/** Why programs cannot take it although their layouts could; null when they can. */
export function gdsMisfit(programs: readonly CopyProgram[]): string | null {
  return programs.every(isAligned) ? null : UNALIGNED;
}

/**
 * GPUDirect Storage as one of the methods between GPU memory and a file.
 *
 * `latency + max(descriptors * request, bytes / rate)`: its requests overlap, so that either they or the drives are what
 * takes time.
 */
export function gdsOption(work: Work, { problem }: GdsWay, { file }: MachineProfile): Option {
  const writing = work.destinationKind === 2;
  const rate = writing ? file.gdsWriteGigabytesPerSecond : file.gdsReadGigabytesPerSecond;
  const micros =
    file.gdsLatencyMicros + Math.max(work.descriptors * file.gdsRequestMicros, work.bytes / (rate * 1000));
  return {
    method: writing ? "gds/write" : "gds/read",
    micros: problem === null ? micros : Number.POSITIVE_INFINITY,
    width: 1,
    inline: false,
    taken: "NIXL moves the bytes between the file and GPU memory without a stop in host memory.",
    passed: problem ?? SLOWER,
  };
}

const OFF = "GPUDirect Storage is off: `capabilities: { gds: true }` of `Transport.open` asks for it.";
const UNALIGNED = `GPUDirect Storage needs pieces whose addresses, offsets and lengths are multiples of ${GDS_ALIGNMENT} bytes.`;
const SLOWER = "GPUDirect Storage takes longer for so many small pieces than the way through host memory.";

function isAligned(program: CopyProgram): boolean {
  const { srcBase, dstBase, blocks, count } = program;
  if (program.rowBytes % GDS_ALIGNMENT !== 0) return false;
  if (
    !count.every((_times, loop) => even(program.srcStride[loop] ?? 0) && even(program.dstStride[loop] ?? 0))
  )
    return false;
  if (program.run !== null && !(even(program.srcRunStride) && even(program.dstRunStride))) return false;
  if (!srcBase.every(even) || !dstBase.every(even)) return false;
  if (blocks !== null) return even(blocks.sourceStride) && even(blocks.destinationStride);
  return program.srcOffset.every(even) && program.dstOffset.every(even);
}

function even(bytes: number): boolean {
  return bytes % GDS_ALIGNMENT === 0;
}
