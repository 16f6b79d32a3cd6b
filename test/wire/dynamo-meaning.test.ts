import { describe, expect, test } from "bun:test";
import { makeHandle } from "../../lib/core/handle.ts";
import type { PackageLayout } from "../../lib/core/package.ts";
import {
  decodeDynamoPackage,
  decodePackage,
  encodeDynamoPackage,
  encodePackage,
} from "../../lib/wire/index.ts";
import type { DynamoFormat, DynamoPackage } from "../../lib/wire/index.ts";
import { componentOf, CONFIG, kvbmOf, layoutOf, packageOf, rawOf } from "./builders.ts";
import { malformedAt, refusalOf } from "./refusal.ts";

const FORMATS = ["dynamo-1.0", "kvbm-physical-1"] as const;
const HEADS = {
  numBlocks: 2,
  numLayers: 2,
  outerDim: 2,
  pageSize: 4,
  numHeads: 2,
  headDim: 4,
  dtypeBits: 16,
} as const;
const LS = { LayerSeparate: { block_dim: "BlockIsFirstDim" } } as const;

/** Why a raw package, which is well formed, means nothing. */
function meaningless(raw: DynamoPackage, format: DynamoFormat = "dynamo-1.0"): string {
  const bytes = encodeDynamoPackage(raw, format);
  // It is the meaning that is refused, not the spelling.
  expect(decodeDynamoPackage(bytes, format)).toStrictEqual(raw);
  return malformedAt(format, bytes.length, () => decodePackage(bytes)).reason;
}

function meaning(raw: DynamoPackage, format: DynamoFormat = "dynamo-1.0"): PackageLayout {
  const found = decodePackage(encodeDynamoPackage(raw, format));
  expect(found.format).toBe(format);
  const [layout] = found.layouts;
  if (layout === undefined) throw new Error("no layout came out");
  return layout;
}

