// Nothing blocks the event loop: the longest turn in processor time, which does not depend on what else runs.
import { dlopen } from "bun:ffi";
import { expect, test } from "bun:test";
import { nixlTest, openLocal, openPair, SMALL, systemSpec } from "./helpers/transports.ts";

/** Far above what any of this takes, far below what a copy or a hash of this much memory would. */
const LIMIT_MILLIS = 50;

const { clock_gettime: clockGettime } = dlopen("libc.so.6", {
  clock_gettime: { args: ["i32", "ptr"], returns: "i32" },
} as const).symbols;
const CLOCK_THREAD_CPUTIME_ID = 3;
const spec = new BigInt64Array(new ArrayBuffer(16));

/** Milliseconds for which this thread has had a processor: what other processes do does not count. */
function threadMillis(): number {
  clockGettime(CLOCK_THREAD_CPUTIME_ID, spec);
  return Number(spec[0]) * 1e3 + Number(spec[1]) / 1e6;
}

/** Runs work and gives the longest time in milliseconds that one turn of the event loop took. */
async function longestTurn(work: () => Promise<unknown>): Promise<number> {
  let longest = 0;
  let last = threadMillis();
  let stopped = false;
  const turn = (): void => {
    const now = threadMillis();
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

/** The best of three: the first one also compiles. */
async function expectNoStall(what: string, work: () => Promise<unknown>): Promise<void> {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 3; round++) best = Math.min(best, await longestTurn(work));
  if (process.env["KVFERRY_TEST_FIGURES"] === "1") console.error(`${what}: ${best.toFixed(2)} ms`);
  expect(best, what).toBeLessThan(LIMIT_MILLIS);
}

const LARGE = { ...SMALL, numBlocks: 256, pageSize: 64, innerDim: 1024 };
const ALL: Uint32Array = Uint32Array.from({ length: 256 }, (_unused, index) => index);

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
