import { describe, expect, test } from "bun:test";
import type { LayoutConfig } from "../../lib/core/config.ts";
import { crc32, portableCrc32 } from "../../lib/wire/crc32.ts";
import { writeEnvelope } from "../../lib/wire/envelope.ts";
import {
  decodeDynamoPackage,
  decodePackage,
  encodeDynamoPackage,
  encodePackage,
} from "../../lib/wire/index.ts";
import type { DynamoDescriptor, MetadataPackage, PackageLayout } from "../../lib/wire/index.ts";
import { scanMessagePack } from "../../lib/wire/msgpack-scan.ts";
import { componentOf, CONFIG, forged, layoutOf, packageOf, poke, rawOf } from "./builders.ts";
import { malformedAt, refusalOf } from "./refusal.ts";

const MIB = 2 ** 20;

/** What a body of these bytes, in an envelope that is right, is refused for. */
function badBody(body: Uint8Array): string {
  const bytes = writeEnvelope(body, null);
  return malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason;
}

function filled(length: number, pattern: readonly number[]): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => pattern[index % pattern.length] ?? 0);
}

describe("MessagePack bodies that lie about their size", () => {
  test("a billion elements in five bytes", () => {
    for (const header of [
      [0xdd, 0x3b, 0x9a, 0xca, 0x00],
      [0xdf, 0x3b, 0x9a, 0xca, 0x00],
      [0xc6, 0x3b, 0x9a, 0xca, 0x00],
      [0xdb, 0x3b, 0x9a, 0xca, 0x00],
      [0xdd, 0xff, 0xff, 0xff, 0xff],
      [0xdf, 0xff, 0xff, 0xff, 0xff],
    ])
      expect(badBody(Uint8Array.from(header))).toContain("fit");
  });

  test("nested to the sky, by every kind of container", () => {
    for (const pattern of [
      [0x91],
      [0x81, 0xa1, 0x61],
      [0xdc, 0x00, 0x01],
      [0xdd, 0, 0, 0, 1],
      [0xde, 0, 1, 0xa0],
    ])
      expect(badBody(filled(MIB, pattern))).toContain("deeper");
  });

  test("nested headers that each promise what is left", () => {
    expect(badBody(filled(MIB, [0xdc, 0x0f, 0xff]))).toContain("deeper");
    expect(badBody(filled(MIB, [0xdd, 0, 1, 0x86, 0x9f]))).toContain("deeper");
  });

  test("a million small values", () => {
    const many = filled(MIB, [0xc0]);
    many.set([0xdd, 0x00, 0x0f, 0xff, 0xf0], 0);
    expect(badBody(many)).toContain("more than 128 values");
    many.set([0xde, 0x7f, 0xff], 0);
    expect(badBody(many)).toContain("more than 128 values");
  });

  test("extension types, the byte that is never used, and headers cut off", () => {
    for (const tag of [0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8])
      expect(badBody(new Uint8Array([tag, 0, 0, 0, 0]))).toContain("no place");
    for (const tag of [0xc5, 0xc6, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf])
      expect(badBody(new Uint8Array([tag, 0]))).toContain("header");
    for (const tag of [0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xd1, 0xd2, 0xd3])
      expect(badBody(new Uint8Array([tag, 0]))).toContain("fit");
    expect(badBody(new Uint8Array(0))).toContain("end inside");
    expect(badBody(new Uint8Array([0x92, 0xc0]))).toContain("fit");
    expect(badBody(new Uint8Array([0x92, 0xa1, 0x61]))).toContain("end inside");
    expect(badBody(new Uint8Array([0xc0, 0xc0]))).toContain("follow");
  });

  test("values that are no map of names", () => {
    for (const body of [
      [0xc0],
      [0x01],
      [0xff],
      [0xc3],
      [0xa1, 0x61],
      [0x80],
      [0x90],
      [0x81, 0xa1, 0x61, 0x01],
      [0x81, 0xc0, 0xc0],
    ])
      expect(badBody(Uint8Array.from(body))).toBeTruthy();
  });

  test("text that is not UTF-8", () => {
    for (const text of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf5, 0x80, 0x80, 0x80]])
      expect(badBody(new Uint8Array([0x81, 0xa1, 0x61, 0xa0 + text.length, ...text]))).toContain("UTF-8");
  });

  test("prototype names", () => {
    const key = new TextEncoder().encode("__proto__");
    expect(badBody(new Uint8Array([0x81, 0xa9, ...key, 0x80]))).toBeTruthy();
    expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
  });

  test("every kind of scalar is measured right", () => {
    const scalars = [
      [0x00],
      [0x7f],
      [0xe0],
      [0xff],
      [0xc0],
      [0xc2],
      [0xc3],
      [0xcc, 1],
      [0xcd, 1, 2],
      [0xce, 1, 2, 3, 4],
      [0xcf, 1, 2, 3, 4, 5, 6, 7, 8],
      [0xd0, 1],
      [0xd1, 1, 2],
      [0xd2, 1, 2, 3, 4],
      [0xd3, 1, 2, 3, 4, 5, 6, 7, 8],
      [0xca, 1, 2, 3, 4],
      [0xcb, 1, 2, 3, 4, 5, 6, 7, 8],
      [0xa2, 0x61, 0x62],
      [0xd9, 1, 0x61],
      [0xda, 0, 1, 0x61],
      [0xdb, 0, 0, 0, 1, 0x61],
      [0xc4, 2, 9, 9],
      [0xc5, 0, 1, 9],
      [0xc6, 0, 0, 0, 1, 9],
      [0x80],
      [0x90],
      [0xdc, 0, 0],
      [0xdf, 0, 0, 0, 0],
    ];
    for (const scalar of scalars) {
      const bytes = Uint8Array.from([0x92, ...scalar, 0x01]);
      scanMessagePack(bytes, 0, bytes.length, { depth: 2, items: 3 });
      const short = bytes.slice(0, -1);
      malformedAt("kvferry", short.length, () =>
        scanMessagePack(short, 0, short.length, { depth: 2, items: 3 }),
      );
    }
  });
});

