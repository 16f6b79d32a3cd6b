import { requireApart } from "./aliasing.ts";
import { type BlockRuns, checkDistinct, checkedIds, pairRuns, sharedIds } from "./blocks.ts";
import { compileProgram, descriptorsOf, type PlacedPairs, placeBlocks, placeSegments, unmergedDescriptors } from "./compile.ts";
import type { ComponentPair } from "./intersect.ts";
import { chooseMethod } from "./method.ts";
import { nestOf } from "./nest.ts";
import type { LayoutRecord } from "./layout.ts";
import type { Hop, TransferPlan } from "./plan.ts";
import { type PreparedComponent, type PreparedGroup, type PreparedPair, preparePair, type PreparedRoute } from "./prepare.ts";
import type { MachineProfile } from "./profile.ts";
import type { CopyProgram } from "./program.ts";
import { IDS_IN_DETAILS, PLAN_OPERATION, refusal } from "./refuse.ts";
import { getLayout, type RegistrySnapshot } from "./registry.ts";
import type { BlockSelection, PlanRequest } from "./request.ts";
import { checkGroups, isList, listOf } from "./request-check.ts";
import type { PlanEnvironment } from "./route.ts";
import { segmentStreams } from "./segments.ts";

/**
 * Plans a transfer: checks the request, finds the way, makes the copy programs and chooses how to run them.
 *
 * Pure: the same arguments give the same plan. Linear in the number of block ids.
 *
 * @param snapshot - Names the layouts; the plan keeps what it needs of it.
 * @param profile - What the machine can do.
 * @param environment - What is possible in this process.
 * @throws KvferryError before anything moves: `UNKNOWN_HANDLE`, `STALE_HANDLE`, `ACCESS`, `INCOMPATIBLE_LAYOUTS`,
 *   `LAYER_RANGE`, `PARTIAL`, `NO_ROUTE`, `NO_NIXL`, `NO_CUDA`, `LENGTH_MISMATCH`, `BLOCK_OUT_OF_RANGE`,
 *   `DUPLICATE_BLOCK`, `OVERLAP`, `QUARANTINED`.
 */
export function planTransfer(
  snapshot: RegistrySnapshot,
  request: PlanRequest,
  profile: MachineProfile,
  environment: PlanEnvironment,
): TransferPlan {
  const prepared = isPlain(request)
    ? preparedBefore(snapshot, request, profile, environment)
    : preparePair(snapshot, request, profile, environment);
  return planPrepared(prepared, request.sourceBlocks, request.destinationBlocks);
}

/**
 * Plans a transfer between layouts that were prepared: only what depends on block ids is done.
 *
 * @throws KvferryError `LENGTH_MISMATCH`, `BLOCK_OUT_OF_RANGE`, `DUPLICATE_BLOCK`, `OVERLAP`, `QUARANTINED`.
 */
export function planPrepared(
  prepared: PreparedPair,
  sourceBlocks: BlockSelection,
  destinationBlocks: BlockSelection,
): TransferPlan {
  const lists = checkedLists(prepared, sourceBlocks, destinationBlocks);
  const placed = prepared.components.map((component) => placeComponent(prepared, component, lists));
  const programs: CopyProgram[][] = prepared.components.map(() => []);
  const hops: Hop[] = [];
  for (const route of prepared.routes) {
    const hop = buildHop(prepared, route, placed, programs);
    if (hop !== null) hops.push(hop);
  }
  if (prepared.shared.length > 0) requireNoOverlap(prepared, lists, programs);
  return finishPlan(prepared, destinationBlocks, lists, hops);
}

/** Whether a request says nothing but layouts and blocks. */
function isPlain(request: PlanRequest): boolean {
  return (
    request.tokens === undefined &&
    request.components === undefined &&
    request.layers === undefined &&
    request.partial === undefined &&
    request.layerwise === undefined &&
    request.method === undefined
  );
}

// The last source that was prepared for each destination. Records never change, so this cannot be told from preparing
// anew; it makes the common case of one block after the other between two layouts several times cheaper.
const before: WeakMap<LayoutRecord, PreparedPair> = new WeakMap();

