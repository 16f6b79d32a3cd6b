import { requireApart } from "./aliasing.ts";
import { sharedIds } from "./blocks.ts";
import { buildHop, placeComponent } from "./hop.ts";
import type { ComponentPair } from "./intersect.ts";
import type { LayoutRecord } from "./layout.ts";
import { checkedLists, type Lists } from "./lists.ts";
import type { Hop, TransferPlan } from "./plan.ts";
import { type PreparedComponent, type PreparedPair, preparePair } from "./prepare.ts";
import type { MachineProfile } from "./profile.ts";
import type { CopyProgram } from "./program.ts";
import { IDS_IN_DETAILS, PLAN_OPERATION, refusal } from "./refuse.ts";
import { getLayout } from "./registry-queries.ts";
import type { RegistrySnapshot } from "./registry-snapshot.ts";
import type { BlockSelection, PlanRequest } from "./request.ts";
import { isList } from "./request-check.ts";
import type { PlanEnvironment } from "./environment.ts";

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
  const prepared = prepareRequest(snapshot, request, profile, environment);
  return planPrepared(prepared, request.sourceBlocks, request.destinationBlocks);
}

/**
 * The part of planning that does not depend on block ids, as `preparePair` does it; what says nothing but layouts is not
 * done again for the same two.
 *
 * @throws KvferryError what `preparePair` throws.
 */
export function prepareRequest(
  snapshot: RegistrySnapshot,
  request: PlanRequest,
  profile: MachineProfile,
  environment: PlanEnvironment,
): PreparedPair {
  return isPlain(request)
    ? preparedBefore(snapshot, request, profile, environment)
    : preparePair(snapshot, request, profile, environment);
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

/** Whether a request says nothing of what is to be planned but layouts, blocks and a method. */
export function isPlain(request: PlanRequest): boolean {
  return (
    request.tokens === undefined &&
    request.components === undefined &&
    request.layers === undefined &&
    request.partial === undefined &&
    request.layerwise === undefined
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
  if (
    known?.source === source &&
    known.profile === profile &&
    known.environment === environment &&
    known.method === request.method
  )
    return known;
  const prepared = preparePair(snapshot, request, profile, environment);
  before.set(destination, prepared);
  return prepared;
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
      if (reader === writer && reading.blocksPair && sameCells(reading.pair))
        throw overlap(reading.pair, ids);
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
    const tokens =
      blocksPair || prepared.tokens === null ? blocks * pair.destinationPage : prepared.tokens.count;
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
