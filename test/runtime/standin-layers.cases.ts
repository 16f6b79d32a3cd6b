// Run by standin.test.ts in a process of its own: the library of KVFERRY_NIXL_LIBRARY is the stand-in, which holds up
// everything after a transfer's first moves. Layer 0 is readable then, at both ends, while the last one has not left.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { Transport, type LayoutConfig, type LocalLayout } from "../../index.ts";
import { buildCudaStandin } from "../standin/build.ts";
import { OPTIONS, settled, standin } from "./helpers/standin.ts";
import { freshWorker, systemSpec } from "./helpers/transports.ts";

const CUDA = join(import.meta.dir, "..", "..", "cshim", "build", "standin", "libcuda.so.1");
const LAYERS = 32;
const CONFIG: LayoutConfig = { numBlocks: 8, numLayers: LAYERS, outerDim: 2, pageSize: 8, innerDim: 64 };
/** Where NIXL moves all by itself, many small layers go in one post: these do not. */
const LARGE: LayoutConfig = { ...CONFIG, innerDim: 8_192 };
const BLOCKS = [1, 6, 3];
const ALL = Array.from({ length: LAYERS }, (_unused, layer) => layer);

beforeAll(async () => void (await buildCudaStandin(CUDA)), 120_000);
afterEach(() => void standin("reset"));
afterAll(() => void standin("reset"));

const layerOf = (layout: LocalLayout, block: number, layer: number): Promise<Uint8Array> =>
  layout.read(block, { layers: { start: layer, end: layer + 1 } });

for (const direction of ["push", "pull"] as const)
  for (const [near, far] of [
    ["system", "system"],
    ["disk", "system"],
    ["device", "system"],
    ["system", "disk"],
    ["system", "device"],
    ["disk", "disk"],
  ] as const)
    test(`${direction}, ${near} here and ${far} at the peer: layer 0 arrives while the last one waits`, async () => {
      const direct = near === "system" && far === "system";
      const config = direct ? LARGE : CONFIG;
      // Bytes of one layer of all blocks: one chunk.
      const layerBytes = BLOCKS.length * 2 * 8 * (config.innerDim ?? 0) * 2;
      const options = {
        ...OPTIONS,
        cuda: { library: CUDA },
        workerId: freshWorker(),
        staging: { sendBytes: 2 * layerBytes, receiveBytes: 2 * layerBytes, chunkBytes: layerBytes },
      };
      await using a = await Transport.open(options);
      await using b = await Transport.open({ ...options, workerId: freshWorker() });
      const push = direction === "push";
      const own = await a.register(systemSpec("own", config, { memory: { kind: near } }));
      const theirs = await b.register(systemSpec("theirs", config, { memory: { kind: far } }));
      const [source, target] = push ? [own, theirs] : [theirs, own];
      await source.fill({ random: 1 });
      const [fromA, fromB] = await Promise.all([a.exportMetadata(), b.exportMetadata()]);
      const remote = (await a.importMetadata(fromB)).layout("theirs");
      const from = await b.importMetadata(fromA);
      await settled();
      const tag = (layer: number): string => `layer ${layer}`;
      const arrival = push
        ? b.expect({ layout: theirs, blocks: BLOCKS, from, tag: "all", layerTag: tag })
        : undefined;
      standin(`block post_xfer_req ${direct ? 1 : 3}`);
      const transfer = a.transfer({
        source: push ? own : remote,
        sourceBlocks: BLOCKS,
        destination: push ? remote : own,
        destinationBlocks: BLOCKS,
        layerwise: { every: 1, notify: tag },
        notify: "all",
      });
      const layers = transfer.layers();
      expect((await layers.next()).value).toBe(0);
      // By what has happened, not by when: nothing can end before the library is let go on.
      expect(transfer.state).toBe("running");
      for (const block of BLOCKS) {
        expect(await layerOf(target, block, 0)).toEqual(await layerOf(source, block, 0));
        expect(new Set(await layerOf(target, block, LAYERS - 1))).toEqual(new Set([0]));
      }
      const { done, total } = transfer.progress;
      expect(total).toBe(LAYERS * layerBytes);
      expect(done).toBeGreaterThanOrEqual(layerBytes);
      expect(done).toBeLessThan(total / 2);
      standin("unblock post_xfer_req");
      const rest: number[] = [];
      for await (const layer of layers) rest.push(layer);
      expect(rest).toEqual(ALL.slice(1));
      await transfer;
      expect(transfer.progress).toEqual({ done: total, total });
      expect(await target.checksums(BLOCKS)).toEqual(await source.checksums(BLOCKS));
      if (arrival === undefined) return;
      const heard: number[] = [];
      for await (const layer of arrival.layers()) heard.push(layer);
      expect(heard).toEqual(ALL);
      await arrival;
    });
