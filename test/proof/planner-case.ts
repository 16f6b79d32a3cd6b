// Random transfers, small enough to check byte by byte.
import type { ErrorWord } from "../../lib/core/errors.ts";
import type { PlanRequest } from "../../lib/core/request.ts";
import { modelLayers, type OracleComponent, type OracleConfig } from "../oracle.ts";
import type { Random } from "../random.ts";
import { type Bump, draft, ends, placeAll } from "./planner-layouts.ts";
import { refusalOf } from "./planner-refusal.ts";

/** One side of a case. */
export interface CaseSide {
  readonly components: readonly OracleComponent[];
  readonly fingerprint: string | null;
  /** Reached through NIXL instead of by address. */
  readonly remote: boolean;
}

/** A transfer to plan, run and compare. */
export interface PlannerCase {
  readonly source: CaseSide;
  readonly destination: CaseSide;
  /** Both sides are one layout. */
  readonly sameLayout: boolean;
  readonly sourceBlocks: Readonly<Record<string, readonly number[]>>;
  readonly destinationBlocks: Readonly<Record<string, readonly number[]>>;
  readonly options: Pick<PlanRequest, "tokens" | "components" | "layers" | "partial" | "layerwise">;
  /** How the lists are given: as typed arrays or numbers, by space or plain. */
  readonly typed: boolean;
  readonly plain: boolean;
  /** What the planner must say instead of a plan; overlap of bytes is found by the oracle. */
  readonly expected: ErrorWord | null;
  /** Bytes from the lowest address that the case uses. */
  readonly bytes: number;
}

interface Model {
  readonly layers: number;
  readonly outers: 1 | 2;
  readonly heads: number;
  readonly headElements: number;
  readonly bits: number;
}

/** Makes a case from random numbers; `origin` is the address of the first byte that it may use. */
export function makeCase(random: Random, origin: number): PlannerCase {
  const model = makeModel(random);
  const sameLayout = random.chance(0.06);
  const stream = makeStream(random, sameLayout);
  const roomy = random.chance(0.1);
  const blocks = (used: number): number => Math.max(1, used + random.between(0, roomy ? 24 : 4));

  const kv = makePair(random, model, sameLayout, stream.sourcePage, stream.destinationPage);
  const sourceDrafts = [
    draft(random, "kv", { ...kv.source, numBlocks: blocks(stream.sourceCount) }, "a", false),
  ];
  const destinationDrafts = [
    draft(random, "kv", { ...kv.destination, numBlocks: blocks(stream.destinationCount) }, "b", false),
  ];
  const sourceLists: Record<string, readonly number[]> = {};
  const destinationLists: Record<string, readonly number[]> = {};
  let state: number | null = null;
  if (random.chance(0.25)) {
    const second = makeModel(random, model.layers);
    const whole = random.chance(0.5);
    const separate = whole || random.chance(0.4);
    if (whole) {
      state = random.between(0, 4);
      const config = wholeConfig(random, second);
      sourceDrafts.push(draft(random, "idx", { ...config, numBlocks: blocks(state) }, "s", true));
      destinationDrafts.push(
        draft(random, "idx", { ...config, numBlocks: blocks(state) }, "t", random.chance(0.5)),
      );
    } else {
      const pair = makePair(random, second, sameLayout, stream.sourcePage, stream.destinationPage);
      const sourceBlocks = Math.max(
        blocks(stream.sourceCount),
        separate ? 0 : (sourceDrafts[0]?.config.numBlocks ?? 0),
      );
      const destinationBlocks = Math.max(
        blocks(stream.destinationCount),
        separate ? 0 : (destinationDrafts[0]?.config.numBlocks ?? 0),
      );
      sourceDrafts.push(
        draft(random, "idx", { ...pair.source, numBlocks: sourceBlocks }, separate ? "s" : "a", false),
      );
      destinationDrafts.push(
        draft(
          random,
          "idx",
          { ...pair.destination, numBlocks: destinationBlocks },
          separate && random.chance(0.7) ? "t" : "b",
          false,
        ),
      );
    }
  }
  if (random.chance(0.06))
    (random.chance(0.5) ? sourceDrafts : destinationDrafts).push(
      draft(
        random,
        "extra",
        { ...wholeConfig(random, makeModel(random)), numBlocks: blocks(stream.destinationCount) + 24 },
        "b",
        false,
      ),
    );

  const bump: Bump = { next: origin };
  const source = placeAll(random, sourceDrafts, bump);
  const aliased = !sameLayout && random.chance(0.06);
  const destination = sameLayout
    ? source
    : placeAll(random, destinationDrafts, aliased ? { next: origin } : bump);
  if (aliased) bump.next = Math.max(bump.next, ...ends(source), ...ends(destination));
  const components = sameLayout ? source : destination;

  for (const side of [source, components]) {
    const lists = side === source ? sourceLists : destinationLists;
    for (const component of side) {
      if (lists[component.group] !== undefined) continue;
      const count =
        component.name === "idx" && state !== null
          ? state
          : side === source
            ? stream.sourceCount
            : stream.destinationCount;
      const limit = Math.min(
        ...side.filter((other) => other.group === component.group).map((other) => other.config.numBlocks),
      );
      lists[component.group] = makeIds(random, Math.min(count, limit), limit, side === components);
    }
  }
  if (sameLayout) {
    for (const component of source) {
      const count = component.name === "idx" && state !== null ? state : stream.sourceCount;
      const limit = Math.min(
        ...source.filter((other) => other.group === component.group).map((other) => other.config.numBlocks),
      );
      sourceLists[component.group] = makeIds(random, count, limit, false);
      // Mostly disjoint from the source, as a move inside one layout is meant.
      destinationLists[component.group] = random.chance(0.7)
        ? splitIds(random, sourceLists, component.group, count, limit)
        : makeIds(random, count, limit, true);
      const other = sourceLists[component.group] ?? [];
      const same = Math.min(other.length, destinationLists[component.group]?.length ?? 0);
      sourceLists[component.group] = other.slice(0, same);
      destinationLists[component.group] = (destinationLists[component.group] ?? []).slice(0, same);
    }
  }

  const options = makeOptions(random, source, components, stream, model.layers);
  const fingerprint = random.pick([null, "m"]);
  const built: PlannerCase = {
    source: { components: source, fingerprint, remote: false },
    destination: {
      components,
      fingerprint: sameLayout ? fingerprint : random.chance(0.02) ? "n" : random.pick([null, fingerprint]),
      remote: false,
    },
    sameLayout,
    sourceBlocks: sourceLists,
    destinationBlocks: destinationLists,
    options,
    typed: random.chance(0.5),
    plain: random.chance(0.5),
    expected: null,
    bytes: bump.next - origin,
  };
  const remote = sameLayout || aliased ? 2 : random.between(0, 9);
  const routed: PlannerCase = {
    ...built,
    source: { ...built.source, remote: remote === 0 },
    destination: { ...built.destination, remote: remote === 1 },
  };
  return spoil(random, { ...routed, expected: refusalOf(routed) });
}

