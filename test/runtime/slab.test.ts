// Many small pieces to and from host memory of a peer that helps: gathered here, one write or read, scattered there.
import { expect, test } from "bun:test";
import type { Explanation, LayoutConfig, LayoutSpec, LocalLayout } from "../../index.ts";
import { likelyTransport } from "../../lib/runtime/nixl-transport.ts";
import { refused } from "./helpers/refusal.ts";
import { nixlTest, openPair, systemSpec, until, type Pair } from "./helpers/transports.ts";

/** Rows of 64 bytes where the orders differ. */
const CONFIG: LayoutConfig = {
  numBlocks: 64,
  numLayers: 3,
  outerDim: 2,
  pageSize: 4,
  numHeads: 4,
  headDim: 32,
};
const CHUNKED = { sendBytes: 2 ** 16, receiveBytes: 2 ** 16, chunkBytes: 2 ** 15 };

async function known(pair: Pair, near: LayoutSpec, far: LayoutSpec) {
  const here = await pair.a.register(near);
  const there = await pair.b.register(far);
  const { b } = await pair.meetBoth();
  const remote = b.layout("there");
  const explain = (): Explanation =>
    pair.a.explain({ source: here, sourceBlocks: EVEN, destination: remote, destinationBlocks: ODD });
  // The peer helps from its first word on.
  await until("the peer is heard", () => methods(explain()).includes("staged/slab"));
  return { here, there, remote, explain };
}

const EVEN = Array.from({ length: 30 }, (_unused, index) => (index * 14) % 60);
const ODD = Array.from({ length: 30 }, (_unused, index) => ((index * 22) % 60) + 1);
const methods = (explanation: Explanation): string[] =>
  explanation.legs.flatMap(({ hops }) =>
    hops.flatMap(({ candidates }) => candidates.map(({ method }) => method)),
  );

/** The bytes of one head of one token, wherever the arrangement has them: both sides are read in one form. */
async function bytesOf(layout: LocalLayout, blocks: readonly number[]): Promise<string[]> {
  return await layout.checksums(blocks);
}

for (const [way, order, arrangement] of [
  ["write", "nhd", "layer-separate/block-first"],
  ["write", "hnd", "fully-contiguous"],
  ["read", "nhd", "layer-separate/block-second"],
  ["read", "hnd", "fully-contiguous"],
] as const)
  nixlTest(
    `${way} through slabs in many chunks, to a side that is ${arrangement} in order ${order}: bytes, and guards untouched`,
    async () => {
      await using pair = await openPair({ staging: CHUNKED });
      const { here, there, remote } = await known(
        pair,
        systemSpec("here", CONFIG),
        systemSpec("there", CONFIG, { order, arrangement }),
      );
      const [from, to] = way === "write" ? [here, there] : [there, here];
      await from.fill({ random: 11 });
      await to.fill(0xee);
      const transfer = pair.a.transfer({
        source: way === "write" ? here : remote,
        sourceBlocks: EVEN,
        destination: way === "write" ? remote : here,
        destinationBlocks: ODD,
        method: "staged/slab",
        checksum: false,
      });
      expect(await transfer).toMatchObject({
        settlement: "done",
        bytes: EVEN.length * here.config.blockBytes,
      });
      expect(await bytesOf(to, ODD)).toEqual(await bytesOf(from, EVEN));
      const guard = new Set([0xee]);
      for (let block = 0; block < 64; block++)
        if (!ODD.includes(block)) expect(new Set(await to.read(block))).toEqual(guard);
      // Nothing is held at either side: it goes again, the other way by NIXL alone.
      await pair.a.transfer({
        source: way === "write" ? here : remote,
        sourceBlocks: ODD,
        destination: way === "write" ? remote : here,
        destinationBlocks: EVEN,
        method: `nixl/${way}`,
      });
      expect(await bytesOf(to, EVEN)).toEqual(await bytesOf(from, ODD));
    },
    60_000,
  );

