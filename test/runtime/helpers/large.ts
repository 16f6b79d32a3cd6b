// Transfers that take their time, and what they say.
import type { LayoutConfig, LocalLayout, Transport } from "../../../index.ts";
import { systemSpec } from "./transports.ts";

/** A message's text. */
export const text = (payload: Uint8Array): string => new TextDecoder().decode(payload);

/** The next message that a transport gets. */
export async function nextMessage(transport: Transport): Promise<{ from: string; text: string }> {
  for await (const { from, payload } of transport.notifications({ signal: AbortSignal.timeout(10_000) }))
    return { from, text: text(payload) };
  throw new Error("no message came");
}

/** Large enough to run on another thread, and in many pieces. */
export const LARGE: LayoutConfig = { numBlocks: 64, numLayers: 8, outerDim: 2, pageSize: 64, innerDim: 1024 };

/** Two layouts of that size. */
export async function largePair(
  transport: Transport,
): Promise<{ source: LocalLayout; destination: LocalLayout }> {
  const source = await transport.register(systemSpec("large source", LARGE));
  const destination = await transport.register({
    ...systemSpec("large destination", LARGE),
    arrangement: "layer-separate/block-second",
  });
  return { source, destination };
}

/** All of their blocks. */
export const ALL: Uint32Array = Uint32Array.from({ length: 64 }, (_unused, index) => index);
