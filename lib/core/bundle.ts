import { DEFAULT_ARRANGEMENT } from "./arrangement-view.ts";
import { resolveShape } from "./component-shape.ts";
import { resolveConfig } from "./config-resolve.ts";
import { findSharedBytes } from "./coverage.ts";
import { KvferryError } from "./errors.ts";
import { checkedSum } from "./integers.ts";
import type { Access, ComponentShape, ComponentSpec, LayoutSpec, MemorySpec, Tier } from "./layout.ts";
import { checkMemory, placementsOf, tierOf } from "./memory-spec.ts";

/** A component of a checked spec. */
export interface ResolvedComponent {
  readonly shape: ComponentShape;
  /** A copy that its caller cannot change. */
  readonly memory: MemorySpec;
  /** Bytes that each of its regions must have; with what `shared` components of it need. */
  readonly regionBytes: number;
}

/** A checked {@link LayoutSpec} with every default filled in. */
export interface ResolvedLayout {
  /** Null: the registry names it after its id. */
  readonly name: string | null;
  readonly tier: Tier;
  readonly access: Access;
  readonly fingerprint: string | null;
  /** In the order of the spec; one named `kv` for the short form. */
  readonly components: readonly ResolvedComponent[];
}

/** Name of the one component of a layout in the short form. */
export const SHORT_FORM_COMPONENT = "kv";

/** Name of the block-id space of components that say none. */
export const DEFAULT_GROUP = "default";

/** The longest name of a layout, component or group, in UTF-16 units. */
export const MAX_NAME_LENGTH = 256;

/** The longest fingerprint, in UTF-16 units. */
export const MAX_FINGERPRINT_LENGTH = 4_096;

/** The most components of a bundle. */
export const MAX_COMPONENTS = 1_024;

/**
 * Checks a layout spec, short or long form.
 *
 * @param operation - Named in errors.
 * @throws KvferryError `INVALID_CONFIG` with the component and field: unknown fields, wrong types, names that are
 *   empty or too long, configs and arrangements as `resolveConfig` and `arrangementView` refuse them, external
 *   regions that do not fit, `shared` memory that points nowhere. `OVERLAP` when components cover bytes twice and
 *   do not all say `alias: true`.
 */
export function resolveLayout(spec: LayoutSpec, operation = "register"): ResolvedLayout {
  if (typeof spec !== "object" || spec === null)
    throw invalid(operation, "spec", "a layout spec must be an object", spec);
  const long = "components" in spec && spec.components !== undefined;
  const allowed = long ? LONG_FIELDS : SHORT_FIELDS;
  for (const key in spec)
    if (!allowed.has(key)) throw unknown(operation, long ? "the long form" : "the spec", key);
  const name = checkText(spec.name, "name", MAX_NAME_LENGTH, operation);
  const fingerprint = checkText(spec.fingerprint, "fingerprint", MAX_FINGERPRINT_LENGTH, operation);
  const access = spec.access ?? "read-write";
  if (access !== "read" && access !== "read-write")
    throw invalid(operation, "access", "access must be read or read-write", access);
  const components = long
    ? resolveComponents(spec.components, operation)
    : [resolveComponent(SHORT_FORM_COMPONENT, spec as ComponentSpec, operation)];
  const sized = components.length === 1 ? components : sizeAllocations(components, operation);
  refuseSharedBytes(sized, operation);
  const tier = spec.tier ?? tierOf(rootOf(sized, sized[0]));
  if (!TIERS.has(tier)) throw invalid(operation, "tier", "tier must be G1, G2, G3 or G4", tier);
  return { name, tier, access, fingerprint, components: sized };
}

const TIERS: ReadonlySet<string> = new Set<Tier>(["G1", "G2", "G3", "G4"]);

const COMMON_FIELDS = ["name", "tier", "fingerprint", "access"] as const;

const COMPONENT_FIELDS: ReadonlySet<string> = new Set<keyof ComponentSpec>([
  "config",
  "arrangement",
  "order",
  "memory",
  "group",
  "wholeBlocks",
  "alias",
]);

const SHORT_FIELDS: ReadonlySet<string> = new Set([...COMMON_FIELDS, ...COMPONENT_FIELDS, "components"]);

const LONG_FIELDS: ReadonlySet<string> = new Set([...COMMON_FIELDS, "components"]);

function resolveComponents(
  given: Readonly<Record<string, ComponentSpec>>,
  operation: string,
): readonly ResolvedComponent[] {
  if (typeof given !== "object" || given === null || Array.isArray(given))
    throw invalid(operation, "components", "components must be an object of named components", given);
  const entries = Object.entries(given);
  if (entries.length === 0 || entries.length > MAX_COMPONENTS)
    throw invalid(operation, "components", `components must be 1 to ${MAX_COMPONENTS}`, entries.length);
  return entries.map(([name, spec]) => {
    checkText(name, "components", MAX_NAME_LENGTH, operation);
    if (typeof spec !== "object" || spec === null)
      throw invalid(operation, name, `component ${name} must be an object`, spec);
    for (const key in spec)
      if (!COMPONENT_FIELDS.has(key)) throw unknown(operation, `component ${name}`, key);
    return inComponent(name, () => resolveComponent(name, spec, operation));
  });
}

