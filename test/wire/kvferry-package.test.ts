import { describe, expect, test } from "bun:test";
import { handleLayoutId, makeHandle } from "../../lib/core/handle.ts";
import type { MetadataPackage } from "../../lib/core/package.ts";
import { readEnvelope, writeEnvelope } from "../../lib/wire/envelope.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { componentOf, CONFIG, forged, layoutOf, packageOf, poke } from "./builders.ts";
import { malformedAt, refusalOf } from "./refusal.ts";

const HOST = {
  bootId: "6f0f3c2e",
  namespaces: { pid: "4026531836", ipc: "4026531839", net: "4026531840", user: "4026531837" },
  userId: 1_000,
  processId: 4_242,
  rendezvous: "kvferry-4242",
} as const;

/** One of everything that the format can say. */
const FULL: MetadataPackage = packageOf(
  [
    { ...layoutOf(0), name: "engine", access: "read", fingerprint: "llama-3.1|rope 5e5|bf16" },
    {
      ...layoutOf(3, [
        componentOf({
          config: { ...CONFIG, dtype: "bf16", layerWindow: { start: 4, total: 32 } },
          arrangement: "layer-separate/block-second",
          storage: { kind: "device", device: 3 },
        }),
        componentOf({
          name: "indexer",
          config: {
            numBlocks: 9,
            numLayers: 3,
            outerDim: 1,
            pageSize: 64,
            numHeads: 2,
            headDim: 128,
            dtype: "fp8",
            layers: [7, 1, 30],
          },
          arrangement: "BLHNC",
          group: "index",
          storage: { kind: "pinned", device: 1 },
          addresses: [0x900000],
        }),
        componentOf({
          name: "state",
          config: {
            numBlocks: 2,
            numLayers: 2,
            outerDim: 1,
            pageSize: 4,
            numHeads: 4,
            headDim: 64,
            dtypeBits: 4,
            headWindow: { start: 4, total: 16 },
          },
          arrangement: { strides: { block: 4096, page: 128, layer: 1024 }, regions: "one" },
          wholeBlocks: true,
          storage: { kind: "pinned" },
          addresses: [0xa00000],
          slack: 24,
        }),
      ]),
      handle: makeHandle(7n, 3, 2 ** 36 + 5),
      tier: "G4",
      stagedOnly: true,
    },
    layoutOf(65_534, { storage: { kind: "disk" }, order: "universal-pp" }),
  ],
  {
    workerId: 7n,
    wireName: "worker-7#1a",
    incarnation: 2 ** 36 - 1,
    sequence: Number.MAX_SAFE_INTEGER,
    issuedAtMs: 1_790_000_000_000,
    expiresAtMs: 1_890_000_000_000,
    audience: [0n, 2n ** 64n - 1n],
    host: HOST,
  },
);

