import { DEFAULT_GROUP, SHORT_FORM_COMPONENT } from "../core/bundle.ts";
import { MAX_LAYOUT_ID } from "../core/handle.ts";
import type { Storage, Tier } from "../core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import { isKvferryError } from "../core/errors.ts";
import type { KvferryError } from "../core/errors.ts";
import { finishReader, malformed, openReader } from "./bounded.ts";
import { readHeader, scanLayout } from "./dynamo-scan.ts";
import { newScratch } from "./dynamo-scratch.ts";
import type { DynamoHeader, LayoutScratch } from "./dynamo-scratch.ts";
import { openShapes, shapeOf } from "./dynamo-shape.ts";
import type { DynamoShape, ShapeBook } from "./dynamo-shape.ts";
import { LOGICAL_TYPES, MEMORY_TYPES } from "./dynamo-types.ts";
import type { DynamoFormat } from "./dynamo-types.ts";
import { nextHandle, openHandles } from "./handles.ts";
import type { HandleSequence } from "./handles.ts";
import { checkRegions, newOverlapState } from "./regions.ts";
import { storageOf, SYSTEM } from "./storage.ts";

/** A package of Dynamo's in the common form, or why it is none. */
export type DynamoImport =
  | { readonly value: MetadataPackage; readonly error: null }
  | {
      readonly value: null;
      readonly error: KvferryError;
      /** How far the bytes can be read as the format, whatever they mean; their length + 1 for all of them. */
      readonly reach: number;
    };

/**
 * Reads a package of Dynamo's into the common form and judges what it means, in one pass over the bytes.
 *
 * Dynamo names no layouts: they are called `layout-<id>`. Heads are known only where `num_heads` and a block layout
 * say how they lie. Disk layouts come without addresses and are reachable by staged routes only.
 *
 * @returns A refusal is `METADATA_MALFORMED` with offset and reason: what the bytes cannot say, later versions,
 *   handles of another worker, doubled or with reserved bits, another agent's name, configs that Dynamo itself or
 *   kvferry refuses, memory that contradicts its location, regions that are too few, too many, too small, past 2^53
 *   or on top of each other.
 */
export function importDynamoPackage(bytes: Uint8Array, format: DynamoFormat): DynamoImport {
  // What the first wrong layout means; the bytes after it are still read, to know whether they are of this format.
  let error: KvferryError | null = null;
  try {
    const reader = openReader(bytes, format);
    const header = readHeader(reader);
    const state = newImport(bytes, format, header);
    const { scratch } = state;
    const layouts: PackageLayout[] = [];
    let index = 0;
    try {
      for (; index < header.layoutCount; index++) {
        scanLayout(reader, format, scratch);
        layouts.push(layoutOf(state));
      }
    } catch (cause) {
      // Thrown by the scan: the layout was not read to its end.
      if (!isKvferryError(cause) || scratch.end !== reader.position) throw cause;
      error = cause;
      for (index++; index < header.layoutCount; index++) scanLayout(reader, format, scratch);
    }
    finishReader(reader);
    if (error === null) return { value: packageOf(bytes, format, header, layouts), error: null };
    return { value: null, error, reach: bytes.length + 1 };
  } catch (cause) {
    if (!isKvferryError(cause)) throw cause;
    return { value: null, error: error ?? cause, reach: Number(cause.details["offset"]) };
  }
}

function packageOf(
  bytes: Uint8Array,
  format: DynamoFormat,
  header: DynamoHeader,
  layouts: readonly PackageLayout[],
): MetadataPackage {
  return Object.freeze({
    format,
    workerId: header.workerId,
    agentName: header.agentName,
    wireName: header.agentName,
    incarnation: 0,
    sequence: 0,
    issuedAtMs: null,
    expiresAtMs: null,
    audience: null,
    nixlMetadata: bytes.slice(header.blobAt, header.blobAt + header.blobLength),
    host: null,
    layouts,
  });
}

interface ImportState {
  readonly format: DynamoFormat;
  readonly header: DynamoHeader;
  readonly scratch: LayoutScratch;
  readonly worker0: number;
  readonly worker1: number;
  readonly overlap: ReturnType<typeof newOverlapState>;
  /** One bit for each layout id. */
  readonly seen: Uint32Array;
  readonly shapes: ShapeBook;
  /** Sizes of the layout before: layouts of one shape share them. */
  lastSizes: Float64Array;
  readonly handles: HandleSequence;
}

function newImport(bytes: Uint8Array, format: DynamoFormat, header: DynamoHeader): ImportState {
  return {
    format,
    header,
    scratch: newScratch(header),
    worker0: Number(header.workerId & 0xffff_ffffn),
    worker1: Number(header.workerId >> 32n),
    overlap: newOverlapState(bytes.length),
    seen: new Uint32Array(2_048),
    shapes: openShapes(format, bytes, header.layoutCount),
    lastSizes: new Float64Array(0),
    handles: openHandles(header.workerId),
  };
}