function resolveComponent(name: string, spec: ComponentSpec, operation: string): ResolvedComponent {
  const group = checkText(spec.group, "group", MAX_NAME_LENGTH, operation) ?? DEFAULT_GROUP;
  const wholeBlocks = checkFlag(spec.wholeBlocks, "wholeBlocks", operation);
  const alias = checkFlag(spec.alias, "alias", operation);
  const config = resolveConfig(spec.config, operation);
  const arrangement = spec.arrangement ?? DEFAULT_ARRANGEMENT;
  const shape = resolveShape(
    { name, config, arrangement, order: spec.order, group, wholeBlocks, alias },
    operation,
  );
  return { shape, memory: checkMemory(spec.memory, shape, operation), regionBytes: shape.view.regionBytes };
}

/** Gives each component that owns memory room for those that are placed inside it. */
function sizeAllocations(
  components: readonly ResolvedComponent[],
  operation: string,
): readonly ResolvedComponent[] {
  const needed = new Map(components.map((component) => [component.shape.name, component.regionBytes]));
  for (const component of components) {
    const { memory, shape } = component;
    if (memory.kind !== "shared") continue;
    const root = rootOf(components, component, operation);
    if (root.shape.view.regionCount !== shape.view.regionCount)
      throw invalid(
        operation,
        "memory.with",
        `component ${shape.name} has ${shape.view.regionCount} regions, ${memory.with} has ${root.shape.view.regionCount}`,
        memory.with,
      );
    const end = checkedSum(operation, "a shared region", memory.offset, shape.view.regionBytes);
    if (shape.config.alignment > 1 && memory.offset % shape.config.alignment !== 0)
      throw invalid(
        operation,
        "memory.offset",
        `offset is not aligned to ${shape.config.alignment}`,
        memory.offset,
      );
    needed.set(memory.with, Math.max(needed.get(memory.with) ?? 0, end));
  }
  return components.map((component) => {
    const regionBytes = needed.get(component.shape.name) ?? component.regionBytes;
    if (regionBytes === component.regionBytes) return component;
    const { memory } = component;
    if ("regions" in memory)
      for (const [index, region] of memory.regions.entries())
        if (region.size < regionBytes)
          throw invalid(
            operation,
            `memory.regions[${index}].size`,
            `region ${index} of component ${component.shape.name} has ${region.size} bytes, with what shares it ${regionBytes} are needed`,
            region.size,
          );
    return { ...component, regionBytes };
  });
}

/** The component whose memory a component lies in: itself unless its memory is `shared`. */
function rootOf(
  components: readonly ResolvedComponent[],
  component: ResolvedComponent | undefined,
  operation = "register",
): ResolvedComponent {
  if (component === undefined)
    throw invalid(operation, "components", "a layout needs a component", undefined);
  const { memory } = component;
  if (memory.kind !== "shared") return component;
  const root = components.find((candidate) => candidate.shape.name === memory.with);
  if (root === undefined || root.memory.kind === "shared")
    throw invalid(
      operation,
      "memory.with",
      `component ${component.shape.name} shares the memory of ${JSON.stringify(memory.with)}, which ${root === undefined ? "does not exist" : "has none of its own"}`,
      memory.with,
    );
  return root;
}

function refuseSharedBytes(components: readonly ResolvedComponent[], operation: string): void {
  const first = components[0];
  if (components.length === 1 && first?.shape.view.regionCount === 1) return rootCheck(components, operation);
  const placed = components.map((component) => {
    const root = rootOf(components, component, operation);
    return placementsOf(component.shape, component.memory, root.shape.name, root.memory);
  });
  const found = findSharedBytes(placed);
  if (found === null) return;
  throw new KvferryError(
    "OVERLAP",
    operation,
    `region ${found.leftRegion} of component ${found.left} and region ${found.rightRegion} of component ${found.right} share bytes: ${found.reason}`,
    "Move one of them, or say alias: true on every component whose bytes are meant to be covered twice.",
    { ...found },
  );
}

/** A single component with one region can only be wrong by sharing memory with nobody. */
function rootCheck(components: readonly ResolvedComponent[], operation: string): void {
  rootOf(components, components[0], operation);
}

/** Adds the component's name to an error from inside it. */
function inComponent<Result>(name: string, run: () => Result): Result {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof KvferryError)) throw error;
    const word = error.code.slice("ERR_KVF_".length) as "INVALID_CONFIG";
    throw new KvferryError(word, error.operation, `component ${name}: ${error.message}`, error.remedy, {
      component: name,
      ...error.details,
    });
  }
}

function checkText(value: unknown, field: string, longest: number, operation: string): string | null {
  if (value === undefined) return null;
  if (typeof value !== "string" || value === "" || value.length > longest)
    throw invalid(operation, field, `${field} must be a string of 1 to ${longest} characters`, value);
  if (!value.isWellFormed())
    throw invalid(operation, field, `${field} has half of a surrogate pair and cannot be sent`, value);
  return value;
}

function checkFlag(value: unknown, field: string, operation: string): boolean {
  if (value === undefined) return false;
  if (typeof value !== "boolean") throw invalid(operation, field, `${field} must be true or false`, value);
  return value;
}

function unknown(operation: string, where: string, key: string): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    operation,
    `${where} has an unknown field ${JSON.stringify(key)}`,
    key === "config" || key === "memory"
      ? "Give config and memory inside each component, or leave components out."
      : "Remove the field, or check its spelling.",
    { field: key, where },
  );
}

function invalid(operation: string, field: string, message: string, found: unknown): KvferryError {
  return new KvferryError("INVALID_CONFIG", operation, message, `Correct ${field} in the layout's spec.`, {
    field,
    found: typeof found === "bigint" ? found.toString() : found,
  });
}