describe("what a package of Dynamo's means", () => {
  test("worker, agent, blob, handle and the default labels", () => {
    const found = decodePackage(encodeDynamoPackage(rawOf(), "dynamo-1.0"));
    expect(found).toMatchObject({
      format: "dynamo-1.0",
      workerId: 7n,
      agentName: "w",
      wireName: "w",
      incarnation: 0,
      sequence: 0,
      issuedAtMs: null,
      expiresAtMs: null,
      audience: null,
      host: null,
    });
    expect(found.nixlMetadata).toEqual(new Uint8Array([0xaa, 0xbb]));
    expect(found.layouts[0]).toMatchObject({
      handle: makeHandle(7n, 0),
      name: "layout-0",
      tier: "G2",
      access: "read-write",
      fingerprint: null,
      stagedOnly: false,
    });
  });

  test("addresses of a fully contiguous layout by the crate's formula", () => {
    const [part] = meaning(rawOf()).components;
    // R = 4 tokens x 8 elements x 2 bytes.
    expect(part?.view).toMatchObject({
      strideOuter: 64,
      strideLayer: 128,
      strideBlock: 256,
      regionBytes: 512,
    });
    expect([...(part?.regionAddresses ?? [])]).toEqual([0x1000]);
    expect([...(part?.regionSizes ?? [])]).toEqual([4096]);
  });

  test("addresses of layer-separate layouts by the crate's formulas", () => {
    const regions = [
      { addr: 0x1000n, size: 256n },
      { addr: 0x2000n, size: 300n },
    ];
    const first = meaning(rawOf({ layout_type_details: LS, memory_descriptors: regions })).components[0];
    expect(first?.view).toMatchObject({
      strideOuter: 64,
      strideLayer: 0,
      strideBlock: 128,
      regionBytes: 256,
    });
    const second = meaning(
      rawOf({
        layout_type_details: { LayerSeparate: { block_dim: "BlockIsSecondDim" } },
        memory_descriptors: regions,
      }),
    ).components[0];
    expect(second?.view).toMatchObject({
      strideOuter: 128,
      strideLayer: 0,
      strideBlock: 64,
      regionBytes: 256,
    });
    expect([...(second?.regionAddresses ?? [])]).toEqual([0x1000, 0x2000]);
    expect([...(second?.regionSizes ?? [])]).toEqual([256, 300]);
  });

  test("an empty package is one of dynamo-1.0, whoever wrote it", () => {
    const empty = { ...rawOf(), layouts: [] };
    for (const format of FORMATS)
      expect(decodePackage(encodeDynamoPackage(empty, format))).toMatchObject({
        format: "dynamo-1.0",
        layouts: [],
      });
  });

  test("packages with layouts are told apart", () => {
    const raw = rawOf();
    expect(meaning(raw).name).toBe("layout-0");
    expect(meaning(kvbmOf(raw, null, "Unknown"), "kvbm-physical-1").name).toBe("layout-0");
  });

  test("locations become storage; devices keep their number", () => {
    const place = (
      location: "System" | "Pinned" | { Device: number },
      mem_type: "Dram" | "Vram",
      device_id: bigint,
    ) => meaning(rawOf({ location, nixl_metadata: { agent_name: "w", mem_type, device_id } }));
    expect(place("System", "Dram", 0n)).toMatchObject({
      tier: "G2",
      components: [{ storage: { kind: "system" } }],
    });
    expect(place("Pinned", "Dram", 0n)).toMatchObject({
      tier: "G2",
      components: [{ storage: { kind: "pinned" } }],
    });
    for (const device of [0, 5, 15, 16, 2 ** 32 - 1])
      expect(place({ Device: device }, "Vram", BigInt(device))).toMatchObject({
        tier: "G1",
        components: [{ storage: { kind: "device", device }, nixlDevice: device }],
      });
  });

  test("disk layouts come without addresses, for staged routes only", () => {
    const disk = meaning(
      rawOf({
        location: { Disk: 2n ** 64n - 1n },
        nixl_metadata: { agent_name: "w", mem_type: "File", device_id: 2n ** 64n - 1n },
        memory_descriptors: [{ addr: 0n, size: 4096n }],
      }),
    );
    expect(disk).toMatchObject({
      tier: "G3",
      stagedOnly: true,
      components: [{ storage: { kind: "disk" }, nixlDevice: 0 }],
    });
    expect(disk.components[0]?.regionAddresses.length).toBe(0);
    expect(disk.components[0]?.regionSizes.length).toBe(0);
  });

  test("descriptor version 0 is read as 1", () => {
    expect(meaning(rawOf({ version: 0 })).components[0]?.view.regionBytes).toBe(512);
  });

  test("inner shapes are orders; heads are not known there", () => {
    for (const [inner_shape, order] of [
      ["Unknown", ["layer", "outer", "page", "head"]],
      ["NHD", ["layer", "outer", "page", "head"]],
      ["HND", ["layer", "outer", "head", "page"]],
    ] as const) {
      const [part] = meaning(rawOf({}, { inner_shape })).components;
      expect(part?.order).toEqual(order);
      expect(part?.config).toMatchObject({
        headsKnown: false,
        numHeads: 1,
        headDim: 8,
        dtype: null,
        elementBits: 16,
      });
    }
  });

  test("block layouts of kvbm are orders, with heads where they are said", () => {
    for (const [layout, order] of [
      ["UniversalTP", ["head", "layer", "outer", "page"]],
      ["UniversalPP", ["layer", "head", "outer", "page"]],
      ["OperationalHND", ["layer", "outer", "head", "page"]],
      ["OperationalNHD", ["layer", "outer", "page", "head"]],
      [
        ["Head", "Page", "Outer", "Layer"],
        ["head", "page", "outer", "layer"],
      ],
    ] as const) {
      const [part] = meaning(kvbmOf(rawOf(), 2n, layout), "kvbm-physical-1").components;
      expect(part?.order).toEqual(order);
      expect(part?.config).toMatchObject({ headsKnown: true, numHeads: 2, headDim: 4 });
    }
  });

  test("an unknown block layout makes opaque tokens, whatever num_heads says", () => {
    const [part] = meaning(kvbmOf(rawOf(), 2n, "Unknown"), "kvbm-physical-1").components;
    expect(part?.config).toMatchObject({ headsKnown: false, numHeads: 1, headDim: 8 });
  });

  test("separate layers with a universal or custom layout are unknown ones, as the crate rebuilds them", () => {
    const raw = rawOf({
      layout_type_details: LS,
      memory_descriptors: [
        { addr: 0x1000n, size: 256n },
        { addr: 0x2000n, size: 256n },
      ],
    });
    for (const layout of ["UniversalTP", "UniversalPP", ["Head", "Head", "Head", "Head"]] as const) {
      const [part] = meaning(kvbmOf(raw, 2n, layout), "kvbm-physical-1").components;
      expect(part).toMatchObject({
        order: ["layer", "outer", "page", "head"],
        config: { headsKnown: false },
      });
    }
  });
});

