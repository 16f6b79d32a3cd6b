// What a caller may get wrong with a transfer: refused with code, facts and remedy before the first byte moves.
import { describe, expect, test } from "bun:test";
import { makeHandle, type LayoutConfig, type LayoutSpec, type TransferRequest } from "../../index.ts";
import { bench, refusedEverywhere } from "./helpers/bench.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, SMALL, systemSpec } from "./helpers/transports.ts";

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