function makeModel(random: Random, layers = random.between(1, 4)): Model {
  const bits = random.pick([4, 8, 16, 16, 16, 32]);
  return {
    layers,
    outers: random.pick([1, 2]),
    heads: random.between(1, 4),
    headElements: bits === 4 ? 2 * random.between(1, 3) : random.between(1, 4),
    bits,
  };
}

interface StreamShape {
  readonly sourcePage: number;
  readonly destinationPage: number;
  readonly sourceCount: number;
  readonly destinationCount: number;
  readonly tokens: {
    readonly sourceStart: number;
    readonly destinationStart: number;
    readonly count: number;
  } | null;
}

function makeStream(random: Random, sameLayout: boolean): StreamShape {
  const sourcePage = random.between(1, 6);
  const destinationPage = sameLayout || random.chance(0.6) ? sourcePage : random.between(1, 6);
  const many = random.chance(0.15);
  if (random.chance(0.25)) {
    const sourceCount = random.between(0, 6);
    const destinationCount = random.between(0, 6);
    const sourceStart = random.between(0, sourceCount * sourcePage);
    const destinationStart = random.between(0, destinationCount * destinationPage);
    const most = Math.min(
      sourceCount * sourcePage - sourceStart,
      destinationCount * destinationPage - destinationStart,
    );
    return {
      sourcePage,
      destinationPage,
      sourceCount,
      destinationCount,
      tokens: { sourceStart, destinationStart, count: random.between(0, most) },
    };
  }
  let multiple = sourcePage;
  while (multiple % destinationPage !== 0) multiple += sourcePage;
  const most = Math.max(1, Math.floor((many ? 60 : 16) / multiple));
  const length = random.chance(0.03) ? 0 : multiple * random.between(1, most);
  return {
    sourcePage,
    destinationPage,
    sourceCount: length / sourcePage,
    destinationCount: length / destinationPage,
    tokens: null,
  };
}

type Shape = Omit<OracleConfig, "numBlocks">;

function makePair(
  random: Random,
  model: Model,
  same: boolean,
  sourcePage: number,
  destinationPage: number,
): { readonly source: Shape; readonly destination: Shape } {
  const flat = random.chance(0.2) ? random.pick(["source", "destination", "both"] as const) : "none";
  const sharded = flat === "none";
  const make = (page: number, inner: boolean): Shape => {
    const layers = makeLayers(random, model.layers);
    const window = sharded && random.chance(0.4) ? makeWindow(random, model.heads) : null;
    return {
      ...layers,
      outerDim: model.outers,
      pageSize: page,
      dtypeBits: model.bits,
      ...(inner
        ? { innerDim: model.heads * model.headElements }
        : { numHeads: window?.count ?? model.heads, headDim: model.headElements }),
      ...(window === null ? {} : { headWindow: { start: window.start, total: model.heads } }),
    };
  };
  const source = make(sourcePage, flat === "source" || flat === "both");
  return {
    source,
    destination: same ? source : make(destinationPage, flat === "destination" || flat === "both"),
  };
}