describe("envelopes that lie about their size", () => {
  const whole = writeEnvelope(new Uint8Array([0x80]), null);

  test("a body of four gigabytes", () => {
    const bytes = whole.slice();
    bytes.set([0xff, 0xff, 0xff, 0xff], 13);
    expect(malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason).toContain("body");
  });

  test("more bytes than are read", () => {
    expect(
      malformedAt("kvferry", whole.length, () => decodePackage(whole, { maxBytes: 10 })).reason,
    ).toContain("10");
    const dynamo = encodeDynamoPackage(rawOf(), "dynamo-1.0");
    expect(
      malformedAt("dynamo-1.0", dynamo.length, () => decodePackage(dynamo, { maxBytes: 10 })).reason,
    ).toContain("10");
  });

  test("nothing, and too little", () => {
    for (const bytes of [[], [0], [0x95], [0x95, 0xc4, 8], [0, 0, 0]])
      refusalOf("METADATA_MALFORMED", () => decodePackage(Uint8Array.from(bytes)));
  });
});

describe("packages of Dynamo's that lie about their size", () => {
  const start = encodeDynamoPackage(rawOf(), "dynamo-1.0");
  const COUNTS = [
    [0xfb, 0xff, 0xff],
    [0xfc, 0xff, 0xff, 0xff, 0xff],
    [0xfd, 0, 0, 0, 0, 0, 1, 0, 0],
    [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  ];
  // Offsets of the counts: name, blob, layouts, the layout's name, regions.
  const PLACES = {
    nixl_agent_name: 1,
    nixl_metadata: 3,
    layouts: 6,
    agent_name: 18,
    memory_descriptors: 22,
  } as const;

  test("counts far beyond the bytes, at every place, are refused there", () => {
    for (const [what, at] of Object.entries(PLACES)) {
      expect(start[at]).toBe(what === "nixl_metadata" ? 2 : 1);
      for (const count of COUNTS) {
        const bytes = Uint8Array.from([...start.slice(0, at), ...count, ...start.slice(at + 1)]);
        for (const decode of [
          decodePackage,
          (input: Uint8Array) => decodeDynamoPackage(input, "dynamo-1.0"),
        ]) {
          const error = refusalOf("METADATA_MALFORMED", () => decode(bytes));
          expect(`${what}: ${error.details["reason"]}`).toContain(what);
        }
      }
    }
  });

  test("a mebibyte of one byte is refused, whatever the byte", () => {
    for (let value = 0; value < 256; value++)
      refusalOf("METADATA_MALFORMED", () => decodePackage(new Uint8Array(MIB).fill(value)));
  });

  test("more layouts than ids, and more shapes than a package of that length may have", () => {
    const layout = [7, 1, 2, 2, 2, 4, 8, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0];
    const many = Uint8Array.from({ length: 8 + 17 * 65_536 }, (_, at) =>
      at < 8 ? ([7, 0, 0, 0xfc, 0, 0, 1, 0][at] ?? 0) : (layout[(at - 8) % 17] ?? 0),
    );
    expect(malformedAt("dynamo-1.0", many.length, () => decodePackage(many)).reason).toContain(
      "65536 layouts",
    );

    const raw = rawOf();
    const [first] = raw.layouts;
    if (first === undefined) throw new Error("no layout");
    const layouts = Array.from({ length: 1_000 }, (_, id) => ({
      handle: 7n | (BigInt(id) << 64n),
      layout: {
        ...first.layout,
        layout_config: { ...first.layout.layout_config, num_blocks: BigInt(id + 1) },
        memory_descriptors: [{ addr: 0x1000n, size: 2n ** 40n }],
      },
    }));
    const shapes = encodeDynamoPackage({ ...raw, layouts }, "dynamo-1.0");
    expect(malformedAt("dynamo-1.0", shapes.length, () => decodePackage(shapes)).reason).toContain(
      "more than 2 different shapes",
    );
    const fewer = encodeDynamoPackage({ ...raw, layouts: layouts.slice(0, 41) }, "dynamo-1.0");
    expect(decodePackage(fewer).layouts.length).toBe(41);
    const longer = encodeDynamoPackage(
      { ...raw, layouts, nixl_metadata: new Uint8Array(MIB + (1_000 + 24 * 999 - 1_024) * 64) },
      "dynamo-1.0",
    );
    const value = decodePackage(longer);
    expect(value.layouts.length).toBe(1_000);
    expect(
      refusalOf("INVALID_CONFIG", () =>
        encodePackage({ ...value, nixlMetadata: new Uint8Array(0) }, "dynamo-1.0"),
      ).details["thing"],
    ).toContain("1000 shapes");
  });

  test("regions without end in one layout", () => {
    const regions = Array.from({ length: 2 * 65_536 + 1 }, () => ({ addr: 0n, size: 0n }));
    const bytes = encodeDynamoPackage(rawOf({ memory_descriptors: regions }), "dynamo-1.0");
    expect(
      malformedAt("dynamo-1.0", bytes.length, () => decodeDynamoPackage(bytes, "dynamo-1.0")).reason,
    ).toContain("131073");
    expect(malformedAt("dynamo-1.0", bytes.length, () => decodePackage(bytes)).reason).toContain("131073");
  });
});

describe("packages that hold more than their length allows", () => {
  const part = componentOf({ storage: { kind: "disk" } });
  const crowd = (count: number): readonly PackageLayout[] =>
    Array.from({ length: count }, (_, id) => ({ ...layoutOf(id, [part]), name: "l" }));

  test("layouts of Dynamo's: as many as the length allows, and not one more, neither read nor written", () => {
    const raw = (count: number, blob: number): Uint8Array =>
      encodeDynamoPackage(
        {
          ...rawOf(),
          nixl_metadata: new Uint8Array(blob),
          layouts: Array.from({ length: count }, (_, id) => ({
            handle: 7n | (BigInt(id) << 64n),
            layout: rawOf().layouts[0]?.layout as DynamoDescriptor,
          })),
        },
        "dynamo-1.0",
      );
    const most = raw(1_024, 0);
    expect(decodePackage(most).layouts.length).toBe(1_024);
    const more = raw(1_025, 0);
    expect(malformedAt("dynamo-1.0", more.length, () => decodePackage(more)).reason).toContain("the 1024");
    const longer = raw(4_000, MIB + (4_000 - 1_024) * 64);
    expect(decodePackage(longer).layouts.length).toBe(4_000);
    const value = { ...decodePackage(longer), nixlMetadata: new Uint8Array(0) };
    expect(refusalOf("INVALID_CONFIG", () => encodePackage(value, "dynamo-1.0")).details["thing"]).toContain(
      "4000 layouts",
    );
  });

  test("regions of Dynamo's: as many as the length allows, and not one more, neither read nor written", () => {
    const raw = (layers: number, blob: number): Uint8Array =>
      encodeDynamoPackage(
        {
          ...rawOf(
            {
              layout_type_details: { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
              memory_descriptors: Array.from({ length: layers }, (_, index) => ({
                addr: BigInt(index * 65_536),
                size: 65_536n,
              })),
            },
            { num_layers: BigInt(layers) },
          ),
          nixl_metadata: new Uint8Array(blob),
        },
        "dynamo-1.0",
      );
    expect(decodePackage(raw(16_384, 0)).layouts.length).toBe(1);
    const more = raw(16_385, 0);
    expect(malformedAt("dynamo-1.0", more.length, () => decodePackage(more)).reason).toContain("the 16384");
    const value = decodePackage(raw(16_385, MIB));
    expect(
      refusalOf("INVALID_CONFIG", () =>
        encodePackage({ ...value, nixlMetadata: new Uint8Array(0) }, "dynamo-1.0"),
      ).details["thing"],
    ).toContain("16385 regions");
  });

  test("components, regions, shapes and listed layers of kvferry's: refused in a short package, never written so", () => {
    const shaped = (count: number): MetadataPackage =>
      packageOf(
        Array.from({ length: count }, (_, id) =>
          layoutOf(id, { config: { ...CONFIG, numBlocks: id + 1 }, storage: { kind: "disk" } }),
        ),
      );
    const layered = (layers: number, change: Partial<LayoutConfig>, disk: boolean): MetadataPackage =>
      packageOf([
        layoutOf(0, {
          config: { ...CONFIG, numLayers: layers, ...change },
          arrangement: "layer-separate/block-first",
          ...(disk
            ? { storage: { kind: "disk" } }
            : { addresses: Array.from({ length: layers }, (_, layer) => layer * 65_536) }),
        }),
      ]);
    const listed = (count: number): MetadataPackage =>
      layered(count, { layers: Array.from({ length: count }, (_, layer) => count - 1 - layer) }, true);
    const cases: readonly (readonly [string, number, (count: number) => MetadataPackage])[] = [
      ["components", 1_024, (count) => packageOf(crowd(count))],
      ["regions", 16_384, (count) => layered(count, {}, false)],
      ["different shapes", 41, shaped],
      ["layers", 4_096, listed],
    ];
    for (const [what, most, make] of cases) {
      const short = encodePackage(make(most), "kvferry");
      expect(`${what}: ${short.length < MIB}`).toBe(`${what}: true`);
      expect(decodePackage(short)).toStrictEqual(make(most));
      // One more makes the package a mebibyte long, and is read; the same without the filling is not.
      const value = make(most + 1);
      const filledUp = encodePackage(value, "kvferry");
      expect(`${what}: ${filledUp.length > MIB && filledUp.length < MIB + 2_048}`).toBe(`${what}: true`);
      expect(decodePackage(filledUp)).toStrictEqual(value);
      const cut = forged(value, (body) => delete body["padding"]);
      expect(malformedAt("kvferry", cut.length, () => decodePackage(cut)).reason).toMatch(
        new RegExp(`${most + 1} ${what}.*the ${most} of a package of ${cut.length} bytes`),
      );
    }
    // What is long enough anyway is not filled up.
    const long = packageOf(crowd(3_000), { nixlMetadata: new Uint8Array(2 * MIB) });
    expect(encodePackage(long, "kvferry").length).toBeLessThan(2 * MIB + 3_000 * 64);
  });

  test("an audience without end, neither read nor written", () => {
    const audience = (count: number): bigint[] => Array.from({ length: count }, (_, id) => BigInt(id));
    const most = packageOf([], { audience: audience(16_384) });
    expect(decodePackage(encodePackage(most, "kvferry")).audience?.length).toBe(16_384);
    refusalOf("INVALID_CONFIG", () =>
      encodePackage(packageOf([], { audience: audience(16_385) }), "kvferry"),
    );
    const forgery = forged(most, (body) => (body["audience"] = new Uint8Array(8 * 16_385)));
    expect(malformedAt("kvferry", forgery.length, () => decodePackage(forgery)).reason).toContain("16385");
  });

  test("regions out of order: sorted while it is cheap, refused beyond", () => {
    const component = (layers: number) =>
      componentOf({
        config: { ...CONFIG, numLayers: layers },
        arrangement: "layer-separate/block-first",
        addresses: Array.from({ length: layers }, (_, index) => ((index * 40_503) % layers) * 4_096),
      });
    const one = encodePackage(packageOf([layoutOf(0, [component(2_048)])]), "kvferry");
    expect(decodePackage(one).layouts.length).toBe(1);
    const many = packageOf([layoutOf(0, [component(4_096)])]);
    // What is written is long enough to be read again; cut short it is refused, and Dynamo's forms cannot say it.
    const whole = encodePackage(many, "kvferry");
    expect(decodePackage(whole).layouts[0]?.components[0]?.regionAddresses).toEqual(
      component(4_096).regionAddresses,
    );
    const own = forged(many, (body) => delete body["padding"]);
    expect(malformedAt("kvferry", own.length, () => decodePackage(own)).reason).toContain("out of order");
    refusalOf("INVALID_CONFIG", () => encodePackage(many, "dynamo-1.0"));
    const terse = encodeDynamoPackage(
      {
        ...rawOf(),
        layouts: [0].map((id) => ({
          handle: 7n | (BigInt(id) << 64n),
          layout: {
            ...rawOf({}, { num_blocks: 1n, num_layers: 4_096n, outer_dim: 1n, page_size: 1n, inner_dim: 1n })
              .layouts[0]?.layout,
            layout_type_details: { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
            memory_descriptors: Array.from({ length: 4_096 }, (_, index) => ({
              addr: BigInt(((index * 40_503) % 4_096) * 2),
              size: 2n,
            })),
          } as DynamoDescriptor,
        })),
      },
      "dynamo-1.0",
    );
    expect(malformedAt("dynamo-1.0", terse.length, () => decodePackage(terse)).reason).toContain(
      "out of order",
    );
  });

  test("a layer listed twice at the end of a long list", () => {
    const layers = 65_536;
    const bytes = forged(
      packageOf([
        layoutOf(0, {
          config: {
            ...CONFIG,
            numLayers: layers,
            layers: Array.from({ length: layers }, (_, layer) => layer),
          },
          storage: { kind: "disk" },
        }),
      ]),
      (body) => poke(body, "shapeLayers", layers - 1, layers - 2, true),
    );
    expect(malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason).toContain(
      "a layer twice",
    );
  });
});

describe("the checksum", () => {
  test("is the CRC-32 of all bytes before it, whatever their number", () => {
    expect(bitwise(new TextEncoder().encode("123456789"))).toBe(0xcbf4_3926);
    for (let length = 0; length < 40; length++) {
      const bytes = writeEnvelope(
        Uint8Array.from({ length }, (_, index) => (index * 73 + 11) & 255),
        null,
      );
      const at = bytes.length - 4;
      expect(new DataView(bytes.buffer).getUint32(at)).toBe(bitwise(bytes.subarray(0, at - 1)));
    }
  });

  test("is the same where the engine has none of its own", () => {
    expect(portableCrc32(new TextEncoder().encode("123456789"), 9)).toBe(0xcbf4_3926);
    const bytes = Uint8Array.from({ length: 600 }, (_, index) => (index * 73 + 11) & 255);
    for (let end = 0; end <= bytes.length; end++) expect(portableCrc32(bytes, end)).toBe(crc32(bytes, end));
  });
});

/** By its definition. */
function bitwise(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1;
  }
  return ~crc >>> 0;
}
