// Prefill in this process, decode in another one: blocks go from the one's memory into the other's.
//
//   bun run examples/two-processes.ts
import { Transport, type LayoutConfig } from "kvferry";
import { answerParent, startChild } from "./children.ts";

/** One tensor-parallel rank of a small model; both sides hold the same heads. */
const MODEL = { numLayers: 4, outerDim: 2, numHeads: 4, headDim: 64, dtype: "bf16" } as const;

/** Decode: one allocation for each layer, as engines have it, pages of 32 tokens. */
const DECODE: LayoutConfig = { ...MODEL, numBlocks: 16, pageSize: 32 };

/** Prefill: blocks in one piece, pages of 16 tokens. */
const PREFILL: LayoutConfig = { ...MODEL, numBlocks: 32, pageSize: 16 };

type Question =
  | { readonly meet: Uint8Array }
  /** Waits for the blocks of a request and gives their bytes in logical order. */
  | { readonly receive: string; readonly blocks: number[] };

async function decode(): Promise<void> {
  await using transport = await Transport.open({ workerId: 2n });
  const cache = await transport.register({
    name: "cache",
    config: DECODE,
    arrangement: "layer-separate/block-second",
    memory: { kind: "system" },
  });
  await answerParent(async (question: Question) => {
    if ("meet" in question) {
      await transport.importMetadata(question.meet);
      return await transport.exportMetadata();
    }
    const from = transport.peer(1n);
    if (from === undefined) throw new Error("nobody has introduced prefill yet");
    await transport.expect({ layout: cache, blocks: question.blocks, from, tag: question.receive });
    return await Promise.all(question.blocks.map((block) => cache.read(block)));
  });
}

async function prefill(): Promise<void> {
  const child = startChild(import.meta.path, "decode");
  await using transport = await Transport.open({ workerId: 1n });
  const cache = await transport.register({ name: "cache", config: PREFILL, memory: { kind: "system" } });
  // What a forward pass would have written.
  await cache.fill({ random: 42 });

  const metadata = await child.ask<Uint8Array>({ meet: await transport.exportMetadata() });
  const peer = await transport.importMetadata(metadata);

  // 64 tokens: four pages of 16 here are two pages of 32 there.
  const request = {
    source: cache,
    sourceBlocks: [3, 9, 4, 20],
    destination: peer.layout("cache"),
    destinationBlocks: [5, 1],
    notify: "request-17",
  };
  const received = child.ask<Uint8Array[]>({ receive: "request-17", blocks: [5, 1] });
  const result = await transport.transfer(request);
  console.log(
    `moved ${result.bytes} bytes as ${result.descriptors} runs to a ${peer.layout("cache").distance}`,
  );

  const sent = await Promise.all(request.sourceBlocks.map((block) => cache.read(block)));
  const same = sameTokens(sent, PREFILL.pageSize, await received, DECODE.pageSize);
  await child.end();
  if (!same) throw new Error("the bytes at decode are not those of prefill");
  console.log("verified: decode has every byte of the 64 tokens");
}

/** Compares two streams of tokens layer by layer, whatever the number of tokens in a page. */
function sameTokens(
  left: readonly Uint8Array[],
  leftPage: number,
  right: readonly Uint8Array[],
  rightPage: number,
): boolean {
  const tokenBytes = MODEL.numHeads * MODEL.headDim * 2;
  const token = (pages: readonly Uint8Array[], pageSize: number, cell: number, at: number): Uint8Array => {
    const start = (cell * pageSize + (at % pageSize)) * tokenBytes;
    return (pages[Math.floor(at / pageSize)] ?? new Uint8Array()).subarray(start, start + tokenBytes);
  };
  for (let cell = 0; cell < MODEL.numLayers * MODEL.outerDim; cell++)
    for (let at = 0; at < left.length * leftPage; at++)
      if (Buffer.compare(token(left, leftPage, cell, at), token(right, rightPage, cell, at)) !== 0)
        return false;
  return true;
}

await (process.argv[2] === "decode" ? decode() : prefill());
