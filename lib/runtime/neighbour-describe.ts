import { closeSync } from "node:fs";
import type { LayoutRecord } from "../core/layout.ts";
import type { MemoryFile } from "../native/memory.ts";
import type { HandedDescriptor } from "../native/neighbour.ts";
import { KVF_NEIGHBOUR_DESCRIPTORS } from "../native/symbols.ts";
import type { ComponentMemory, SharedDeviceRegion, SharedMemory } from "./layout-memory.ts";
import type { NeighbourDevices } from "./neighbour-devices.ts";
import type { ComponentWord, LayoutWord, SegmentWord } from "./neighbour-words.ts";

/** A layout of this process with its memory. */
export interface ServedLayout {
  readonly record: LayoutRecord;
  readonly components: readonly ComponentMemory[];
}

/** A layout's memory as it goes to a neighbour. */
export interface HandedLayout {
  readonly word: LayoutWord;
  readonly descriptors: readonly HandedDescriptor[];
  /** Closes descriptors that were made for this; after they were sent, or not. */
  readonly close: () => void;
}

type Regions = NonNullable<ComponentWord["regions"]>;

/**
 * What hands a layout's memory to a neighbour: the files and allocations that it lies in, and where in them.
 *
 * @returns Why nothing of it can be handed over, as a sentence.
 */
export async function describeLayout(
  layout: string,
  { record, components }: ServedLayout,
  exportDevice: NeighbourDevices["export"],
): Promise<HandedLayout | string> {
  const readOnly = record.access === "read";
  const segments = new Segments(exportDevice);
  const described: ComponentWord[] = [];
  try {
    for (const [index, { share }] of components.entries()) {
      const name = record.components[index]?.shape.name ?? "";
      const found = shareable(share, readOnly);
      if (typeof found === "string") described.push({ name, regions: null, why: found });
      else described.push({ name, regions: await segments.regionsOf(found), why: null });
    }
    const { words, descriptors } = segments;
    const most = KVF_NEIGHBOUR_DESCRIPTORS;
    if (descriptors.length > most)
      return abandon(
        segments,
        `It lies in ${descriptors.length} files, more than the ${most} that are handed over.`,
      );
    if (described.every(({ regions }) => regions === null))
      return abandon(segments, described.at(-1)?.why ?? "The peer's layout has no components.");
    return {
      word: { say: "layout", layout, readOnly, segments: words, components: described },
      descriptors: descriptors.map((descriptor) => ({ descriptor, readOnly })),
      close: () => segments.close(),
    };
  } catch (error) {
    segments.close();
    throw error;
  }
}

function abandon(segments: Segments, why: string): string {
  segments.close();
  return why;
}

/** Why nothing of a layout's memory may be handed over, where that can be told without asking a driver; else null. */
export function unshareable({ record, components }: ServedLayout): string | null {
  const readOnly = record.access === "read";
  let why = "The peer's layout has no components.";
  for (const { share } of components) {
    const found = shareable(share, readOnly);
    if (typeof found !== "string") return null;
    why = found;
  }
  return why;
}

type Shareable = Exclude<SharedMemory, { kind: "none" }>;

/** A component's memory if it may be handed over, else why it is not. */
function shareable(share: SharedMemory | undefined, readOnly: boolean): Shareable | string {
  if (share === undefined) return "The peer does not own this memory, so that it cannot hand it over.";
  if (share.kind === "none") return share.why;
  return share.kind === "device" && readOnly
    ? "Memory of a GPU cannot be handed over for reading only."
    : share;
}

/** The files and allocations that a layout lies in, each once. Descriptors are in the order of the segments they are of. */
class Segments {
  readonly words: SegmentWord[] = [];
  readonly descriptors: number[] = [];
  readonly #exportDevice: NeighbourDevices["export"];
  readonly #made: number[] = [];
  /** Segments by first descriptor, handle or start. */
  readonly #known: Map<number | string, number> = new Map();

  constructor(exportDevice: NeighbourDevices["export"]) {
    this.#exportDevice = exportDevice;
  }

  /** Segment, offset and bytes of each region. */
  async regionsOf(share: Shareable): Promise<Regions> {
    if (share.kind === "files")
      return share.regions.map(({ files, offset, size }) => [this.#files(files), offset, size]);
    const regions: [number, number, number][] = [];
    for (const region of share.regions) regions.push(await this.#allocation(share.device, region));
    return regions;
  }

  close(): void {
    for (const descriptor of this.#made.splice(0)) closeSync(descriptor);
  }

  #files(files: readonly MemoryFile[]): number {
    const key = files[0]?.descriptor ?? -1;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    this.descriptors.push(...files.map(({ descriptor }) => descriptor));
    return this.#add(key, { files: files.map(({ bytes }) => bytes) });
  }

  async #allocation(device: number, region: SharedDeviceRegion): Promise<[number, number, number]> {
    const { address, size, exportable } = region;
    const key = exportable === undefined ? "" : `exportable ${exportable.start}`;
    const known = this.#known.get(key);
    if (exportable !== undefined && known !== undefined) return [known, address - exportable.start, size];
    const { segment, offset, descriptor } = await this.#exportDevice(device, region);
    if (descriptor !== null) {
      this.#made.push(descriptor);
      this.descriptors.push(descriptor);
      return [this.#add(key, segment), offset, size];
    }
    const handle = "handle" in segment ? segment.handle : key;
    return [this.#known.get(handle) ?? this.#add(handle, segment), offset, size];
  }

  #add(key: number | string, segment: SegmentWord): number {
    const at = this.words.push(segment) - 1;
    this.#known.set(key, at);
    return at;
  }
}
