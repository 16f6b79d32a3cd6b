import { DEFAULT_GROUP, SHORT_FORM_COMPONENT } from "../core/bundle.ts";
import { MAX_LAYOUT_ID } from "../core/handle.ts";
import type { Storage, Tier } from "../core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import { readInteger } from "./bincode.ts";
import { finishReader, malformed, MAX_PACKAGE_LAYOUTS, openReader } from "./bounded.ts";
import type { ByteReader } from "./bounded.ts";
import { newScratch, readHeader, sameBytes, scanLayout } from "./dynamo-scan.ts";
import type { DynamoHeader, LayoutScratch } from "./dynamo-scan.ts";
import { openShapes, shapeOf } from "./dynamo-shape.ts";
import type { DynamoShape, ShapeBook } from "./dynamo-shape.ts";
import { LOGICAL_TYPES, MEMORY_TYPES } from "./dynamo-types.ts";
import type { DynamoFormat } from "./dynamo-types.ts";
import { nextHandle, openHandles } from "./handles.ts";
import type { HandleSequence } from "./handles.ts";
import { checkRegions, newOverlapState } from "./regions.ts";
import { storageOf } from "./storage.ts";

/**
 * Reads a package of Dynamo's into the common form and judges what it means.
 *
 * Dynamo names no layouts: they are called `layout-<id>`. Heads are known only where `num_heads` and a block layout
 * say how they lie. Disk layouts come without addresses and are reachable by staged routes only.
 *
 * @throws KvferryError `METADATA_MALFORMED` with offset and reason: what the bytes cannot say, later versions,
 *   handles of another worker, doubled or with reserved bits, another agent's name, configs that Dynamo itself or
 *   kvferry refuses, memory that contradicts its location, regions that are too few, too many, too small, past 2^53
 *   or on top of each other.
 */
export function importDynamoPackage(bytes: Uint8Array, format: DynamoFormat): MetadataPackage {
  const reader = openReader(bytes, format);
  const header = readHeader(reader);
  if (header.layoutCount > MAX_PACKAGE_LAYOUTS)
    throw malformed(format, reader.position, `${header.layoutCount} layouts, more than ids`);
  const state = newImport(bytes, format, header);
  const layouts: PackageLayout[] = [];
  for (let index = 0; index < header.layoutCount; index++) {
    scanLayout(reader, format, state.scratch);
    layouts.push(layoutOf(state));
  }
  finishReader(reader);
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
  readonly bytes: Uint8Array;
  readonly format: DynamoFormat;
  readonly header: DynamoHeader;
  readonly scratch: LayoutScratch;
  /** Reads the regions of a layout again, once it is known how many there must be. */
  readonly regions: ByteReader;
  readonly worker0: number;
  readonly worker1: number;
  readonly overlap: ReturnType<typeof newOverlapState>;
  /** One bit for each layout id. */
  readonly seen: Uint32Array;
  readonly shapes: ShapeBook;
  lastSizes: Float64Array;
  readonly handles: HandleSequence;
}

function newImport(bytes: Uint8Array, format: DynamoFormat, header: DynamoHeader): ImportState {
  const words = new BigUint64Array([header.workerId]);
  const [worker0 = 0, worker1 = 0] = new Uint32Array(words.buffer);
  return {
    bytes,
    format,
    header,
    scratch: newScratch(),
    regions: openReader(bytes, format),
    worker0,
    worker1,
    overlap: newOverlapState(),
    seen: new Uint32Array(2_048),
    shapes: openShapes(format, bytes.length),
    lastSizes: new Float64Array(0),
    handles: openHandles(header.workerId),
  };
}

