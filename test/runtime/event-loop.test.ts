// Nothing blocks the event loop. The limit is generous, for machines are noisy; what blocks at all blocks for longer.
import { expect, test } from "bun:test";
import { nixlTest, openLocal, openPair, SMALL, systemSpec } from "./helpers/transports.ts";

const LIMIT_MILLIS = 50;

/** Runs work and gives the longest time in milliseconds for which the event loop did not turn. */
async function longestStall(work: () => Promise<unknown>): Promise<number> {
  let longest = 0;
  let last = performance.now();
  let stopped = false;
  const turn = (): void => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (!stopped) setImmediate(turn);
  };
  setImmediate(turn);
  await work();
  await new Promise((resolve) => setImmediate(resolve));
  stopped = true;
  return longest;
}

const LARGE = { ...SMALL, numBlocks: 256, pageSize: 64, innerDim: 1024 };
const ALL: Uint32Array = Uint32Array.from({ length: 256 }, (_unused, index) => index);

/** The best of three: another process may hold the processor once. */
async function expectNoStall(what: string, work: () => Promise<unknown>): Promise<void> {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 3; round++) best = Math.min(best, await longestStall(work));
  if (process.env["KVFERRY_TEST_FIGURES"] === "1") console.error(`${what}: ${best.toFixed(2)} ms`);
  expect(best, what).toBeLessThan(LIMIT_MILLIS);
}

test("not opening and closing, registering and unregistering 128 MiB, copying, filling or hashing it", async () => {
  await using transport = await openLocal();
  const source = await transport.register(systemSpec("source", LARGE));
  const destination = await transport.register({
    ...systemSpec("destination", LARGE),
    arrangement: "layer-separate/block-second",
  });
  await expectNoStall("open and close", async () => {
    await (await openLocal()).close();
  });
  await expectNoStall("fill", () => source.fill({ random: 1 }));
  await expectNoStall("transfer", async () => {
    await transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
  });
  await expectNoStall("checksums", () => destination.checksums(ALL));
  await expectNoStall("register, fill and unregister", async () => {
    const layout = await transport.register(systemSpec("more", LARGE));
    await layout.fill(1);
    await layout.unregister();
  });
  await expectNoStall("small transfers", async () => {
    for (let index = 0; index < 200; index++)
      await transport.transfer({
        source,
        destination,
        sourceBlocks: [index],
        destinationBlocks: [index + 1],
        layers: { start: 0, end: 1 },
        partial: true,
      });
  });
});

nixlTest("not over NIXL: opening, exporting, importing, moving, notifying, forgetting", async () => {
  await using pair = await openPair();
  const { a, b } = pair;
  const here = await a.register(systemSpec("here", LARGE));
  await b.register(systemSpec("there", LARGE));
  await expectNoStall("open, register, export, close", async () => {
    await using other = await openPair();
    await other.a.register(systemSpec("x", LARGE));
    await other.meetBoth();
  });
  const { b: peer } = await pair.meetBoth();
  const request = {
    source: here,
    destination: peer.layout("there"),
    sourceBlocks: ALL,
    destinationBlocks: ALL,
  };
  await expectNoStall("a large push", async () => void (await a.transfer({ ...request, notify: "x" })));
  await expectNoStall("notifications", async () => {
    for (let index = 0; index < 200; index++) await a.notify(peer, "x".repeat(1000));
  });
  await expectNoStall("forget and import", async () => {
    await a.peer(b.workerId)?.forget();
    await a.importMetadata(await b.exportMetadata());
  });
});
