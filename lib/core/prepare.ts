import { type Aliasing, aliasingOf } from "./aliasing.ts";
import { type ComponentPair, intersectComponents } from "./intersect.ts";
import { layerLimit, type LayerRange } from "./intersect-layers.ts";
import { type PreparedStep, stepsOf, unionOfLayers } from "./layer-steps.ts";
import type { LayoutRecord } from "./layout.ts";
import { checkAccess, checkFingerprints, matchComponents, warnAboutTypes } from "./match.ts";
import { type Nest, nestOf, type Outside, outsideOf } from "./nest.ts";
import type { MachineProfile } from "./profile.ts";
import { PLAN_OPERATION, refusal } from "./refuse.ts";
import { getLayout } from "./registry-queries.ts";
import type { RegistrySnapshot } from "./registry.ts";
import type { PlanRequest } from "./request.ts";
import { checkedLayers, checkedLayerStep, checkedTokens, type TokenRange } from "./request-check.ts";
import type { PlanEnvironment } from "./environment.ts";
import { findRoute, type Route } from "./route.ts";
import { addUncovered, requireCoverage, type Uncovered } from "./uncovered.ts";

/** A request without its block ids. */
export type PrepareRequest = Omit<PlanRequest, "sourceBlocks" | "destinationBlocks">;

/** All of a plan that does not depend on block ids: made once for a pair of layouts and used for many lists. Immutable. */
export interface PreparedPair {
  readonly source: LayoutRecord;
  readonly destination: LayoutRecord;
  readonly profile: MachineProfile;
  readonly environment: PlanEnvironment;
  readonly tokens: TokenRange | null;
  /** Forced method. */
  readonly method: string | undefined;
  /** Block-id spaces that take part, with the smallest block count among their components. */
  readonly sourceGroups: readonly PreparedGroup[];
  readonly destinationGroups: readonly PreparedGroup[];
  /** Destination groups, by index, in which no component's blocks pair one to one. */
  readonly unpairedGroups: readonly number[];
  readonly components: readonly PreparedComponent[];
  readonly routes: readonly PreparedRoute[];
  /** Destination components that nothing is moved to although they were asked for. */
  readonly uncovered: readonly Uncovered[];
  /** Components that may share memory, as indices into `components`: read by the first, written by the second. */
  readonly shared: readonly {
    readonly reader: number;
    readonly writer: number;
    readonly aliasing: Aliasing;
  }[];
  /** Coverage for blocks of every component alike; lists of different lengths weigh it anew. */
  readonly coverage: number;
  /** Layers in the order in which they complete; null when not layer-wise. */
  readonly layers: readonly number[] | null;
  readonly warnings: readonly string[];
  /** Keys of all routes, and the ways that they passed over. */
  readonly routeKey: string;
  readonly passedOver: Route["passedOver"];
}

/** A block-id space. */
export interface PreparedGroup {
  readonly name: string;
  /** Ids are below this. */
  readonly limit: number;
}

/** A component that is moved. */
export interface PreparedComponent {
  readonly pair: ComponentPair;
  /** Indices into the groups. */
  readonly sourceGroup: number;
  readonly destinationGroup: number;
  /** Blocks pair one to one, whole. */
  readonly blocksPair: boolean;
  /** Over all layers. */
  readonly outside: Outside;
  /** The nest of a whole block, where blocks pair. */
  readonly nest: Nest | null;
}

/** A way, the components that take it, and the layer steps when the plan is layer-wise. */
export interface PreparedRoute {
  readonly route: Route;
  /** Indices into `components`. */
  readonly members: readonly number[];
  readonly steps: readonly PreparedStep[] | null;
}

/**
 * Does everything of planning that does not depend on block ids.
 *
 * @throws KvferryError `UNKNOWN_HANDLE`, `STALE_HANDLE`, `ACCESS`, `INCOMPATIBLE_LAYOUTS`, `LAYER_RANGE`,
 *   `LENGTH_MISMATCH` (a malformed token range), `PARTIAL`, `NO_ROUTE`, `NO_NIXL`, `NO_CUDA`.
 */
export function preparePair(
  snapshot: RegistrySnapshot,
  request: PrepareRequest,
  profile: MachineProfile,
  environment: PlanEnvironment,
): PreparedPair {
  const source = getLayout(snapshot, request.source, PLAN_OPERATION);
  const destination =
    request.destination === request.source
      ? source
      : getLayout(snapshot, request.destination, PLAN_OPERATION);
  return prepareRecords(source, destination, request, profile, environment);
}

/**
 * The same for two layouts that the caller holds already; they need not be registered.
 *
 * @throws KvferryError what `preparePair` throws, but for the handles.
 */
