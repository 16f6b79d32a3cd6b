import type { ComponentRecord, LayoutRecord } from "./layout.ts";
import { refusal } from "./refuse.ts";

/**
 * Refuses a peer's layout that is shared for reading only as a destination.
 *
 * @throws KvferryError `ACCESS`.
 */
export function checkAccess(destination: LayoutRecord): void {
  if (destination.owner === null || destination.access !== "read") return;
  throw refusal(
    "ACCESS",
    `layout ${JSON.stringify(destination.name)} of worker ${destination.owner} is shared for reading only`,
    "Ask its owner to register it with access read-write, or choose another destination.",
    { layout: destination.name, worker: destination.owner.toString(), access: destination.access },
  );
}

/**
 * Refuses layouts of different models, and warns where only one side says which it is.
 *
 * @throws KvferryError `INCOMPATIBLE_LAYOUTS`.
 */
export function checkFingerprints(source: LayoutRecord, destination: LayoutRecord, warnings: string[]): void {
  const from = source.fingerprint;
  const to = destination.fingerprint;
  if (from === to) return;
  if (from === null || to === null) {
    warnings.push(
      `Only the ${from === null ? "destination" : "source"} has a fingerprint, so nobody can tell whether both hold the same model.`,
    );
    return;
  }
  throw refusal(
    "INCOMPATIBLE_LAYOUTS",
    `fingerprints differ: ${JSON.stringify(from)} at the source, ${JSON.stringify(to)} at the destination`,
    "Move blocks only between layouts of one model with one configuration.",
    { field: "fingerprint", source: from, destination: to },
  );
}

/** Components that are moved, by name. */
export interface Chosen {
  readonly pairs: readonly (readonly [ComponentRecord, ComponentRecord])[];
  /** Components of the destination that the source lacks. */
  readonly unmatched: readonly ComponentRecord[];
}

/**
 * Pairs the components of both sides by name.
 *
 * @param names - The ones that were asked for; all that both have when undefined.
 * @throws KvferryError `INCOMPATIBLE_LAYOUTS` when a named one is missing or none is common.
 */
export function matchComponents(
  source: LayoutRecord,
  destination: LayoutRecord,
  names: readonly string[] | undefined,
): Chosen {
  const find = (layout: LayoutRecord, name: string): ComponentRecord | undefined =>
    layout.components.find((component) => component.shape.name === name);
  const pairs: [ComponentRecord, ComponentRecord][] = [];
  const unmatched: ComponentRecord[] = [];
  if (names === undefined) {
    for (const to of destination.components) {
      const from = find(source, to.shape.name);
      if (from === undefined) unmatched.push(to);
      else pairs.push([from, to]);
    }
  } else {
    for (const name of new Set(names)) {
      const from = find(source, name);
      const to = find(destination, name);
      if (from === undefined || to === undefined)
        throw noComponent(source, destination, name, from === undefined);
      pairs.push([from, to]);
    }
  }
  if (pairs.length > 0) return { pairs, unmatched };
  throw refusal(
    "INCOMPATIBLE_LAYOUTS",
    "the two layouts have no component of one name",
    "Give the components of both sides the same names; they are matched by name.",
    { field: "components", source: namesOf(source), destination: namesOf(destination) },
  );
}

function noComponent(
  source: LayoutRecord,
  destination: LayoutRecord,
  name: string,
  atSource: boolean,
): Error {
  const side = atSource ? "source" : "destination";
  return refusal(
    "INCOMPATIBLE_LAYOUTS",
    `the ${side} has no component ${JSON.stringify(name)}`,
    "Name only components that both sides have.",
    {
      field: "components",
      component: name,
      side,
      source: namesOf(source),
      destination: namesOf(destination),
    },
  );
}

function namesOf(layout: LayoutRecord): readonly string[] {
  return layout.components.map((component) => component.shape.name);
}

/** Warns where both sides name an element type and the names differ. */
export function warnAboutTypes(from: ComponentRecord, to: ComponentRecord, warnings: string[]): void {
  const source = from.shape.config.dtype;
  const destination = to.shape.config.dtype;
  if (source !== null && destination !== null && source !== destination)
    warnings.push(
      `Component ${from.shape.name} is ${source} at the source and ${destination} at the destination: bytes are moved as they are.`,
    );
}