// Written in a few long functions on purpose: until this code is compiled, a call costs more than what it does.
function layoutOf(state: ImportState): PackageLayout {
  const { scratch } = state;
  const id = layoutIdOf(state);
  if (scratch.version > 1) throw otherVersion(state);
  if (!scratch.ownAgent) throw refused(state, "the layout's agent name is not the worker's");
  const { shapes } = state;
  const shape =
    shapes.last !== null && shapes.reading === scratch.configReading && shapes.form === scratch.form
      ? shapes.last
      : shapeOf(shapes, scratch);
  const host = scratch.location === 0 && scratch.memoryType === 0;
  const storage = host ? SYSTEM : storageAt(state);
  const { view } = shape;
  if (scratch.wideSize) throw refused(state, "size of a region passes 2^53");
  if (scratch.wideAddress) throw refused(state, "addr of a region passes 2^53");
  let regionAddresses: Float64Array;
  let address = 0;
  let size = 0;
  if (scratch.regionCount === 1 && view.regionCount === 1) {
    address = scratch.addresses[0] ?? 0;
    size = scratch.sizes[0] ?? 0;
    // One region is the plain case, and making an array of one is cheaper than cutting it out.
    regionAddresses = new Float64Array(1);
    regionAddresses[0] = address;
    if (state.lastSizes.length !== 1 || state.lastSizes[0] !== size) {
      state.lastSizes = new Float64Array(1);
      state.lastSizes[0] = size;
    }
  } else regionAddresses = takeRegions(state, shape, storage);
  const disk = storage.kind === "disk";
  if (!disk && scratch.device1 >= 2 ** 21) throw refused(state, "device_id passes 2^53");
  const component: PackageComponent = Object.freeze({
    name: SHORT_FORM_COMPONENT,
    config: shape.config,
    arrangement: shape.arrangement,
    order: shape.order,
    view,
    group: DEFAULT_GROUP,
    wholeBlocks: false,
    alias: false,
    storage,
    regionAddresses,
    regionSizes: state.lastSizes,
    // A file descriptor of the exporter's process says nothing here.
    nixlDevice: disk ? 0 : scratch.device1 * 2 ** 32 + scratch.device0,
  });
  const components = [component];
  // What `checkRegions` asks of a single region; it says what is wrong with others.
  if (regionAddresses.length !== 1 || size < view.regionBytes || address + size > Number.MAX_SAFE_INTEGER)
    checkRegions(components, state.overlap, state.format, scratch.at);
  return Object.freeze({
    handle: nextHandle(state.handles, id, 0),
    name: `layout-${id}`,
    tier: scratch.logicalType < 0 ? tierOf(storage) : (LOGICAL_TYPES[scratch.logicalType] ?? "G1"),
    access: "read-write" as const,
    fingerprint: null,
    stagedOnly: disk,
    components: disk ? [withoutRegions(component)] : components,
  });
}

function layoutIdOf(state: ImportState): number {
  const { scratch } = state;
  if (scratch.handle0 !== state.worker0 || scratch.handle1 !== state.worker1)
    throw badHandle(state, `is not one of worker ${state.header.workerId}`);
  const id = scratch.handle2 & 0xffff;
  if (scratch.handle2 > 0xffff || scratch.handle3 !== 0) throw badHandle(state, "has reserved bits set");
  if (id > MAX_LAYOUT_ID) throw badHandle(state, `has the layout id ${id}, above ${MAX_LAYOUT_ID}`);
  const seen = state.seen[id >> 5] ?? 0;
  const bit = 1 << (id & 31);
  if ((seen & bit) !== 0) throw badHandle(state, `of layout ${id} stands twice in the package`);
  state.seen[id >> 5] = seen | bit;
  return id;
}

// Memory type that goes with each location: Dram, Dram, Vram, File.
const MEMORY_OF_LOCATION = [0, 0, 1, 4] as const;

function storageAt(state: ImportState): Storage {
  const { scratch } = state;
  if (scratch.memoryType !== MEMORY_OF_LOCATION[scratch.location])
    throw refused(
      state,
      `memory type ${MEMORY_TYPES[scratch.memoryType]} contradicts the location ${LOCATIONS[scratch.location]}`,
    );
  if (
    scratch.location >= 2 &&
    (scratch.device0 !== scratch.location0 || scratch.device1 !== scratch.location1)
  )
    throw refused(state, `device_id contradicts the location's number`);
  const kind = LOCATIONS[scratch.location] ?? "system";
  const storage = storageOf(kind, kind === "device" ? scratch.location0 : null);
  if (storage === null) throw refused(state, "the location is unknown");
  return storage;
}

const LOCATIONS = ["system", "pinned", "device", "disk"] as const;

/** The regions of a layout; the sizes go to `state.lastSizes`, one array for layouts that have the same. */
function takeRegions(state: ImportState, shape: DynamoShape, storage: Storage): Float64Array {
  const { scratch, lastSizes } = state;
  const { regionCount: count, sizes } = scratch;
  if (count !== shape.view.regionCount) throw otherCount(state, shape, storage);
  let same = lastSizes.length === count;
  for (let index = 0; same && index < count; index++) same = lastSizes[index] === sizes[index];
  if (!same) state.lastSizes = sizes.slice(0, count);
  return scratch.addresses.slice(0, count);
}

function withoutRegions(component: PackageComponent): PackageComponent {
  return Object.freeze({
    ...component,
    regionAddresses: new Float64Array(0),
    regionSizes: new Float64Array(0),
  });
}

function tierOf(storage: Storage): Tier {
  return storage.kind === "device" ? "G1" : storage.kind === "disk" ? "G3" : "G2";
}

// Refusals have functions of their own, which a package that is right never compiles.

function otherVersion(state: ImportState): Error {
  return refused(state, `descriptor version ${state.scratch.version} is not known, only 0 and 1`);
}

function badHandle(state: ImportState, what: string): Error {
  return refused(state, `the handle ${what}`);
}

function otherCount(state: ImportState, { view }: DynamoShape, { kind }: Storage): Error {
  const { regionCount } = state.scratch;
  return refused(
    state,
    `${regionCount} memory descriptors of ${kind} memory, the layout has ${view.regionCount} regions`,
  );
}

function refused(state: ImportState, reason: string): Error {
  return malformed(state.format, state.scratch.at, reason);
}
