import {
  compileProgram,
  descriptorsOf,
  type PlacedPairs,
  placeBlocks,
  placeSegments,
  unmergedDescriptors,
} from "./compile.ts";
import { gdsMisfit } from "./gds.ts";
import { gpuWork } from "./gpu-work.ts";
import { choiceFor } from "./known-choice.ts";
import { type Lists, runsKey } from "./lists.ts";
import { betweenDevices, chooseMethod, readsInSoftware, slabMicros } from "./method.ts";
import { nestOf } from "./nest.ts";
import type { Hop, MethodCandidate } from "./plan.ts";
import type { PreparedComponent, PreparedPair, PreparedRoute } from "./prepare.ts";
import type { CopyProgram } from "./program.ts";
import { segmentStreams } from "./segments.ts";
import type { Work } from "./work.ts";

/** Places a component's blocks: whole ones where they pair, else the segments that both sides' blocks have in common. */
export function placeComponent(
  prepared: PreparedPair,
  component: PreparedComponent,
  lists: Lists,
): readonly PlacedPairs[] {
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

/**
 * One hop of everything that takes one way; null when there is nothing to move.
 *
 * @param byComponent - Gets each component's programs, to compare what they read and write.
 */
export function buildHop(
  prepared: PreparedPair,
  way: PreparedRoute,
  placed: readonly (readonly PlacedPairs[])[],
  byComponent: readonly CopyProgram[][],
): Hop | null {
  const { route, members, steps } = way;
  const programs: CopyProgram[] = [];
  const names: string[] = [];
  let before = 0;
  const add = (index: number, program: CopyProgram): void => {
    programs.push(program);
    names.push(prepared.components[index]?.pair.name ?? "");
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
      const parts = step.parts.flatMap((part) =>
        (placed[part.component] ?? []).map((places) => ({ part, places })),
      );
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
  const work: Work = {
    executor: route.executor,
    op: route.op,
    agent: route.agent,
    bytes,
    descriptors: after,
    sourceKind: programs[0]?.srcMemory.kind ?? 0,
    destinationKind: programs[0]?.dstMemory.kind ?? 0,
    gpu: route.executor === "cuda" ? gpuWork(programs, pageable(prepared, members)) : undefined,
    gds: route.gds === undefined ? undefined : { problem: route.gds.problem ?? gdsMisfit(programs) },
  };
  const slab = slabOf(route, work, prepared);
  if (slab?.taken === true) {
    const { method, width, predictedMicros, candidates } = slab;
    return {
      executor: "staged",
      op: route.op,
      agent: route.agent,
      programs,
      components: names,
      bytes,
      descriptorsBefore: before,
      descriptorsAfter: after,
      inline: false,
      method,
      width,
      predictedMicros,
      candidates,
    };
  }
  const choice = choiceFor(way, work, prepared);
  const byGds = choice.method.startsWith("gds/");
  return {
    executor: byGds ? "gds" : route.executor,
    op: byGds ? (work.destinationKind === 2 ? "write" : "read") : route.op,
    agent: route.agent,
    programs,
    ...(route.assisted || peerWrites(route, work, prepared) ? { components: names } : undefined),
    bytes,
    descriptorsBefore: before,
    descriptorsAfter: after,
    method: choice.method,
    width: choice.width,
    inline: choice.inline,
    predictedMicros: choice.predictedMicros,
    candidates: slab === null ? choice.candidates : [...choice.candidates, slab.candidate],
  };
}

/** Of two hops the one from the peer is such that the peer had better write it, and it helps. */
function peerWrites(
  { executor, agent }: PreparedRoute["route"],
  work: Work,
  { profile, environment }: PreparedPair,
): boolean {
  if (executor !== "staged" || agent === null || environment.assists?.(agent) !== true) return false;
  return readsInSoftware(work, profile, environment);
}

/**
 * Many small descriptors go gathered in one piece, and the peer scatters them, where that is predicted to be faster
 * than a descriptor for each and the peer helps. Reads that the peer's software would answer go so however few they are.
 *
 * @returns How to run the hop, or, where NIXL goes to the peer's memory by itself, this way as one that was passed over.
 *   Null where there is no such choice.
 */
function slabOf(
  route: PreparedRoute["route"],
  work: Work,
  { profile, environment, method }: PreparedPair,
): Slab | null {
  const { agent } = route;
  if (route.executor !== "nixl" || agent === null || work.bytes === 0) return null;
  const forced = method === SLAB;
  const inSoftware = readsInSoftware(work, profile, environment);
  if (work.descriptors < LEAST_DESCRIPTORS && !forced && !inSoftware) return null;
  if (!environment.executors.includes("staged") || environment.assists?.(agent) !== true) return null;
  const direct = chooseMethod(work, profile, environment, undefined);
  const directMicros = direct.predictedMicros;
  const onDevice = betweenDevices(work) && environment.deviceSlabs?.(agent) === true;
  const micros = slabMicros(work, profile, environment, onDevice);
  const where = betweenDevices(work) ? (onDevice ? ON_DEVICE : ON_HOST) : "";
  if (method !== undefined && !forced)
    return { taken: false, candidate: { method: SLAB, micros, reason: FORCED } };
  if (!forced && !inSoftware && micros >= directMicros)
    return { taken: false, candidate: { method: SLAB, micros, reason: SLAB_PASSED + where } };
  return {
    taken: true,
    method: SLAB,
    width: 1,
    predictedMicros: micros,
    candidates: [
      {
        method: SLAB,
        micros,
        reason: (forced ? "The request forces this method." : inSoftware ? PEER_WRITES : SLAB_TAKEN) + where,
      },
      {
        method: direct.method,
        micros: directMicros,
        reason: forced ? FORCED : inSoftware ? SOFTWARE_READS : DESCRIPTORS,
      },
    ],
  };
}

type Slab =
  | ({ readonly taken: true } & Pick<Hop, "method" | "width" | "predictedMicros" | "candidates">)
  | { readonly taken: false; readonly candidate: MethodCandidate };

const SLAB = "staged/slab";
/** With fewer nothing is gained: asking the peer takes longer. */
const LEAST_DESCRIPTORS = 64;
const FORCED = "Another method was forced.";
const SLAB_TAKEN = "Many small descriptors go gathered in one piece, and the peer scatters them.";
const ON_DEVICE =
  " The pieces pass through memory of the GPUs at both ends, or, where the peer lends none, through host memory.";
const ON_HOST = " The pieces pass through host memory: one end has no staging memory on its GPU.";
const PEER_WRITES = "The peer writes what is to be read, through staging memory of both sides.";
const SOFTWARE_READS =
  "Over TCP the peer's software answers reads, and a reader that ends in the middle may end the peer's process too.";
const SLAB_PASSED =
  "Gathering here and scattering at the peer costs more than NIXL takes for so few descriptors, or such large ones.";
const DESCRIPTORS = "NIXL takes its time for each descriptor, and these are many and small.";

/** Whether a host side of a GPU copy is memory that the GPU cannot reach by itself. */
function pageable(prepared: PreparedPair, members: readonly number[]): boolean {
  return members.some((index) => {
    const pair = prepared.components[index]?.pair;
    return pair?.source.storage.kind === "system" || pair?.destination.storage.kind === "system";
  });
}
