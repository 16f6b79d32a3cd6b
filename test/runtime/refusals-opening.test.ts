// What a caller may get wrong with options, configs and memory: refused, and nothing of it stays.
import { ptr } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import {
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type OpenOptions,
} from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { freshWorker, nixlTest, openLocal, SMALL, systemSpec } from "./helpers/transports.ts";

describe("registration", () => {
  const bad: readonly (readonly [string, Partial<LayoutConfig>])[] = [
    ["no blocks", { numBlocks: 0 }],
    ["a fraction of a layer", { numLayers: 1.5 }],
    ["three outers", { outerDim: 3 as never }],
    ["an alignment that is no power of two", { alignment: 48 }],
    ["a product above 2^53", { numBlocks: 2 ** 30, innerDim: 2 ** 30 }],
    ["a size that is no number", { pageSize: "16" as never }],
  ];
  for (const [what, config] of bad)
    test(`a config with ${what} is refused and uses no id`, async () => {
      await using transport = await openLocal();
      const before = transport.registry;
      await refused("INVALID_CONFIG", transport.register(systemSpec("bad", { ...SMALL, ...config })));
      expect(transport.registry).toBe(before);
      expect((await transport.register(systemSpec("good"))).record.layoutId).toBe(0);
    });

  test("more memory than there is address space is refused as such", async () => {
    await using transport = await openLocal();
    const before = transport.registry;
    const huge = { ...SMALL, numBlocks: 2 ** 31, innerDim: 2 ** 14, pageSize: 2 };
    const error = await refused("OUT_OF_MEMORY", transport.register(systemSpec("huge", huge)));
    expect(error.details["bytes"]).toBeGreaterThan(2 ** 46);
    expect(transport.registry).toBe(before);
  });

  test("foreign regions that are too few, too small, misaligned or nowhere are refused", async () => {
    await using transport = await openLocal();
    const memory = new Uint8Array(new ArrayBuffer(8192));
    const address = Number(ptr(memory));
    const register = (regions: { address: number; size: number }[], config = SMALL): Promise<LocalLayout> =>
      transport.register({
        config,
        arrangement: "fully-contiguous",
        memory: { kind: "external", storage: "system", regions },
      });
    await refused("INVALID_CONFIG", register([]));
    await refused("INVALID_CONFIG", register([{ address, size: 2047 }]));
    await refused("INVALID_CONFIG", register([{ address: 0, size: 2048 }]));
    await refused("INVALID_CONFIG", register([{ address: -4096, size: 2048 }]));
    await refused("INVALID_CONFIG", register([{ address: Number.NaN, size: 2048 }]));
    await refused("INVALID_CONFIG", register([{ address: Number.MAX_SAFE_INTEGER, size: 2048 }]));
    await refused(
      "INVALID_CONFIG",
      register([{ address: address + 1, size: 2048 }], { ...SMALL, alignment: 64 }),
    );
    await refused("INVALID_CONFIG", transport.register(undefined as never));
    await refused("INVALID_CONFIG", transport.register({} as never));
    expect((await register([{ address, size: 2048 }])).record.layoutId).toBe(0);
  });

  test("memory of a kind that this process has not is refused with what is missing", async () => {
    await using transport = await openLocal();
    await refused(
      "NO_CUDA",
      transport.register({ ...systemSpec("gpu"), memory: { kind: "device" } } as LayoutSpec),
    );
    expect(transport.localLayouts).toEqual([]);
  });

  test("the 65,536th layout is refused, and an unregistered id is used again", async () => {
    await using transport = await openLocal();
    const memory = new Uint8Array(new ArrayBuffer(4096));
    const spec: LayoutSpec = {
      config: SMALL,
      arrangement: "fully-contiguous",
      memory: {
        kind: "external",
        storage: "system",
        regions: [{ address: Number(ptr(memory)), size: 4096 }],
      },
    };
    const layouts: LocalLayout[] = [];
    for (let count = 0; count < 65_535; count++) layouts.push(await transport.register(spec));
    expect(layouts.at(-1)?.record.layoutId).toBe(65_534);
    const before = transport.registry;
    await refused("TOO_MANY_LAYOUTS", transport.register(spec));
    expect(transport.registry).toBe(before);
    await layouts[300]?.unregister();
    const again = await transport.register(spec);
    expect(again.record.layoutId).toBe(300);
    expect(again.handle).not.toBe(layouts[300]?.handle);
    await refused("TOO_MANY_LAYOUTS", transport.register(spec));
    // The id is used again, the handle is not.
    const gone = layouts[300];
    if (gone === undefined) throw new Error("there is no layout 300");
    const request = { source: gone, destination: again, sourceBlocks: [0], destinationBlocks: [1] };
    await refused("STALE_HANDLE", transport.transfer(request));
    await refused("STALE_HANDLE", () => transport.layout(gone.handle));
  });
});