function preparedBefore(
  snapshot: RegistrySnapshot,
  request: PlanRequest,
  profile: MachineProfile,
  environment: PlanEnvironment,
): PreparedPair {
  const source = getLayout(snapshot, request.source, PLAN_OPERATION);
  const destination = getLayout(snapshot, request.destination, PLAN_OPERATION);
  const known = before.get(destination);
  if (known?.source === source && known.profile === profile && known.environment === environment) return known;
  const prepared = preparePair(snapshot, request, profile, environment);
  before.set(destination, prepared);
  return prepared;
}

/** The checked id lists of a call, in the order of the prepared groups. */
interface Lists {
  readonly source: readonly Uint32Array[];
  readonly destination: readonly Uint32Array[];
  /** Runs of lists that pair one to one, at `source group * destination groups + destination group`. */
  readonly runs: (BlockRuns | undefined)[];
}

function checkedLists(prepared: PreparedPair, source: BlockSelection, destination: BlockSelection): Lists {
  const lists: Lists = {
    source: sideLists(source, prepared, "source"),
    destination: sideLists(destination, prepared, "destination"),
    runs: [],
  };
  for (const component of prepared.components) checkLengths(prepared, component, lists);
  // Lists that pair one to one are checked for repeats while their runs are found.
  const distinct = new Set<number>();
  for (const component of prepared.components) {
    if (!component.blocksPair) continue;
    const key = runsKey(prepared, component);
    lists.runs[key] ??= pairRuns(
      lists.source[component.sourceGroup] as Uint32Array, // one list for each group
      lists.destination[component.destinationGroup] as Uint32Array,
      component.pair.destination.shape.group,
    );
    distinct.add(component.destinationGroup);
  }
  lists.destination.forEach((ids, index) => {
    if (!distinct.has(index)) checkDistinct(ids, "destination", prepared.destinationGroups[index]?.name ?? "");
  });
  return lists;
}

function sideLists(
  selection: BlockSelection,
  prepared: PreparedPair,
  side: "source" | "destination",
): readonly Uint32Array[] {
  const groups = side === "source" ? prepared.sourceGroups : prepared.destinationGroups;
  const layout = side === "source" ? prepared.source : prepared.destination;
  checkGroups(selection, layout, side);
  const quarantined = prepared.environment.quarantined;
  return groups.map((group) => {
    const ids = checkedIds(listOf(selection, group.name, groups, side), group.limit, side, group.name);
    if (quarantined !== undefined) refuseQuarantined(quarantined(layout.handle, group.name), ids, side, group);
    return ids;
  });
}

function refuseQuarantined(
  set: { has(block: number): boolean } | null,
  ids: Uint32Array,
  side: "source" | "destination",
  group: PreparedGroup,
): void {
  if (set === null) return;
  const found = ids.filter((id) => set.has(id));
  if (found.length === 0) return;
  throw refusal(
    "QUARANTINED",
    `${found.length} ${side} blocks are in quarantine: an earlier transfer may still touch them`,
    "Wait until the earlier transfer is settled, or choose other blocks.",
    { side, group: group.name, ids: [...found.subarray(0, IDS_IN_DETAILS)], count: found.length },
  );
}

function runsKey(prepared: PreparedPair, component: PreparedComponent): number {
  return component.sourceGroup * prepared.destinationGroups.length + component.destinationGroup;
}

function checkLengths(prepared: PreparedPair, component: PreparedComponent, lists: Lists): void {
  const { pair } = component;
  const from = lists.source[component.sourceGroup]?.length ?? 0;
  const to = lists.destination[component.destinationGroup]?.length ?? 0;
  if (component.blocksPair) {
    if (from !== to) throw lengths(pair, "blocks", from, to);
    return;
  }
  const fromTokens = from * pair.sourcePage;
  const toTokens = to * pair.destinationPage;
  const { tokens } = prepared;
  if (tokens === null) {
    if (fromTokens !== toTokens) throw lengths(pair, "tokens", fromTokens, toTokens);
    return;
  }
  for (const [side, start, held] of [
    ["source", tokens.sourceStart, fromTokens],
    ["destination", tokens.destinationStart, toTokens],
  ] as const) {
    if (start + tokens.count <= held) continue;
    throw refusal(
      "LENGTH_MISMATCH",
      `component ${JSON.stringify(pair.name)}: tokens ${start} to ${start + tokens.count} pass the end of the ${side} blocks, which hold ${held}`,
      `Give more ${side} blocks or fewer tokens.`,
      { component: pair.name, side, start, count: tokens.count, held },
    );
  }
}

