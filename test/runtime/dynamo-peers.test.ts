// What a package of Dynamo's does not say: no fingerprint, no generation, no proof, no names, no age.
import { ptr } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import { handleGeneration, makeHandle } from "../../lib/core/handle.ts";
import { decodeDynamoPackage, encodeDynamoPackage } from "../../lib/wire/index.ts";
import type { DynamoDescriptor } from "../../lib/wire/index.ts";
import { kvbmOf, rawOf } from "../wire/builders.ts";
import { refused } from "./helpers/refusal.ts";
import { nixlTest, openLocal, openPair, openRemote, SMALL, systemSpec } from "./helpers/transports.ts";

const FORMATS = ["dynamo-1.0", "kvbm-physical-1"] as const;
const SECRET = { secret: new Uint8Array(32).fill(7) };

/** A worker 7 of Dynamo's with one layout, as a package in each of its formats. */
function dynamoPackage(format: (typeof FORMATS)[number], change: Partial<DynamoDescriptor> = {}): Uint8Array {
  const raw = rawOf(change);
  return encodeDynamoPackage(format === "dynamo-1.0" ? raw : kvbmOf(raw, null, "Unknown"), format);
}

describe.each(FORMATS)("a package in %s", (format) => {
  test("has no names: layouts are called by their ids, and the agent by its name on the wire", async () => {
    await using here = await openLocal();
    const peer = await here.importMetadata(dynamoPackage(format));
    expect(peer.workerId).toBe(7n);
    expect(peer.agentName).toBe("w");
    expect(peer.layouts.map(({ name }) => name)).toEqual(["layout-0"]);
    expect(peer.layout("layout-0").handle).toBe(makeHandle(7n, 0));
  });

  test("has no generation: handles have none, and a known worker is taken again only after forget()", async () => {
    await using here = await openLocal();
    const bytes = dynamoPackage(format);
    const peer = await here.importMetadata(bytes);
    expect(peer.generation).toBe(0);
    expect(handleGeneration(peer.layout("layout-0").handle)).toBe(0);
    const { registry } = here;
    await refused("DUPLICATE_WORKER", here.importMetadata(bytes));
    await refused("DUPLICATE_WORKER", peer.update(bytes));
    expect(here.registry).toBe(registry);
    await peer.forget();
    const again = await here.importMetadata(bytes);
    expect(again.layouts.length).toBe(1);
  });

  test("of two imports at once exactly one succeeds", async () => {
    await using here = await openLocal();
    const bytes = dynamoPackage(format);
    const both = await Promise.allSettled([here.importMetadata(bytes), here.importMetadata(bytes)]);
    expect(both.filter(({ status }) => status === "fulfilled").length).toBe(1);
    expect(here.peers.length).toBe(1);
  });

  test("has no proof: refused while there is a secret, taken with acceptUnauthenticated", async () => {
    const bytes = dynamoPackage(format);
    await using strict = await openLocal(SECRET);
    await refused("METADATA_UNAUTHENTICATED", strict.importMetadata(bytes));
    expect(strict.peers).toEqual([]);
    await using lenient = await openLocal({ ...SECRET, acceptUnauthenticated: true });
    expect((await lenient.importMetadata(bytes)).workerId).toBe(7n);
  });

  nixlTest(
    "has no fingerprint: a layout here that has one meets it with a warning, and the bytes arrive",
    async () => {
      await using pair = await openPair();
      await using theirs = await pair.b.register(systemSpec("theirs"));
      const peer = await pair.a.importMetadata(await pair.b.exportMetadata({ format }));
      const remote = peer.layout("layout-0");
      expect(remote.fingerprint).toBeNull();
      await using mine = await pair.a.register(systemSpec("mine", SMALL, { fingerprint: "model-7" }));
      await mine.fill(0x5a);
      const request = { source: mine, destination: remote, sourceBlocks: [0], destinationBlocks: [1] };
      expect(pair.a.explain(request).warnings.join()).toContain("Only the source has a fingerprint");
      await pair.a.transfer(request);
      expect((await theirs.read(1)).every((byte) => byte === 0x5a)).toBe(true);
    },
  );

  nixlTest(
    "says neither who it is for nor how long it holds: an export that asks for it is refused",
    async () => {
      await using here = await openRemote();
      for (const [field, options] of [
        ["expiresAtMs", { expiresInMs: 1_000 }],
        ["audience", { audience: [9n] }],
        ["layouts", { layouts: [] }],
      ] as const)
        expect(await refused("INVALID_CONFIG", here.exportMetadata({ format, ...options }))).toMatchObject({
          details: { field, format },
        });
    },
  );

  test("claims our worker id, or our agent's name: refused, and nothing stays", async () => {
    await using same = await openLocal({ workerId: 7n });
    await refused("DUPLICATE_WORKER", same.importMetadata(dynamoPackage(format)));
    await using named = await openLocal({ agentName: "w" });
    await refused("AGENT_MISMATCH", named.importMetadata(dynamoPackage(format)));
    expect([...same.peers, ...named.peers]).toEqual([]);
  });

  test("has disk layouts without a path: they can be reached only with the owner's help", async () => {
    await using here = await openLocal();
    const peer = await here.importMetadata(
      dynamoPackage(format, {
        location: { Disk: 9n },
        nixl_metadata: { agent_name: "w", mem_type: "File", device_id: 9n },
        memory_descriptors: [{ addr: 0n, size: 4_096n }],
      }),
    );
    expect(peer.layout("layout-0")).toMatchObject({ stagedOnly: true, storage: { kind: "disk" } });
  });
});