describe("what is well formed and means nothing", () => {
  test("handles of another worker", () => {
    expect(meaningless(rawOf({}, {}, 8n))).toContain("worker 7");
    expect(meaningless(rawOf({}, {}, 2n ** 32n + 7n))).toContain("worker 7");
  });

  test("handles with reserved bits, and the id that no registry gives out", () => {
    expect(meaningless(rawOf({}, {}, 7n | (1n << 80n)))).toContain("reserved");
    expect(meaningless(rawOf({}, {}, 7n | (1n << 127n)))).toContain("reserved");
    expect(meaningless(rawOf({}, {}, 7n | (65_535n << 64n)))).toContain("65535");
  });

  test("one handle twice", () => {
    const raw = rawOf();
    expect(meaningless({ ...raw, layouts: [...raw.layouts, ...raw.layouts] })).toContain("twice");
  });

  test("a layout of another agent", () => {
    expect(
      meaningless(rawOf({ nixl_metadata: { agent_name: "v", mem_type: "Dram", device_id: 0n } })),
    ).toContain("agent");
    expect(
      meaningless(rawOf({ nixl_metadata: { agent_name: "ww", mem_type: "Dram", device_id: 0n } })),
    ).toContain("agent");
  });

  test("a later descriptor version", () => {
    expect(meaningless(rawOf({ version: 2 }))).toContain("version 2");
    expect(meaningless(rawOf({ version: 999 }))).toContain("version 999");
  });

  test("memory types that contradict the location, in every pair", () => {
    const right = new Map([
      ["System", "Dram"],
      ["Pinned", "Dram"],
      ["Device", "Vram"],
      ["Disk", "File"],
    ]);
    for (const [word, fitting] of right)
      for (const mem_type of ["Dram", "Vram", "Block", "Object", "File", "Unknown"] as const) {
        if (mem_type === fitting) continue;
        const location =
          word === "Device" ? { Device: 0 } : word === "Disk" ? { Disk: 0n } : (word as "System" | "Pinned");
        const raw = rawOf({ location, nixl_metadata: { agent_name: "w", mem_type, device_id: 0n } });
        expect(meaningless(raw)).toContain(mem_type);
      }
  });

  test("a device id that contradicts the location, or that no number holds", () => {
    const vram = { agent_name: "w", mem_type: "Vram", device_id: 1n } as const;
    expect(meaningless(rawOf({ location: { Device: 0 }, nixl_metadata: vram }))).toContain("device_id");
    const far = { agent_name: "w", mem_type: "Dram", device_id: 2n ** 53n } as const;
    expect(meaningless(rawOf({ nixl_metadata: far }))).toContain("2^53");
  });

  test("sizes whose product wraps in 64 bits", () => {
    // 2^32 x 2^32 blocks of a few bytes: 2^64 x ... is 0 in machine arithmetic, which any region satisfies.
    const wrapped = rawOf(
      {},
      { page_size: 2n ** 31n, inner_dim: 2n ** 31n, num_blocks: 4n, num_layers: 1n, outer_dim: 1n },
    );
    expect(meaningless(wrapped)).toContain("2^53");
    expect(meaningless(rawOf({}, { num_blocks: 2n ** 63n }))).toContain("2^53");
    expect(meaningless(rawOf({}, { num_blocks: 2n ** 53n - 1n }))).toContain("numBlocks");
  });

  test("zero, odd and oversized dimensions", () => {
    for (const field of ["num_blocks", "num_layers", "outer_dim", "page_size", "inner_dim"] as const)
      expect(meaningless(rawOf({}, { [field]: 0n }))).toContain("layout_config");
    expect(meaningless(rawOf({}, { outer_dim: 3n }))).toContain("outerDim");
    expect(meaningless(rawOf({}, { alignment: 3n }))).toContain("alignment");
    expect(meaningless(rawOf({}, { alignment: 0n }))).toContain("alignment");
    for (const width of [0n, 1n, 3n, 16n])
      expect(meaningless(rawOf({}, { dtype_width_bytes: width }))).toContain("width");
  });

  test("regions past 2^53 and past 2^64", () => {
    for (const addr of [2n ** 53n, 2n ** 63n, 2n ** 64n - 256n])
      expect(meaningless(rawOf({ memory_descriptors: [{ addr, size: 512n }] }))).toContain("2^53");
    expect(meaningless(rawOf({ memory_descriptors: [{ addr: 0x1000n, size: 2n ** 53n }] }))).toContain(
      "2^53",
    );
    expect(meaningless(rawOf({ memory_descriptors: [{ addr: 2n ** 53n - 512n, size: 512n }] }))).toContain(
      "2^53",
    );
    const last = meaning(rawOf({ memory_descriptors: [{ addr: 2n ** 53n - 513n, size: 512n }] }));
    expect(last.components[0]?.regionAddresses[0]).toBe(2 ** 53 - 513);
  });

  test("too few, too many and too small regions", () => {
    const one = { addr: 0x1000n, size: 512n };
    expect(meaningless(rawOf({ memory_descriptors: [] }))).toContain("0 memory descriptors");
    expect(meaningless(rawOf({ memory_descriptors: [one, { addr: 0x9000n, size: 512n }] }))).toContain(
      "2 memory descriptors",
    );
    expect(meaningless(rawOf({ layout_type_details: LS, memory_descriptors: [one] }))).toContain(
      "1 memory descriptors",
    );
    expect(meaningless(rawOf({ memory_descriptors: [{ addr: 0x1000n, size: 511n }] }))).toContain(
      "needs 512",
    );
  });

  test("regions on top of each other, by one byte and whole, in any order", () => {
    const pair = (left: bigint, right: bigint) =>
      rawOf({
        layout_type_details: LS,
        memory_descriptors: [
          { addr: left, size: 256n },
          { addr: right, size: 256n },
        ],
      });
    for (const [left, right] of [
      [0x1000n, 0x1000n],
      [0x1000n, 0x10ffn],
      [0x10ffn, 0x1000n],
    ] as const)
      expect(meaningless(pair(left, right))).toContain("overlap");
    for (const [left, right] of [
      [0x1000n, 0x1100n],
      [0x1100n, 0x1000n],
    ] as const)
      expect(meaning(pair(left, right)).components[0]?.regionAddresses.length).toBe(2);
  });

  test("disk regions are judged although they do not travel on", () => {
    const raw = rawOf({
      location: { Disk: 3n },
      nixl_metadata: { agent_name: "w", mem_type: "File", device_id: 3n },
      memory_descriptors: [{ addr: 0n, size: 511n }],
    });
    expect(meaningless(raw)).toContain("needs 512");
  });

  test("heads that do not divide, and heads outside layers that nobody counted", () => {
    for (const heads of [0n, 3n, 2n ** 60n])
      expect(meaningless(kvbmOf(rawOf(), heads, "OperationalNHD"), "kvbm-physical-1")).toContain("num_heads");
    for (const layout of ["UniversalTP", "UniversalPP", ["Layer", "Head", "Outer", "Page"]] as const)
      expect(meaningless(kvbmOf(rawOf(), null, layout), "kvbm-physical-1")).toContain("num_heads");
    // Behind layers and outers, heads that nobody counted are part of an opaque token.
    const opaque = meaning(kvbmOf(rawOf(), null, ["Outer", "Layer", "Page", "Head"]), "kvbm-physical-1");
    expect(opaque.components[0]).toMatchObject({
      order: ["outer", "layer", "page", "head"],
      config: { headsKnown: false },
    });
  });

  test("custom block layouts that name an axis twice", () => {
    const reason = meaningless(kvbmOf(rawOf(), 2n, ["Layer", "Layer", "Page", "Head"]), "kvbm-physical-1");
    expect(reason).toContain("twice");
  });
});

