// What a peer asks the far side of a staged transfer to touch: nothing but the layout that it names, and a chunk.
import { KvferryError } from "../core/errors.ts";
import { stagedOffset } from "../core/intersect.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import { counted } from "../core/stage-piece.ts";
import { stageMemory } from "../core/staging.ts";
import type { BlockOffsets, CopyProgram, ProgramMemory } from "../core/program.ts";
import { countOf, type NumberList, valuesOf } from "./number-lists.ts";
import {
  everyRow,
  startsOfRows,
  type StagedOperation,
  type StagedProgram,
  type StagingWord,
} from "./staged-protocol.ts";
import type { ChunkSource } from "./chunks.ts";

/** What a peer may ask to touch here, and through what. */
export interface StagedOwner {
  /** Throws for a handle that is not of a layout of this process. */
  readonly layout: (handle: LayoutHandle) => LayoutRecord;
  /** Chunks for a component's transfers with a peer. */
  readonly chunks: (device: number | null, agent: string) => ChunkSource;
  /** Chunks from which it writes to a peer. */
  readonly sendChunks: (device: number | null, agent: string) => ChunkSource;
  /** The same in memory of that GPU, to be received into or sent from; null where there are none. */
  readonly deviceChunks: (device: number, agent: string, use: "receive" | "send") => ChunkSource | null;
  /** Whether hashes of the file's blocks are kept, which only its owner can keep right. */
  readonly keepsSums: (file: number) => boolean;
}

/** What a peer asked for, checked. */
export interface StagedWork {
  readonly record: LayoutRecord;
  readonly bytes: number;
  /** Where its own bytes are. */
  readonly memory: ProgramMemory;
  /** What moves them to or from a chunk at that address. */
  readonly programAt: (address: number) => CopyProgram;
  /** Where its chunk comes from. */
  readonly source: ChunkSource;
}

/**
 * Checks what a peer asks for.
 *
 * @throws KvferryError that says to the peer why not.
 */
export function checkedAsk(
  owner: StagedOwner,
  agent: string,
  word: Extract<StagingWord, { word: "ask" }>,
): StagedWork {
  const { operation } = word;
  const record = owner.layout(word.layout);
  if (operation === "write" && record.access !== "read-write")
    throw refusal("ACCESS", `layout ${record.name} may only be read`);
  const component = record.components.find(({ shape }) => shape.name === word.component);
  if (component === undefined)
    throw refusal("INVALID_CONFIG", `layout ${record.name} has no component ${word.component}`);
  if (component.attachment.kind === "file" && owner.keepsSums(component.attachment.file))
    throw refusal(
      "NO_ROUTE",
      `layout ${record.name} keeps checksums, which only its own transfers keep right`,
    );
  const source = chunksFor(owner, agent, component, word);
  return {
    record,
    source,
    ...checkedProgram(component, word.program, operation, source, namedByOffset(record)),
  };
}

/** The chunks that a peer wants. Those in GPU memory are of the GPU that holds the bytes. */
function chunksFor(
  { chunks, sendChunks, deviceChunks }: StagedOwner,
  agent: string,
  { storage }: ComponentRecord,
  { operation, device: wanted }: Extract<StagingWord, { word: "ask" }>,
): ChunkSource {
  const fetch = operation === "fetch";
  const device = storage.kind === "device" ? storage.device : null;
  if (wanted === undefined) return (fetch ? sendChunks : chunks)(device, agent);
  const use = fetch ? "send" : "receive";
  const source = device === null || !(fetch || wanted === device) ? null : deviceChunks(device, agent, use);
  if (source === null) throw refusal("NO_ROUTE", "there is no staging memory on that GPU");
  return source;
}

/**
 * The program with this process's addresses; every row lies in a region of the component and in the chunk.
 *
 * @param source - Of the chunk.
 * @throws KvferryError `NO_ROUTE` for a component that cannot be touched here, `INVALID_CONFIG` for bytes outside.
 */
