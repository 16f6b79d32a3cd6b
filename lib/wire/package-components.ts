import { MAX_COMPONENTS } from "../core/bundle.ts";
import type { PackageComponent } from "../core/package.ts";
import type { PackageBody } from "./body.ts";
import { malformed, mostComponents, mostRegions } from "./bounded.ts";
import { floatColumn, rowCount, wordColumn } from "./columns.ts";
import { checkRegions, newOverlapState } from "./regions.ts";
import { COMPONENT_WORDS, NO_WORD, STORAGES } from "./rows.ts";
import type { PackageShape } from "./shape-rows.ts";
import { storageOf, SYSTEM } from "./storage.ts";

/** The components of a package, taken one after the other as its layouts are read. */
export interface ComponentSource {
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

/** @throws KvferryError `METADATA_MALFORMED` when there are more components or regions than a package of its length may have. */
export function openComponents(
  body: PackageBody,
  shapes: readonly PackageShape[],
  offset: number,
  bytes: number,
): ComponentSource {
  const rows = rowCount(body.components, COMPONENT_WORDS * 4, "components");
  const most = mostComponents(bytes);
  if (rows > most) throw tooMany("components", rows, most, bytes, offset);
  const regions = rowCount(body.addresses, 8, "addresses");
  const mostRanges = mostRegions(bytes);
  if (regions > mostRanges) throw tooMany("regions", regions, mostRanges, bytes, offset);
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

/**
 * The next components, which are all of a layout.
 *
 * @throws KvferryError `METADATA_MALFORMED` with the layout.
 */
export function takeComponents(
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
  for (let index = 0; index < count; index++) components.push(takeComponent(source, layoutId, false));
  if (count > 1 && new Set(components.map(({ name }) => name)).size !== count)
    throw malformed("kvferry", source.offset, `two components of layout ${layoutId} have one name`, {
      layoutId,
    });
  checkRegions(components, source.overlap, "kvferry", source.offset);
  return components;
}

/**
 * The next component.
 *
 * @param only - The layout's only component: then its region is checked here.
 * @throws KvferryError `METADATA_MALFORMED` with the layout.
 */
export function takeComponent(source: ComponentSource, layoutId: number, only: boolean): PackageComponent {
  const { words, offset } = source;
  const at = source.next * COMPONENT_WORDS;
  const shape = source.shapes[words[at] ?? NO_WORD];
  if (shape === undefined) throw badPart(layoutId, `names shape ${words[at]}`, offset);
  const kind = words[at + 1] ?? NO_WORD;
  const device = words[at + 2] ?? NO_WORD;
  const storage = kind === 0 && device === NO_WORD ? SYSTEM : readStorage(kind, device, offset);
  const { view } = shape;
  const regions = storage.kind === "disk" ? 0 : view.regionCount;
  const start = source.region;
  if (regions > source.addresses.length - start)
    throw badPart(layoutId, `needs ${regions} regions, more than are left`, offset);
  const nixlDevice = source.nixlDevices[source.next] ?? Number.NaN;
  if (nixlDevice !== 0 && (!Number.isSafeInteger(nixlDevice) || nixlDevice < 0))
    throw badPart(layoutId, `has the NIXL device ${nixlDevice}`, offset);
  source.next++;
  source.region += regions;
  let regionAddresses = NO_ADDRESSES;
  let right = regions === 0;
  if (regions === 1) {
    const address = source.addresses[start] ?? 0;
    const size = source.sizes[start] ?? 0;
    // One region is the plain case, and making an array of one is cheaper than cutting it out.
    regionAddresses = new Float64Array(1);
    regionAddresses[0] = address;
    if (source.lastSizes.length !== 1 || source.lastSizes[0] !== size) {
      source.lastSizes = new Float64Array(1);
      source.lastSizes[0] = size;
    }
    // What `checkRegions` asks of a single region; it says what is wrong with others.
    right =
      address % 1 === 0 &&
      size % 1 === 0 &&
      address >= 0 &&
      size >= view.regionBytes &&
      address + size <= Number.MAX_SAFE_INTEGER;
  } else if (regions > 0) regionAddresses = source.addresses.slice(start, start + regions);
  const component = Object.freeze({
    name: shape.name,
    config: shape.config,
    arrangement: shape.arrangement,
    order: shape.order,
    view,
    group: shape.group,
    wholeBlocks: shape.wholeBlocks,
    alias: shape.alias,
    storage,
    regionAddresses,
    regionSizes: regions === 1 ? source.lastSizes : takeSizes(source, start, regions),
    nixlDevice,
  });
  if (only && !right) checkRegions([component], source.overlap, "kvferry", offset);
  return component;
}

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

const NO_ADDRESSES = new Float64Array(0);

// Refusals have functions of their own, which a package that is right never compiles.

function badPart(layoutId: number, what: string, offset: number): Error {
  return malformed("kvferry", offset, `layout ${layoutId} ${what}`, { layoutId });
}

function tooMany(what: string, count: number, limit: number, bytes: number, offset: number): Error {
  return malformed(
    "kvferry",
    offset,
    `${count} ${what}, more than the ${limit} of a package of ${bytes} bytes`,
    {
      [what]: count,
      limit,
    },
  );
}
