import { MAX_COMPONENTS, MAX_FINGERPRINT_LENGTH, MAX_NAME_LENGTH } from "../core/bundle.ts";
import { MAX_GENERATION, MAX_LAYOUT_ID } from "../core/handle.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { HostIdentity, MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import { decodeBody } from "./body.ts";
import type { BodyHost, PackageBody } from "./body.ts";
import { malformed, MAX_AUDIENCE, MAX_PACKAGE_LAYOUTS, mostComponents, mostShapes } from "./bounded.ts";
import { floatColumn, rowCount, splitTexts, wideColumn, wordColumn } from "./columns.ts";
import { authenticate, readEnvelope } from "./envelope.ts";
import type { MacFunction } from "./envelope.ts";
import { nextHandle, openHandles } from "./handles.ts";
import type { HandleSequence } from "./handles.ts";
import { checkRegions, newOverlapState } from "./regions.ts";
import { COMPONENT_WORDS, LAYOUT_WORDS, NO_WORD, READ_ONLY, STAGED, STORAGES, TIERS } from "./rows.ts";
import { readShapes, SHAPE_NUMBERS, SHAPE_WORDS } from "./shapes.ts";
import type { PackageShape } from "./shapes.ts";
import { storageOf } from "./storage.ts";

/**
 * Reads a package of kvferry's own format into the common form, with configs and views computed anew.
 *
 * All objects are frozen; lists are read-only by type (a frozen list becomes a hash table in JavaScriptCore).
 *
 * @param mac - Demands an authentication code of a key that this function knows. Nothing of the body is decoded
 *   before that is checked.
 * @throws KvferryError `METADATA_MALFORMED` with offset and reason, `METADATA_UNAUTHENTICATED`.
 */
export function decodeKvferryPackage(
  bytes: Uint8Array,
  mac: MacFunction | null = null,
  maxBytes?: number,
): MetadataPackage {
  const envelope = readEnvelope(bytes, maxBytes);
  if (mac !== null) authenticate(envelope, mac);
  const body = decodeBody(envelope);
  const shapeRows = rowCount(body.shapeWords, SHAPE_WORDS * 4, "shapeWords");
  const texts = readTexts(body, shapeRows, envelope.bodyAt);
  if (shapeRows > mostShapes(bytes.length))
    throw malformed(
      "kvferry",
      envelope.bodyAt,
      `${shapeRows} different shapes, more than the ${mostShapes(bytes.length)} of a package of ${bytes.length} bytes`,
      { shapes: shapeRows },
    );
  const shapes = readShapes({
    numbers: floatColumn(body.shapeNumbers, shapeRows * SHAPE_NUMBERS, "shapeNumbers"),
    words: wordColumn(body.shapeWords, shapeRows * SHAPE_WORDS, "shapeWords"),
    layers: wordColumn(body.shapeLayers, rowCount(body.shapeLayers, 4, "shapeLayers"), "shapeLayers"),
    texts,
    offset: envelope.bodyAt,
    bytes: bytes.length,
  });
  return Object.freeze({
    format: "kvferry" as const,
    workerId: body.worker,
    agentName: body.agent,
    wireName: body.wire,
    incarnation: body.incarnation,
    sequence: body.sequence,
    issuedAtMs: body.issued,
    expiresAtMs: body.expires,
    audience: readAudience(body.audience, envelope.bodyAt),
    nixlMetadata: body.nixl.slice(),
    host: body.host === null ? null : hostOf(body.host),
    layouts: readLayouts(body, texts, shapes, envelope.bodyAt, bytes.length),
  });
}

/** All strings: names and groups of shapes, names and fingerprints of layouts, none that nobody could name. */
function readTexts(body: PackageBody, shapeRows: number, offset: number): readonly string[] {
  const rows = rowCount(body.textEnds, 4, "textEnds");
  const layoutRows = rowCount(body.layouts, LAYOUT_WORDS * 4, "layouts");
  if (rows > 2 * (shapeRows + layoutRows))
    throw malformed("kvferry", offset, `${rows} strings for ${layoutRows} layouts`, { rows });
  return splitTexts(body.text, wordColumn(body.textEnds, rows, "textEnds"));
}

