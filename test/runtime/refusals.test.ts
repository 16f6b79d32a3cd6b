// What a caller may get wrong, at the door of the transport: refused with code, facts and remedy before the first byte
// moves.
import { describe, expect, test } from "bun:test";
import { ptr } from "bun:ffi";
import {
  makeHandle,
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type OpenOptions,
  type TransferRequest,
} from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { freshWorker, nixlTest, openLocal, openPair, SMALL, systemSpec } from "./helpers/transports.ts";

interface Bench extends AsyncDisposable {
  readonly transport: Transport;
  readonly source: LocalLayout;
  readonly destination: LocalLayout;
  /** Fails when any byte of the destination changed. */
  readonly untouched: () => void;
}

async function bench(
  source: Partial<LayoutSpec> = {},
  destination: Partial<LayoutSpec> = {},
): Promise<Bench> {
  const transport = await openLocal();
  const specOf = (name: string, given: Partial<LayoutSpec>): LayoutSpec =>
    ("components" in given ? { name, ...given } : { ...systemSpec(name), ...given }) as LayoutSpec;
  const from = await transport.register(specOf("source", source));
  const to = await transport.register(specOf("destination", destination));
  for (const component of Object.values(from.components)) await component.fill(1);
  for (const component of Object.values(to.components)) await component.fill(0xff);
  return {
    transport,
    source: from,
    destination: to,
    untouched() {
      for (const component of Object.values(to.components))
        for (const bytes of component.bytes) expect(bytes.every((byte) => byte === 0xff)).toBe(true);
    },
    [Symbol.asyncDispose]: async () => void (await transport.close()),
  };
}

/** Every way in must refuse alike: the transfer, the plan, and (without lists) the prepared transfer. */
async function refusedEverywhere(
  word: Parameters<typeof refused>[0],
  { transport, source, destination, untouched }: Bench,
  wrong: Partial<TransferRequest>,
): Promise<void> {
  const request = { source, destination, sourceBlocks: [0], destinationBlocks: [0], ...wrong };
  const transfer = transport.transfer(request);
  const error = await refused(word, transfer);
  expect(error.settlement).toBe("never-started");
  expect(transfer.state).toBe("failed");
  expect(await transfer.settled).toEqual({ settlement: "never-started", proof: "never-started" });
  await refused(word, () => transport.explain(request));
  untouched();
}