describe("kvferry's own format", () => {
  test("everything that can be said comes back", () => {
    expect(decodePackage(encodePackage(FULL, "kvferry"))).toStrictEqual(FULL);
  });

  test("an empty package comes back", () => {
    const empty = packageOf([], { nixlMetadata: new Uint8Array(0), audience: [] });
    expect(decodePackage(encodePackage(empty, "kvferry"))).toStrictEqual(empty);
  });

  test("layouts are written in id order, whatever order they are given in", () => {
    const shuffled = packageOf([layoutOf(9), layoutOf(2), layoutOf(5)]);
    const found = decodePackage(encodePackage(shuffled, "kvferry"));
    expect(found.layouts.map(({ handle }) => handleLayoutId(handle))).toEqual([2, 5, 9]);
  });

  test("handles come back whether ids follow each other or leap, and generations change", () => {
    const handles = [
      makeHandle(7n, 0, 4_096),
      makeHandle(7n, 1, 4_096),
      makeHandle(7n, 2, 4_097),
      makeHandle(7n, 9, 4_097),
      makeHandle(7n, 10, 0),
    ];
    const value = packageOf(handles.map((handle, id) => ({ ...layoutOf(id), handle })));
    expect(decodePackage(encodePackage(value, "kvferry")).layouts.map(({ handle }) => handle)).toEqual(
      handles,
    );
  });

  test("layouts of one shape share its config, view and sizes; nothing is a view of the input", () => {
    const part = componentOf();
    const value = packageOf([0, 1, 2].map((id) => layoutOf(id, [part])));
    const bytes = encodePackage(value, "kvferry");
    const found = decodePackage(bytes);
    bytes.fill(0);
    const [first, second, third] = found.layouts.map(({ components }) => components[0]);
    expect(first?.view === third?.view && first?.config === second?.config).toBe(true);
    expect(first?.regionSizes === third?.regionSizes).toBe(true);
    expect(first?.regionAddresses === third?.regionAddresses).toBe(false);
    expect(found).toStrictEqual(value);
  });

  test("equal shapes stand in the bytes once", () => {
    const part = componentOf();
    const size = (count: number): number =>
      encodePackage(packageOf(Array.from({ length: count }, (_, id) => layoutOf(id, [part]))), "kvferry")
        .length;
    expect(size(101) - size(100)).toBeLessThan(90);
  });

  test("objects are frozen", () => {
    const found = decodePackage(encodePackage(FULL, "kvferry"));
    for (const layout of found.layouts) {
      expect(Object.isFrozen(layout)).toBe(true);
      for (const part of layout.components)
        expect([part, part.config, part.view, part.storage].every(Object.isFrozen)).toBe(true);
    }
    expect(Object.isFrozen(found) && Object.isFrozen(found.host)).toBe(true);
  });

  test("what cannot be written is refused with its name", () => {
    const refuse = (value: MetadataPackage, field: RegExp): void => {
      expect(refusalOf("INVALID_CONFIG", () => encodePackage(value, "kvferry")).message).toMatch(field);
    };
    refuse(packageOf([layoutOf(1), layoutOf(1)]), /layout id/);
    refuse(packageOf([layoutOf(4), layoutOf(1), layoutOf(4)]), /layout id/);
    refuse(packageOf([{ ...layoutOf(0), handle: makeHandle(8n, 0) }]), /handle/);
    refuse(packageOf([{ ...layoutOf(0), handle: makeHandle(7n, 65_535) }]), /layout id/);
    refuse(packageOf([], { workerId: 2n ** 64n }), /workerId/);
    refuse(packageOf([], { audience: [-1n] }), /audience/);
    refuse(packageOf([layoutOf(0, { addresses: [] })]), /regions of kv/);
    refuse(packageOf([layoutOf(0, { storage: { kind: "device", device: 2 ** 32 } })]), /device/);
    const strange = { ...componentOf(), arrangement: "sideways" as "fully-contiguous" };
    refuse(packageOf([layoutOf(0, [strange])]), /arrangement/);
    refuse(packageOf([layoutOf(0, [{ ...componentOf(), order: ["page"] }])]), /order/);
  });

  test("an unknown format is refused by name", () => {
    expect(
      refusalOf("INVALID_CONFIG", () => encodePackage(FULL, "dynamo-2.0" as "kvferry")).message,
    ).toContain("format");
  });
});

describe("damage", () => {
  const bytes = encodePackage(FULL, "kvferry");
  const signed = encodePackage(FULL, "kvferry", {
    signing: { keyId: "k1", mac: () => new Uint8Array(32).fill(9) },
  });

  test("every change of one byte is refused with its place", () => {
    for (const whole of [bytes, signed])
      for (let at = 0; at < whole.length; at++)
        for (const flip of [1, 2, 4, 8, 16, 32, 64, 128, 255]) {
          const damaged = whole.slice();
          damaged[at] = (damaged[at] ?? 0) ^ flip;
          malformedAt("kvferry", whole.length, () => decodePackage(damaged));
        }
  });

  test("every truncation and every added byte is refused", () => {
    for (const whole of [bytes, signed]) {
      for (let length = 0; length < whole.length; length++)
        refusalOf("METADATA_MALFORMED", () => decodePackage(whole.slice(0, length)));
      for (const extra of [0, 1, 0xc0, 0xff])
        malformedAt("kvferry", whole.length + 1, () => decodePackage(new Uint8Array([...whole, extra])));
    }
  });

  test("damage to the opening is never taken for a package of Dynamo's", () => {
    for (let at = 0; at < 11; at++)
      for (let value = 0; value < 256; value++) {
        const damaged = bytes.slice();
        damaged[at] = value;
        if (value === bytes[at]) continue;
        malformedAt("kvferry", 18, () => decodePackage(damaged));
      }
  });

  test("another version is refused with both versions", () => {
    for (const version of [1, 3]) {
      const other = bytes.slice();
      other[11] = version;
      const { reason, offset } = malformedAt("kvferry", bytes.length, () => decodePackage(other));
      expect(reason).toContain(`version ${version} is not known, only 2`);
      expect(offset).toBe(11);
    }
  });

  test("two halves of different packages do not make one", () => {
    const other = encodePackage({ ...FULL, sequence: 1 }, "kvferry");
    const half = bytes.length >> 1;
    const spliced = new Uint8Array([...bytes.slice(0, half), ...other.slice(half)]);
    malformedAt("kvferry", spliced.length, () => decodePackage(spliced));
  });

  test("a view into a larger buffer is read as its own bytes", () => {
    const larger = new Uint8Array(bytes.length + 7).fill(0xee);
    larger.set(bytes, 3);
    expect(decodePackage(larger.subarray(3, 3 + bytes.length))).toStrictEqual(FULL);
  });
});