function readLayouts(
  body: PackageBody,
  texts: readonly string[],
  shapes: readonly PackageShape[],
  offset: number,
  bytes: number,
): readonly PackageLayout[] {
  const rows = rowCount(body.layouts, LAYOUT_WORDS * 4, "layouts");
  if (rows > MAX_PACKAGE_LAYOUTS)
    throw malformed("kvferry", offset, `${rows} layouts, more than ids`, { rows });
  const generations = floatColumn(body.generations, rows, "generations");
  const words = wordColumn(body.layouts, rows * LAYOUT_WORDS, "layouts");
  const source = openComponents(body, shapes, offset, bytes);
  const layouts: PackageLayout[] = [];
  const handles = openHandles(body.worker);
  let previous = -1;
  for (let row = 0; row < rows; row++) {
    const at = row * LAYOUT_WORDS;
    const id = words[at] ?? 0;
    if (id <= previous || id > MAX_LAYOUT_ID)
      throw malformed("kvferry", offset, `layout ${row} has the id ${id} after ${previous}`, { row, id });
    previous = id;
    const flags = words[at + 4] ?? 0;
    const tier = TIERS[flags & 3];
    if (flags > 15 || tier === undefined)
      throw malformed("kvferry", offset, `layout ${id} has flags ${flags}`, { id });
    const fingerprint = words[at + 2] ?? 0;
    const components = takeComponents(source, words[at + 3] ?? 0, id);
    layouts.push(
      Object.freeze({
        handle: handleOf(handles, id, generations[row] ?? 0, offset),
        name: readText(texts, words[at + 1] ?? 0, MAX_NAME_LENGTH, offset),
        tier,
        access: (flags & READ_ONLY) !== 0 ? ("read" as const) : ("read-write" as const),
        fingerprint:
          fingerprint === 0 ? null : readText(texts, fingerprint - 1, MAX_FINGERPRINT_LENGTH, offset),
        stagedOnly: (flags & STAGED) !== 0,
        components,
      }),
    );
  }
  if (source.next !== source.rows || source.region !== source.addresses.length)
    throw malformed("kvferry", offset, "components or regions are listed that belong to no layout");
  return layouts;
}

interface ComponentSource {
  readonly offset: number;
  readonly shapes: readonly PackageShape[];
  readonly rows: number;
  readonly words: Uint32Array;
  readonly nixlDevices: Float64Array;
  readonly addresses: Float64Array;
  readonly sizes: Float64Array;
  readonly overlap: ReturnType<typeof newOverlapState>;
  next: number;
  region: number;
  /** Sizes of the component before: layouts of one shape share them. */
  lastSizes: Float64Array;
}

function openComponents(
  body: PackageBody,
  shapes: readonly PackageShape[],
  offset: number,
  bytes: number,
): ComponentSource {
  const rows = rowCount(body.components, COMPONENT_WORDS * 4, "components");
  const most = mostComponents(bytes);
  if (rows > most)
    throw malformed(
      "kvferry",
      offset,
      `${rows} components, more than the ${most} of a package of ${bytes} bytes`,
      { components: rows, limit: most },
    );
  const regions = rowCount(body.addresses, 8, "addresses");
  return {
    offset,
    shapes,
    rows,
    words: wordColumn(body.components, rows * COMPONENT_WORDS, "components"),
    nixlDevices: floatColumn(body.nixlDevices, rows, "nixlDevices"),
    addresses: floatColumn(body.addresses, regions, "addresses"),
    sizes: floatColumn(body.sizes, regions, "sizes"),
    overlap: newOverlapState(bytes),
    next: 0,
    region: 0,
    lastSizes: new Float64Array(0),
  };
}

function takeComponents(
  source: ComponentSource,
  count: number,
  layoutId: number,
): readonly PackageComponent[] {
  if (count < 1 || count > MAX_COMPONENTS || count > source.rows - source.next)
    throw malformed("kvferry", source.offset, `layout ${layoutId} has ${count} components`, {
      layoutId,
      count,
    });
  const components: PackageComponent[] = [];
  for (let index = 0; index < count; index++) components.push(takeComponent(source, layoutId));
  if (count > 1 && new Set(components.map(({ name }) => name)).size !== count)
    throw malformed("kvferry", source.offset, `two components of layout ${layoutId} have one name`, {
      layoutId,
    });
  checkRegions(components, source.overlap, "kvferry", source.offset);
  return components;
}

