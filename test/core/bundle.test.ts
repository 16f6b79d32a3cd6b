import { describe, expect, test } from "bun:test";
import type { ComponentSpec, LayoutSpec, MemorySpec } from "../../lib/core/index.ts";
import { findSharedBytes, MAX_REGION_PAIRS, resolveLayout, storageOf } from "../../lib/core/index.ts";
import { refusalOf, SMALL } from "./builders.ts";

const SYSTEM = { kind: "system" } as const;
/** 3 blocks of 512 bytes. */
const BYTES = 1536;
const resolve = (spec: unknown): ReturnType<typeof resolveLayout> => resolveLayout(spec as LayoutSpec);
const fieldOf = (spec: unknown, word = "INVALID_CONFIG"): unknown =>
  refusalOf(word, () => resolve(spec)).details["field"];
const external = (...regions: { address: number; size: number }[]): MemorySpec => ({
  kind: "external",
  storage: "system",
  regions,
});
const at = (address: number, size = BYTES): MemorySpec => external({ address, size });

describe("the two forms", () => {
  test("the short form is a bundle of one component kv with every default", () => {
    const layout = resolve({ config: SMALL, memory: SYSTEM });
    expect(layout).toMatchObject({ name: null, tier: "G2", access: "read-write", fingerprint: null });
    expect(layout.components.map(({ shape }) => shape.name)).toEqual(["kv"]);
    const [component] = layout.components;
    expect(component?.shape).toMatchObject({
      arrangement: "fully-contiguous",
      group: "default",
      wholeBlocks: false,
      alias: false,
    });
    expect(component?.shape.order).toEqual(["layer", "outer", "page", "head"]);
    expect(component?.regionBytes).toBe(BYTES);
    expect(component?.memory).toEqual(SYSTEM);
  });

  test("the short and the long form of one tensor make one shape", () => {
    const short = resolve({ name: "a", config: SMALL, order: "hnd", memory: SYSTEM });
    const long = resolve({ name: "b", components: { kv: { config: SMALL, order: "hnd", memory: SYSTEM } } });
    expect(long.components).toEqual(short.components);
    expect(long.components[0]?.shape).toBe(short.components[0]?.shape);
  });

  test("components keep the spec's sequence, groups and flags", () => {
    const layout = resolve({
      components: {
        kv: { config: SMALL, memory: { kind: "device", device: 1 } },
        state: { config: { ...SMALL, numBlocks: 9 }, memory: SYSTEM, group: "recurrent", wholeBlocks: true },
      },
      tier: "G4",
      access: "read",
      fingerprint: "llama",
    });
    expect(layout.components.map(({ shape }) => [shape.name, shape.group, shape.wholeBlocks])).toEqual([
      ["kv", "default", false],
      ["state", "recurrent", true],
    ]);
    expect(layout).toMatchObject({ tier: "G4", access: "read", fingerprint: "llama" });
  });

  test("unknown fields are refused where they stand", () => {
    expect(fieldOf({ config: SMALL, memory: SYSTEM, arangement: "x" })).toBe("arangement");
    expect(fieldOf({ components: { kv: { config: SMALL, memory: SYSTEM } }, config: SMALL })).toBe("config");
    const error = refusalOf("INVALID_CONFIG", () =>
      resolve({ components: { kv: { config: SMALL, memory: SYSTEM, tier: "G1" } } }),
    );
    expect(error.details).toMatchObject({ field: "tier" });
    expect(error.message).toContain("kv");
  });

  test("an error inside a component names the component", () => {
    const error = refusalOf("INVALID_CONFIG", () =>
      resolve({
        components: {
          kv: { config: SMALL, memory: SYSTEM },
          index: { config: { ...SMALL, pageSize: 0 }, memory: SYSTEM },
        },
      }),
    );
    expect(error.details).toMatchObject({ component: "index", field: "pageSize" });
    expect(error.message).toContain("component index");
  });

  test("names, tier, access, flags and fingerprint are checked", () => {
    const spec = { config: SMALL, memory: SYSTEM };
    for (const name of ["", "x".repeat(257), 3, "\ud800"]) expect(fieldOf({ ...spec, name })).toBe("name");
    expect(fieldOf({ ...spec, tier: "G5" })).toBe("tier");
    expect(fieldOf({ ...spec, access: "write" })).toBe("access");
    expect(fieldOf({ ...spec, fingerprint: 7 })).toBe("fingerprint");
    expect(fieldOf({ ...spec, group: "" })).toBe("group");
    expect(fieldOf({ ...spec, alias: "yes" })).toBe("alias");
    expect(fieldOf({ ...spec, wholeBlocks: 1 })).toBe("wholeBlocks");
    expect(fieldOf({ ...spec, order: "nhdd" })).toBe("order");
    expect(fieldOf(null)).toBe("spec");
    expect(fieldOf({ components: {} })).toBe("components");
    expect(fieldOf({ components: [spec] })).toBe("components");
    expect(fieldOf({ components: { "": spec } })).toBe("components");
    expect(fieldOf({ components: { kv: null } })).toBe("kv");
  });
});

