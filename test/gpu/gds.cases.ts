// GPUDirect Storage through NIXL on this machine: the trial first, then whole blocks both ways against plain reads. Needs a
// GPU, NIXL and cuFile; run by gpu.test.ts where the doctor's trial, in a process of its own, has found that it works.
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Transport, type LocalLayout } from "../../index.ts";
import { specOf } from "../cuda/harness.ts";

const CACHE = process.env["KVFERRY_DISK_CACHE_DIR"] ?? tmpdir();
mkdirSync(CACHE, { recursive: true });
const FOLDER = mkdtempSync(join(CACHE, "kvferry-gds-"));
const transport = await Transport.open({
  workerId: 1n,
  neighbours: false,
  nixl: { backends: {} },
  cuda: {},
  capabilities: { gds: true },
});
const { gds, gdsProblem } = transport.dump();

afterAll(async () => {
  await transport.close();
  rmSync(FOLDER, { recursive: true, force: true });
});

/** Blocks of 1 MiB. */
const SHAPE = { numBlocks: 16, numLayers: 4, innerDim: 4_096 } as const;
const SOURCE = [0, 3, 9, 4];
const PLACES = [15, 2, 7, 8];

test("a round trip in this process proves it too", () => {
  expect(gdsProblem).toBeNull();
  console.error(`GPUDirect Storage: proven by NIXL's plugin ${gds} with files in ${CACHE}`);
});

for (const from of ["FC", "LS"] as const)
  for (const to of ["FC", "LS"] as const)
    test(`GPU memory ${from} to a file ${to} and back`, async () => {
      const path = join(FOLDER, `${from}-${to}`);
      const gpu = await transport.register(specOf("device", from, SHAPE));
      const file = await transport.register(specOf({ kind: "disk", path }, to, SHAPE));
      const back = await transport.register(specOf("device", from, SHAPE));
      await gpu.fill({ random: 1 });
      await file.fill({ random: 2 });
      await back.fill(0xff);
      await moved(gpu, file, "gds/write");
      await moved(file, back, "gds/read", PLACES, SOURCE);
      expect(await back.checksums(SOURCE)).toEqual(await gpu.checksums(SOURCE));
      // What another program reads is what a plain read of the library gives.
      if (to === "FC")
        for (const [index, block] of PLACES.entries())
          expect(
            new Uint8Array(readFileSync(path)).subarray(
              block * file.config.blockBytes,
              (block + 1) * file.config.blockBytes,
            ),
          ).toEqual((await gpu.read(SOURCE[index] ?? 0)) as Uint8Array<ArrayBuffer>);
      for (const layout of [gpu, file, back]) await layout.unregister();
    }, 60_000);

/** Moves blocks by that method; the blocks around the moved ones keep their bytes. */
async function moved(
  source: LocalLayout,
  destination: LocalLayout,
  method: string,
  sourceBlocks: readonly number[] = SOURCE,
  destinationBlocks: readonly number[] = PLACES,
): Promise<void> {
  const others = Array.from({ length: SHAPE.numBlocks }, (_unused, block) => block).filter(
    (block) => !destinationBlocks.includes(block),
  );
  const guards = await destination.checksums(others);
  const request = { source, destination, sourceBlocks, destinationBlocks, method };
  expect(transport.explain(request).legs[0]?.hops.map((hop) => hop.method)).toEqual([method]);
  await transport.transfer(request);
  expect(await destination.checksums(destinationBlocks)).toEqual(await source.checksums(sourceBlocks));
  expect(await destination.checksums(others)).toEqual(guards);
}
