import { describe, expect, test } from "bun:test";
import type { PackageComponent } from "../../lib/core/package.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { randomOf } from "../random.ts";
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

  test("layers that repeat with one period are proven apart, however many and uneven", () => {
    const config = { ...CONFIG, numLayers: 400 };
    const addresses = Array.from(
      { length: 400 },
      (_, layer) => 0x100000 + layer * 256 + (layer % 2 === 1 ? 64 : 0),
    );
    const uneven = (bases: readonly number[]) =>
      componentOf({
        config,
        arrangement: { strides: { block: 400 * 256, outer: 64, page: 16 }, regions: "per-layer" },
        addresses: bases,
      });
    accepted([uneven(addresses)]);
    expect(refused([uneven(addresses.with(7, (addresses[7] ?? 0) + 65))])).toContain("too many regions");
  });

  test("a period's last region may reach into the next period, up to where the first begins", () => {
    const pair = (second: number) =>
      componentOf({
        config: { ...CONFIG, numLayers: 2 },
        arrangement: { strides: { block: 256, outer: 64, page: 16 }, regions: "per-layer" },
        // Blocks of 128 bytes; the first begins in the middle of a period.
        addresses: [0x1040, second],
      });
    accepted([pair(0x10c0)]);
    for (const second of [0x10c1, 0x10bf, 0x1140, 0x1041])
      expect(refused([pair(second)])).toContain("overlap");
  });

  test("what is accepted shares no byte, and what shares none is accepted: random layers, periods and places", () => {
    let apart = 0;
    for (let index = 0; index < 400; index++) {
      const random = randomOf(77, index);
      const period = random.pick([128, 192, 256, 384]);
      const parts = Array.from({ length: random.between(1, 2) }, (_, part) => {
        const block = random.chance(0.7) ? period : random.pick([128, 256]);
        return componentOf({
          name: `part-${part}`,
          config: {
            ...CONFIG,
            numBlocks: random.between(1, 4),
            numLayers: random.between(1, 3),
            outerDim: 1,
          },
          arrangement: { strides: { block, page: 16 }, regions: "per-layer" },
        });
      }).map((part) => ({
        ...part,
        regionAddresses: Float64Array.from(
          { length: part.view.regionCount },
          () => 0x1000 + 32 * random.between(0, 24),
        ),
      }));
      const expected = !sharesBytes(parts);
      if (expected) apart++;
      const bytes = encodePackage(packageOf([layoutOf(0, parts)]), "kvferry");
      let found = true;
      try {
        decodePackage(bytes);
      } catch {
        found = false;
      }
      expect(`${index}: ${found}`).toBe(`${index}: ${expected}`);
    }
    expect(apart).toBeGreaterThan(50);
  });

  test("a mixture without a period that nobody can check in time is refused, not believed", () => {
    const part = (name: string, at: number, count: number, periods: number) =>
      componentOf({
        name,
        config: { ...CONFIG, numLayers: count },
        arrangement: { strides: { block: periods * 400 * 256, outer: 64, page: 16 }, regions: "per-layer" },
        addresses: Array.from({ length: count }, (_, layer) => at + layer * 512 + (layer % 2 === 1 ? 64 : 0)),
      });
    expect(refused([part("kv", 0x100000, 60, 1), part("scales", 0x100100, 60, 2)])).toContain(
      "too many regions",
    );
    accepted([part("kv", 0x100000, 20, 1), part("scales", 0x100100, 20, 2)]);
    expect(refused([part("kv", 0x100000, 20, 1), part("scales", 0x100060, 20, 2)])).toContain("overlap");
  });

  test("a thousand interleaved layouts of one kind are proven once", () => {
    const layouts = Array.from({ length: 1_000 }, (_, id) => [
      layers([0, 0x80, 0x100, 0x180].map((offset) => 0x100000 + id * 0x1000 + offset)),
    ]);
    accepted(...layouts);
  });

  test("many components that interleave: proven by their period, refused where the proof would take too long", () => {
    const crowd = (count: number, periods: 1 | 2) =>
      Array.from({ length: count }, (_, index) =>
        componentOf({
          name: `part-${index}`,
          config: { ...CONFIG, numLayers: 1, outerDim: 1 },
          arrangement: {
            strides: { block: 64_000 * (1 + (index % periods)), layer: 16_000, outer: 64, page: 16 },
            regions: "one",
          },
          addresses: [0x100000 + index * 64],
        }),
      );
    accepted(crowd(1_000, 1));
    expect(refused(crowd(1_000, 2))).toContain("too many components");
    accepted(crowd(6, 2));
    expect(refused(crowd(7, 2))).toContain("too many components");
  });
});

/** Looks at every byte of every row. */
function sharesBytes(parts: readonly PackageComponent[]): boolean {
  const taken = new Set<number>();
  for (const { view, regionAddresses } of parts)
    for (const base of regionAddresses)
      for (let block = 0; block < view.blocks; block++)
        for (let page = 0; page < view.pages; page++)
          for (let head = 0; head < view.heads; head++)
            for (let byte = 0; byte < view.rowBytes; byte++) {
              const at =
                base + block * view.strideBlock + page * view.stridePage + head * view.strideHead + byte;
              if (taken.has(at)) return true;
              taken.add(at);
            }
  return false;
}
