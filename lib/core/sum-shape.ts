import type { LayoutConfig, ResolvedConfig } from "./config.ts";
import { resolveConfig } from "./config-resolve.ts";
import type { ComponentPair } from "./intersect.ts";
import type { TokenRange } from "./request-check.ts";

/**
 * What of each destination block of one component a transfer moves, said so that either side can find it in blocks of
 * its own: the layers and heads that both sides hold, in pages of the destination.
 */
export interface SumShape {
  readonly pageSize: number;
  /** Model layers (or the layouts' own), ascending. */
  readonly layers: readonly number[];
  /** Heads of the model; null where a side does not know its heads, and all of a token is moved. */
  readonly heads: { readonly start: number; readonly count: number; readonly total: number } | null;
}

/** One side's blocks of a window, and where their tokens belong in the blocks that are summed. */
export interface SumSide {
  readonly blocks: Uint32Array;
  /** Tokens from the beginning of `blocks`, and from the beginning of the window; null where blocks pair. */
  readonly tokens: { readonly start: number; readonly at: number; readonly count: number } | null;
}

/** A part of a transfer of one component: whole destination blocks, each of which has a sum. */
export interface SumWindow {
  /** The destination's blocks, in the order of their sums. */
  readonly blocks: Uint32Array;
  readonly source: SumSide;
  readonly destination: SumSide;
}

/** How much one window may hold. */
export interface SumLimits {
  readonly bytes: number;
  /** Destination blocks. */
  readonly blocks: number;
  /** Source blocks. */
  readonly ids: number;
}

/** What two components have in common, as both sides sum it. */
export function sumShape(pair: ComponentPair): SumShape {
  const from = pair.source.shape.config;
  const to = pair.destination.shape.config;
  const start = Math.max(from.headWindow?.start ?? 0, to.headWindow?.start ?? 0);
  return {
    pageSize: pair.destinationPage,
    layers: pair.layers,
    heads:
      from.headsKnown && to.headsKnown
        ? { start, count: pair.heads.count, total: to.headWindow?.total ?? to.numHeads }
        : null,
  };
}

/**
 * The config of blocks that hold just what is summed, dense and in logical order.
 *
 * @param config - Either side's.
 * @throws KvferryError `INVALID_CONFIG` for a shape that is none.
 */
export function sumConfig(config: ResolvedConfig, shape: SumShape, blocks: number): ResolvedConfig {
  const { heads, layers, pageSize } = shape;
  const dense: LayoutConfig = {
    numBlocks: blocks,
    numLayers: layers.length,
    outerDim: config.outerDim,
    pageSize,
    ...(heads === null
      ? { innerDim: config.innerDim }
      : {
          numHeads: heads.count,
          headDim: config.headDim,
          headWindow: { start: heads.start, total: heads.total },
        }),
    dtypeBits: config.elementBits,
    layers,
  };
  return resolveConfig(dense, "transfer");
}

/**
 * Cuts a transfer of one component into windows. Every token that is moved lies in exactly one of them.
 *
 * @param blockBytes - Bytes of a block of the sum's config.
 */
export function* sumWindows(
  pair: ComponentPair,
  source: Uint32Array,
  destination: Uint32Array,
  tokens: TokenRange | null,
  blockBytes: number,
  limits: SumLimits,
): Generator<SumWindow, void> {
  const { sourcePage, destinationPage } = pair;
  const paired = pair.wholeBlocks || (tokens === null && sourcePage === destinationPage);
  const sourceRoom = paired ? limits.ids : Math.floor(((limits.ids - 1) * sourcePage) / destinationPage);
  const step = Math.max(1, Math.min(Math.floor(limits.bytes / blockBytes), limits.blocks, sourceRoom));
  const start = tokens?.destinationStart ?? 0;
  const end = start + (tokens?.count ?? source.length * sourcePage);
  for (let first = 0; first < destination.length; first += step) {
    const blocks = destination.slice(first, first + step);
    if (paired) {
      const from = source.slice(first, first + step);
      yield { blocks, source: { blocks: from, tokens: null }, destination: { blocks, tokens: null } };
      continue;
    }
    const low = Math.max(start, first * destinationPage);
    const high = Math.min(end, (first + blocks.length) * destinationPage);
    if (low >= high) continue;
    const count = high - low;
    const at = low - first * destinationPage;
    const sourceStart = (tokens?.sourceStart ?? 0) + low - start;
    const sourceFirst = Math.floor(sourceStart / sourcePage);
    yield {
      blocks,
      source: {
        blocks: source.slice(sourceFirst, Math.ceil((sourceStart + count) / sourcePage)),
        tokens: { start: sourceStart - sourceFirst * sourcePage, at, count },
      },
      destination: { blocks, tokens: { start: at, at, count } },
    };
  }
}
