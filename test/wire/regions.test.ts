import { describe, expect, test } from "bun:test";
import type { PackageComponent } from "../../lib/core/package.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { componentOf, CONFIG, layoutOf, packageOf } from "./builders.ts";
import { malformedAt } from "./refusal.ts";

// Cells of 64 bytes; a layer's blocks of two outers lie 512 apart, so that four layers interleave in one allocation.
const INTERLEAVED = { strides: { block: 512, outer: 64, page: 16 }, regions: "per-layer" } as const;
const FOUR = { ...CONFIG, numLayers: 4 };

function accepted(...layouts: readonly (readonly PackageComponent[])[]): void {
  const value = packageOf(layouts.map((components, id) => layoutOf(id, components)));
  expect(decodePackage(encodePackage(value, "kvferry"))).toStrictEqual(value);
}

function refused(...layouts: readonly (readonly PackageComponent[])[]): string {
  const bytes = encodePackage(
    packageOf(layouts.map((components, id) => layoutOf(id, components))),
    "kvferry",
  );
  return malformedAt("kvferry", bytes.length, () => decodePackage(bytes)).reason;
}

function layers(
  addresses: readonly number[],
  parts: Parameters<typeof componentOf>[0] = {},
): PackageComponent {
  return componentOf({ config: FOUR, arrangement: INTERLEAVED, addresses, ...parts });
}

describe("regions of one layout", () => {
  test("layers that interleave without sharing a byte are accepted, in any order", () => {
    accepted([layers([0x1000, 0x1080, 0x1100, 0x1180])]);
    accepted([layers([0x1180, 0x1100, 0x1080, 0x1000])]);
    accepted([layers([0x1000, 0x1180, 0x1080, 0x1100])]);
  });

  test("layers that interleave and share one byte are refused", () => {
    expect(refused([layers([0x1000, 0x107f, 0x10fe, 0x117d])])).toContain("overlap");
    expect(refused([layers([0x1000, 0x1180, 0x10ff, 0x1080])])).toContain("overlap");
    expect(refused([layers([0x1000, 0x1000, 0x1100, 0x1180])])).toContain("overlap");
  });

  test("components that interleave in one allocation, apart and not", () => {
    const strides = { strides: { block: 1_024, layer: 256, outer: 64, page: 16 }, regions: "one" } as const;
    const part = (name: string, address: number, alias = false) =>
      componentOf({ name, config: FOUR, arrangement: strides, addresses: [address], alias });
    accepted([part("kv", 0x1000), part("scales", 0x1080)]);
    expect(refused([part("kv", 0x1000), part("scales", 0x1070)])).toContain("kv and scales");
    expect(refused([part("kv", 0x1000, true), part("scales", 0x1070)])).toContain("kv and scales");
    accepted([part("kv", 0x1000, true), part("scales", 0x1070, true)]);
  });

  test("the same addresses in different memories are different bytes", () => {
    const on = (name: string, device: number) =>
      componentOf({ name, addresses: [0x1000], storage: { kind: "device", device } });
    accepted([on("kv", 0), on("scales", 1)]);
    expect(refused([on("kv", 1), on("scales", 1)])).toContain("overlap");
    const host = componentOf({ name: "host", addresses: [0x1000] });
    const pinned = componentOf({ name: "pinned", addresses: [0x1000], storage: { kind: "pinned" } });
    accepted([on("kv", 0), host]);
    expect(refused([host, pinned])).toContain("overlap");
  });

  test("what was proven for one layout is not believed for another", () => {
    const good = [0x1000, 0x1080, 0x1100, 0x1180];
    const moved = good.map((address) => address + 0x100000);
    accepted([layers(good)], [layers(moved)]);
    // Another spacing, another first component, another memory.
    expect(refused([layers(good)], [layers([0x9000, 0x9080, 0x9100, 0x913f])])).toContain("overlap");
    const mixed = (first: "system" | "device") => [
      componentOf({
        name: "a",
        addresses: [0x1000],
        storage: first === "system" ? { kind: "system" } : { kind: "device", device: 0 },
      }),
      componentOf({ name: "b", addresses: [0x1000] }),
    ];
    accepted(mixed("device"));
    expect(refused(mixed("device"), mixed("system"))).toContain("overlap");
  });

  test("layouts may lie over each other: they are different names of the same memory", () => {
    accepted([componentOf({ addresses: [0x1000] })], [componentOf({ addresses: [0x1000] })]);
  });

  test("an uneven mixture that nobody can check in time is refused, not believed", () => {
    const config = { ...CONFIG, numLayers: 400 };
    const stride = 400 * 256;
    const addresses = Array.from(
      { length: 400 },
      (_, layer) => 0x100000 + layer * 256 + (layer % 2 === 1 ? 64 : 0),
    );
    const wild = componentOf({
      config,
      arrangement: { strides: { block: stride, outer: 64, page: 16 }, regions: "per-layer" },
      addresses,
    });
    expect(refused([wild])).toContain("too many regions");
    const fewer = componentOf({
      config: { ...config, numLayers: 100 },
      arrangement: { strides: { block: stride, outer: 64, page: 16 }, regions: "per-layer" },
      addresses: addresses.slice(0, 100),
    });
    accepted([fewer]);
  });

  test("a thousand interleaved layouts of one kind are proven once", () => {
    const layouts = Array.from({ length: 1_000 }, (_, id) => [
      layers([0, 0x80, 0x100, 0x180].map((offset) => 0x100000 + id * 0x1000 + offset)),
    ]);
    accepted(...layouts);
  });

  test("many components that interleave are refused once the proof would take too long", () => {
    const strides = {
      strides: { block: 64 * 1_000, layer: 16_000, outer: 64, page: 16 },
      regions: "one",
    } as const;
    const crowd = Array.from({ length: 1_000 }, (_, index) =>
      componentOf({
        name: `part-${index}`,
        config: { ...CONFIG, numLayers: 1, outerDim: 1 },
        arrangement: { strides: { ...strides.strides }, regions: "one" },
        addresses: [0x100000 + index * 64],
      }),
    );
    expect(refused(crowd)).toContain("too many components");
    accepted(crowd.slice(0, 20));
  });
});