describe("block lists", () => {
  const cases: readonly (readonly [string, Parameters<typeof refused>[0], Partial<TransferRequest>])[] = [
    ["of unequal length", "LENGTH_MISMATCH", { sourceBlocks: [0, 1], destinationBlocks: [0] }],
    ["with an id past the end", "BLOCK_OUT_OF_RANGE", { sourceBlocks: [4] }],
    ["with a destination id past the end", "BLOCK_OUT_OF_RANGE", { destinationBlocks: [4] }],
    ["with an id past the end in a typed array", "BLOCK_OUT_OF_RANGE", { sourceBlocks: Uint32Array.of(4) }],
    ["with a negative id", "BLOCK_OUT_OF_RANGE", { destinationBlocks: [-1] }],
    ["with a fractional id", "BLOCK_OUT_OF_RANGE", { destinationBlocks: [0.5] }],
    ["with an id of 2^32", "BLOCK_OUT_OF_RANGE", { destinationBlocks: [2 ** 32] }],
    ["with an id above 2^32", "BLOCK_OUT_OF_RANGE", { sourceBlocks: [2 ** 32 + 1] }],
    ["with an id that is no number", "BLOCK_OUT_OF_RANGE", { sourceBlocks: ["0"] as never }],
    ["with a bigint", "BLOCK_OUT_OF_RANGE", { sourceBlocks: [0n] as never }],
    ["that are none", "LENGTH_MISMATCH", { sourceBlocks: "0" as never }],
    ["with a destination twice", "DUPLICATE_BLOCK", { sourceBlocks: [0, 1], destinationBlocks: [2, 2] }],
    ["of a space that the layout has not", "LENGTH_MISMATCH", { sourceBlocks: { other: [0] } }],
  ];
  for (const [what, word, wrong] of cases)
    test(`${what} are refused`, async () => {
      await using made = await bench();
      await refusedEverywhere(word, made, wrong);
    });

  test("that overlap over the same memory are refused, within one layout and between two that alias", async () => {
    await using made = await bench();
    const { transport, source } = made;
    await refusedEverywhere("OVERLAP", made, {
      destination: source,
      sourceBlocks: [0, 1],
      destinationBlocks: [1, 2],
    });
    const alias = await transport.register({
      ...systemSpec("alias"),
      memory: { kind: "external", storage: "system", regions: source.regions },
    } as LayoutSpec);
    await refusedEverywhere("OVERLAP", made, { destination: alias });
    // The same blocks of other memory are no overlap.
    expect(
      (await transport.transfer({ source, destination: alias, sourceBlocks: [0], destinationBlocks: [1] }))
        .bytes,
    ).toBe(source.config.blockBytes);
  });

  test("may name a source twice", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    await source.fill(7, { blocks: [2] });
    await transport.transfer({ source, destination, sourceBlocks: [2, 2], destinationBlocks: [0, 3] });
    expect(await destination.checksums([0, 3])).toEqual(await source.checksums([2, 2]));
    expect((await destination.read(1)).every((byte) => byte === 0xff)).toBe(true);
  });

  test("are copied at the call: changing them afterwards changes nothing", async () => {
    await using made = await bench(
      { config: { ...SMALL, numBlocks: 4096 } },
      { config: { ...SMALL, numBlocks: 4096 } },
    );
    const { transport, source, destination } = made;
    await source.fill("sequential");
    const ids = Uint32Array.from({ length: 4096 }, (_unused, index) => index);
    const first = transport.transfer({ source, destination, sourceBlocks: [0], destinationBlocks: [4095] });
    const second = transport.transfer({
      source,
      destination,
      sourceBlocks: ids,
      destinationBlocks: ids,
      after: [first],
    });
    ids.fill(9);
    await second;
    expect(await destination.checksums([0, 77, 4095])).toEqual(await source.checksums([0, 77, 4095]));
  });
});

describe("ranges and windows", () => {
  for (const [what, layers] of [
    ["inverted", { start: 1, end: 0 }],
    ["empty", { start: 1, end: 1 }],
    ["past the end", { start: 0, end: 3 }],
    ["negative", { start: -1, end: 1 }],
    ["fractional", { start: 0, end: 1.5 }],
  ] as const)
    test(`a layer range that is ${what} is refused`, async () => {
      await using made = await bench();
      await refusedEverywhere("LAYER_RANGE", made, { layers, partial: true });
    });

  test("windows that do not meet are refused", async () => {
    const config: LayoutConfig = {
      numBlocks: 4,
      numLayers: 2,
      outerDim: 2,
      pageSize: 4,
      numHeads: 2,
      headDim: 8,
    };
    await using made = await bench(
      { config: { ...config, headWindow: { start: 0, total: 4 } } },
      { config: { ...config, headWindow: { start: 2, total: 4 } } },
    );
    await refusedEverywhere("INCOMPATIBLE_LAYOUTS", made, { partial: true });
  });

  test("a part of the destination is filled only when that was asked for", async () => {
    const config: LayoutConfig = {
      numBlocks: 4,
      numLayers: 2,
      outerDim: 2,
      pageSize: 4,
      numHeads: 4,
      headDim: 8,
    };
    await using made = await bench(
      { config: { ...config, numHeads: 2, headWindow: { start: 0, total: 4 } } },
      { config },
    );
    await refusedEverywhere("PARTIAL", made, {});
    const { transport, source, destination } = made;
    const half = await transport.transfer({
      source,
      destination,
      sourceBlocks: [0],
      destinationBlocks: [0],
      partial: true,
    });
    expect(half.coverage).toBe(0.5);
    const bytes = await destination.read(0);
    expect(bytes.filter((byte) => byte === 1).byteLength).toBe(bytes.byteLength / 2);
  });

  test("tokens past the end of the lists are refused", async () => {
    await using made = await bench();
    await refusedEverywhere("LENGTH_MISMATCH", made, {
      tokens: { sourceStart: 0, destinationStart: 2, count: 3 },
      partial: true,
    });
  });
});