describe("opening", () => {
  const bad: readonly (readonly [string, unknown])[] = [
    ["no worker id", {}],
    ["a negative worker id", { workerId: -1n }],
    ["a worker id of 2^64", { workerId: 2n ** 64n }],
    ["a worker id above 2^53 as a number", { workerId: 2 ** 53 }],
    ["a fractional worker id", { workerId: 1.5 }],
    ["a worker id as text", { workerId: "1" }],
    ["an option that does not exist", { workerId: 1n, wrokers: 2 }],
    ["an empty agent name", { workerId: 1n, agentName: "" }],
    ["a short secret", { workerId: 1n, secret: new Uint8Array(4) }],
    ["a deadline of zero", { workerId: 1n, deadlineMs: 0 }],
    ["nothing", undefined],
  ];
  for (const [what, options] of bad)
    test(`with ${what} is refused`, async () => {
      await refused("INVALID_CONFIG", Transport.open(options as OpenOptions));
    });

  test("with a NIXL library that is not there is refused, for it was named", async () => {
    const error = await refused(
      "NO_NIXL",
      Transport.open({ workerId: 1n, cuda: false, nixl: { library: "/nowhere/libnixl_capi.so" } }),
    );
    expect(error.details["library"]).toBe("/nowhere/libnixl_capi.so");
  });

  nixlTest("with a backend that NIXL has not is refused, for it was named", async () => {
    await refused(
      "NIXL",
      Transport.open({ workerId: 1n, cuda: false, nixl: { backends: { ucx: {}, "CARRIER-PIGEON": {} } } }),
    );
  });

  test("the largest worker id is one", async () => {
    await using transport = await openLocal({ workerId: 2n ** 64n - 1n });
    expect((await transport.register(systemSpec("x"))).handle & (2n ** 64n - 1n)).toBe(2n ** 64n - 1n);
  });
});

test("a closed transport refuses everything, and closing again says the same", async () => {
  const transport = await openLocal({ workerId: freshWorker() });
  const layout = await transport.register(systemSpec("x"));
  const peerless = await openLocal();
  const peer = await transport.importMetadata(await peerless.exportMetadata());
  const report = await transport.close();
  expect(await transport.close()).toBe(report);
  expect(report).toEqual({ layouts: [], stuck: 0, inDoubt: 0 });
  const request = { source: layout, destination: layout, sourceBlocks: [0], destinationBlocks: [1] };
  await refused("CLOSED", transport.register(systemSpec("y")));
  await refused("CLOSED", transport.transfer(request));
  await refused("CLOSED", () => transport.explain(request));
  await refused("CLOSED", () => transport.prepare({ source: layout, destination: layout }));
  await refused("CLOSED", transport.exportMetadata());
  await refused("CLOSED", transport.importMetadata(new Uint8Array(8)));
  await refused("CLOSED", transport.notify(peer, "x"));
  await refused("CLOSED", () => transport.notifications());
  await refused("CLOSED", () => transport.expect({ layout, blocks: [0], from: peer, tag: "x" }));
  await refused("CLOSED", peer.update(new Uint8Array(8)));
  await refused("STALE_HANDLE", layout.read(0));
  await peerless.close();
});
