// Inputs of about a mebibyte that are made to cost as much as possible, in time or in memory.
import { writeEnvelope } from "../../lib/wire/envelope.ts";
import { encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import type { DynamoDescriptor } from "../../lib/wire/index.ts";
import { randomOf } from "../random.ts";
import { componentOf, CONFIG, forged, layoutOf, packageOf, rawOf } from "./builders.ts";
import { randomBytes } from "./generate.ts";

/** An input and what it tries. */
export interface HostileInput {
  readonly name: string;
  readonly bytes: Uint8Array;
}

const MIB = 2 ** 20;

/** All of them. */
export function hostileInputs(): readonly HostileInput[] {
  return [...messagePack(), ...columns(), ...dynamo(), ...plain()];
}

function messagePack(): HostileInput[] {
  const patterns: readonly (readonly [string, readonly number[]])[] = [
    ["arrays in arrays", [0x91]],
    ["maps in maps", [0x81, 0xa0]],
    ["headers of four billion elements", [0xdd, 0xff, 0xff, 0xff, 0xff]],
    ["headers of 4,095 elements", [0xdc, 0x0f, 0xff]],
    ["headers of 99,999 elements", [0xdd, 0, 1, 0x86, 0x9f]],
    ["nothing, a million times", [0xc0]],
    ["small strings", [0xa1, 0x61]],
  ];
  return patterns.map(([name, pattern]) => ({
    name: `MessagePack: ${name}`,
    bytes: writeEnvelope(repeat(pattern, MIB - 100), null),
  }));
}

function columns(): HostileInput[] {
  const value = packageOf([layoutOf(0)]);
  return [
    {
      name: "columns: a million empty strings",
      bytes: forged(value, (body) => (body["textEnds"] = new Uint8Array(MIB - 2_000))),
    },
    {
      name: "columns: one long string",
      bytes: forged(value, (body) => (body["text"] = "x".repeat(MIB - 2_000))),
    },
    {
      name: "columns: layouts of nothing",
      bytes: forged(value, (body) => (body["layouts"] = new Uint8Array(20 * 50_000))),
    },
    {
      name: "columns: shapes of nothing",
      bytes: forged(value, (body) => (body["shapeWords"] = new Uint8Array(24 * 40_000))),
    },
    {
      name: "columns: an audience of 130,000",
      bytes: forged(value, (body) => (body["audience"] = new Uint8Array(8 * 130_000))),
    },
    { name: "columns: a crowd of interleaved components", bytes: crowd(26, 15, 1) },
    { name: "columns: a large crowd of interleaved components", bytes: crowd(39, 2, 1) },
    { name: "columns: a crowd with two periods", bytes: crowd(6, 140, 2) },
    { name: "columns: a large crowd with two periods", bytes: crowd(39, 2, 2) },
    { name: "columns: more uneven layers that interleave than are sorted", bytes: uneven(1, 390) },
    { name: "columns: uneven layers that interleave", bytes: uneven(1, 16) },
    { name: "columns: uneven layers with two periods", bytes: uneven(2, 330) },
    { name: "columns: 1,000 layouts", bytes: encodePackage(packageOf(layouts(1_000)), "kvferry") },
  ];
}

function layouts(count: number): ReturnType<typeof layoutOf>[] {
  const part = componentOf();
  return Array.from({ length: count }, (_, id) => layoutOf(id, [part]));
}

/** Components side by side in one allocation; with `periods` 2 every other one has blocks twice as far apart. */
function crowd(count: number, layouts: number, periods: 1 | 2): Uint8Array {
  const parts = Array.from({ length: count }, (_, index) =>
    componentOf({
      name: `part-${index}`,
      config: { ...CONFIG, numLayers: 1, outerDim: 1 },
      arrangement: {
        strides: { block: 64 * count * (1 + (index % periods)), layer: 64, outer: 64, page: 16 },
        regions: "one",
      },
      addresses: [0x100000 + index * 64],
    }),
  );
  const value = packageOf(Array.from({ length: layouts }, (_, id) => layoutOf(id, parts)));
  // A mebibyte: its checksum takes time too.
  const to = (blob: number) => forged(value, (body) => (body["nixl"] = new Uint8Array(blob)));
  return to(2 * MIB - to(MIB).length);
}

/** Layers in one allocation, not evenly apart; with `periods` 2 a second component lies between them. */
function uneven(periods: 1 | 2, layouts: number): Uint8Array {
  const part = (name: string, at: number, layers: number, blocks: number) =>
    componentOf({
      name,
      config: { ...CONFIG, numLayers: layers },
      arrangement: { strides: { block: blocks * layers * 256, outer: 64, page: 16 }, regions: "per-layer" },
      addresses: Array.from({ length: layers }, (_, layer) => at + layer * 256 + (layer % 2 === 1 ? 64 : 0)),
    });
  return forged(
    packageOf(
      Array.from({ length: layouts }, (_, id) =>
        layoutOf(id, [
          part("kv", 0x100000 + id, 60 + (id % 3), 1),
          ...(periods === 2 ? [part("scales", 0x100000 + id + 192, 12, 10)] : []),
        ]),
      ),
    ),
    // An encoder would make it long enough to be read.
    (body) => delete body["padding"],
  );
}

function dynamo(): HostileInput[] {
  const [first] = rawOf().layouts;
  if (first === undefined) throw new Error("no layout");
  const many = (count: number, change: (id: number) => Partial<DynamoDescriptor>): Uint8Array =>
    encodeDynamoPackage(
      {
        ...rawOf(),
        layouts: Array.from({ length: count }, (_, id) => ({
          handle: 7n | (BigInt(id) << 64n),
          layout: { ...first.layout, ...change(id) },
        })),
      },
      "dynamo-1.0",
    );
  const regions = (count: number): { addr: bigint; size: bigint }[] =>
    Array.from({ length: count }, (_, index) => ({
      addr: BigInt(0x10000 + ((index * 7_919) % count) * 512),
      size: 256n,
    }));
  return [
    { name: "Dynamo: layouts without regions", bytes: many(30_000, () => ({ memory_descriptors: [] })) },
    {
      name: "Dynamo: a shape for each layout",
      bytes: many(20_000, (id) => ({
        layout_config: { ...first.layout.layout_config, num_blocks: BigInt(id + 1) },
        memory_descriptors: [{ addr: 0x1000n, size: 2n ** 30n }],
      })),
    },
    {
      name: "Dynamo: one layout of 65,536 regions out of order",
      bytes: many(1, () => ({
        layout_config: { ...first.layout.layout_config, num_layers: 65_536n },
        layout_type_details: { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
        memory_descriptors: regions(65_536),
      })),
    },
    {
      name: "Dynamo: 100,000 regions where one belongs",
      bytes: many(1, () => ({ memory_descriptors: regions(100_000) })),
    },
    {
      name: "Dynamo: layouts of other agents",
      bytes: many(10_000, (id) => ({
        nixl_metadata: { agent_name: `w${id}`, mem_type: "Dram", device_id: 0n },
      })),
    },
    {
      name: "Dynamo: 19,000 layouts as a worker has them",
      bytes: many(19_000, (id) => ({
        memory_descriptors: [{ addr: 0x7f00_0000_0000n + BigInt(id) * 4096n, size: 65_536n }],
      })),
    },
  ];
}

function plain(): HostileInput[] {
  return [
    ...[0, 1, 7, 250, 251, 252, 253, 254, 255].map((value) => ({
      name: `plain: a mebibyte of ${value}`,
      bytes: new Uint8Array(MIB).fill(value),
    })),
    { name: "plain: a mebibyte of random bytes", bytes: randomBytes(randomOf(1, 1), MIB) },
  ];
}

function repeat(pattern: readonly number[], length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => pattern[index % pattern.length] ?? 0);
}