describe("layouts that do not fit", () => {
  test("different fingerprints are refused", async () => {
    await using made = await bench({ fingerprint: "llama" }, { fingerprint: "qwen" });
    await refusedEverywhere("INCOMPATIBLE_LAYOUTS", made, {});
  });

  test("different element widths are refused", async () => {
    await using made = await bench(
      { config: { ...SMALL, dtype: "bf16" } },
      { config: { ...SMALL, dtype: "fp8", innerDim: 32 } },
    );
    await refusedEverywhere("INCOMPATIBLE_LAYOUTS", made, {});
  });

  test("a component that only the destination has is no surprise", async () => {
    const kv = { config: SMALL, memory: { kind: "system" as const } };
    await using made = await bench(
      { components: { kv } } as Partial<LayoutSpec>,
      { components: { kv, indexer: kv } } as Partial<LayoutSpec>,
    );
    await refusedEverywhere("PARTIAL", made, {});
  });
});

describe("handles", () => {
  test("that nobody gave out are unknown", async () => {
    await using made = await bench();
    const foreign = makeHandle(0xdead_beefn, 0);
    const error = await refused(
      "UNKNOWN_HANDLE",
      made.transport.transfer({
        source: foreign,
        destination: made.destination,
        sourceBlocks: [0],
        destinationBlocks: [0],
      }),
    );
    expect(error.message).toContain(String(0xdead_beefn));
    await refused("UNKNOWN_HANDLE", () => made.transport.layout(foreign));
    made.untouched();
  });

  test("of another transport of this process are unknown, also under the same worker id", async () => {
    await using made = await bench();
    await using other = await openLocal();
    await using twin = await openLocal({ workerId: made.transport.workerId });
    for (const stranger of [
      await other.register(systemSpec("stranger")),
      await twin.register(systemSpec("twin")),
    ])
      await refusedEverywhere("UNKNOWN_HANDLE", made, { source: stranger });
  });

  test("that are neither layouts nor handles are refused", async () => {
    await using made = await bench();
    for (const source of [undefined, null, 7, "pool", {}] as never[])
      await refusedEverywhere("UNKNOWN_HANDLE", made, { source });
  });

  test("of an unregistered layout are stale", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    const gone = source.handle;
    await source.unregister();
    await refusedEverywhere("STALE_HANDLE", made, { source: gone });
    const again = await transport.register(systemSpec("again"));
    expect(again.record.layoutId).toBe(2);
    await refused("STALE_HANDLE", () => transport.layout(gone));
    await refused("STALE_HANDLE", source.read(0));
    await refused("STALE_HANDLE", source.write(0, new Uint8Array(512)));
    await refused("STALE_HANDLE", source.fill(1));
    await refused("STALE_HANDLE", source.checksums([0]));
    await refused("STALE_HANDLE", () => source.bytes);
    expect(
      (await transport.transfer({ source: again, destination, sourceBlocks: [0], destinationBlocks: [0] }))
        .bytes,
    ).toBe(512);
  });
});

