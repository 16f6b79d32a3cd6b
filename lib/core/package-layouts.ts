import { resolveShape } from "./component-shape.ts";
import { findSharedBytes } from "./coverage.ts";
import { KvferryError } from "./errors.ts";
import type { LayoutHandle } from "./handle.ts";
import { formatHandle, handleGeneration, handleLayoutId, handleWorkerId, MAX_LAYOUT_ID } from "./handle.ts";
import type { ComponentShape } from "./layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "./package.ts";
import { MAX_INCARNATION, REUSES_PER_INCARNATION } from "./registry-snapshot.ts";
import { VIEW_FIELDS } from "./view.ts";

/** A layout of a package whose every claim holds. */
export interface CheckedLayout {
  readonly layout: PackageLayout;
  readonly layoutId: number;
  readonly generation: number;
  readonly shapes: readonly ComponentShape[];
}

/** Everything that a package claims about its layouts must hold. */
export function checkLayouts(metadata: MetadataPackage): readonly CheckedLayout[] {
  const { incarnation, workerId, layouts } = metadata;
  const kvferry = metadata.format === "kvferry";
  if (kvferry && !(Number.isInteger(incarnation) && incarnation >= 0 && incarnation <= MAX_INCARNATION))
    throw malformed(`incarnation ${incarnation} does not fit 36 bits`, { incarnation });
  // While ids rise none can stand twice: only a package whose ids do not is looked over for that.
  let highest = -1;
  let seen: Set<number> | undefined;
  let previous: LayoutHandle | undefined;
  let layoutId = 0;
  let generation = 0;
  const checked: CheckedLayout[] = [];
  for (const layout of layouts) {
    const { handle } = layout;
    // Most layouts follow each other; then the worker and the generation are those of the one before.
    if (previous !== undefined && layoutId < MAX_LAYOUT_ID && handle === previous + ONE_ID) layoutId++;
    else {
      layoutId = handleLayoutId(handle);
      generation = handleGeneration(handle);
      const wrong =
        handleWorkerId(handle) !== workerId
          ? `is not a layout of worker ${workerId}`
          : kvferry && layoutId > MAX_LAYOUT_ID
            ? "has no layout id of kvferry"
            : kvferry && Math.floor(generation / REUSES_PER_INCARNATION) !== incarnation
              ? `is not of the package's incarnation ${incarnation}`
              : null;
      if (wrong !== null) throw malformedHandle(handle, wrong);
    }
    if (seen === undefined && layoutId > highest) highest = layoutId;
    else {
      seen ??= new Set(checked.map((each) => each.layoutId));
      if (seen.has(layoutId)) throw malformedHandle(handle, "stands twice in the package");
      seen.add(layoutId);
    }
    previous = handle;
    checked.push({ layout, layoutId, generation, shapes: checkComponents(layout) });
  }
  return checked;
}

/** From one layout's handle to that of the next id. */
const ONE_ID = 1n << 64n;

function malformedHandle(handle: LayoutHandle, wrong: string): KvferryError {
  return malformed(`${formatHandle(handle)} ${wrong}`, { handle: handle.toString() });
}

function checkComponents(layout: PackageLayout): readonly ComponentShape[] {
  const { components, handle } = layout;
  const [only] = components;
  if (components.length === 1 && only !== undefined) {
    const shape = checkComponent(handle, only);
    return shape.view.regionCount === 1 ? [shape] : apart(layout, [shape]);
  }
  if (components.length === 0) throw malformed(`${formatHandle(handle)} has no components`, {});
  if (new Set(components.map((component) => component.name)).size !== components.length)
    throw malformed(`${formatHandle(handle)} has two components of one name`, {});
  return apart(
    layout,
    components.map((component) => checkComponent(handle, component)),
  );
}

/** Only bytes that a layout's components are declared to share may they share. @returns The shapes. */
function apart(
  { components, handle }: PackageLayout,
  shapes: readonly ComponentShape[],
): readonly ComponentShape[] {
  const shared = findSharedBytes(
    components
      .filter((component) => component.regionAddresses.length > 0)
      .map(({ name, view, alias, storage, regionAddresses }) => ({
        name,
        view,
        alias,
        spaces: [spaceOf(storage)],
        bases: regionAddresses,
      })),
  );
  if (shared !== null)
    throw malformed(
      `${formatHandle(handle)}: region ${shared.leftRegion} of ${shared.left} and region ${shared.rightRegion} of ${shared.right} share bytes: ${shared.reason}`,
      { ...shared },
    );
  return shapes;
}

function checkComponent(handle: LayoutHandle, component: PackageComponent): ComponentShape {
  const { name, view, regionAddresses, regionSizes } = component;
  const shape = shapeOf(component);
  const expected = shape.view;
  if (view !== expected)
    for (const field of VIEW_FIELDS)
      if (view[field] !== expected[field])
        throw malformed(
          `${formatHandle(handle)}: component ${name} says ${field} ${view[field]}, its config ${expected[field]}`,
          { component: name, field, found: view[field], expected: expected[field] },
        );
  // Bytes that only the peer can touch travel without addresses.
  if (component.storage.kind === "disk" && regionAddresses.length === 0 && regionSizes.length === 0)
    return shape;
  if (regionAddresses.length !== expected.regionCount || regionSizes.length !== expected.regionCount)
    throw malformed(`${formatHandle(handle)}: component ${name} needs ${expected.regionCount} regions`, {
      component: name,
      expected: expected.regionCount,
      found: [regionAddresses.length, regionSizes.length],
    });
  for (let index = 0; index < regionAddresses.length; index++) {
    const address = regionAddresses[index] ?? Number.NaN;
    const size = regionSizes[index] ?? Number.NaN;
    const wrong =
      !Number.isSafeInteger(address) || address < 0 || !Number.isSafeInteger(size) || size < 0
        ? "is no range of bytes"
        : !Number.isSafeInteger(address + size)
          ? "ends past 2^53"
          : size < expected.regionBytes
            ? `has ${size} bytes, its config needs ${expected.regionBytes}`
            : null;
    if (wrong !== null)
      throw malformed(`${formatHandle(handle)}: region ${index} of component ${name} ${wrong}`, {
        component: name,
        region: index,
        address,
        size,
        needed: expected.regionBytes,
      });
  }
  return shape;
}

function shapeOf(component: PackageComponent): ComponentShape {
  try {
    return resolveShape(component, "import");
  } catch (error) {
    if (!(error instanceof KvferryError)) throw error;
    throw malformed(`component ${component.name}: ${error.message}`, {
      component: component.name,
      ...error.details,
    });
  }
}

/** Addresses of two kinds of memory are different bytes; host memory is one space, pinned or not. */
function spaceOf(storage: PackageComponent["storage"]): string {
  return storage.kind === "device" ? `device ${storage.device}` : storage.kind === "disk" ? "disk" : "host";
}

function malformed(message: string, details: Record<string, unknown>): KvferryError {
  return new KvferryError(
    "METADATA_MALFORMED",
    "import",
    message,
    "Ask the peer to export its metadata again.",
    details,
  );
}