describe("authentication", () => {
  const sha = (key: string, bytes: Uint8Array): Uint8Array =>
    new Uint8Array(new Bun.CryptoHasher("sha256", key).update(bytes).digest());
  const keys = new Map([
    ["2026-11", "right"],
    ["2026-12", "also right"],
  ]);
  const mac = (keyId: string, bytes: Uint8Array): Uint8Array | null => {
    const key = keys.get(keyId);
    return key === undefined ? null : sha(key, bytes);
  };

  test("a package of a known key comes back, of the old key and the new", () => {
    for (const keyId of keys.keys())
      expect(
        decodePackage(encodePackage(FULL, "kvferry", { signing: { keyId, mac } }), { mac }),
      ).toStrictEqual(FULL);
  });

  test("a reader without keys takes a signed package", () => {
    const bytes = encodePackage(FULL, "kvferry", { signing: { keyId: "2026-11", mac } });
    expect(decodePackage(bytes)).toStrictEqual(FULL);
    expect(readEnvelope(bytes).auth?.keyId).toBe("2026-11");
  });

  test("no code, an unknown key and a wrong code are refused", () => {
    const unsigned = encodePackage(FULL, "kvferry");
    const foreign = encodePackage(FULL, "kvferry", {
      signing: { keyId: "other", mac: (_, bytes) => sha("right", bytes) },
    });
    const wrong = encodePackage(FULL, "kvferry", {
      signing: { keyId: "2026-11", mac: (_, bytes) => sha("wrong", bytes) },
    });
    const short = encodePackage(FULL, "kvferry", {
      signing: { keyId: "2026-11", mac: (_, bytes) => sha("right", bytes).slice(0, 31) },
    });
    for (const bytes of [unsigned, foreign, wrong, short])
      refusalOf("METADATA_UNAUTHENTICATED", () => decodePackage(bytes, { mac }));
  });

  test("a body that was changed and given a new checksum is refused before it is decoded", () => {
    const envelope = readEnvelope(encodePackage(FULL, "kvferry", { signing: { keyId: "2026-11", mac } }));
    const body = envelope.body.slice();
    body.fill(0xc1);
    const code = envelope.auth?.mac ?? new Uint8Array(0);
    const forgery = writeEnvelope(body, { keyId: "2026-11", mac: () => code });
    refusalOf("METADATA_UNAUTHENTICATED", () => decodePackage(forgery, { mac }));
    malformedAt("kvferry", forgery.length, () => decodePackage(forgery));
  });

  test("formats without proof are refused unless they are accepted on purpose", () => {
    const value = packageOf([layoutOf(0)]);
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const) {
      const bytes = encodePackage(value, format);
      refusalOf("METADATA_UNAUTHENTICATED", () => decodePackage(bytes, { mac }));
      expect(decodePackage(bytes, { mac, acceptUnauthenticated: true }).format).toBe(format);
    }
    // That option is about formats that cannot carry proof, not about packages that could.
    refusalOf("METADATA_UNAUTHENTICATED", () =>
      decodePackage(encodePackage(value, "kvferry"), { mac, acceptUnauthenticated: true }),
    );
  });

  test("keys and codes that do not fit are refused when they are written", () => {
    const sign = (keyId: string, code: Uint8Array | null) => () =>
      encodePackage(FULL, "kvferry", { signing: { keyId, mac: () => code } });
    refusalOf("INVALID_CONFIG", sign("k", null));
    refusalOf("INVALID_CONFIG", sign("k", new Uint8Array(0)));
    refusalOf("INVALID_CONFIG", sign("k", new Uint8Array(256)));
    refusalOf("INVALID_CONFIG", sign("k".repeat(256), new Uint8Array(32)));
    refusalOf("INVALID_CONFIG", sign("\ud800", new Uint8Array(32)));
    expect(decodePackage(sign("k".repeat(255), new Uint8Array(255))())).toStrictEqual(FULL);
  });
});