function checkedProgram(
  component: ComponentRecord,
  given: StagedProgram,
  operation: StagedOperation,
  { chunkBytes, device }: ChunkSource,
  byOffset: boolean,
): Pick<StagedWork, "bytes" | "memory" | "programAt"> {
  const { shape, attachment, storage } = component;
  if (attachment.kind !== "addresses" && attachment.kind !== "file")
    throw refusal("NO_ROUTE", `component ${shape.name} cannot be touched here`);
  if (given.bytes > chunkBytes)
    throw refusal("INVALID_CONFIG", `${given.bytes} bytes do not fit a chunk of ${chunkBytes}`);
  const { view } = shape;
  const starts = Float64Array.from(attachment.bases, (base, region) =>
    byOffset ? stagedOffset(view, region) : base,
  );
  const sorted = starts.slice().sort();
  const inRegion = (start: number, end: number = start): boolean => {
    let low = 0;
    let high = sorted.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((sorted[middle] ?? 0) <= start) low = middle;
      else high = middle;
    }
    const base = sorted[low] ?? 0;
    return start >= base && end + given.rowBytes <= base + view.regionBytes;
  };
  // Rows between two that one region holds lie in it too; only those that several regions hold are looked at one by one.
  const there = startsOfRows(given.farBase, given.farOffset, given.count, given.farStride);
  const inChunk = startsOfRows(given.stageBase, given.stageOffset, given.count, given.stageStride);
  const inside =
    inRegion(there.lowest, there.highest) ||
    everyRow(given.farBase, given.farOffset, given.count, given.farStride, (start) => inRegion(start));
  if (!inside || inChunk.lowest < 0 || inChunk.highest + given.rowBytes > given.bytes)
    throw refusal("INVALID_CONFIG", `the program leaves component ${shape.name} or the chunk`);
  const own: ProgramMemory =
    attachment.kind === "file"
      ? { kind: 2, device: attachment.file }
      : { kind: storage.kind === "device" ? 1 : 0, device: storage.kind === "device" ? storage.device : 0 };
  const chunk = stageMemory(device);
  const program = placed(given, starts, attachment.bases);
  const { stageOffset, farOffset, bytes, rowBytes, count, stageStride, farStride } = program;
  const pairs = countOf(stageOffset);
  const stage = { strides: stageStride, memory: chunk, offsets: () => valuesOf(stageOffset) };
  const far = { strides: farStride, memory: own, offsets: () => valuesOf(farOffset) };
  const blocks = blocksOf(stageOffset, farOffset, pairs, operation === "write");
  const [source, destination] = operation === "write" ? [stage, far] : [far, stage];
  const inStage = valuesOf(program.stageBase);
  const programAt = (address: number): CopyProgram => {
    const stageBase = inStage.map((base) => base + address);
    return {
      srcBase: operation === "write" ? stageBase : program.farBase,
      dstBase: operation === "write" ? program.farBase : stageBase,
      get srcOffset() {
        return source.offsets();
      },
      get dstOffset() {
        return destination.offsets();
      },
      blocks,
      run: null,
      pairs,
      srcRunStride: 0,
      dstRunStride: 0,
      count,
      srcStride: source.strides,
      dstStride: destination.strides,
      rowBytes,
      bytes,
      rows: bytes / rowBytes,
      srcMemory: source.memory,
      dstMemory: destination.memory,
      layers: null,
    };
  };
  return { bytes, memory: own, programAt };
}

/** Pairs one after the other in a chunk, and blocks by their ids: as ids, which are fewer bytes than offsets. Else null. */
function blocksOf(stage: NumberList, far: NumberList, pairs: number, scatters: boolean): BlockOffsets | null {
  if (!("step" in stage) || stage.first !== 0 || !("times" in far)) return null;
  const [inChunk, ids] = [counted(pairs), far.times];
  return scatters
    ? { source: inChunk, destination: ids, sourceStride: stage.step, destinationStride: far.unit }
    : { source: ids, destination: inChunk, sourceStride: far.unit, destinationStride: stage.step };
}

/** Whether peers name a layout's bytes by offsets: it was exported as one that only its owner can touch. */
function namedByOffset(record: LayoutRecord): boolean {
  return record.stagedOnly || record.components.some(({ storage }) => storage.kind === "disk");
}

/** A checked program with the bases of this process: by one sum where regions lie alike, else row by row. */
function placed(given: StagedProgram, starts: Float64Array, bases: Float64Array): StagedProgram {
  const shift = (bases[0] ?? 0) - (starts[0] ?? 0);
  if (starts.every((start, region) => start + shift === bases[region]))
    return { ...given, farBase: given.farBase.map((base) => base + shift) };
  const stage: number[] = [];
  const far: number[] = [];
  everyRow(given.stageBase, given.stageOffset, given.count, given.stageStride, (at) => stage.push(at) > 0);
  everyRow(given.farBase, given.farOffset, given.count, given.farStride, (at) => {
    const region = starts.findLastIndex((start) => start <= at);
    return far.push(at - (starts[region] ?? 0) + (bases[region] ?? 0)) > 0;
  });
  const none = new Float64Array(1);
  return {
    ...given,
    stageBase: Float64Array.from(stage),
    farBase: Float64Array.from(far),
    stageOffset: none,
    farOffset: none,
    count: [],
    stageStride: [],
    farStride: [],
  };
}

/** An error for the peer that asked. */
export function refusal(word: ConstructorParameters<typeof KvferryError>[0], message: string): KvferryError {
  return new KvferryError(word, "transfer", message, "Look at the layout at its owner.");
}