function wholeConfig(random: Random, model: Model): Shape {
  return {
    numLayers: model.layers,
    outerDim: model.outers,
    pageSize: random.between(1, 3),
    dtypeBits: model.bits,
    numHeads: model.heads,
    headDim: model.headElements,
  };
}

function makeLayers(
  random: Random,
  total: number,
): Pick<OracleConfig, "numLayers" | "layers" | "layerWindow"> {
  if (random.chance(0.55)) return { numLayers: total };
  if (random.chance(0.5)) {
    const window = makeWindow(random, total);
    return { numLayers: window.count, layerWindow: { start: window.start, total } };
  }
  const all = Array.from({ length: total }, (_, index) => index);
  const some = random.shuffled(all).slice(0, random.between(1, total));
  const layers = random.chance(0.5) ? some.toSorted((left, right) => left - right) : some;
  return { numLayers: layers.length, layers };
}

function makeWindow(random: Random, total: number): { readonly start: number; readonly count: number } {
  const start = random.between(0, total - 1);
  return { start, count: random.between(1, total - start) };
}

/** Ids in one of the shapes that allocators hand out. */
function makeIds(random: Random, count: number, limit: number, distinct: boolean): readonly number[] {
  const shape = random.between(0, 3);
  const first = random.between(0, Math.max(0, limit - count));
  const rising = Array.from({ length: count }, (_, index) => first + index);
  if (shape === 0 && first + count <= limit) return rising;
  if (shape === 1 && first + count <= limit) return rising.toReversed();
  const all = Array.from({ length: limit }, (_, index) => index);
  if (shape === 2) {
    // Short runs in random order.
    const length = random.between(1, 3);
    const runs: number[][] = [];
    for (let at = 0; at < limit; at += length) runs.push(all.slice(at, at + length));
    return random.shuffled(runs).flat().slice(0, count);
  }
  if (distinct) return random.shuffled(all).slice(0, count);
  return Array.from({ length: count }, () => random.between(0, limit - 1));
}

function splitIds(
  random: Random,
  lists: Record<string, readonly number[]>,
  group: string,
  count: number,
  limit: number,
): readonly number[] {
  const used = new Set(lists[group]);
  const free = Array.from({ length: limit }, (_, index) => index).filter((id) => !used.has(id));
  return random.shuffled(free).slice(0, count);
}

function makeOptions(
  random: Random,
  source: readonly OracleComponent[],
  destination: readonly OracleComponent[],
  stream: StreamShape,
  layers: number,
): PlannerCase["options"] {
  const common = destination
    .filter((to) => source.some((from) => from.name === to.name))
    .map((to) => to.name);
  const start = random.between(0, layers - 1);
  return {
    ...(stream.tokens === null ? {} : { tokens: stream.tokens }),
    ...(random.chance(0.15)
      ? { components: random.shuffled(common).slice(0, random.between(1, common.length)) }
      : {}),
    ...(random.chance(0.3) ? { layers: { start, end: random.between(start + 1, layers) } } : {}),
    ...(random.chance(0.7) ? { partial: true } : {}),
    ...(random.chance(0.25)
      ? { layerwise: random.chance(0.5) ? true : { every: random.between(1, 3) } }
      : {}),
  };
}

/** Now and then one thing is made wrong in a request that was right. */
function spoil(random: Random, given: PlannerCase): PlannerCase {
  if (given.expected !== null || !random.chance(0.05)) return given;
  const to = given.destination.components.find((component) => component.name === "kv");
  const ids = given.destinationBlocks[to?.group ?? ""] ?? [];
  const moves = given.options.components === undefined || given.options.components.includes("kv");
  if (to === undefined || ids.length < 2 || !moves || given.sameLayout) return given;
  const held = new Set(
    modelLayers(given.source.components.find((component) => component.name === "kv")?.config ?? to.config),
  );
  const { layers } = given.options;
  if (
    !modelLayers(to.config).some(
      (layer) => held.has(layer) && (layers === undefined || (layer >= layers.start && layer < layers.end)),
    )
  )
    return given;
  const wrong = [...ids];
  const at = random.between(0, ids.length - 1);
  const spoilt = (expected: ErrorWord): PlannerCase => ({
    ...given,
    destinationBlocks: { ...given.destinationBlocks, [to.group]: wrong },
    expected,
  });
  switch (random.between(0, 2)) {
    case 0:
      wrong[at] = wrong[(at + 1) % ids.length] as number; // in bounds
      return spoilt("DUPLICATE_BLOCK");
    case 1:
      wrong[at] = to.config.numBlocks + random.between(0, 3);
      return spoilt("BLOCK_OUT_OF_RANGE");
    default:
      if (given.options.tokens !== undefined) return given;
      wrong.pop();
      return spoilt("LENGTH_MISMATCH");
  }
}
