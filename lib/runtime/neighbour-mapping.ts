import { closeSync } from "node:fs";
import type { Storage } from "../core/layout.ts";
import type { PackageComponent, PackageLayout } from "../core/package.ts";
import type { NativeContext } from "../native/context.ts";
import { type MappedMemory, releaseMemory } from "../native/memory.ts";
import { mapNeighbourMemory } from "../native/neighbour.ts";
import type { NeighbourDevices, OpenedDevice, PinnedHere } from "./neighbour-devices.ts";
import type { LayoutWord, SegmentWord } from "./neighbour-words.ts";

/** A component of a neighbour's layout as this process reaches it. */
export interface MappedComponent {
  readonly bases: Float64Array;
  /** What the memory is to this process, where that differs from what it is to its owner. */
  readonly storage: Storage | null;
  /** CUDA ordinal of the device that reaches it; null where it is no memory of a GPU. */
  readonly via: number | null;
}

/** A neighbour's layout, mapped here. */
export interface MappedLayout {
  /** Replaced when a component was pinned. */
  readonly components: Map<string, MappedComponent>;
  /** Why components without an entry are not mapped. */
  readonly reasons: ReadonlyMap<string, string>;
  readonly segments: readonly Segment[];
  /** Whether the import that it was mapped for is complete: before that nothing of it can be told to anybody. */
  standing: boolean;
}

/** A mapped segment; several layouts never share one. */
interface Segment {
  readonly memory: MappedMemory | null;
  readonly device: OpenedDevice | null;
  /** Its owner pinned it, and it may be pinned here. */
  readonly pinnable: boolean;
  /** Set once pinning began; null when it failed. */
  pinned: Promise<PinnedHere | null> | undefined;
}

/** What mapping needs of the GPUs. */
export type MappingDevices = Pick<NeighbourDevices, "open" | "import" | "pin">;

/**
 * Maps what a neighbour handed over, and checks it against the package.
 *
 * @param descriptors - Become this function's own.
 * @param own - Whether the neighbour is another transport of this process.
 * @throws Error with what is wrong with it; nothing stays mapped then.
 */
export async function mapLayout(
  context: NativeContext,
  devices: MappingDevices,
  word: LayoutWord,
  layout: PackageLayout,
  descriptors: readonly number[],
  own: boolean,
): Promise<MappedLayout> {
  const segments: Segment[] = [];
  const left = [...descriptors];
  try {
    const needed = word.segments.reduce((sum, segment) => sum + descriptorsFor(segment), 0);
    if (needed !== descriptors.length)
      throw new Error(`${descriptors.length} descriptors came for ${needed} files`);
    for (const segment of word.segments) {
      if ("files" in segment) {
        const files = segment.files.map((bytes) => ({
          descriptor: left.shift() as number, // as many as are needed
          bytes,
        }));
        const readOnly = word.readOnly || layout.access === "read";
        segments.push({
          memory: mapNeighbourMemory(context, files, readOnly),
          device: null,
          // Pinning for reading only is a feature that not every GPU has.
          pinnable: !readOnly && layout.components.some(({ storage }) => storage.kind === "pinned"),
          pinned: undefined,
        });
        continue;
      }
      if (layout.access === "read") throw new Error("memory of a GPU was handed over for reading only");
      const device =
        "bytes" in segment
          ? await devices.import(segment, left[0] as number).finally(() => closeSync(left.shift() as number)) // as above
          : await devices.open(segment, own);
      segments.push({ memory: null, device, pinnable: false, pinned: undefined });
    }
    return { ...componentsOf(word, layout, segments), segments, standing: false };
  } catch (error) {
    for (const descriptor of left) closeSync(descriptor);
    await unmapSegments(context, segments);
    throw error;
  }
}

/** Lets go of mapped segments. Nothing may touch them any more. */
export async function unmapSegments(context: NativeContext, segments: readonly Segment[]): Promise<void> {
  for (const { memory, device, pinned } of segments) {
    await (await pinned)?.unpin();
    if (memory !== null) await releaseMemory(context, memory);
    if (device !== null) await device.close();
  }
}