describe("what kvferry says in Dynamo's formats", () => {
  test("the same bytes as the raw level", () => {
    const value = packageOf([layoutOf(0, { addresses: [0x1000], slack: 4096 - 512 })], {
      agentName: "w",
      wireName: "w",
      nixlMetadata: new Uint8Array([0xaa, 0xbb]),
    });
    const opaque = rawOf({}, { inner_shape: "Unknown" });
    expect(encodePackage(value, "dynamo-1.0").toHex()).toBe(
      encodeDynamoPackage(opaque, "dynamo-1.0").toHex(),
    );
    const kvbm = kvbmOf(rawOf(), null, "Unknown");
    expect(encodePackage(value, "kvbm-physical-1").toHex()).toBe(
      encodeDynamoPackage(kvbm, "kvbm-physical-1").toHex(),
    );
  });

  test("the agent's name is the one on NIXL's wire, since importers compare that", () => {
    const bytes = encodePackage(packageOf([layoutOf(0)], { wireName: "worker-7#1a" }), "dynamo-1.0");
    const raw = decodeDynamoPackage(bytes, "dynamo-1.0");
    expect(raw.worker_address.nixl_agent_name).toBe("worker-7#1a");
    expect(raw.layouts[0]?.layout.nixl_metadata.agent_name).toBe("worker-7#1a");
  });

  test("generations are zero there", () => {
    const value = packageOf([{ ...layoutOf(5), handle: makeHandle(7n, 5, 4_096 * 77) }]);
    for (const format of FORMATS)
      expect(decodeDynamoPackage(encodePackage(value, format), format).layouts[0]?.handle).toBe(
        makeHandle(7n, 5),
      );
  });

  test("disk layouts are left out, as the original leaves them out", () => {
    const value = packageOf([layoutOf(0), layoutOf(1, { storage: { kind: "disk" } }), layoutOf(2)]);
    for (const format of FORMATS)
      expect(decodePackage(encodePackage(value, format)).layouts.map(({ name }) => name)).toEqual([
        "layout-0",
        "layout-2",
      ]);
  });

  test("every order and storage that kvbm knows comes back", () => {
    for (const order of [
      "nhd",
      "hnd",
      "universal-tp",
      "universal-pp",
      ["page", "head", "layer", "outer"],
    ] as const)
      for (const storage of [
        { kind: "system" },
        { kind: "pinned" },
        { kind: "device", device: 4 },
      ] as const) {
        const value = packageOf([layoutOf(0, { config: HEADS, order, storage })], {
          format: "kvbm-physical-1",
        });
        expect(decodePackage(encodePackage(value, "kvbm-physical-1"))).toStrictEqual(value);
      }
  });

  test("heads are claimed in the inner shape only where they are known", () => {
    const shape = (config: typeof CONFIG | typeof HEADS, order: "nhd" | "hnd") =>
      decodeDynamoPackage(
        encodePackage(packageOf([layoutOf(0, { config, order })]), "dynamo-1.0"),
        "dynamo-1.0",
      ).layouts[0]?.layout.layout_config.inner_shape;
    expect(shape(CONFIG, "nhd")).toBe("Unknown");
    expect(shape(HEADS, "nhd")).toBe("NHD");
    expect(shape(CONFIG, "hnd")).toBe("HND");
    expect(shape(HEADS, "hnd")).toBe("HND");
  });

  test("what a format has no place for is refused by name", () => {
    const one = layoutOf(0);
    const things: readonly (readonly [string, ReturnType<typeof packageOf>, readonly DynamoFormat[]])[] = [
      ["expiry", packageOf([one], { expiresAtMs: 1 }), FORMATS],
      ["audience", packageOf([one], { audience: [1n] }), FORMATS],
      [
        "bundle",
        packageOf([layoutOf(0, [componentOf(), componentOf({ name: "b", addresses: [0x90000] })])]),
        FORMATS,
      ],
      ["bundle", packageOf([layoutOf(0, [])]), FORMATS],
      ["scales", packageOf([layoutOf(0, { name: "scales" })]), FORMATS],
      ["fingerprint", packageOf([{ ...one, fingerprint: "m" }]), FORMATS],
      ["access", packageOf([{ ...one, access: "read" }]), FORMATS],
      ["another worker", packageOf([{ ...one, handle: makeHandle(8n, 0) }]), FORMATS],
      ["group", packageOf([layoutOf(0, { group: "sliding" })]), FORMATS],
      ["alias", packageOf([layoutOf(0, { alias: true })]), FORMATS],
      ["wholeBlocks", packageOf([layoutOf(0, { wholeBlocks: true })]), FORMATS],
      [
        "headWindow",
        packageOf([layoutOf(0, { config: { ...HEADS, headWindow: { start: 0, total: 8 } } })]),
        FORMATS,
      ],
      [
        "layerWindow",
        packageOf([layoutOf(0, { config: { ...CONFIG, layerWindow: { start: 0, total: 8 } } })]),
        FORMATS,
      ],
      ["model layers", packageOf([layoutOf(0, { config: { ...CONFIG, layers: [0, 4] } })]), FORMATS],
      ["8 bits", packageOf([layoutOf(0, { config: { ...CONFIG, dtypeBits: 8 } })]), FORMATS],
      ["4 bits", packageOf([layoutOf(0, { config: { ...CONFIG, dtypeBits: 4 } })]), FORMATS],
      ["arrangement BLNHC", packageOf([layoutOf(0, { config: HEADS, arrangement: "BLNHC" })]), FORMATS],
      [
        "strides",
        packageOf([
          layoutOf(0, {
            arrangement: { strides: { block: 512, layer: 128, outer: 64, page: 16 }, regions: "one" },
          }),
        ]),
        FORMATS,
      ],
      ["order head", packageOf([layoutOf(0, { config: HEADS, order: "universal-tp" })]), ["dynamo-1.0"]],
      [
        "separate layers",
        packageOf([
          layoutOf(0, { config: HEADS, order: "universal-tp", arrangement: "layer-separate/block-first" }),
        ]),
        ["kvbm-physical-1"],
      ],
      ["not known", packageOf([layoutOf(0, { order: "universal-tp" })]), ["kvbm-physical-1"]],
    ];
    for (const [thing, value, formats] of things)
      for (const format of formats) {
        const error = refusalOf("INVALID_CONFIG", () => encodePackage(value, format));
        expect(`${format}: ${String(error.details["thing"])}`).toContain(thing);
        expect(error.details["format"]).toBe(format);
      }
  });
});

