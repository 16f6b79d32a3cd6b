// Random arrangements and where their regions lie.
import {
  headBytes,
  headCount,
  type OracleArrangement,
  type OracleAxis,
  type OracleComponent,
  type OracleConfig,
} from "../oracle.ts";
import type { Random } from "../random.ts";

/** Hands out memory inside the arena. */
export interface Bump {
  next: number;
}

/** A component before its memory was placed. */
export interface Draft {
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

/** A component of a random arrangement. */
export function draft(
  random: Random,
  name: string,
  config: OracleConfig,
  group: string,
  wholeBlocks: boolean,
): Draft {
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
    .filter(
      (axis) =>
        !(axis === "layer" && regions !== "one") && !(axis === "outer" && regions === "per-layer-and-outer"),
    );
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
    const count =
      regions === "one" ? 1 : regions === "per-layer" ? config.numLayers : config.numLayers * config.outerDim;
    return { count, size };
  }
  const layer = config.numBlocks * config.outerDim * cell;
  const whole = arrangement === "fully-contiguous" || arrangement.startsWith("B");
  return whole ? { count: 1, size: layer * config.numLayers } : { count: config.numLayers, size: layer };
}

/** Gives every component regions, one behind the other. */
export function placeAll(random: Random, drafts: readonly Draft[], bump: Bump): readonly OracleComponent[] {
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

/** Where each component's last region ends. */
export function ends(components: readonly OracleComponent[]): readonly number[] {
  return components.map((component) => Math.max(...component.regions) + regionBytes(component).size);
}