/** Whether something of a layout may be pinned here and is not yet. */
export function isToPin({ segments, standing }: MappedLayout): boolean {
  return standing && segments.some((segment) => segment.pinnable && segment.pinned === undefined);
}

/**
 * Pins a layout's segments for this process's driver, each once.
 *
 * @param stands - Whether the layout is still wanted when that is done.
 * @returns The components that are something else now.
 */
export async function pinLayout(
  { segments, components }: MappedLayout,
  pin: MappingDevices["pin"],
  stands: () => boolean,
): Promise<(readonly [name: string, MappedComponent])[]> {
  const files = segments.filter(({ device }) => device === null);
  const pinned = await Promise.all(
    files.map((segment) => {
      if (segment.pinnable && segment.memory !== null)
        segment.pinned ??= pin(segment.memory)?.catch(() => null);
      return segment.pinned;
    }),
  );
  const storage = pinned[0]?.storage;
  // A component is pinned when all of the layout's files are: they are made together.
  if (storage === undefined || !stands() || pinned.some((found) => found === null || found === undefined))
    return [];
  const changed: [string, MappedComponent][] = [];
  for (const [name, { bases, storage: before }] of components)
    if (before?.kind === "system") changed.push([name, { bases, storage, via: null }]);
  for (const [name, component] of changed) components.set(name, component);
  return changed;
}

/** Descriptors that come with a segment. */
function descriptorsFor(segment: SegmentWord): number {
  if ("files" in segment) return segment.files.length;
  return "bytes" in segment ? 1 : 0;
}

/** Checks what was handed over against the package: every region must lie in its segment with the bytes that it needs. */
function componentsOf(
  word: LayoutWord,
  layout: PackageLayout,
  segments: readonly Segment[],
): Pick<MappedLayout, "components" | "reasons"> {
  const components = new Map<string, MappedComponent>();
  const reasons = new Map<string, string>();
  for (const component of layout.components) {
    const handed = word.components.find((candidate) => candidate.name === component.name);
    if (handed === undefined || handed.regions === null) {
      reasons.set(component.name, handed?.why ?? "The peer did not hand it over.");
      continue;
    }
    const { view } = component;
    if (handed.regions.length !== view.regionCount)
      throw new Error(
        `component ${component.name} has ${view.regionCount} regions, ${handed.regions.length} came`,
      );
    const bases = new Float64Array(view.regionCount);
    const kinds = new Set<Segment["device"]>();
    for (const [index, [at, offset, size]] of handed.regions.entries()) {
      const segment = segments[at];
      const bytes = segment?.memory?.bytes ?? segment?.device?.bytes ?? 0;
      const address = segment?.memory?.address ?? segment?.device?.address ?? 0;
      if (segment === undefined || size < view.regionBytes || offset + size > bytes)
        throw new Error(
          `region ${index} of component ${component.name} (${size} bytes at ${offset}) does not lie in its segment of ${bytes} bytes`,
        );
      bases[index] = address + offset;
      kinds.add(segment.device);
    }
    const [opened] = kinds;
    components.set(component.name, {
      bases,
      storage: storageHere(component, kinds),
      via: opened?.via ?? null,
    });
  }
  return { components, reasons };
}

/** What the memory is to this process: pinned memory is pinned for its owner's driver only, and GPUs have other numbers. */
function storageHere(component: PackageComponent, kinds: ReadonlySet<OpenedDevice | null>): Storage | null {
  const devices = new Set([...kinds].map((device) => device?.device ?? -1));
  if (new Set([...kinds].map((device) => device?.via)).size !== 1)
    throw new Error(`component ${component.name} lies in memory that several GPUs reach, each a part of it`);
  const [device = -1] = devices;
  const onDevice = component.storage.kind === "device";
  if (devices.size !== 1 || device >= 0 !== onDevice)
    throw new Error(
      `component ${component.name} is ${component.storage.kind} memory, other memory was handed over`,
    );
  if (onDevice) return { kind: "device", device };
  return component.storage.kind === "pinned" ? { kind: "system" } : null;
}