describe("a liar with a right checksum", () => {
  const value = packageOf([
    layoutOf(0, [
      componentOf({ config: { ...CONFIG, layers: [3, 9] } }),
      componentOf({ name: "state", addresses: [0x90000], config: { ...CONFIG, numBlocks: 3 } }),
    ]),
    layoutOf(2, { storage: { kind: "device", device: 1 } }),
  ]);
  const lie = (change: (body: Record<string, unknown>) => void): string => {
    const bytes = forged(value, change);
    return malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason;
  };

  test("an honest forgery decodes: the lies below fail for what they say", () => {
    expect(decodePackage(forged(value, () => {}))).toStrictEqual(value);
  });

  test("fields missing, added or of another type are named", () => {
    expect(lie((body) => delete body["wire"])).toContain("wire");
    expect(lie((body) => (body["more"] = 1))).toContain("more");
    expect(lie((body) => (body["worker"] = 7))).toContain("worker");
    expect(lie((body) => (body["worker"] = -7n))).toContain("worker");
    expect(lie((body) => (body["incarnation"] = 2 ** 36))).toContain("incarnation");
    expect(lie((body) => (body["sequence"] = 0.5))).toContain("sequence");
    expect(lie((body) => (body["issued"] = -1))).toContain("issued");
    expect(lie((body) => (body["nixl"] = null))).toContain("nixl");
    expect(lie((body) => (body["host"] = { boot: "x" }))).toContain("host");
    expect(lie((body) => (body["audience"] = new Uint8Array(9)))).toContain("audience");
  });

  test("columns that do not fit each other are named", () => {
    for (const column of [
      "textEnds",
      "shapeNumbers",
      "shapeWords",
      "shapeLayers",
      "generations",
      "layouts",
      "components",
      "nixlDevices",
      "addresses",
      "sizes",
    ]) {
      expect(lie((body) => (body[column] = (body[column] as Uint8Array).slice(1)))).toContain(column);
      lie(
        (body) =>
          (body[column] = new Uint8Array([...(body[column] as Uint8Array), ...new Uint8Array(4_080)])),
      );
    }
  });

  test("strings that nobody names, that are empty or cut a character are refused", () => {
    expect(lie((body) => (body["text"] = `${body["text"]}more`))).toContain("string");
    expect(lie((body) => poke(body, "textEnds", 0, 0, true))).toContain("string 0");
    expect(lie((body) => poke(body, "textEnds", 1, 99, true))).toContain("string 1");
    const body = readEnvelope(encodePackage(value, "kvferry")).body.slice();
    body[Buffer.from(body).indexOf("default")] = 0xff;
    const wrong = writeEnvelope(body, null);
    expect(malformedAt("kvferry", wrong.length, () => decodePackage(wrong)).reason).toContain("UTF-8");
    const crab = packageOf([{ ...layoutOf(0), name: "a🦀" }]);
    const cut = forged(crab, (body) => poke(body, "textEnds", 0, 2, true));
    expect(malformedAt("kvferry", cut.length, () => decodePackage(cut)).reason).toContain("cuts a character");
    expect(lie((body) => (body["textEnds"] = new Uint8Array(4 * 99)))).toContain("strings");
  });

  test("layout rows that lie are refused", () => {
    expect(lie((body) => poke(body, "layouts", 5, 0, true))).toContain("id 0 after 0");
    expect(lie((body) => poke(body, "layouts", 5, 65_535, true))).toContain("65535");
    expect(lie((body) => poke(body, "layouts", 1, 77, true))).toContain("string 77");
    expect(lie((body) => poke(body, "layouts", 2, 78, true))).toContain("string 77");
    expect(lie((body) => poke(body, "layouts", 3, 0, true))).toContain("0 components");
    expect(lie((body) => poke(body, "layouts", 3, 1, true))).toBeTruthy();
    expect(lie((body) => poke(body, "layouts", 3, 9, true))).toContain("9 components");
    expect(lie((body) => poke(body, "layouts", 4, 16, true))).toContain("flags");
    for (const generation of [-1, 0.5, 2 ** 48, Number.NaN])
      expect(lie((body) => poke(body, "generations", 0, generation, false))).toContain("generation");
  });

  test("component rows that lie are refused", () => {
    expect(lie((body) => poke(body, "components", 0, 9, true))).toContain("shape 9");
    expect(lie((body) => poke(body, "components", 1, 4, true))).toContain("storage 4");
    expect(lie((body) => poke(body, "components", 2, 1, true))).toContain("storage system");
    expect(lie((body) => poke(body, "components", 8, 0xffff_ffff, true))).toContain("storage device");
    expect(lie((body) => poke(body, "components", 3, 0, true))).toContain("one name");
    expect(lie((body) => poke(body, "components", 7, 3, true))).toContain("storage disk");
    for (const device of [-1, 0.5, 2 ** 53])
      expect(lie((body) => poke(body, "nixlDevices", 0, device, false))).toContain("NIXL device");
  });

  test("regions that wrap, pass 2^53, are too small or overlap are refused", () => {
    expect(lie((body) => poke(body, "addresses", 0, 2 ** 53 - 100, false))).toContain("passes 2^53");
    expect(lie((body) => poke(body, "addresses", 0, -4096, false))).toContain("no range");
    expect(lie((body) => poke(body, "addresses", 0, 0.5, false))).toContain("no range");
    expect(lie((body) => poke(body, "sizes", 0, Number.POSITIVE_INFINITY, false))).toContain("no range");
    expect(lie((body) => poke(body, "sizes", 0, 511, false))).toContain("needs 512");
    expect(lie((body) => poke(body, "addresses", 1, 0x10000 + 511, false))).toContain("overlap");
    expect(lie((body) => poke(body, "addresses", 1, 0x10000 - 767, false))).toContain("overlap");
    expect(lie((body) => (body["addresses"] = (body["addresses"] as Uint8Array).slice(8)))).toContain(
      "sizes",
    );
  });

  test("shapes that lie are refused", () => {
    const number = (index: number, given: number): string =>
      lie((body) => poke(body, "shapeNumbers", index, given, false));
    expect(number(0, 0)).toContain("numBlocks");
    expect(number(0, 2 ** 32)).toContain("numBlocks");
    expect(number(1, 3)).toContain("layers");
    expect(number(2, 3)).toContain("outerDim");
    expect(number(3, 0.5)).toContain("pageSize");
    expect(number(3, 2 ** 32 - 1)).toBeTruthy();
    expect(number(4, 0)).toContain("numHeads");
    expect(number(6, 65)).toContain("dtypeBits");
    expect(number(7, 3)).toContain("alignment");
    expect(number(8, 1)).toContain("headWindow");
    expect(number(9, 1)).toContain("headWindow");
    expect(number(10, 3)).toContain("lists 3 layers");
    expect(number(10, 1)).toContain("layers");
    expect(number(10, -1)).toBeTruthy();
    expect(number(11, 10)).toContain("layers");
    expect(number(12, 64)).toContain("strides");
    const word = (index: number, given: number): string =>
      lie((body) => poke(body, "shapeWords", index, given, true));
    expect(word(0, 99)).toContain("name");
    expect(word(1, 99)).toContain("group");
    expect(word(2, 99)).toContain("dtype");
    expect(word(2, 2)).toContain("dtype");
    expect(word(3, 3)).toContain("arrangement");
    expect(word(3, 64)).toContain("strides");
    expect(word(4, 0)).toContain("order");
    expect(word(4, 256)).toContain("order");
    expect(word(5, 4)).toContain("flags");
    expect(lie((body) => poke(body, "shapeLayers", 0, 9, true))).toContain("twice");
    expect(lie((body) => poke(body, "shapeLayers", 0, 65_536, true))).toContain("layers[0]");
  });

  test("layers that belong to no shape are refused", () => {
    const plain = packageOf([layoutOf(0)]);
    const bytes = forged(plain, (body) => (body["shapeLayers"] = new Uint8Array(4)));
    expect(malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason).toContain("no shape");
  });

  test("strides under which rows share bytes are refused, unless the component says alias", () => {
    const strides = { strides: { block: 256, layer: 128, outer: 64, page: 16 }, regions: "one" } as const;
    const honest = packageOf([layoutOf(0, { arrangement: strides })]);
    const bytes = forged(honest, (body) => poke(body, "shapeNumbers", 15, 8, false));
    expect(malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason).toContain("share");
    const alias = packageOf([
      layoutOf(0, { arrangement: { ...strides, strides: { ...strides.strides, page: 8 } }, alias: true }),
    ]);
    expect(decodePackage(encodePackage(alias, "kvferry"))).toStrictEqual(alias);
  });
});
