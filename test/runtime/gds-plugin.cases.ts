// Run by gds-plugin.test.ts in a process of its own, with the stand-in for a driver and the real NIXL: its plugins for GPUDirect
// Storage are asked for on a machine that has no cuFile, and what they answer is a reason and no error.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Transport } from "../../index.ts";

const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-gds-plugin-"));
process.env["KVFERRY_DISK_CACHE_DIR"] = FOLDER;
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

const CONFIG = { numBlocks: 4, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 512 } as const;

test("real plugins without cuFile do not come up: open says so, and bytes go through host memory", async () => {
  await using transport = await Transport.open({
    workerId: 1n,
    neighbours: false,
    nixl: { backends: { UCX: {} } },
    cuda: {},
    capabilities: { gds: true },
  });
  const { gds, gdsProblem } = transport.dump();
  expect(gds).toBeNull();
  for (const plugin of ["GDS_MT", "GDS"])
    expect(gdsProblem).toMatch(
      new RegExp(
        `\\b${plugin}: the plugin does not come up: nixl_capi_create_backend answered -\\d+ .* for ${plugin}\\b`,
      ),
    );
  const gpu = await transport.register({ config: CONFIG, memory: { kind: "device" } });
  const file = await transport.register({ config: CONFIG, memory: { kind: "disk" } });
  await gpu.fill({ random: 1 });
  const request = { source: gpu, destination: file, sourceBlocks: [0, 1, 2], destinationBlocks: [3, 1, 0] };
  const hop = transport.explain(request).legs[0]?.hops[0];
  expect(hop?.method).toBe("staged/pipeline");
  expect(hop?.candidates.find(({ method }) => method === "gds/write")?.reason).toContain(gdsProblem ?? "?");
  await transport.transfer(request);
  expect(await file.checksums([3, 1, 0])).toEqual(await gpu.checksums([0, 1, 2]));
  expect(readdirSync(FOLDER)).toEqual([]);
});