export function prepareRecords(
  source: LayoutRecord,
  destination: LayoutRecord,
  request: PrepareRequest,
  profile: MachineProfile,
  environment: PlanEnvironment,
): PreparedPair {
  const tokens = checkedTokens(request.tokens);
  const step = checkedLayerStep(request.layerwise);
  checkAccess(destination);
  const warnings: string[] = [];
  checkFingerprints(source, destination, warnings);
  const chosen = matchComponents(source, destination, request.components);
  const limit = chosen.pairs.reduce(
    (most, [from, to]) => Math.max(most, layerLimit(from.shape.config, to.shape.config)),
    0,
  );
  const range = checkedLayers(request.layers, limit);

  const pairs: ComponentPair[] = [];
  const uncovered: Uncovered[] = [];
  for (const [from, to] of chosen.pairs) {
    const pair = intersectComponents(from.shape.name, from, to, range);
    if (pair === null) addUncovered(to, range, from.shape.wholeBlocks || to.shape.wholeBlocks, uncovered);
    else pairs.push(pair);
    warnAboutTypes(from, to, warnings);
  }
  for (const to of chosen.unmatched) addUncovered(to, range, to.shape.wholeBlocks, uncovered);
  if (pairs.length === 0) throw nothingInRange(range);
  if (pairs.length > 1 && pairs.some((pair) => pair.destination.shape.alias))
    warnings.push(
      "A destination component shares bytes with another one, so some bytes may be written twice.",
    );

  const coverage = requireCoverage(pairs, uncovered, request.partial === true, warnings);
  const { routes, members } = routesOf(pairs, environment);
  if (routes.some((route, index) => route.executor === "cuda" && isPageable(pairs, members[index] ?? [])))
    warnings.push(PAGEABLE);
  const sourceGroups = groupsOf(pairs, "source");
  const destinationGroups = groupsOf(pairs, "destination");
  const components = pairs.map((pair): PreparedComponent => {
    const blocksPair = pair.wholeBlocks || (tokens === null && pair.sourcePage === pair.destinationPage);
    const outside = outsideOf(pair, 0, pair.layers.length);
    return {
      pair,
      sourceGroup: sourceGroups.findIndex((group) => group.name === pair.source.shape.group),
      destinationGroup: destinationGroups.findIndex((group) => group.name === pair.destination.shape.group),
      blocksPair,
      outside,
      nest: blocksPair ? nestOf(pair, outside, pair.sourcePage) : null,
    };
  });
  const layers = step === null ? null : unionOfLayers(pairs);
  return {
    source,
    destination,
    profile,
    environment,
    tokens,
    method: request.method,
    sourceGroups,
    destinationGroups,
    unpairedGroups: [...destinationGroups.keys()].filter(
      (index) =>
        !components.some((component) => component.blocksPair && component.destinationGroup === index),
    ),
    components,
    routes: routes.map((route, index) => {
      const own = members[index] ?? [];
      return { route, members: own, steps: step === null ? null : stepsOf(pairs, own, step) };
    }),
    uncovered,
    shared: sharedMemory(pairs, source === destination),
    coverage,
    layers,
    warnings,
    routeKey:
      routes.length === 1
        ? (routes[0]?.key ?? "")
        : [...new Set(routes.map((route) => route.key))].join(", "),
    passedOver:
      routes.length === 1 ? (routes[0]?.passedOver ?? []) : routes.flatMap((route) => route.passedOver),
  };
}

function nothingInRange(range: LayerRange | null): Error {
  return refusal(
    "LAYER_RANGE",
    `no layer from ${range?.start ?? 0} to ${range?.end ?? 0} (end excluded) is held by both sides`,
    "Choose layers that both sides hold.",
    { start: range?.start, end: range?.end },
  );
}

function routesOf(
  pairs: readonly ComponentPair[],
  environment: PlanEnvironment,
): { readonly routes: readonly Route[]; readonly members: readonly (readonly number[])[] } {
  const routes: Route[] = [];
  const members: number[][] = [];
  pairs.forEach((pair, index) => {
    const route = findRoute(pair.source, pair.destination, environment);
    const known = routes.findIndex(
      (other) =>
        other.executor === route.executor &&
        other.op === route.op &&
        other.agent === route.agent &&
        other.assisted === route.assisted &&
        other.device === route.device &&
        other.gds?.problem === route.gds?.problem,
    );
    if (known >= 0) {
      members[known]?.push(index);
    } else {
      routes.push(route);
      members.push([index]);
    }
  });
  return { routes, members };
}

const PAGEABLE =
  "Host memory of a GPU copy is not pinned: the driver stages it, several times slower than the link. Use memory of kind pinned.";

/** Whether a host side of one of these components is memory that a GPU cannot reach by itself. */
function isPageable(pairs: readonly ComponentPair[], members: readonly number[]): boolean {
  return members.some((index) => {
    const pair = pairs[index];
    return pair?.source.storage.kind === "system" || pair?.destination.storage.kind === "system";
  });
}

function groupsOf(pairs: readonly ComponentPair[], side: "source" | "destination"): readonly PreparedGroup[] {
  const limits = new Map<string, number>();
  for (const pair of pairs) {
    const { group, config } = pair[side].shape;
    limits.set(group, Math.min(limits.get(group) ?? Number.POSITIVE_INFINITY, config.numBlocks));
  }
  return Array.from(limits, ([name, limit]) => ({ name, limit }));
}

function sharedMemory(pairs: readonly ComponentPair[], sameLayout: boolean): PreparedPair["shared"] {
  const shared: { reader: number; writer: number; aliasing: Aliasing }[] = [];
  pairs.forEach((reading, reader) => {
    pairs.forEach((writing, writer) => {
      const aliasing = aliasingOf(reading.source, writing.destination, sameLayout);
      if (aliasing !== "apart") shared.push({ reader, writer, aliasing });
    });
  });
  return shared;
}
