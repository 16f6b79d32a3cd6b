import type { ComponentPair } from "./intersect.ts";
import { type LayerRange, layersInRange } from "./intersect-layers.ts";
import type { ComponentRecord } from "./layout.ts";
import { refusal } from "./refuse.ts";

/** A destination component that was asked for and gets nothing. */
export interface Uncovered {
  readonly group: string;
  /** Tokens in a block, and asked bytes of each. */
  readonly page: number;
  readonly tokenBytes: number;
  readonly wholeBlocks: boolean;
}

/** Adds a component to which nothing is moved, unless none of its layers was asked for. */
export function addUncovered(
  to: ComponentRecord,
  range: LayerRange | null,
  wholeBlocks: boolean,
  uncovered: Uncovered[],
): void {
  const { config, group } = to.shape;
  const layers = layersInRange(config, range);
  if (layers === 0) return;
  uncovered.push({
    group,
    page: config.pageSize,
    tokenBytes: layers * config.outerDim * config.tokenBytes,
    wholeBlocks,
  });
}

/**
 * Which part of the destination blocks' bytes is moved, 0 to 1, for blocks of every component alike.
 *
 * @throws KvferryError `PARTIAL` when that is not all and the request does not allow it.
 */
export function requireCoverage(
  pairs: readonly ComponentPair[],
  uncovered: readonly Uncovered[],
  partial: boolean,
  warnings: string[],
): number {
  let moved = 0;
  let asked = 0;
  let short = uncovered.length > 0;
  for (const pair of pairs) {
    moved += pair.tokenBytes * pair.destinationPage;
    asked += pair.askedTokenBytes * pair.destinationPage;
    if (pair.tokenBytes !== pair.askedTokenBytes) short = true;
  }
  for (const component of uncovered) asked += component.tokenBytes * component.page;
  const coverage = moved / asked;
  if (!short) return 1;
  if (!partial) {
    throw refusal(
      "PARTIAL",
      `the source covers only ${(coverage * 100).toFixed(1)} % of the destination blocks' bytes`,
      "Say `partial: true` when the rest comes from elsewhere, or name the layers or components that are meant.",
      {
        coverage,
        components: pairs
          .filter((pair) => pair.tokenBytes !== pair.askedTokenBytes)
          .map((pair) => ({ name: pair.name, coverage: pair.tokenBytes / pair.askedTokenBytes })),
        missing: uncovered.length,
      },
    );
  }
  warnings.push(
    `Only ${(coverage * 100).toFixed(1)} % of the destination blocks' bytes are covered, as \`partial\` allows.`,
  );
  return coverage;
}