function lengths(pair: ComponentPair, unit: "blocks" | "tokens", source: number, destination: number): Error {
  return refusal(
    "LENGTH_MISMATCH",
    `component ${JSON.stringify(pair.name)}: the source list names ${source} ${unit}, the destination list ${destination}`,
    "Give lists that name equally many tokens: block count times page size must agree.",
    {
      component: pair.name,
      unit,
      source,
      destination,
      sourcePageSize: pair.sourcePage,
      destinationPageSize: pair.destinationPage,
    },
  );
}

function placeComponent(prepared: PreparedPair, component: PreparedComponent, lists: Lists): readonly PlacedPairs[] {
  const { pair } = component;
  const source = lists.source[component.sourceGroup] as Uint32Array; // one list for each group
  const destination = lists.destination[component.destinationGroup] as Uint32Array;
  if (component.blocksPair) {
    const runs = lists.runs[runsKey(prepared, component)];
    return runs === undefined || runs.total === 0 ? [] : [placeBlocks(pair, source, destination, runs)];
  }
  const { tokens } = prepared;
  return segmentStreams(
    {
      ids: source,
      page: pair.sourcePage,
      blockStride: pair.sourceBlock,
      pageStride: pair.sourceStep,
      start: tokens?.sourceStart ?? 0,
    },
    {
      ids: destination,
      page: pair.destinationPage,
      blockStride: pair.destinationBlock,
      pageStride: pair.destinationStep,
      start: tokens?.destinationStart ?? 0,
    },
    tokens?.count ?? source.length * pair.sourcePage,
  ).map((group) => placeSegments(pair, group));
}

/** One hop of everything that takes one way; null when there is nothing to move. */
function buildHop(
  prepared: PreparedPair,
  way: PreparedRoute,
  placed: readonly (readonly PlacedPairs[])[],
  byComponent: readonly CopyProgram[][],
): Hop | null {
  const { route, members, steps } = way;
  const programs: CopyProgram[] = [];
  let before = 0;
  const add = (index: number, program: CopyProgram): void => {
    programs.push(program);
    byComponent[index]?.push(program);
  };
  if (steps === null) {
    for (const index of members) {
      const component = prepared.components[index] as PreparedComponent; // indices into components
      for (const places of placed[index] ?? []) {
        const nest = component.nest ?? nestOf(component.pair, component.outside, places.tokens);
        before += unmergedDescriptors(component.pair, places, component.pair.layers.length);
        add(index, compileProgram(component.pair, places, nest, null));
      }
    }
  } else {
    for (const step of steps) {
      const parts = step.parts.flatMap((part) => (placed[part.component] ?? []).map((places) => ({ part, places })));
      parts.forEach(({ part, places }, at) => {
        const { pair } = prepared.components[part.component] as PreparedComponent; // indices into components
        before += unmergedDescriptors(pair, places, part.layers);
        // Only the last program of a step completes its layers.
        const layers = at === parts.length - 1 ? { start: step.start, end: step.end } : null;
        add(part.component, compileProgram(pair, places, nestOf(pair, part.outside, places.tokens), layers));
      });
    }
  }
  if (programs.length === 0) return null;
  let bytes = 0;
  let after = 0;
  for (const program of programs) {
    bytes += program.bytes;
    after += descriptorsOf(program);
  }
  const work = {
    executor: route.executor,
    op: route.op,
    bytes,
    descriptors: after,
    sourceKind: programs[0]?.srcMemory.kind ?? 0,
    destinationKind: programs[0]?.dstMemory.kind ?? 0,
  } as const;
  const choice = chooseMethod(work, prepared.profile, prepared.environment, prepared.method);
  return {
    executor: route.executor,
    op: route.op,
    agent: route.agent,
    programs,
    bytes,
    descriptorsBefore: before,
    descriptorsAfter: after,
    method: choice.method,
    width: choice.width,
    inline: choice.inline,
    predictedMicros: choice.predictedMicros,
    candidates: choice.candidates,
  };
}

