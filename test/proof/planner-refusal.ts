import type { ErrorWord } from "../../lib/core/errors.ts";
import { headBytes, headCount, modelLayers, type OracleComponent } from "../oracle.ts";
import type { PlannerCase } from "./planner-case.ts";

/** What the planner must answer for the shapes and lists of a case, overlap apart. */
export function refusalOf(given: PlannerCase): ErrorWord | null {
  const { layers, components, partial, tokens } = given.options;
  if (
    given.source.fingerprint !== given.destination.fingerprint &&
    given.source.fingerprint !== null &&
    given.destination.fingerprint !== null
  )
    return "INCOMPATIBLE_LAYOUTS";
  const chosen = given.destination.components.filter(
    (to) => components === undefined || components.includes(to.name),
  );
  let short = false;
  let moved = false;
  let word: ErrorWord | null = null;
  let limit = 0;
  for (const to of chosen) {
    const from = given.source.components.find((other) => other.name === to.name);
    if (from === undefined) continue;
    for (const { config } of [from, to])
      limit = Math.max(
        limit,
        config.layerWindow?.total ??
          (config.layers === undefined ? config.numLayers : Math.max(...config.layers) + 1),
      );
  }
  if (layers !== undefined && layers.end > limit) return "LAYER_RANGE";
  for (const to of chosen) {
    const from = given.source.components.find((other) => other.name === to.name);
    const wanted = modelLayers(to.config).filter(
      (layer) => layers === undefined || (layer >= layers.start && layer < layers.end),
    );
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
        : Math.min(fromStart + headCount(from.config), toStart + headCount(to.config)) -
          Math.max(fromStart, toStart);
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
    if (
      !modelLayers(to.config).some(
        (layer) => held.has(layer) && (layers === undefined || (layer >= layers.start && layer < layers.end)),
      )
    )
      continue;
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
  if (typeof arrangement === "object")
    return (arrangement.strides.head ?? headBytes(config)) === headBytes(config);
  switch (arrangement) {
    case "NHD":
      return true;
    case "LBNHC":
    case "BLNHC":
      return config.outerDim === 1;
    case "LBHNC":
    case "LHBNC":
    case "BLHNC":
      return (
        config.outerDim === 1 && config.pageSize === 1 && (arrangement !== "LHBNC" || config.numBlocks === 1)
      );
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
      const free =
        arrangement === "fully-contiguous"
          ? []
          : arrangement.endsWith("first")
            ? ["layer"]
            : ["layer", "outer"];
      return inside.every((axis) => free.includes(axis) || sizes[axis] === 1);
    }
  }
}