describe("memory", () => {
  const memoryField = (memory: unknown, more: object = {}): unknown =>
    fieldOf({ config: SMALL, memory, ...more });

  test("every kind has its tier and storage", () => {
    const cases: [MemorySpec, string, object][] = [
      [SYSTEM, "G2", { kind: "system" }],
      [{ kind: "pinned" }, "G2", { kind: "pinned" }],
      [{ kind: "pinned", device: 2, allocator: "driver" }, "G2", { kind: "pinned", device: 2 }],
      [{ kind: "device" }, "G1", { kind: "device", device: 5 }],
      [{ kind: "disk", path: "/tmp/x", open: "create", checksums: true }, "G3", { kind: "disk" }],
      [at(4096), "G2", { kind: "system" }],
      [
        { kind: "external", storage: "pinned", regions: [{ address: 4096, size: BYTES }] },
        "G2",
        { kind: "pinned" },
      ],
      [
        { kind: "external", storage: { device: 3 }, regions: [{ address: 4096, size: BYTES }] },
        "G1",
        { kind: "device", device: 3 },
      ],
      [{ kind: "external-fd", regions: [{ fd: 4, offset: 0, size: BYTES }] }, "G2", { kind: "system" }],
      [
        {
          kind: "external-ipc",
          device: 1,
          regions: [{ ipcHandle: new Uint8Array(64), offset: 0, size: BYTES }],
        },
        "G1",
        { kind: "device", device: 1 },
      ],
    ];
    for (const [memory, tier, storage] of cases) {
      const layout = resolve({ config: SMALL, memory });
      expect(layout.tier as string).toBe(tier);
      expect(layout.components[0]?.memory).toEqual(memory);
      expect(storageOf(memory, 5)).toEqual(storage as ReturnType<typeof storageOf>);
    }
  });

  test("wrong kinds, fields and values are refused by name", () => {
    expect(memoryField(undefined)).toBe("memory");
    expect(memoryField({ kind: "heap" })).toBe("memory.kind");
    expect(memoryField({ kind: "system", device: 0 })).toBe("memory.device");
    expect(memoryField({ kind: "pinned", device: -1 })).toBe("memory.device");
    expect(memoryField({ kind: "pinned", allocator: "mmap" })).toBe("memory.allocator");
    expect(memoryField({ kind: "device", device: 1.5 })).toBe("memory.device");
    expect(memoryField({ kind: "disk", path: "" })).toBe("memory.path");
    expect(memoryField({ kind: "disk", path: "a\0b" })).toBe("memory.path");
    expect(memoryField({ kind: "disk", open: "append" })).toBe("memory.open");
    expect(memoryField({ kind: "disk", checksums: 1 })).toBe("memory.checksums");
    expect(memoryField({ kind: "external", storage: "disk", regions: [] })).toBe("memory.storage");
    expect(memoryField({ kind: "external", storage: { device: "0" }, regions: [] })).toBe(
      "memory.storage.device",
    );
    expect(
      memoryField({
        kind: "external-ipc",
        device: 0,
        regions: [{ ipcHandle: new Uint8Array(63), offset: 0, size: BYTES }],
      }),
    ).toBe("memory.regions[0].ipcHandle");
    expect(memoryField({ kind: "external-fd", regions: [{ fd: -1, offset: 0, size: BYTES }] })).toBe(
      "memory.regions[0].fd",
    );
    expect(memoryField({ kind: "shared", with: 3, offset: 0 })).toBe("memory.with");
    expect(memoryField({ kind: "shared", with: "kv", offset: 0 })).toBe("memory.with");
  });

  test("external regions must be as many, as large and as aligned as the layout needs", () => {
    expect(memoryField(external())).toBe("memory.regions");
    expect(memoryField({ kind: "external", storage: "system", regions: 3 })).toBe("memory.regions");
    expect(memoryField({ kind: "external", storage: "system", regions: [null] })).toBe("memory.regions[0]");
    expect(memoryField(at(4096, BYTES - 1))).toBe("memory.regions[0].size");
    expect(memoryField(at(0))).toBe("memory.regions[0].address");
    expect(memoryField(at(-8))).toBe("memory.regions[0].address");
    expect(memoryField(external({ address: 4096n as unknown as number, size: BYTES }))).toBe(
      "memory.regions[0].address",
    );
    expect(() => resolve({ config: SMALL, memory: at(2 ** 53 - 100) })).toThrow("2^53");
    expect(memoryField(at(4097), { config: { ...SMALL, alignment: 2 } })).toBe("memory.regions[0].address");
    const second = external({ address: 4096, size: 768 }, { address: 8192, size: 700 });
    expect(memoryField(second, { arrangement: "layer-separate/block-first" })).toBe("memory.regions[1].size");
  });

  test("what the caller changes afterwards is not seen", () => {
    const region = { address: 4096, size: BYTES };
    const layout = resolve({
      config: SMALL,
      memory: { kind: "external", storage: "system", regions: [region] },
    });
    region.address = 1;
    expect(layout.components[0]?.memory).toEqual(at(4096));
  });
});