/**
 * Refuses transfers that read what they write.
 *
 * Under one view a block is one memory, so disjoint ids suffice; where a block stands in both lists for different
 * tokens or layers, or the memory is seen under different views, the rows themselves are compared.
 */
function requireNoOverlap(
  prepared: PreparedPair,
  lists: Lists,
  programs: readonly (readonly CopyProgram[])[],
): void {
  for (const { reader, writer, aliasing } of prepared.shared) {
    const reading = prepared.components[reader] as PreparedComponent; // indices into components
    const writing = prepared.components[writer] as PreparedComponent;
    if (aliasing === "same") {
      const ids = sharedIds(
        lists.source[reading.sourceGroup] as Uint32Array, // one list for each group
        lists.destination[writing.destinationGroup] as Uint32Array,
      );
      if (ids.length === 0) continue;
      if (reader === writer && reading.blocksPair && sameCells(reading.pair)) throw overlap(reading.pair, ids);
    }
    requireApart(reading.pair, writing.pair, programs[reader] ?? [], programs[writer] ?? []);
  }
}

function sameCells(pair: ComponentPair): boolean {
  return pair.sourceCells.every((cell, index) => cell === pair.destinationCells[index]);
}

function overlap(pair: ComponentPair, ids: readonly number[]): Error {
  return refusal(
    "OVERLAP",
    `component ${JSON.stringify(pair.name)}: ${ids.length} blocks of one memory are source and destination at once: ${ids.slice(0, IDS_IN_DETAILS).join(", ")}`,
    "Choose destination blocks that are not among the source blocks, or move in two steps.",
    { component: pair.name, ids: ids.slice(0, IDS_IN_DETAILS), count: ids.length },
  );
}

function finishPlan(
  prepared: PreparedPair,
  destinationBlocks: BlockSelection,
  lists: Lists,
  hops: readonly Hop[],
): TransferPlan {
  const [first] = prepared.routes;
  let bytes = 0;
  let predictedMicros = 0;
  for (const hop of hops) {
    bytes += hop.bytes;
    predictedMicros += hop.predictedMicros;
  }
  return {
    source: prepared.source.handle,
    destination: prepared.destination.handle,
    route: prepared.routeKey,
    reason: first?.route.reason ?? "",
    legs: [{ destination: prepared.destination.handle, hops }],
    bytes,
    coverage: prepared.coverage === 1 ? 1 : coverageOf(prepared, destinationBlocks, lists, bytes),
    layers: prepared.layers,
    predictedMicros,
    warnings: prepared.warnings,
    passedOver: prepared.passedOver,
  };
}

/** Moved bytes over the bytes that were asked for, weighed by the lists of this call. */
function coverageOf(
  prepared: PreparedPair,
  destinationBlocks: BlockSelection,
  lists: Lists,
  bytes: number,
): number {
  let asked = 0;
  for (const { pair, destinationGroup, blocksPair } of prepared.components) {
    const blocks = lists.destination[destinationGroup]?.length ?? 0;
    const tokens = blocksPair || prepared.tokens === null ? blocks * pair.destinationPage : prepared.tokens.count;
    asked += tokens * pair.askedTokenBytes;
  }
  for (const component of prepared.uncovered) {
    const index = prepared.destinationGroups.findIndex((group) => group.name === component.group);
    const blocks = lists.destination[index]?.length ?? lengthOf(destinationBlocks, component.group);
    const split = prepared.tokens !== null && !component.wholeBlocks;
    asked += (split ? (prepared.tokens?.count ?? 0) : blocks * component.page) * component.tokenBytes;
  }
  return asked === 0 ? prepared.coverage : bytes / asked;
}

function lengthOf(selection: BlockSelection, group: string): number {
  if (isList(selection)) return selection.length;
  return selection[group]?.length ?? 0;
}
