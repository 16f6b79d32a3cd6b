// Run by standin.test.ts in a process of its own: the library of KVFERRY_NIXL_LIBRARY is the stand-in, which changes one
// byte on its way. With `checksum: true` it is found, the blocks are named, and they are bad at both ends until they
// are written again.
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { toArrayBuffer } from "bun:ffi";
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  isKvferryError,
  Transport,
  type LayoutConfig,
  type LocalLayout,
  type TransferRequest,
} from "../../index.ts";
import { buildCudaStandin } from "../standin/build.ts";
import { refused } from "./helpers/refusal.ts";
import { OPTIONS, settled, standin } from "./helpers/standin.ts";
import { freshWorker, systemSpec } from "./helpers/transports.ts";

const CUDA = join(import.meta.dir, "..", "..", "cshim", "build", "standin", "libcuda.so.1");
const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-checksums-"));
const CONFIG: LayoutConfig = {
  numBlocks: 12,
  numLayers: 4,
  outerDim: 2,
  pageSize: 8,
  numHeads: 4,
  headDim: 16,
};
const WIDE: LayoutConfig = { ...CONFIG, pageSize: 16, numBlocks: 6 };
const HALF: LayoutConfig = { ...CONFIG, numHeads: 2, headWindow: { start: 2, total: 4 } };
const FROM = [1, 7, 2, 9];
const TO = [8, 0, 3, 2];
const KINDS = ["system", "disk", "device"] as const;

/** What is moved: the target's shape and the request beside its layouts. */
const SHAPES = {
  whole: { config: CONFIG, more: {}, ask: {} },
  layer: { config: CONFIG, more: {}, ask: { layers: { start: 1, end: 2 } } },
  order: { config: CONFIG, more: { order: "hnd", arrangement: "layer-separate/block-second" }, ask: {} },
  pages: { config: WIDE, more: {}, ask: { destinationBlocks: [4, 1] } },
  tokens: {
    config: WIDE,
    more: { order: "hnd" },
    ask: {
      destinationBlocks: [4, 1],
      tokens: { sourceStart: 3, destinationStart: 6, count: 20 },
    },
  },
  shard: { config: HALF, more: {}, ask: {} },
} as const;
type ShapeName = keyof typeof SHAPES;

beforeAll(async () => void (await buildCudaStandin(CUDA)), 120_000);
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));
afterEach(() => void standin("reset"));

interface Both extends AsyncDisposable {
  readonly a: Transport;
  readonly b: Transport;
}

async function open(): Promise<Both> {
  const options = {
    ...OPTIONS,
    cuda: { library: CUDA },
    staging: { sendBytes: 2 ** 16, receiveBytes: 2 ** 16, chunkBytes: 2 ** 13 },
  };
  const [a, b] = await Promise.all([
    Transport.open({ ...options, workerId: freshWorker() }),
    Transport.open({ ...options, workerId: freshWorker() }),
  ]);
  return {
    a,
    b,
    async [Symbol.asyncDispose]() {
      standin("reset");
      await a.close();
      await b.close();
    },
  };
}

/** Both know each other. */
async function meet({ a, b }: Both) {
  const [fromA, fromB] = await Promise.all([a.exportMetadata(), b.exportMetadata()]);
  const peers = { b: await a.importMetadata(fromB), a: await b.importMetadata(fromA) };
  await settled();
  return peers;
}

/** What each block holds, looked at from outside: blocks that are known to be bad cannot be read. */
function contents(layout: LocalLayout): string[] {
  const { numBlocks, numLayers, outerDim } = layout.config;
  const file = layout.storage.kind === "disk" ? openSync(join(FOLDER, `${layout.name}.bin`), "r") : -1;
  const blocks = Array.from({ length: numBlocks }, (_unused, block) => {
    const hash = new Bun.CryptoHasher("sha256");
    for (let layer = 0; layer < numLayers; layer++)
      for (let outer = 0; outer < outerDim; outer++) {
        const { address, size } = layout.address(block, layer, outer);
        const bytes = new Uint8Array(size);
        if (file >= 0) readSync(file, bytes, 0, size, address);
        // Memory of the stand-in's devices is memory of this process.
        else bytes.set(new Uint8Array(toArrayBuffer(address as never, 0, size)));
        hash.update(bytes);
      }
    return hash.digest("hex");
  });
  if (file >= 0) closeSync(file);
  return blocks;
}

interface Scene {
  readonly both: Both;
  /** Where the bytes really go. */
  readonly target: LocalLayout;
  readonly request: TransferRequest;
}