describe("options of a transfer", () => {
  for (const deadlineMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, "1000" as never])
    test(`a deadline of ${deadlineMs} is refused`, async () => {
      await using made = await bench();
      const { transport, source, destination } = made;
      await refused(
        "INVALID_CONFIG",
        transport.transfer({ source, destination, sourceBlocks: [0], destinationBlocks: [0], deadlineMs }),
      );
      made.untouched();
    });

  test("a notification that is neither bytes nor text is refused before bytes move", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    await refused(
      "INVALID_CONFIG",
      transport.transfer({
        source,
        destination,
        sourceBlocks: [0],
        destinationBlocks: [0],
        notify: 17 as never,
      }),
    );
    made.untouched();
  });

  test("a method that no executor here has is refused", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    const transfer = transport.transfer({
      source,
      destination,
      sourceBlocks: [0],
      destinationBlocks: [0],
      method: "carrier-pigeon",
    });
    const error = await transfer.catch((reason: unknown) => reason);
    expect(error).toHaveProperty("code");
    expect(error).toHaveProperty("settlement", "never-started");
    made.untouched();
  });

  test("nothing at all is refused, not thrown", async () => {
    await using made = await bench();
    for (const nonsense of [undefined, null, 7, {}] as never[]) {
      const error = await made.transport.transfer(nonsense).catch((reason: unknown) => reason);
      expect((error as { code: string }).code).toStartWith("ERR_KVF_");
    }
    made.untouched();
  });
});

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

describe("without NIXL", () => {
  test("Dynamo's formats and notifications are refused with the remedy, and local work goes on", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const)
      await refused("NO_NIXL", transport.exportMetadata({ format }));
    await using other = await openLocal();
    const peer = await other.importMetadata(await transport.exportMetadata());
    await refused("NO_NIXL", other.notify(peer, "hello"));
    expect(
      (await transport.transfer({ source, destination, sourceBlocks: [0], destinationBlocks: [0] })).bytes,
    ).toBe(512);
  });
});

nixlTest("a transfer to a peer with NIXL is refused with the remedy where NIXL is missing", async () => {
  await using pair = await openPair();
  await using made = await bench();
  const { transport, source, destination } = made;
  const there = await pair.b.register(systemSpec("there"));
  await there.fill(0xee);
  const peer = await transport.importMetadata(await pair.b.exportMetadata());
  for (const request of [
    { source, destination: peer.layout("there") },
    { source: peer.layout("there"), destination },
  ]) {
    const error = await refused(
      "NO_NIXL",
      transport.transfer({ ...request, sourceBlocks: [0], destinationBlocks: [0] }),
    );
    expect(error.remedy).toMatch(/nixl/i);
  }
  made.untouched();
  expect(there.bytes[0]?.every((byte) => byte === 0xee)).toBe(true);
});

nixlTest("a push into a layout that peers may only read is refused, and reading it is not", async () => {
  await using pair = await openPair();
  const { a, b } = pair;
  const here = await a.register(systemSpec("here"));
  const there = await b.register({ ...systemSpec("there"), access: "read" } as LayoutSpec);
  await there.fill(0x5a);
  const peer = await pair.meet();
  const ids = { sourceBlocks: [0], destinationBlocks: [1] };
  const error = await refused(
    "ACCESS",
    a.transfer({ source: here, destination: peer.layout("there"), ...ids }),
  );
  expect(error.settlement).toBe("never-started");
  await a.transfer({ source: peer.layout("there"), destination: here, ...ids });
  expect((await here.read(1)).every((byte) => byte === 0x5a)).toBe(true);
  expect(there.bytes[0]?.every((byte) => byte === 0x5a)).toBe(true);
});

