// A program that does nothing but its first transfer, and says how long that took from its first line on, milliseconds.
// Bun's own start is not in it; loading kvferry is.
const begin = Bun.nanoseconds();

const { Transport } = await import("../index.ts");
const [, , packageFile] = process.argv;
const remote = packageFile !== undefined;
// Alone one block of 16 KiB, so that fresh memory is not what is measured; to a peer 1 MiB, as the C program moves.
const bytes = remote ? 2 ** 20 : 2 ** 14;
const config = { numBlocks: 1, numLayers: 1, outerDim: 1, pageSize: 16, innerDim: bytes / 32 } as const;
const transport = await Transport.open({
  workerId: BigInt(process.pid) + 1_000n,
  cuda: false,
  nixl: remote ? {} : false,
  neighbours: false,
});
const source = await transport.register({ name: "source", config, memory: { kind: "system" } });
const destination = remote
  ? (await transport.importMetadata(await Bun.file(packageFile).bytes())).layout("target")
  : await transport.register({ name: "destination", config, memory: { kind: "system" } });
if (destination === undefined) throw new Error("the peer has no layout target");
const result = await transport.transfer({
  source,
  destination,
  sourceBlocks: [0],
  destinationBlocks: [0],
});

const milliseconds = (Bun.nanoseconds() - begin) / 1e6;
if (result.bytes !== bytes) throw new Error(`${result.bytes} bytes were moved`);
process.stdout.write(`${JSON.stringify({ milliseconds })}\n`);
await transport.close();