describe("bytes covered twice", () => {
  const component = (memory: MemorySpec, more: Partial<ComponentSpec> = {}): ComponentSpec => ({
    config: SMALL,
    memory,
    ...more,
  });
  /** Half of a 1024-byte slot for each block: two of these interleave. */
  const half: Partial<ComponentSpec> = {
    arrangement: { strides: { block: 1024, layer: 256, outer: 128, page: 32, head: 16 }, regions: "one" },
  };

  test("external components that share a byte are refused unless both say alias", () => {
    const make = (left: boolean, right: boolean): unknown => ({
      components: {
        a: component(at(4096), { alias: left }),
        b: component(at(4096 + BYTES - 1), { alias: right }),
      },
    });
    expect(refusalOf("OVERLAP", () => resolve(make(false, false))).details).toMatchObject({
      left: "a",
      right: "b",
    });
    expect(refusalOf("OVERLAP", () => resolve(make(true, false))).message).toContain("component b");
    expect(resolve(make(true, true)).components).toHaveLength(2);
    expect(
      resolve({ components: { a: component(at(4096)), b: component(at(4096 + BYTES)) } }).components,
    ).toHaveLength(2);
  });

  test("interleaved components are apart on exact strides though their boxes meet", () => {
    const make = (offset: number): unknown => ({
      components: { a: component(at(4096, 4096), half), b: component(at(4096 + offset, 4096), half) },
    });
    expect(resolve(make(512)).components).toHaveLength(2);
    refusalOf("OVERLAP", () => resolve(make(511)));
    refusalOf("OVERLAP", () => resolve(make(513)));
  });

  test("shared memory makes its owner's regions large enough, and is judged on the same strides", () => {
    const make = (offset: number, alias = false): unknown => ({
      components: {
        a: component(SYSTEM, { ...half, alias }),
        b: component({ kind: "shared", with: "a", offset }, { ...half, alias }),
      },
    });
    const layout = resolve(make(512));
    expect(layout.components.map(({ regionBytes }) => regionBytes)).toEqual([
      512 + 2 * 1024 + 512,
      2 * 1024 + 512,
    ]);
    refusalOf("OVERLAP", () => resolve(make(256)));
    const small = component(
      { kind: "shared", with: "a", offset: 600 },
      { config: { ...SMALL, numBlocks: 1, numLayers: 1 } },
    );
    expect(resolve({ components: { a: component(SYSTEM, half), b: small } }).components[0]?.regionBytes).toBe(
      2560,
    );
    expect(resolve(make(256, true)).components[0]?.regionBytes).toBe(256 + 2 * 1024 + 512);
  });

  test("shared memory that points nowhere, in a circle, past its owner or unaligned is refused", () => {
    const b = (memory: MemorySpec, more: Partial<ComponentSpec> = {}): unknown => ({
      components: { a: component(at(4096)), b: component(memory, more) },
    });
    expect(fieldOf(b({ kind: "shared", with: "c", offset: 0 }))).toBe("memory.with");
    expect(fieldOf(b({ kind: "shared", with: "b", offset: 0 }))).toBe("memory.with");
    expect(fieldOf(b({ kind: "shared", with: "a", offset: -1 }))).toBe("memory.offset");
    expect(fieldOf(b({ kind: "shared", with: "a", offset: BYTES }))).toBe("memory.regions[0].size");
    expect(fieldOf(b({ kind: "shared", with: "a", offset: 0 }, { arrangement: "NHD" }))).toBe("memory.with");
    expect(fieldOf(b({ kind: "shared", with: "a", offset: 3 }, { config: { ...SMALL, alignment: 2 } }))).toBe(
      "memory.offset",
    );
  });

  test("regions of one component may not share bytes either", () => {
    const spec = (second: number): unknown => ({
      config: SMALL,
      arrangement: "layer-separate/block-first",
      memory: external({ address: 4096, size: 768 }, { address: second, size: 768 }),
    });
    refusalOf("OVERLAP", () => resolve(spec(4096)));
    refusalOf("OVERLAP", () => resolve(spec(4096 + 767)));
    expect(resolve(spec(4096 + 768)).components).toHaveLength(1);
  });

  test("the same numbers in different byte spaces are different bytes", () => {
    const fd = (number: number): MemorySpec => ({
      kind: "external-fd",
      regions: [{ fd: number, offset: 4096, size: BYTES }],
    });
    expect(
      resolve({ components: { a: component(fd(3)), b: component(fd(4)), c: component(at(4096)) } })
        .components,
    ).toHaveLength(3);
    refusalOf("OVERLAP", () => resolve({ components: { a: component(fd(3)), b: component(fd(3)) } }));
    const device = (ordinal: number): MemorySpec => ({
      kind: "external",
      storage: { device: ordinal },
      regions: [{ address: 4096, size: BYTES }],
    });
    expect(
      resolve({ components: { a: component(device(0)), b: component(device(1)) } }).components,
    ).toHaveLength(2);
    const ipc = (byte: number): MemorySpec => ({
      kind: "external-ipc",
      device: 0,
      regions: [{ ipcHandle: new Uint8Array(64).fill(byte), offset: 0, size: BYTES }],
    });
    expect(resolve({ components: { a: component(ipc(1)), b: component(ipc(2)) } }).components).toHaveLength(
      2,
    );
    refusalOf("OVERLAP", () => resolve({ components: { a: component(ipc(1)), b: component(ipc(1)) } }));
    const file: MemorySpec = { kind: "disk", path: "/data/blocks" };
    refusalOf("OVERLAP", () => resolve({ components: { a: component(file), b: component(file) } }));
    expect(resolve({ components: { a: component(SYSTEM), b: component(SYSTEM) } }).components).toHaveLength(
      2,
    );
  });

  test("hundreds of evenly interleaved regions are decided, tens of thousands are given up on", () => {
    const many = (layers: number): unknown => {
      const size = 16;
      const strides = { block: size * layers, page: 16 };
      const config = { numBlocks: 4, numLayers: layers, outerDim: 1, pageSize: 1, innerDim: 8 };
      const regions = Array.from({ length: layers }, (_, layer) => ({
        address: 4096 + layer * size,
        size: 3 * size * layers + size,
      }));
      return { config, arrangement: { strides, regions: "per-layer" }, memory: external(...regions) };
    };
    expect(resolve(many(256)).components[0]?.shape.view.regionCount).toBe(256);
    expect(refusalOf("OVERLAP", () => resolve(many(1024))).message).toContain(String(MAX_REGION_PAIRS));
    expect(findSharedBytes([])).toBeNull();
  });
});