async function scene(
  direction: "push" | "pull",
  kind: (typeof KINDS)[number],
  name: ShapeName,
): Promise<Scene> {
  const both = await open();
  const { a, b } = both;
  const shape = SHAPES[name];
  const far = direction === "push" ? "target" : "source";
  // The peer's side is of the kind, the near one is host memory.
  const memory = (side: string) => ({
    memory:
      side !== far
        ? { kind: "system" }
        : kind === "disk"
          ? { kind, path: join(FOLDER, `${side}.bin`) }
          : { kind },
  });
  const source = await (direction === "push" ? a : b).register(
    systemSpec("source", CONFIG, { arrangement: "layer-separate/block-first", ...memory("source") }),
  );
  const target = await (direction === "push" ? b : a).register(
    systemSpec("target", shape.config, { ...shape.more, ...memory("target") }),
  );
  await source.fill({ random: 1 });
  await target.fill(0);
  const { b: peer } = await meet(both);
  const request: TransferRequest = {
    source: direction === "push" ? source : peer.layout("source"),
    sourceBlocks: FROM,
    destination: direction === "push" ? peer.layout("target") : target,
    destinationBlocks: TO,
    ...shape.ask,
    checksum: true,
  };
  return { both, target, request };
}

for (const direction of ["push", "pull"] as const)
  for (const kind of KINDS)
    describe(`${direction}, ${kind} at the peer`, () => {
      for (const name of Object.keys(SHAPES) as ShapeName[])
        test(`${name}: a byte that changes on its way is found in its block, and no other`, async () => {
          const { both, target, request } = await scene(direction, kind, name);
          await using _both = both;
          const { a } = both;
          expect(await a.transfer(request)).toMatchObject({ settlement: "done" });
          const good = contents(target);
          for (const offset of [5, 1_023, 2_049, 4_000]) {
            standin(`flip 1 ${offset}`);
            const spoilt = a.transfer(request);
            const error = await refused("CHECKSUM", spoilt);
            const now = contents(target);
            const differing = now.flatMap((sum, block) => (sum === good[block] ? [] : [block]));
            expect(differing).toHaveLength(1);
            expect(error).toMatchObject({ settlement: "done", details: { blocks: differing } });
            expect(await spoilt.settled).toEqual({ settlement: "done", proof: "completed" });
            expect(target.quarantinedBlocks()).toEqual([]);
            // The right bytes again, for the next one. What is only a part leaves the block bad.
            await target.fill(0);
            await a.transfer(request);
            expect(contents(target)).toEqual(good);
          }
        });
    });

test("a byte beside what was moved is nobody's business", async () => {
  const { both, target, request } = await scene("push", "system", "tokens");
  await using _both = both;
  const transfer = both.a.transfer({
    ...request,
    layerwise: {
      every: 1,
      notify: (layer) => {
        // Token 0 of the second block is not among those that are written: 26 tokens end before its tenth.
        const bytes = target.bytes[0];
        if (bytes !== undefined && layer === 3) bytes[target.config.blockBytes * 1 + 15 * 32] = 0xaa;
        return "layer";
      },
    },
  });
  expect(await transfer).toMatchObject({ settlement: "done" });
});

/** Whether blocks are refused as a source there now. */
async function isBad(transport: Transport, request: TransferRequest): Promise<boolean> {
  return await transport.transfer(request).then(
    () => false,
    (error: unknown) => isKvferryError(error, "CHECKSUM"),
  );
}

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let turn = 0; turn < 1_000; turn++) {
    if (await holds()) return;
    await Bun.sleep(5);
  }
  throw new Error(`${what}: not yet`);
}