nixlTest(
  "memory that the caller owns is described where it lies: one region, or one for each layer",
  async () => {
    await using here = await openRemote({ agentName: "builder" });
    const config = {
      numBlocks: 2,
      numLayers: 3,
      outerDim: 2,
      pageSize: 4,
      innerDim: 8,
      dtypeWidthBytes: 2,
    } as const;
    const layerBytes = 2 * 2 * 4 * 8 * 2;
    const backing = new Uint8Array(new ArrayBuffer(2 * 3 * layerBytes));
    const start = Number(ptr(backing.buffer));
    const regionsOf = (arrangement: string): { address: number; size: number }[] =>
      arrangement === "fully-contiguous"
        ? [{ address: start, size: 3 * layerBytes }]
        : [0, 1, 2].map((layer) => ({ address: start + (3 + layer) * layerBytes, size: layerBytes }));
    for (const arrangement of ["fully-contiguous", "layer-separate/block-first"] as const)
      await here.register({
        name: arrangement,
        config,
        arrangement,
        memory: { kind: "external", storage: "system", regions: regionsOf(arrangement) },
      });
    const bytes = await here.exportMetadata({ format: "dynamo-1.0" });
    const { worker_address: address, layouts } = decodeDynamoPackage(bytes, "dynamo-1.0");
    for (const [index, { layout }] of layouts.entries()) {
      const arrangement = index === 0 ? "fully-contiguous" : "layer-separate/block-first";
      expect(layout).toMatchObject({
        location: "System",
        layout_config: { num_blocks: 2n, num_layers: 3n, outer_dim: 2n, page_size: 4n, inner_dim: 8n },
        nixl_metadata: { agent_name: address.nixl_agent_name, mem_type: "Dram", device_id: 0n },
        layout_type_details:
          index === 0 ? { FullyContiguous: {} } : { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
      });
      expect(layout.memory_descriptors).toEqual(
        regionsOf(arrangement).map((region) => ({ addr: BigInt(region.address), size: BigInt(region.size) })),
      );
    }
    expect(layouts.length).toBe(2);
    expect(address.nixl_agent_name).toStartWith("builder");
    expect(backing.every((byte) => byte === 0)).toBe(true);
  },
);
