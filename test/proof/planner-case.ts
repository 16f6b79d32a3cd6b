// Random transfers, small enough to check byte by byte.
import type { ErrorWord } from "../../lib/core/errors.ts";
import type { PlanRequest } from "../../lib/core/request.ts";
import { headBytes, headCount, modelLayers, type OracleArrangement, type OracleAxis, type OracleComponent, type OracleConfig } from "../oracle.ts";
import type { Random } from "../random.ts";

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

/** Hands out memory inside the arena. */
interface Bump {
  next: number;
}

interface Model {
  readonly layers: number;
  readonly outers: 1 | 2;
  readonly heads: number;
  readonly headElements: number;
  readonly bits: number;
}

interface Draft {
  readonly name: string;
  readonly config: OracleConfig;
  readonly arrangement: OracleArrangement;
  readonly order: readonly OracleAxis[];
  readonly group: string;
  readonly wholeBlocks: boolean;
}

const AXES: readonly OracleAxis[] = ["layer", "outer", "page", "head"];
const NAMED: readonly (readonly OracleAxis[])[] = [
  ["layer", "outer", "page", "head"],
  ["layer", "outer", "head", "page"],
  ["head", "layer", "outer", "page"],
  ["layer", "head", "outer", "page"],
];
const ENGINES = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC", "NHD", "HND"] as const;