test("blocks that were found bad are refused at both ends until somebody writes them again", async () => {
  const { both, target, request } = await scene("push", "system", "whole");
  await using _both = both;
  const { a, b } = both;
  const back = await a.register(systemSpec("back", CONFIG));
  const other = await b.register(systemSpec("other", CONFIG));
  const here = (id: number): TransferRequest => ({
    source: request.destination,
    sourceBlocks: [id],
    destination: back,
    destinationBlocks: [0],
  });
  const there = (id: number): TransferRequest => ({
    source: target,
    sourceBlocks: [id],
    destination: other,
    destinationBlocks: [0],
  });
  const spoil = async (): Promise<number> => {
    standin("flip 1 2050");
    const { details } = await refused("CHECKSUM", a.transfer(request));
    const [id = -1] = details["blocks"] as number[];
    await refused("CHECKSUM", a.transfer(here(id)));
    await eventually("the owner knows", () => isBad(b, there(id)));
    await refused("CHECKSUM", target.read(id));
    return id;
  };
  // Written again by the writer, also without a checksum.
  let id = await spoil();
  await a.transfer({ ...request, checksum: false });
  await a.transfer(here(id));
  await eventually("the owner knows", async () => !(await isBad(b, there(id))));
  // By the owner: the writer hears of it.
  id = await spoil();
  await target.write(id, new Uint8Array(target.config.blockBytes).fill(7));
  await b.transfer(there(id));
  await eventually("the writer knows", async () => !(await isBad(a, here(id))));
  // One layer alone does not make it good.
  id = await spoil();
  await a.transfer({ ...request, layers: { start: 0, end: 1 } });
  await refused("CHECKSUM", a.transfer(here(id)));
  await refused("CHECKSUM", b.transfer(there(id)));
  // A third one that pulls with a checksum is told by the owner, before a byte moves.
  await using third = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
  const into = await third.register(systemSpec("into", CONFIG));
  const peer = await third.importMetadata(await b.exportMetadata());
  const pull = { source: peer.layout("target"), destination: into, destinationBlocks: [0], checksum: true };
  const told = await refused("CHECKSUM", third.transfer({ ...pull, sourceBlocks: [id] }));
  expect(told.settlement).toBe("never-started");
  await third.transfer({ ...pull, sourceBlocks: [5] });
});

test("who expects the blocks hears of it instead of the message, and nothing is in quarantine", async () => {
  const { both, target, request } = await scene("push", "system", "whole");
  await using _both = both;
  const { a, b } = both;
  const from = b.peer(a.workerId);
  if (from === undefined) throw new Error("no such peer");
  const wait = () => b.expect({ layout: target, blocks: TO, from, tag: "here" });
  const good = wait();
  await a.transfer({ ...request, notify: "here" });
  expect(await good).toMatchObject({ settlement: "done" });
  standin("flip 1 17");
  const spoilt = wait();
  const [sent] = await Promise.all([
    refused("CHECKSUM", a.transfer({ ...request, notify: "here" })),
    refused("CHECKSUM", spoilt).then((error) => {
      expect(error.settlement).toBe("done");
      expect(TO).toContain((error.details["blocks"] as number[])[0] ?? -1);
    }),
  ]);
  expect(await spoilt.settled).toEqual({ settlement: "done", proof: "completed" });
  expect(target.quarantinedBlocks()).toEqual([]);
  await refused("CHECKSUM", target.read((sent.details["blocks"] as number[])[0] ?? -1));
  // The message of the second one never came: the next is not taken for it.
  const again = wait();
  await a.transfer({ ...request, notify: "here" });
  await again;
  for (const block of TO) await target.read(block);
});

test("a peer that does not answer costs a deadline before a byte moves, and after it leaves the end in doubt", async () => {
  const { both, target, request } = await scene("push", "system", "whole");
  await using _both = both;
  const { a } = both;
  const before = contents(target);
  standin("block gen_notif");
  const early = await refused("TIMEOUT", a.transfer({ ...request, deadlineMs: 50 }));
  expect(early.settlement).toBe("never-started");
  standin("unblock gen_notif");
  expect(contents(target)).toEqual(before);
  let last = false;
  const late = a.transfer({
    ...request,
    deadlineMs: 500,
    layerwise: {
      every: 1,
      notify: (layer) => {
        if (layer === 3) [last] = [true, standin("block gen_notif")];
        return "layer";
      },
    },
  });
  const error = await refused("TIMEOUT", late);
  expect(last).toBe(true);
  expect(error.settlement).toBe("in-doubt");
  expect(await late.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
  standin("unblock gen_notif");
  await a.transfer(request);
});

test("a peer that is no kvferry transport is refused before a byte moves", async () => {
  await using both = await open();
  const { a, b } = both;
  const source = await a.register(systemSpec("source", CONFIG));
  const target = await b.register(systemSpec("layout_0", CONFIG));
  await source.fill({ random: 1 });
  const peer = await a.importMetadata(await b.exportMetadata({ format: "dynamo-1.0" }));
  const [destination] = peer.layouts;
  if (destination === undefined) throw new Error("no layout");
  const request = { source, sourceBlocks: FROM, destination, destinationBlocks: TO };
  const before = contents(target);
  const error = await refused("NO_ROUTE", a.transfer({ ...request, checksum: true }));
  expect(error.settlement).toBe("never-started");
  expect(contents(target)).toEqual(before);
  await a.transfer(request);
});
