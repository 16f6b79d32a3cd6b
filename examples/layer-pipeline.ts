// Layer-wise: decode takes up each layer as it arrives, while prefill still computes the next.
//
//   bun run examples/layer-pipeline.ts
import { Transport, type LayoutConfig } from "kvferry";
import { answerParent, startChild } from "./children.ts";

const CONFIG: LayoutConfig = {
  numBlocks: 32,
  numLayers: 8,
  outerDim: 2,
  pageSize: 16,
  numHeads: 4,
  headDim: 64,
  dtype: "bf16",
};
const BLOCKS = [7, 3, 12, 4];
const LANDING = [0, 1, 2, 3];
const LAYERS = CONFIG.numLayers;

/** The messages of one request: one for each layer, and one when all is there. */
const layerTag = (layer: number): string => `request-5 layer ${layer}`;
const DONE = "request-5 done";

type Question = { readonly meet: Uint8Array } | { readonly decode: true };

async function decode(): Promise<void> {
  await using transport = await Transport.open({ workerId: 2n });
  const cache = await transport.register({ name: "cache", config: CONFIG, memory: { kind: "system" } });
  await answerParent(async (question: Question) => {
    if ("meet" in question) {
      await transport.importMetadata(question.meet);
      return await transport.exportMetadata();
    }
    const from = transport.peer(1n);
    if (from === undefined) throw new Error("nobody has introduced prefill yet");
    const arrival = transport.expect({ layout: cache, blocks: LANDING, from, tag: DONE, layerTag });
    const sums: string[] = [];
    for await (const layer of arrival.layers()) {
      // Attention over this layer could begin here. The example takes a checksum of it instead.
      sums[layer] = await layerSum(cache, LANDING, layer);
    }
    await arrival;
    return sums;
  });
}

async function prefill(): Promise<void> {
  const child = startChild(import.meta.path, "decode");
  await using transport = await Transport.open({ workerId: 1n });
  const cache = await transport.register({
    name: "cache",
    config: CONFIG,
    arrangement: "layer-separate/block-first",
    memory: { kind: "system" },
  });
  const peer = await transport.importMetadata(
    await child.ask<Uint8Array>({ meet: await transport.exportMetadata() }),
  );
  const there = child.ask<string[]>({ decode: true });

  // One transfer for each layer, started as soon as the layer is computed; the next layer is computed meanwhile.
  // (With a GPU one transfer with `layerwise` and `waitEvents` does the same without the processor in between.)
  const sent: string[] = [];
  const transfers = [];
  for (let layer = 0; layer < LAYERS; layer++) {
    await computeLayer(cache, layer);
    sent[layer] = await layerSum(cache, BLOCKS, layer);
    transfers.push(
      transport.transfer({
        source: cache,
        sourceBlocks: BLOCKS,
        destination: peer.layout("cache"),
        destinationBlocks: LANDING,
        layers: { start: layer, end: layer + 1 },
        partial: true,
        notify: layerTag(layer),
      }),
    );
  }
  await Promise.all(transfers);
  await transport.notify(peer, DONE);

  const arrived = await there;
  await child.end();
  if (arrived.length !== LAYERS || arrived.some((sum, layer) => sum !== sent[layer]))
    throw new Error("a layer at decode is not that of prefill");
  console.log(`verified: ${LAYERS} layers arrived one by one, each with the bytes that were sent`);
}

/** Stands for a layer of the forward pass: it writes this layer of the blocks. */
async function computeLayer(cache: Awaited<ReturnType<Transport["register"]>>, layer: number): Promise<void> {
  for (const block of BLOCKS) {
    const bytes = new Uint8Array(cache.config.blockBytes / LAYERS).map((_, at) => at * (layer + 1) + block);
    await cache.write(block, bytes, { layers: { start: layer, end: layer + 1 } });
  }
}

async function layerSum(
  cache: Awaited<ReturnType<Transport["register"]>>,
  blocks: readonly number[],
  layer: number,
): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  for (const block of blocks)
    hash.update(await cache.read(block, { layers: { start: layer, end: layer + 1 } }));
  return hash.digest("hex");
}

await (process.argv[2] === "decode" ? decode() : prefill());
