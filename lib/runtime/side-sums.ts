import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import { sumConfig, type SumShape, type SumSide } from "../core/sum-shape.ts";
import type { BlockIo } from "./block-io.ts";
import type { BlockSelection } from "../core/request.ts";
import type { TransferOptions } from "./submit.ts";

/** Moves a request's bytes between layouts that need not be registered. */
export type MoveRequest = (
  source: LayoutRecord,
  destination: LayoutRecord,
  blocks: {
    readonly source: BlockSelection;
    readonly destination: BlockSelection;
    readonly layers: { readonly start: number; readonly end: number } | undefined;
    readonly tokens?: NonNullable<TransferOptions["tokens"]>;
    readonly components?: readonly string[];
  },
) => Promise<void>;

/** Bytes of one sum: BLAKE3. */
export const SUM_BYTES = 32;

/**
 * Sums of one side of a window of a transfer, one for each destination block: over the bytes that the transfer moved, in
 * the logical order of a block (layer, outer, page, head), and zeros for the tokens of a block that it left alone.
 *
 * @param layout - One whose bytes this process can reach.
 */
export async function sideSums(
  io: BlockIo,
  move: MoveRequest,
  layout: LayoutRecord,
  component: ComponentRecord,
  shape: SumShape,
  side: SumSide,
  count: number,
): Promise<Uint8Array> {
  const config = sumConfig(component.shape.config, shape, count);
  return await io.withStage(layout, component, config, async (stage) => {
    const { tokens } = side;
    // Memory of a GPU goes through pinned memory that was used before.
    if (tokens !== null) stage.bytes.fill(0);
    await move({ ...layout, fingerprint: null, components: [component] }, stage.record, {
      source: side.blocks,
      destination: Uint32Array.from({ length: count }, (_unused, index) => index),
      layers: undefined,
      ...(tokens === null
        ? undefined
        : { tokens: { sourceStart: tokens.start, destinationStart: tokens.at, count: tokens.count } }),
    });
    return await io.stageDigests(stage, config.blockBytes, count);
  });
}