describe("the raw level refuses what the format cannot hold", () => {
  const refuse = (raw: unknown, field: string, format: DynamoFormat = "dynamo-1.0"): void => {
    const error = refusalOf("INVALID_CONFIG", () => encodeDynamoPackage(raw as DynamoPackage, format));
    expect(error.message).toContain(field);
  };

  test("integers out of range or of another type, by field", () => {
    refuse({ ...rawOf(), worker_address: { worker_id: 2n ** 64n, nixl_agent_name: "w" } }, "worker_id");
    refuse({ ...rawOf(), worker_address: { worker_id: -1n, nixl_agent_name: "w" } }, "worker_id");
    refuse(rawOf({ version: 2 ** 32 }), "version");
    refuse(rawOf({}, { num_blocks: 0.5 as unknown as bigint }), "num_blocks");
    refuse(rawOf({}, { num_layers: -1 as unknown as bigint }), "num_layers");
    refuse(rawOf({}, { page_size: "4" as unknown as bigint }), "page_size");
    refuse(rawOf({}, {}, 2n ** 128n), "handle");
    refuse(rawOf({ location: { Device: 2 ** 32 } }), "Device");
    refuse(rawOf({ location: { Disk: 2n ** 64n } }), "Disk");
    refuse(rawOf({ memory_descriptors: [{ addr: 2n ** 64n, size: 1n }] }), "addr");
  });

  test("integers may also be safe numbers", () => {
    const raw = rawOf();
    const numbers = JSON.parse(
      JSON.stringify(raw.layouts, (_key, value) => (typeof value === "bigint" ? Number(value) : value)),
    );
    expect(encodeDynamoPackage({ ...raw, layouts: numbers }, "dynamo-1.0")).toEqual(
      encodeDynamoPackage(raw, "dynamo-1.0"),
    );
  });

  test("unknown words, by field", () => {
    refuse(rawOf({}, { inner_shape: "DNH" as "NHD" }), "inner_shape");
    refuse(rawOf({ location: "Moon" as "System" }), "location");
    refuse(rawOf({ location: null as unknown as "System" }), "location");
    refuse(rawOf({ layout_type_details: { Other: {} } as unknown as typeof LS }), "layout_type_details");
    refuse(
      rawOf({ nixl_metadata: { agent_name: "w", mem_type: "Tape" as "Dram", device_id: 0n } }),
      "mem_type",
    );
    refuse(rawOf({ nixl_metadata: { agent_name: "\ud800", mem_type: "Dram", device_id: 0n } }), "agent_name");
    refuse({ ...rawOf(), nixl_metadata: [1] }, "nixl_metadata");
    refuse(kvbmOf(rawOf(), null, ["Layer"]), "Custom", "kvbm-physical-1");
    refuse(kvbmOf(rawOf(), null, ["Layer", "Layer", "Layer", "Tail"]), "Custom", "kvbm-physical-1");
    refuse(kvbmOf(rawOf(), null, "Custom" as "Unknown"), "kv_block_layout", "kvbm-physical-1");
  });

  test("fields of the other format are refused, not dropped", () => {
    refuse(kvbmOf(rawOf(), 2n, "Unknown"), "logical_type");
    refuse(rawOf({}, { num_heads: 2n }), "num_heads");
    refuse(
      rawOf({
        layout_type_details: { FullyContiguous: { block_format: "Operational", kv_block_layout: "Unknown" } },
      }),
      "kv_block_layout",
    );
    refuse(rawOf(), "logical_type", "kvbm-physical-1");
    const [layout] = rawOf().layouts;
    refuse({ ...rawOf(), layouts: [{ ...layout, logical_type: "G2" }] }, "inner_shape", "kvbm-physical-1");
  });

  test("an unknown format is refused by name", () => {
    const format = "dynamo-2.0" as DynamoFormat;
    refuse(rawOf(), "format", format);
    refusalOf("INVALID_CONFIG", () => decodeDynamoPackage(new Uint8Array(4), format));
  });

  test("kv_block_layout and num_heads may be left out, as in JSON", () => {
    const full = kvbmOf(rawOf(), null, "Unknown");
    const [layout] = full.layouts;
    const { num_heads: _, ...config } = layout?.layout.layout_config ?? {};
    const short = {
      ...full,
      layouts: [
        {
          ...layout,
          layout: {
            ...layout?.layout,
            layout_config: config,
            layout_type_details: { FullyContiguous: { block_format: "Operational" } },
          },
        },
      ],
    } as unknown as DynamoPackage;
    expect(encodeDynamoPackage(short, "kvbm-physical-1")).toEqual(
      encodeDynamoPackage(full, "kvbm-physical-1"),
    );
  });
});