/** Makes a case from random numbers; `origin` is the address of the first byte that it may use. */
export function makeCase(random: Random, origin: number): PlannerCase {
  const model = makeModel(random);
  const sameLayout = random.chance(0.06);
  const stream = makeStream(random, sameLayout);
  const roomy = random.chance(0.1);
  const blocks = (used: number): number => Math.max(1, used + random.between(0, roomy ? 24 : 4));

  const kv = makePair(random, model, sameLayout, stream.sourcePage, stream.destinationPage);
  const sourceDrafts = [draft(random, "kv", { ...kv.source, numBlocks: blocks(stream.sourceCount) }, "a", false)];
  const destinationDrafts = [draft(random, "kv", { ...kv.destination, numBlocks: blocks(stream.destinationCount) }, "b", false)];
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
      destinationDrafts.push(draft(random, "idx", { ...config, numBlocks: blocks(state) }, "t", random.chance(0.5)));
    } else {
      const pair = makePair(random, second, sameLayout, stream.sourcePage, stream.destinationPage);
      const sourceBlocks = Math.max(blocks(stream.sourceCount), separate ? 0 : (sourceDrafts[0]?.config.numBlocks ?? 0));
      const destinationBlocks = Math.max(
        blocks(stream.destinationCount),
        separate ? 0 : (destinationDrafts[0]?.config.numBlocks ?? 0),
      );
      sourceDrafts.push(draft(random, "idx", { ...pair.source, numBlocks: sourceBlocks }, separate ? "s" : "a", false));
      destinationDrafts.push(
        draft(random, "idx", { ...pair.destination, numBlocks: destinationBlocks }, separate && random.chance(0.7) ? "t" : "b", false),
      );
    }
  }
  if (random.chance(0.06))
    (random.chance(0.5) ? sourceDrafts : destinationDrafts).push(
      draft(random, "extra", { ...wholeConfig(random, makeModel(random)), numBlocks: blocks(stream.destinationCount) + 24 }, "b", false),
    );

  const bump: Bump = { next: origin };
  const source = placeAll(random, sourceDrafts, bump);
  const aliased = !sameLayout && random.chance(0.06);
  const destination = sameLayout ? source : placeAll(random, destinationDrafts, aliased ? { next: origin } : bump);
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
      const limit = Math.min(...side.filter((other) => other.group === component.group).map((other) => other.config.numBlocks));
      lists[component.group] = makeIds(random, Math.min(count, limit), limit, side === components);
    }
  }
  if (sameLayout) {
    for (const component of source) {
      const count = component.name === "idx" && state !== null ? state : stream.sourceCount;
      const limit = Math.min(...source.filter((other) => other.group === component.group).map((other) => other.config.numBlocks));
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
    destination: { components, fingerprint: sameLayout ? fingerprint : random.chance(0.02) ? "n" : random.pick([null, fingerprint]), remote: false },
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
  readonly tokens: { readonly sourceStart: number; readonly destinationStart: number; readonly count: number } | null;
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
    const most = Math.min(sourceCount * sourcePage - sourceStart, destinationCount * destinationPage - destinationStart);
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
  return { sourcePage, destinationPage, sourceCount: length / sourcePage, destinationCount: length / destinationPage, tokens: null };
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
  return { source, destination: same ? source : make(destinationPage, flat === "destination" || flat === "both") };
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

function makeLayers(random: Random, total: number): Pick<OracleConfig, "numLayers" | "layers" | "layerWindow"> {
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

function draft(random: Random, name: string, config: OracleConfig, group: string, wholeBlocks: boolean): Draft {
  const order = random.chance(0.7) ? random.pick(NAMED) : random.shuffled(AXES);
  const kind = random.between(0, 9);
  const arrangement: OracleArrangement =
    kind < 3
      ? "fully-contiguous"
      : kind < 5
        ? "layer-separate/block-first"
        : kind < 7
          ? "layer-separate/block-second"
          : kind < 8
            ? config.outerDim === 1 && headCount(config) === 1 && random.chance(0.5)
              ? "MLA"
              : random.pick(ENGINES)
            : makeStrides(random, config);
  return { name, config, arrangement, order, group, wholeBlocks };
}

type StridedAxis = "block" | OracleAxis;

/** Nested strides in a random sequence of axes, here and there with a gap. */
function makeStrides(random: Random, config: OracleConfig): OracleArrangement {
  const regions = random.pick(["one", "per-layer", "per-layer-and-outer"] as const);
  const sizes: Readonly<Record<StridedAxis, number>> = {
    block: config.numBlocks,
    layer: config.numLayers,
    outer: config.outerDim,
    page: config.pageSize,
    head: headCount(config),
  };
  const axes = random
    .shuffled<StridedAxis>(["block", ...AXES])
    .filter((axis) => !(axis === "layer" && regions !== "one") && !(axis === "outer" && regions === "per-layer-and-outer"));
  const strides: Partial<Record<StridedAxis, number>> = {};
  let inner = headBytes(config);
  for (const axis of axes) {
    const stride = inner + (random.chance(0.2) ? random.between(1, 9) : 0);
    strides[axis] = stride;
    inner = stride * sizes[axis];
  }
  return { strides: { block: 1, page: 1, ...strides }, regions };
}

function regionBytes(component: Draft): { readonly count: number; readonly size: number } {
  const { config, arrangement } = component;
  const cell = config.pageSize * headCount(config) * headBytes(config);
  if (typeof arrangement === "object") {
    const { strides, regions } = arrangement;
    const size =
      (config.numBlocks - 1) * strides.block +
      (config.pageSize - 1) * strides.page +
      (headCount(config) - 1) * (strides.head ?? headBytes(config)) +
      (regions === "one" ? (config.numLayers - 1) * (strides.layer ?? 0) : 0) +
      (regions === "per-layer-and-outer" ? 0 : (config.outerDim - 1) * (strides.outer ?? 0)) +
      headBytes(config);
    const count = regions === "one" ? 1 : regions === "per-layer" ? config.numLayers : config.numLayers * config.outerDim;
    return { count, size };
  }
  const layer = config.numBlocks * config.outerDim * cell;
  const whole = arrangement === "fully-contiguous" || arrangement.startsWith("B");
  return whole ? { count: 1, size: layer * config.numLayers } : { count: config.numLayers, size: layer };
}

function placeAll(random: Random, drafts: readonly Draft[], bump: Bump): readonly OracleComponent[] {
  return drafts.map((component) => {
    const { count, size } = regionBytes(component);
    const even = random.chance(0.6);
    // Often none, so that regions continue each other and rows could wrongly be joined across them.
    const gap = random.chance(0.6) ? 0 : random.between(1, 16);
    const regions: number[] = [];
    for (let region = 0; region < count; region++) {
      regions.push(bump.next);
      bump.next += size + (even ? gap : random.between(0, 16));
    }
    // Engines list layers in any order of addresses.
    return { ...component, regions: random.chance(0.3) ? random.shuffled(regions) : regions };
  });
}

function ends(components: readonly OracleComponent[]): readonly number[] {
  return components.map((component) => Math.max(...component.regions) + regionBytes(component).size);
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
  const common = destination.filter((to) => source.some((from) => from.name === to.name)).map((to) => to.name);
  const start = random.between(0, layers - 1);
  return {
    ...(stream.tokens === null ? {} : { tokens: stream.tokens }),
    ...(random.chance(0.15) ? { components: random.shuffled(common).slice(0, random.between(1, common.length)) } : {}),
    ...(random.chance(0.3) ? { layers: { start, end: random.between(start + 1, layers) } } : {}),
    ...(random.chance(0.7) ? { partial: true } : {}),
    ...(random.chance(0.25) ? { layerwise: random.chance(0.5) ? true : { every: random.between(1, 3) } } : {}),
  };
}

/** What the planner must answer for the shapes and lists of a case, overlap apart. */
function refusalOf(given: PlannerCase): ErrorWord | null {
  const { layers, components, partial, tokens } = given.options;
  if (given.source.fingerprint !== given.destination.fingerprint && given.source.fingerprint !== null && given.destination.fingerprint !== null)
    return "INCOMPATIBLE_LAYOUTS";
  const chosen = given.destination.components.filter((to) => components === undefined || components.includes(to.name));
  let short = false;
  let moved = false;
  let word: ErrorWord | null = null;
  let limit = 0;
  for (const to of chosen) {
    const from = given.source.components.find((other) => other.name === to.name);
    if (from === undefined) continue;
    for (const { config } of [from, to])
      limit = Math.max(limit, config.layerWindow?.total ?? (config.layers === undefined ? config.numLayers : Math.max(...config.layers) + 1));
  }
  if (layers !== undefined && layers.end > limit) return "LAYER_RANGE";
  for (const to of chosen) {
    const from = given.source.components.find((other) => other.name === to.name);
    const wanted = modelLayers(to.config).filter((layer) => layers === undefined || (layer >= layers.start && layer < layers.end));
    if (from === undefined) {
      if (wanted.length > 0) short = true;
      continue;
    }
    const held = new Set(modelLayers(from.config));
    const common = modelLayers(to.config).filter((layer) => held.has(layer));
    const met = wanted.filter((layer) => held.has(layer));
    const fromStart = from.config.headWindow?.start ?? 0;
    const toStart = to.config.headWindow?.start ?? 0;
    const heads =
      from.config.innerDim !== undefined || to.config.innerDim !== undefined
        ? 1
        : Math.min(fromStart + headCount(from.config), toStart + headCount(to.config)) - Math.max(fromStart, toStart);
    const known = [from, to].find((side) => side.config.innerDim === undefined);
    const mixed = (from.config.innerDim === undefined) !== (to.config.innerDim === undefined);
    if (mixed && known !== undefined && !headsSideBySide(known)) word ??= "INCOMPATIBLE_LAYOUTS";
    if (heads <= 0 || common.length === 0) word ??= "INCOMPATIBLE_LAYOUTS";
    const toHeads = to.config.innerDim === undefined ? headCount(to.config) : 1;
    if (met.length > 0) moved = true;
    if (met.length < wanted.length || (met.length > 0 && !mixed && heads < toHeads)) short = true;
  }
  if (word !== null) return word;
  if (!moved) return "LAYER_RANGE";
  if (short && partial !== true) return "PARTIAL";
  for (const to of chosen) {
    const from = given.source.components.find((other) => other.name === to.name);
    if (from === undefined) continue;
    // A component outside the asked layers takes no part, and its lists are not looked at.
    const held = new Set(modelLayers(from.config));
    if (!modelLayers(to.config).some((layer) => held.has(layer) && (layers === undefined || (layer >= layers.start && layer < layers.end)))) continue;
    const fromCount = given.sourceBlocks[from.group]?.length ?? 0;
    const toCount = given.destinationBlocks[to.group]?.length ?? 0;
    if (from.wholeBlocks || to.wholeBlocks) {
      if (fromCount !== toCount) return "LENGTH_MISMATCH";
    } else if (tokens === undefined) {
      if (fromCount * from.config.pageSize !== toCount * to.config.pageSize) return "LENGTH_MISMATCH";
    } else if (
      tokens.sourceStart + tokens.count > fromCount * from.config.pageSize ||
      tokens.destinationStart + tokens.count > toCount * to.config.pageSize
    ) {
      return "LENGTH_MISMATCH";
    }
  }
  return null;
}

function headsSideBySide(component: OracleComponent): boolean {
  const { config, arrangement, order } = component;
  if (headCount(config) === 1) return true;
  if (typeof arrangement === "object") return (arrangement.strides.head ?? headBytes(config)) === headBytes(config);
  switch (arrangement) {
    case "NHD":
      return true;
    case "LBNHC":
    case "BLNHC":
      return config.outerDim === 1;
    case "LBHNC":
    case "LHBNC":
    case "BLHNC":
      return config.outerDim === 1 && config.pageSize === 1 && (arrangement !== "LHBNC" || config.numBlocks === 1);
    case "BHLNC":
      return config.outerDim === 1 && config.pageSize === 1 && config.numLayers === 1;
    case "HND":
      return config.pageSize === 1;
    case "MLA":
      return true;
    default: {
      // Everything inside the heads has size 1.
      const inside = order.slice(order.indexOf("head") + 1);
      const sizes = { layer: config.numLayers, outer: config.outerDim, page: config.pageSize, head: 1 };
      const free = arrangement === "fully-contiguous" ? [] : arrangement.endsWith("first") ? ["layer"] : ["layer", "outer"];
      return inside.every((axis) => free.includes(axis) || sizes[axis] === 1);
    }
  }
}

/** Now and then one thing is made wrong in a request that was right. */
function spoil(random: Random, given: PlannerCase): PlannerCase {
  if (given.expected !== null || !random.chance(0.05)) return given;
  const to = given.destination.components.find((component) => component.name === "kv");
  const ids = given.destinationBlocks[to?.group ?? ""] ?? [];
  const moves = given.options.components === undefined || given.options.components.includes("kv");
  if (to === undefined || ids.length < 2 || !moves || given.sameLayout) return given;
  const held = new Set(modelLayers(given.source.components.find((component) => component.name === "kv")?.config ?? to.config));
  const { layers } = given.options;
  if (!modelLayers(to.config).some((layer) => held.has(layer) && (layers === undefined || (layer >= layers.start && layer < layers.end)))) return given;
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
