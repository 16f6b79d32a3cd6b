import { expect } from "bun:test";
import { Transport } from "../../index.ts";
import type { LocalLayout } from "../../index.ts";
import { PythonPeer, type PeerConfig } from "./python-peer.ts";

const SHAPE = {
  numBlocks: 12,
  numLayers: 3,
  outerDim: 2,
  pageSize: 4,
  innerDim: 64,
  alignment: 1,
  width: 2,
} as const;

/** The peer's layouts, one of each kind that Dynamo's formats know. */
export const PEER_CONFIGS: readonly PeerConfig[] = [
  { kind: "fc", ...SHAPE },
  { kind: "ls-first", ...SHAPE },
  { kind: "ls-second", ...SHAPE },
];

const ARRANGEMENTS = [
  "fully-contiguous",
  "layer-separate/block-first",
  "layer-separate/block-second",
] as const;

const CELL = SHAPE.pageSize * SHAPE.innerDim * SHAPE.width;

/** Byte `k` of a cell: what the Python side computes for itself. */
function pattern(seed: number, block: number): Uint8Array {
  const bytes = new Uint8Array(SHAPE.numLayers * SHAPE.outerDim * CELL);
  let at = 0;
  for (let layer = 0; layer < SHAPE.numLayers; layer++)
    for (let outer = 0; outer < SHAPE.outerDim; outer++)
      for (let k = 0; k < CELL; k++)
        bytes[at++] = (seed * 31 + block * 7 + layer * 13 + outer * 29 + k * 3 + (k >> 8)) & 255;
  return bytes;
}

async function expectBlocks(
  layout: LocalLayout,
  blocks: readonly number[],
  sources: readonly number[],
  seed: number,
): Promise<void> {
  for (const [index, block] of blocks.entries()) {
    const got = await layout.read(block);
    expect(Buffer.compare(got, pattern(seed, sources[index] ?? -1))).toBe(0);
  }
}

async function expectUntouched(layout: LocalLayout, except: readonly number[]): Promise<void> {
  for (let block = 0; block < SHAPE.numBlocks; block++) {
    if (except.includes(block)) continue;
    expect((await layout.read(block)).every((byte) => byte === 0xee)).toBe(true);
  }
}

/**
 * Moves blocks between a transport and a Python peer in both directions, started by either side, over every pair of
 * arrangements, with notifications; both sides check the bytes of what was moved and of all other blocks.
 */
export async function exchange(
  paths: readonly string[],
  options: {
    readonly nixl?: { readonly library: string };
    readonly format?: "dynamo-1.0" | "kvbm-physical-1";
  } = {},
): Promise<void> {
  const format = options.format ?? "dynamo-1.0";
  await using python = PythonPeer.start(paths);
  const { package: packed } = await python.call<{ package: string }>(
    "open",
    "python-peer",
    77,
    PEER_CONFIGS,
    format,
  );
  await using transport = await Transport.open({
    workerId: 5n,
    nixl: options.nixl ?? {},
    deadlineMs: Number(process.env["KVFERRY_TEST_DEADLINE"] ?? 30_000),
  });
  const { width, ...config } = SHAPE;
  const layouts = await Promise.all(
    ARRANGEMENTS.map((arrangement) =>
      transport.register({
        name: arrangement,
        config: { ...config, dtypeWidthBytes: width },
        arrangement,
        memory: { kind: "system" },
      }),
    ),
  );
  const ours = await transport.exportMetadata({ format });
  const known = await python.call<{ id: number; config: PeerConfig }[]>(
    "load",
    Buffer.from(ours).toString("hex"),
  );
  expect(known.map((layout) => layout.config.kind)).toEqual(["fc", "ls-first", "ls-second"]);
  const peer = await transport.importMetadata(Uint8Array.from(Buffer.from(packed, "hex")));
  expect(peer.workerId).toBe(77n);
  expect(peer.generation).toBe(0);
  expect(peer.layouts.length).toBe(3);

  let seed = 1;
  for (const [mine, layout] of layouts.entries()) {
    for (const [theirs, remote] of peer.layouts.entries()) {
      const label = `${mine}-${theirs}`;
      const reset = async (): Promise<void> => {
        await layout.fill(0xee);
        await python.call("reset", theirs);
      };
      // Both sides look at every block that nothing was to be written to.
      const expectPeerUntouched = async (except: readonly number[]): Promise<void> => {
        const others = [...Array(SHAPE.numBlocks).keys()].filter((block) => !except.includes(block));
        expect(await python.call<number[]>("touched", theirs, others)).toEqual([]);
      };

      // We push into the peer.
      await reset();
      seed++;
      for (const block of [3, 4, 9]) await layout.write(block, pattern(seed, block));
      await transport.transfer({
        source: layout,
        sourceBlocks: [3, 4, 9],
        destination: remote,
        destinationBlocks: [7, 0, 5],
        notify: `push ${label}`,
      });
      expect(await python.call<[string, string]>("wait_notification", 10)).toEqual([
        expect.stringMatching(/^worker-5/),
        Buffer.from(`push ${label}`).toString("hex"),
      ]);
      expect(await python.call<unknown[]>("wrong", theirs, [7, 0, 5], [3, 4, 9], seed)).toEqual([]);
      await expectPeerUntouched([7, 0, 5]);
      await expectBlocks(layout, [3, 4, 9], [3, 4, 9], seed);
      await expectUntouched(layout, [3, 4, 9]);

      // We pull from the peer.
      await reset();
      seed++;
      await python.call("fill", theirs, [1, 2, 11], seed);
      await transport.transfer({
        source: remote,
        sourceBlocks: [1, 2, 11],
        destination: layout,
        destinationBlocks: [10, 6, 2],
      });
      await expectBlocks(layout, [10, 6, 2], [1, 2, 11], seed);
      await expectUntouched(layout, [10, 6, 2]);
      expect(await python.call<unknown[]>("wrong", theirs, [1, 2, 11], [1, 2, 11], seed)).toEqual([]);
      await expectPeerUntouched([1, 2, 11]);

      // The peer pushes into us, with a notification.
      await reset();
      seed++;
      await python.call("fill", theirs, [8, 4], seed);
      expect(
        await python.call<string>("move", "WRITE", theirs, [8, 4], mine, [0, 5], `written ${label}`),
      ).toBe("DONE");
      for await (const { from, payload } of transport.notifications()) {
        expect(from).toBe("python-peer");
        expect(new TextDecoder().decode(payload)).toBe(`written ${label}`);
        break;
      }
      await expectBlocks(layout, [0, 5], [8, 4], seed);
      await expectUntouched(layout, [0, 5]);
      await expectPeerUntouched([8, 4]);

      // The peer pulls from us.
      await reset();
      seed++;
      for (const block of [1, 7]) await layout.write(block, pattern(seed, block));
      expect(await python.call<string>("move", "READ", theirs, [6, 3], mine, [1, 7], "")).toBe("DONE");
      expect(await python.call<unknown[]>("wrong", theirs, [6, 3], [1, 7], seed)).toEqual([]);
      await expectPeerUntouched([6, 3]);
      await expectUntouched(layout, [1, 7]);
    }
  }

  // Bare notifications both ways.
  await transport.notify(peer, "bare");
  expect((await python.call<[string, string]>("wait_notification", 10))?.[1]).toBe(
    Buffer.from("bare").toString("hex"),
  );
  await python.call("send", "and back");
  for await (const { payload } of transport.notifications()) {
    expect(new TextDecoder().decode(payload)).toBe("and back");
    break;
  }
}