nixlTest(
  "layer by layer, and both ways at once over few chunks",
  async () => {
    await using pair = await openPair({ staging: CHUNKED });
    const { here, there, remote } = await known(
      pair,
      systemSpec("here", CONFIG),
      systemSpec("there", CONFIG, { order: "hnd" }),
    );
    await Promise.all([here.fill({ random: 1 }), there.fill({ random: 2 })]);
    const low = Array.from({ length: 16 }, (_unused, index) => index);
    const [second, third, fourth] = [16, 32, 48].map((by) => low.map((block) => block + by)) as [
      number[],
      number[],
      number[],
    ];
    const layers: number[] = [];
    const out = pair.a.transfer({
      source: here,
      sourceBlocks: low,
      destination: remote,
      destinationBlocks: second,
      method: "staged/slab",
      layerwise: true,
    });
    const back = pair.a.transfer({
      source: remote,
      sourceBlocks: third,
      destination: here,
      destinationBlocks: fourth,
      method: "staged/slab",
    });
    for await (const layer of out.layers()) layers.push(layer);
    await Promise.all([out, back]);
    expect(layers).toEqual([0, 1, 2]);
    expect(await there.checksums(second)).toEqual(await here.checksums(low));
    expect(await here.checksums(fourth)).toEqual(await there.checksums(third));
  },
  60_000,
);

nixlTest(
  "explain shows both ways with their times and the sentence; a peer that was never heard leaves NIXL alone",
  async () => {
    await using pair = await openPair();
    const here = await pair.a.register(systemSpec("here", CONFIG));
    await pair.b.register(systemSpec("there", CONFIG, { order: "hnd" }));
    // Only one of the two knows the other.
    const b = await pair.meet();
    const request = {
      source: here,
      sourceBlocks: EVEN,
      destination: b.layout("there"),
      destinationBlocks: ODD,
    };
    expect(methods(pair.a.explain(request))).toEqual(["nixl/write"]);
    await refused("NO_ROUTE", pair.a.transfer({ ...request, method: "staged/slab" }));
    await pair.b.importMetadata(await pair.a.exportMetadata());
    await until("the peer is heard", () => methods(pair.a.explain(request)).length === 2);
    const [hop] = pair.a.explain(request).legs[0]?.hops ?? [];
    const slab = hop?.candidates.find(({ method }) => method === "staged/slab");
    const direct = hop?.candidates.find(({ method }) => method === "nixl/write");
    expect(slab?.micros).toBeLessThan(direct?.micros ?? 0);
    expect(slab?.reason).toContain("gathered in one piece");
    expect(hop?.method).toBe("staged/slab");
    // Whole blocks in the same order are few and large: NIXL by itself.
    const same = await pair.a.register(systemSpec("same", CONFIG, { order: "hnd" }));
    expect(pair.a.explain({ ...request, source: same }).legs[0]?.hops[0]?.method).toBe("nixl/write");
  },
  60_000,
);

test("the transport to a peer follows from both hosts and what UCX may use", () => {
  const own = { bootId: "x" };
  const clues = { own, peer: own, allowed: undefined, rdma: true };
  const elsewhere = { ...clues, peer: { bootId: "y" } };
  expect(likelyTransport(clues)).toBe("cma");
  expect(likelyTransport({ ...clues, allowed: "tcp,self" })).toBe("tcp");
  expect(likelyTransport({ ...clues, allowed: "^cma" })).toBe("cma");
  expect(likelyTransport({ ...clues, allowed: "^cma,sm,shm" })).toBe("tcp");
  expect(likelyTransport(elsewhere)).toBe("rdma");
  expect(likelyTransport({ ...elsewhere, rdma: false })).toBe("tcp");
  expect(likelyTransport({ ...elsewhere, allowed: "tcp" })).toBe("tcp");
  expect(likelyTransport({ ...elsewhere, allowed: "rc,tcp" })).toBe("rdma");
  expect(likelyTransport({ ...clues, peer: null })).toBeUndefined();
});
