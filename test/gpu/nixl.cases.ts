// Two processes with GPU memory on both sides, through NIXL over UCX (cuda_ipc on one host): pushed and pulled, between
// GPUs and between a GPU and the other's host memory. Needs a GPU and NIXL; run by gpu.test.ts.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Transport, type LocalLayout, type Peer } from "../../index.ts";
import { specOf } from "../cuda/harness.ts";
import { PEER_BLOCKS, PEER_KINDS, type Call } from "./peer.ts";

let transport: Transport;
let other: Peer;
const layouts: Map<string, LocalLayout> = new Map();
const waiting: Map<number, { resolve(value: unknown): void; reject(error: Error): void }> = new Map();
let child: Bun.Subprocess;
let calls = 0;

type Ask = Call extends infer One ? (One extends { readonly id: number } ? Omit<One, "id"> : never) : never;

function ask(call: Ask): Promise<unknown> {
  const id = ++calls;
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  waiting.set(id, { resolve, reject });
  child.send({ id, ...call });
  return promise;
}

beforeAll(async () => {
  child = Bun.spawn([process.execPath, join(import.meta.dir, "peer.ts")], {
    stdin: "ignore",
    stdout: 2,
    stderr: "inherit",
    serialization: "advanced",
    ipc: (message: { readonly id: number; readonly value?: unknown; readonly error?: string }) => {
      const one = waiting.get(message.id);
      waiting.delete(message.id);
      if (message.error === undefined) one?.resolve(message.value);
      else one?.reject(new Error(message.error));
    },
    onExit: (_child, code, signal) => {
      for (const one of waiting.values()) one.reject(new Error(`the peer ended: ${signal ?? code}`));
    },
  });
  transport = await Transport.open({
    workerId: 1n,
    neighbours: false,
    nixl: { backends: { UCX: {} } },
    cuda: {},
    capabilities: { gpuRdma: true },
  });
  for (const kind of PEER_KINDS)
    for (const arrangement of ["FC", "LS"] as const) {
      const name = `${kind} ${arrangement}`;
      layouts.set(
        name,
        await transport.register({ ...specOf(kind, arrangement, { numBlocks: PEER_BLOCKS }), name }),
      );
    }
  const theirs = (await ask({ do: "open", workerId: 2, device: 0 })) as Uint8Array;
  other = await transport.importMetadata(theirs);
  await ask({ do: "import", bytes: await transport.exportMetadata() });
}, 120_000);

afterAll(async () => {
  await other.forget();
  await ask({ do: "close" }).catch(() => undefined);
  await transport.close();
  child.kill();
  await child.exited;
});

const SOURCE = [0, 3, 9, 4];
const PLACES = [15, 2, 7, 8];
/** Kinds of the two sides: at least one is a GPU. */
const PAIRS = [
  ["device", "device"],
  ["device", "pinned"],
  ["device", "system"],
  ["pinned", "device"],
  ["system", "device"],
] as const;

describe("push", () => {
  for (const [from, to] of PAIRS)
    for (const [source, destination] of [
      ["FC", "FC"],
      ["LS", "FC"],
      ["LS", "LS"],
    ] as const)
      test(`${from} ${source} to the peer's ${to} ${destination}`, async () => {
        const own = layouts.get(`${from} ${source}`) as LocalLayout; // made above
        const theirs = other.layout(`${to} ${destination}`);
        await own.fill({ random: calls + 1 });
        await ask({ do: "fill", name: theirs.name, seed: 4711 });
        const guards = await ask({ do: "checksums", name: theirs.name, blocks: [1, 3, 14] });
        const result = await transport.transfer({
          source: own,
          sourceBlocks: SOURCE,
          destination: theirs,
          destinationBlocks: PLACES,
        });
        expect(result.bytes).toBe(4 * own.config.blockBytes);
        expect(await ask({ do: "checksums", name: theirs.name, blocks: PLACES })).toEqual(
          await own.checksums(SOURCE),
        );
        expect(await ask({ do: "checksums", name: theirs.name, blocks: [1, 3, 14] })).toEqual(guards);
      }, 60_000);
});

describe("pull", () => {
  for (const [to, from] of PAIRS)
    for (const [source, destination] of [
      ["FC", "FC"],
      ["FC", "LS"],
      ["LS", "LS"],
    ] as const)
      test(`the peer's ${from} ${source} to ${to} ${destination}`, async () => {
        const own = layouts.get(`${to} ${destination}`) as LocalLayout; // made above
        const theirs = other.layout(`${from} ${source}`);
        await ask({ do: "fill", name: theirs.name, seed: calls + 1 });
        await own.fill(0xff);
        const guards = await own.checksums([1, 3, 14]);
        await transport.transfer({
          source: theirs,
          sourceBlocks: SOURCE,
          destination: own,
          destinationBlocks: PLACES,
        });
        expect(await own.checksums(PLACES)).toEqual(
          (await ask({ do: "checksums", name: theirs.name, blocks: SOURCE })) as string[],
        );
        expect(await own.checksums([1, 3, 14])).toEqual(guards);
      }, 60_000);
});

test("GPU memory waits for the caller's stream before it goes to a peer", async () => {
  const { native, answer } = await import("../cuda/harness.ts");
  const own = layouts.get("device FC") as LocalLayout; // made above
  const theirs = other.layout("device FC");
  await own.fill({ random: 99 });
  const stream = answer((out) => native().kvf_cuda_test_stream(0, out));
  answer(() => native().kvf_cuda_test_sleep(0, stream, 200_000));
  const begun = performance.now();
  await transport.transfer({
    source: own,
    sourceBlocks: SOURCE,
    destination: theirs,
    destinationBlocks: PLACES,
    stream,
  });
  expect(performance.now() - begun).toBeGreaterThan(150);
  native().kvf_cuda_test_stream_close(0, stream);
  expect(await ask({ do: "checksums", name: theirs.name, blocks: PLACES })).toEqual(
    await own.checksums(SOURCE),
  );
}, 60_000);
