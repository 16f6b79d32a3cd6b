import { type BlockRuns, checkDistinct, checkedIds, pairRuns } from "./blocks.ts";
import type { ComponentPair } from "./intersect.ts";
import type { PreparedComponent, PreparedGroup, PreparedPair } from "./prepare.ts";
import { IDS_IN_DETAILS, refusal } from "./refuse.ts";
import type { BlockSelection } from "./request.ts";
import { checkGroups, listOf } from "./request-check.ts";

/** The checked id lists of a call, in the order of the prepared groups. */
export interface Lists {
  readonly source: readonly Uint32Array[];
  readonly destination: readonly Uint32Array[];
  /** Runs of lists that pair one to one, at `source group * destination groups + destination group`. */
  readonly runs: (BlockRuns | undefined)[];
}

/**
 * Checks the id lists of a call against a prepared pair.
 *
 * @throws KvferryError `LENGTH_MISMATCH`, `BLOCK_OUT_OF_RANGE`, `DUPLICATE_BLOCK`, `QUARANTINED`.
 */
export function checkedLists(
  prepared: PreparedPair,
  source: BlockSelection,
  destination: BlockSelection,
): Lists {
  const scanned = scannedLists(prepared, source, destination);
  if (scanned !== undefined) return scanned;
  const lists: Lists = {
    source: sideLists(source, prepared, "source"),
    destination: sideLists(destination, prepared, "destination"),
    runs: [],
  };
  for (const component of prepared.components) checkLengths(prepared, component, lists);
  // Lists that pair one to one are checked for repeats while their runs are found.
  for (const component of prepared.components) {
    if (!component.blocksPair) continue;
    const key = runsKey(prepared, component);
    lists.runs[key] ??= pairRuns(
      lists.source[component.sourceGroup] as Uint32Array, // one list for each group
      lists.destination[component.destinationGroup] as Uint32Array,
      prepared.destinationGroups[component.destinationGroup]?.limit ?? 0,
      component.pair.destination.shape.group,
    );
  }
  for (const index of prepared.unpairedGroups)
    checkDistinct(
      lists.destination[index] as Uint32Array, // one list for each group
      "destination",
      prepared.destinationGroups[index]?.name ?? "",
    );
  return lists;
}

/** Shorter lists are checked as quickly here. */
const LONG = 256;

/**
 * The lists of the common case, looked at by the environment: long ones of whole blocks that pair one to one. Undefined for all
 * others, and for lists with which something is wrong.
 */
function scannedLists(
  { environment, sourceGroups, destinationGroups, components, source: from, destination: to }: PreparedPair,
  source: BlockSelection,
  destination: BlockSelection,
): Lists | undefined {
  const { scan, quarantined } = environment;
  const [sourceGroup] = sourceGroups;
  const [destinationGroup] = destinationGroups;
  if (
    scan === undefined ||
    !(source instanceof Uint32Array && destination instanceof Uint32Array) ||
    source.length < LONG ||
    source.length !== destination.length ||
    sourceGroup === undefined ||
    destinationGroup === undefined ||
    sourceGroups.length + destinationGroups.length > 2 ||
    !components.every((component) => component.blocksPair) ||
    (quarantined?.(from.handle, sourceGroup.name) ?? null) !== null ||
    (quarantined?.(to.handle, destinationGroup.name) ?? null) !== null
  )
    return undefined;
  const runs = scan(source, destination, sourceGroup.limit, destinationGroup.limit);
  return runs === undefined ? undefined : { source: [source], destination: [destination], runs: [runs] };
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
    if (quarantined !== undefined)
      refuseQuarantined(quarantined(layout.handle, group.name), ids, side, group);
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

/** Where the runs of a component's two lists stand in {@link Lists}. */
export function runsKey(prepared: PreparedPair, component: PreparedComponent): number {
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