function takeComponent(source: ComponentSource, layoutId: number): PackageComponent {
  const { words, offset } = source;
  const at = source.next * COMPONENT_WORDS;
  const shape = source.shapes[words[at] ?? NO_WORD];
  if (shape === undefined)
    throw malformed("kvferry", offset, `layout ${layoutId} names shape ${words[at]}`, { layoutId });
  const storage = readStorage(words[at + 1] ?? NO_WORD, words[at + 2] ?? NO_WORD, offset);
  const regions = storage.kind === "disk" ? 0 : shape.view.regionCount;
  if (regions > source.addresses.length - source.region)
    throw malformed("kvferry", offset, `layout ${layoutId} needs ${regions} regions, more than are left`, {
      layoutId,
    });
  const nixlDevice = source.nixlDevices[source.next] ?? Number.NaN;
  if (!Number.isSafeInteger(nixlDevice) || nixlDevice < 0)
    throw malformed("kvferry", offset, `layout ${layoutId} has the NIXL device ${nixlDevice}`, { layoutId });
  const start = source.region;
  source.next++;
  source.region += regions;
  return Object.freeze({
    name: shape.name,
    config: shape.config,
    arrangement: shape.arrangement,
    order: shape.order,
    view: shape.view,
    group: shape.group,
    wholeBlocks: shape.wholeBlocks,
    alias: shape.alias,
    storage,
    regionAddresses: takeAddresses(source.addresses, start, regions),
    regionSizes: takeSizes(source, start, regions),
    nixlDevice,
  });
}

function takeAddresses(addresses: Float64Array, start: number, count: number): Float64Array {
  if (count === 0) return NO_ADDRESSES;
  // One region is the plain case, and making an array of one is cheaper than cutting it out.
  if (count !== 1) return addresses.slice(start, start + count);
  const single = new Float64Array(1);
  single[0] = addresses[start] ?? 0;
  return single;
}

const NO_ADDRESSES = new Float64Array(0);

function takeSizes(source: ComponentSource, start: number, count: number): Float64Array {
  const { lastSizes, sizes } = source;
  let same = lastSizes.length === count;
  for (let index = 0; same && index < count; index++) same = lastSizes[index] === sizes[start + index];
  if (!same) source.lastSizes = sizes.slice(start, start + count);
  return source.lastSizes;
}

function readStorage(kind: number, device: number, offset: number): PackageComponent["storage"] {
  const word = STORAGES[kind];
  const storage = word === undefined ? null : storageOf(word, device === NO_WORD ? null : device);
  if (storage === null)
    throw malformed("kvferry", offset, `storage ${word ?? kind} with device ${device}`, { kind, device });
  return storage;
}

function handleOf(handles: HandleSequence, id: number, generation: number, offset: number): LayoutHandle {
  if (!Number.isInteger(generation) || generation < 0 || generation > MAX_GENERATION)
    throw malformed("kvferry", offset, `layout ${id} has the generation ${generation}`, { id });
  return nextHandle(handles, id, generation);
}

function readText(texts: readonly string[], index: number, longest: number, offset: number): string {
  const text = texts[index];
  if (text === undefined || text === "" || text.length > longest)
    throw malformed("kvferry", offset, `string ${index} is no name of 1 to ${longest} characters`, { index });
  return text;
}

function readAudience(column: Uint8Array | null, offset: number): readonly bigint[] | null {
  if (column === null) return null;
  const rows = rowCount(column, 8, "audience");
  if (rows > MAX_AUDIENCE)
    throw malformed("kvferry", offset, `an audience of ${rows}, more than ${MAX_AUDIENCE}`, { rows });
  return [...wideColumn(column, rows, "audience")];
}

function hostOf(host: BodyHost): HostIdentity {
  return Object.freeze({
    bootId: host.boot,
    namespaces: Object.freeze({ pid: host.pid, ipc: host.ipc, net: host.net, user: host.user }),
    userId: host.uid,
    processId: host.process,
    rendezvous: host.rendezvous,
  });
}