function layoutOf(state: ImportState): PackageLayout {
  const { scratch, header } = state;
  const id = layoutIdOf(state);
  if (scratch.version > 1)
    throw refused(state, `descriptor version ${scratch.version} is not known, only 0 and 1`);
  if (
    scratch.agentLength !== header.agentLength ||
    !sameBytes(state.bytes, scratch.agentAt, header.agentAt, header.agentLength)
  )
    throw refused(state, "the layout's agent name is not the worker's");
  const shape = shapeOf(state.shapes, scratch);
  const storage = storageAt(state);
  const regionAddresses = readRegions(state, shape, storage);
  const component: PackageComponent = Object.freeze({
    name: SHORT_FORM_COMPONENT,
    config: shape.config,
    arrangement: shape.arrangement,
    order: shape.order,
    view: shape.view,
    group: DEFAULT_GROUP,
    wholeBlocks: false,
    alias: false,
    storage,
    regionAddresses,
    regionSizes: state.lastSizes,
    nixlDevice: nixlDeviceOf(state, storage),
  });
  const components = [component];
  checkRegions(components, state.overlap, state.format, scratch.at);
  const disk = storage.kind === "disk";
  return Object.freeze({
    handle: nextHandle(state.handles, id, 0),
    name: `layout-${id}`,
    tier: LOGICAL_TYPES[scratch.logicalType] ?? tierOf(storage),
    access: "read-write" as const,
    fingerprint: null,
    stagedOnly: disk,
    components: disk ? [withoutRegions(component)] : components,
  });
}

function layoutIdOf(state: ImportState): number {
  const { scratch } = state;
  if (scratch.handle0 !== state.worker0 || scratch.handle1 !== state.worker1)
    throw refused(state, `the handle is not one of worker ${state.header.workerId}`);
  const id = scratch.handle2 & 0xffff;
  if (scratch.handle2 > 0xffff || scratch.handle3 !== 0)
    throw refused(state, "the handle has reserved bits set");
  if (id > MAX_LAYOUT_ID) throw refused(state, `the handle has the layout id ${id}, above ${MAX_LAYOUT_ID}`);
  const seen = state.seen[id >> 5] ?? 0;
  const bit = 1 << (id & 31);
  if ((seen & bit) !== 0) throw refused(state, `the handle of layout ${id} stands twice in the package`);
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

/** The device id for NIXL. A file descriptor of the exporter's process says nothing here. */
function nixlDeviceOf(state: ImportState, storage: Storage): number {
  const { scratch } = state;
  if (storage.kind === "disk") return 0;
  if (scratch.device1 >= 2 ** 21) throw refused(state, "device_id passes 2^53");
  return scratch.device1 * 2 ** 32 + scratch.device0;
}

const LOCATIONS = ["system", "pinned", "device", "disk"] as const;

/** Reads the regions of a layout; the sizes go to `state.lastSizes`, one array for layouts that have the same. */
function readRegions(state: ImportState, shape: DynamoShape, storage: Storage): Float64Array {
  const { scratch, regions } = state;
  const count = scratch.regionCount;
  if (count !== shape.view.regionCount)
    throw refused(
      state,
      `${count} memory descriptors of ${storage.kind} memory, the layout has ${shape.view.regionCount} regions`,
    );
  const addresses = new Float64Array(count);
  let sizes = state.lastSizes;
  let shared = sizes.length === count;
  if (!shared) sizes = new Float64Array(count);
  regions.position = scratch.regionsAt;
  for (let index = 0; index < count; index++) {
    addresses[index] = readNarrow(state, "addr");
    const size = readNarrow(state, "size");
    if (shared && sizes[index] !== size) {
      sizes = sizes.slice();
      shared = false;
    }
    if (!shared) sizes[index] = size;
  }
  state.lastSizes = sizes;
  return addresses;
}

function readNarrow(state: ImportState, what: string): number {
  const value = readInteger(state.regions, 2, what);
  if (state.regions.word1 >= 2 ** 21) throw refused(state, `${what} of a region passes 2^53`);
  return value;
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

function refused(state: ImportState, reason: string): Error {
  return malformed(state.format, state.scratch.at, reason);
}