describe("metadata", () => {
  test("that is no package, cut, grown, flipped or of a later version is refused and leaves nothing", async () => {
    await using exporter = await openLocal();
    await using importer = await openLocal();
    await exporter.register(systemSpec("x"));
    const bytes = await exporter.exportMetadata();
    const before = importer.registry;
    const grown = new Uint8Array([...bytes, 0]);
    const later = bytes.slice();
    for (const wrong of [
      new Uint8Array(0),
      new TextEncoder().encode("hello"),
      grown,
      null,
      "text",
    ] as never[])
      await refused("METADATA_MALFORMED", importer.importMetadata(wrong));
    for (let length = 0; length < bytes.byteLength; length += 7)
      await refused("METADATA_MALFORMED", importer.importMetadata(bytes.slice(0, length)));
    for (let at = 0; at < bytes.byteLength; at++) {
      later.set(bytes);
      later[at] = (later[at] ?? 0) ^ (1 << (at % 8));
      await refused("METADATA_MALFORMED", importer.importMetadata(later));
    }
    expect(importer.registry).toBe(before);
    expect((await importer.importMetadata(bytes)).layout("x").name).toBe("x");
  });

  test("from this very worker is refused", async () => {
    await using transport = await openLocal();
    await transport.register(systemSpec("x"));
    await refused("DUPLICATE_WORKER", transport.importMetadata(await transport.exportMetadata()));
    expect(transport.remoteLayouts).toEqual([]);
  });

  test("of another worker with this worker's agent name, or a known agent name, is refused", async () => {
    await using importer = await openLocal({ agentName: "me" });
    await using thief = await openLocal({ agentName: "me" });
    await refused("AGENT_MISMATCH", importer.importMetadata(await thief.exportMetadata()));
    await using known = await openLocal({ agentName: "known" });
    await using double = await openLocal({ agentName: "known" });
    await importer.importMetadata(await known.exportMetadata());
    await refused("AGENT_MISMATCH", importer.importMetadata(await double.exportMetadata()));
    expect(importer.peers.map((peer) => peer.workerId)).toEqual([known.workerId]);
  });

  test("that has expired, or is for others, is refused", async () => {
    await using exporter = await openLocal();
    await using importer = await openLocal();
    const soon = await exporter.exportMetadata({ expiresInMs: 1 });
    await Bun.sleep(5);
    await refused("METADATA_EXPIRED", importer.importMetadata(soon));
    const others = await exporter.exportMetadata({ audience: [importer.workerId + 1n] });
    await refused("ACCESS", importer.importMetadata(others));
    const ours = await exporter.exportMetadata({ audience: [importer.workerId], expiresInMs: 60_000 });
    expect((await importer.importMetadata(ours)).workerId).toBe(exporter.workerId);
  });

  test("without the secret that both should share is refused", async () => {
    const secret = new Uint8Array(32).fill(7);
    await using open = await openLocal();
    await using closed = await openLocal({ secret });
    await using other = await openLocal({ secret: new Uint8Array(32).fill(8) });
    await using friend = await openLocal({ secret });
    await refused("METADATA_UNAUTHENTICATED", closed.importMetadata(await open.exportMetadata()));
    await refused("METADATA_UNAUTHENTICATED", closed.importMetadata(await other.exportMetadata()));
    expect((await closed.importMetadata(await friend.exportMetadata())).workerId).toBe(friend.workerId);
  });

  test("options of an export that make no sense are refused", async () => {
    await using transport = await openLocal();
    await using other = await openLocal();
    const stranger = await other.register(systemSpec("stranger"));
    await refused("INVALID_CONFIG", transport.exportMetadata({ expiresInMs: -1 }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ expiresInMs: Number.NaN }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ audience: [-1] }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ audience: [0.5] }));
    await refused("UNKNOWN_HANDLE", transport.exportMetadata({ layouts: [stranger] }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ format: "pigeon" as never }));
  });

  nixlTest("over NIXL, a mutated package never disturbs a later good import", async () => {
    await using pair = await openPair();
    await pair.b.register(systemSpec("x"));
    const bytes = await pair.b.exportMetadata();
    for (const at of [0, 5, 100, bytes.byteLength - 1]) {
      const flipped = bytes.slice();
      flipped[at] = (flipped[at] ?? 0) ^ 1;
      await refused("METADATA_MALFORMED", pair.a.importMetadata(flipped));
    }
    const peer = await pair.a.importMetadata(bytes);
    const own = await pair.a.register(systemSpec("own"));
    await own.fill(3);
    await pair.a.transfer({
      source: own,
      destination: peer.layout("x"),
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
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
