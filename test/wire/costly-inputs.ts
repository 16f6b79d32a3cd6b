// Packages of about a mebibyte that are right, or right to their last byte, and hold as much as their bytes can say.
import { encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import type {
  DynamoDescriptor,
  DynamoFormat,
  MetadataPackage,
  PackageComponent,
} from "../../lib/wire/index.ts";
import { componentOf, CONFIG, forged, layoutOf, packageOf, rawOf } from "./builders.ts";
import type { HostileInput } from "./hostile-inputs.ts";

const MIB = 2 ** 20;
/** One element of two bytes: the smallest layout there is. */
const TINY = { numBlocks: 1, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 1, dtypeBits: 16 } as const;

/** All of them. */
export function costlyInputs(): readonly HostileInput[] {
  return [...dynamoInputs("dynamo-1.0"), ...dynamoInputs("kvbm-physical-1"), ...ownInputs()];
}

function dynamoInputs(format: DynamoFormat): HostileInput[] {
  const named = (name: string, bytes: Uint8Array): HostileInput => ({ name: `${format}: ${name}`, bytes });
  const inputs: HostileInput[] = [];
  // Below, at and above what a package of that length may hold.
  for (const count of [1_000, 1_024, 4_000, 20_000]) {
    const bytes = dynamo(format, count, () => ({}));
    inputs.push(named(`${count} smallest layouts`, padded(bytes, MIB)));
    inputs.push(named(`${count} smallest layouts, a byte too many`, extended(padded(bytes, MIB - 1))));
  }
  for (const [count, shapes] of [
    [640, 17],
    [1_000, 2],
  ] as const)
    inputs.push(
      named(
        `${count} layouts of ${shapes} shapes, none like the one before`,
        padded(
          dynamo(format, count, (id) => ({
            config: { num_blocks: BigInt(256 + (id % shapes)), page_size: 300n },
            regions: [{ addr: 2n ** 45n + BigInt(id), size: 2n ** 32n + BigInt(id) }],
            device: id % 2 === 0 ? null : id % 7,
          })),
          MIB,
        ),
      ),
    );
  for (const count of [41, 500, 1_024])
    inputs.push(
      named(
        `${count} shapes`,
        padded(
          dynamo(format, count, (id) => ({
            config: { num_blocks: BigInt(id + 1), page_size: 3n, num_layers: 2n, outer_dim: 2n },
            regions: [{ addr: 0x1000n, size: 2n ** 30n }],
          })),
          MIB,
        ),
      ),
    );
  for (const [layers, layouts, step] of [
    [65_536, 2, 40_503],
    [2_048, 1, 1_003],
    [1_024, 1, 1_003],
    [8_192, 20, 40_503],
    [1_000, 3, 1_003],
    [128, 16, 59],
    [128, 1_200, 59],
    [16, 128, 7],
    [16_384, 1, 1],
    [128, 128, 1],
    [16, 1_024, 1],
    [64, 1_024, 1],
  ] as const)
    inputs.push(
      named(
        `${layouts} layouts of ${layers} regions ${step === 1 ? "in order" : "out of order"}`,
        padded(
          dynamo(format, layouts, (id) => ({
            config: { num_layers: BigInt(layers) },
            details: { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
            regions: Array.from({ length: layers }, (_, index) => ({
              // No two layouts have the same order, so that what was proven for one says nothing of the next.
              addr: BigInt(((index * step + (step === 1 ? 0 : id)) % layers) * 2),
              size: 2n,
            })),
          })),
          MIB,
        ),
      ),
    );
  inputs.push(
    named(
      "regions of two bytes",
      dynamo(format, 4, () => ({
        config: { num_layers: 65_536n },
        details: { LayerSeparate: { block_dim: "BlockIsFirstDim" } },
        regions: Array.from({ length: 65_536 }, () => ({ addr: 1n, size: 2n })),
      })),
    ),
    named(
      "one name",
      dynamo(format, 0, () => ({}), "n".repeat(MIB - 20)),
    ),
    named(
      "one name of wide characters",
      dynamo(format, 0, () => ({}), "€".repeat((MIB - 20) / 3)),
    ),
    named(
      "250 names of 4,000 bytes",
      dynamo(format, 250, () => ({}), "€".repeat(1_333)),
    ),
    named(
      "a name of its own for each layout",
      dynamo(format, 1_000, (id) => ({ agent: `${id}${"ä".repeat(400)}` })),
    ),
    named(
      "a blob",
      encodeDynamoPackage({ ...rawOf(), nixl_metadata: new Uint8Array(MIB - 100), layouts: [] }, format),
    ),
  );
  return inputs;
}

interface Change {
  readonly config?: Partial<DynamoDescriptor["layout_config"]>;
  readonly regions?: DynamoDescriptor["memory_descriptors"];
  readonly details?: DynamoDescriptor["layout_type_details"];
  readonly agent?: string;
  /** A GPU, or null for host memory. */
  readonly device?: number | null;
}

function dynamo(format: DynamoFormat, count: number, change: (id: number) => Change, name = "w"): Uint8Array {
  const own = format === "dynamo-1.0";
  return encodeDynamoPackage(
    {
      worker_address: { worker_id: 7n, nixl_agent_name: name },
      nixl_metadata: new Uint8Array(0),
      layouts: Array.from({ length: count }, (_, id) => {
        const { config, regions, details, agent, device = null } = change(id);
        return {
          handle: 7n | (BigInt(id) << 64n),
          ...(own ? {} : { logical_type: "G2" as const }),
          layout: {
            version: 1,
            layout_config: {
              num_blocks: 1n,
              num_layers: 1n,
              outer_dim: 1n,
              page_size: 1n,
              inner_dim: 1n,
              alignment: 1n,
              dtype_width_bytes: 2n,
              ...(own ? { inner_shape: "Unknown" as const } : { num_heads: null }),
              ...config,
            },
            location: device === null ? ("System" as const) : { Device: device },
            nixl_metadata: {
              agent_name: agent ?? name,
              mem_type: device === null ? ("Dram" as const) : ("Vram" as const),
              device_id: BigInt(device ?? 0),
            },
            memory_descriptors: regions ?? [{ addr: 1n, size: 2n }],
            layout_type_details: details ?? { FullyContiguous: { block_format: "Operational" as const } },
          },
        };
      }),
    },
    format,
  );
}

/** The same package with a blob that fills it up, so that limits by length are as wide as they get. */
function padded(bytes: Uint8Array, length: number): Uint8Array {
  // Worker 7, a name of one byte, an empty blob.
  const room = length - bytes.length - 4;
  if (bytes[3] !== 0 || room < 65_536) return bytes;
  const whole = new Uint8Array(bytes.length + 4 + room);
  whole.set(bytes.subarray(0, 3), 0);
  whole[3] = 0xfc;
  new DataView(whole.buffer).setUint32(4, room, true);
  whole.set(bytes.subarray(4), 8 + room);
  return whole;
}

function extended(bytes: Uint8Array): Uint8Array {
  const longer = new Uint8Array(bytes.length + 1);
  longer.set(bytes);
  return longer;
}

function ownInputs(): HostileInput[] {
  const tiny = componentOf({ config: TINY });
  const disk = componentOf({ config: TINY, storage: { kind: "disk" } });
  const named = (name: string, bytes: Uint8Array): HostileInput => ({ name: `kvferry: ${name}`, bytes });
  // A mebibyte, whatever the encoder would fill up: limits by length are as wide as they get.
  const filled = (value: MetadataPackage): Uint8Array => {
    const to = (blob: number) =>
      forged(value, (body) => {
        delete body["padding"];
        body["nixl"] = new Uint8Array(blob);
      });
    return to(Math.max(0, 2 * MIB - 200 - to(MIB).length));
  };
  const layouts = (count: number, parts: readonly PackageComponent[] = [tiny], name: string | null = "l") =>
    packageOf(
      Array.from({ length: count }, (_, id) => {
        const part = parts[id % parts.length];
        const layout = layoutOf(id, part === undefined ? [] : [part]);
        return name === null ? layout : { ...layout, name };
      }),
    );
  const shapes = (count: number) =>
    packageOf(
      Array.from({ length: Math.ceil(count / 1_000) }, (_, id) =>
        layoutOf(
          id,
          Array.from({ length: Math.min(1_000, count - id * 1_000) }, (_row, index) =>
            componentOf({
              name: `p${index}`,
              config: { ...CONFIG, numBlocks: id * 1_000 + index + 1 },
              storage: { kind: "disk" },
            }),
          ),
        ),
      ),
    );
  const layered = (count: number, layers: number) =>
    packageOf([
      layoutOf(
        0,
        Array.from({ length: count }, (_, index) =>
          componentOf({
            name: `p${index}`,
            config: {
              ...TINY,
              numLayers: layers,
              layers: Array.from({ length: layers }, (_row, layer) => layers - 1 - layer),
            },
            storage: { kind: "disk" },
          }),
        ),
      ),
    ]);
  const parts = (storage: "disk" | "system", count: number) =>
    Array.from({ length: count }, (_, index) =>
      componentOf({
        name: `p${index}`,
        config: { ...TINY, numBlocks: 1 + (index % 7) },
        storage: { kind: storage },
        addresses: storage === "disk" ? [] : [0x1000 + index * 64],
      }),
    );
  const bundles = (storage: "disk" | "system") =>
    packageOf(Array.from({ length: 37 }, (_, id) => layoutOf(id, parts(storage, 17))));
  return [
    ...[1_000, 1_024, 15_800].map((count) => named(`${count} smallest layouts`, filled(layouts(count)))),
    named("1,024 layouts on disk", filled(layouts(1_024, [disk]))),
    named("1,024 layouts with names", filled(layouts(1_024, [tiny], null))),
    named("640 layouts, none like the one before", filled(layouts(640, parts("system", 17), null))),
    named("629 components on disk", filled(bundles("disk"))),
    named("629 components in memory", filled(bundles("system"))),
    ...[41, 1_500].map((count) => named(`${count} shapes`, filled(shapes(count)))),
    named("a list of 4,096 layers", filled(layered(1, 4_096))),
    named("a list of 65,536 layers", filled(layered(1, 65_536))),
    named("4 lists of 1,000 layers", filled(layered(4, 1_000))),
    named(
      "an audience of 16,384",
      filled(packageOf([], { audience: Array.from({ length: 16_384 }, (_, id) => 2n ** 63n + BigInt(id)) })),
    ),
    ...[
      [65_000, 1],
      [2_048, 1],
      [1_024, 1],
      [1_000, 3],
      [128, 16],
      [128, 120],
      [16, 128],
      [12, 1_024],
    ].map(([layers = 1, count = 1]) =>
      named(
        `${count} layouts of ${layers} regions out of order`,
        filled(
          packageOf(
            Array.from({ length: count }, (_, id) =>
              layoutOf(id, {
                config: { ...TINY, numLayers: layers },
                arrangement: "layer-separate/block-first",
                addresses: Array.from(
                  { length: layers },
                  (_row, index) => ((index * 40_507 + id) % layers) * 2,
                ),
              }),
            ),
          ),
        ),
      ),
    ),
    {
      name: "kvferry: an agent's name of a mebibyte",
      bytes: encodePackage(packageOf([], { agentName: "€".repeat(340_000) }), "kvferry"),
    },
    {
      name: "kvferry: 1,000 strings in wide characters",
      bytes: encodePackage(
        packageOf(
          Array.from({ length: 1_000 }, (_, id) => ({
            ...layoutOf(id, [disk]),
            name: `${id}${"€".repeat(240)}`,
          })),
        ),
        "kvferry",
      ),
    },
    {
      name: "kvferry: fingerprints",
      bytes: encodePackage(
        packageOf(
          Array.from({ length: 250 }, (_, id) => ({
            ...layoutOf(id, [disk]),
            fingerprint: `${id}${"€".repeat(1_300)}`,
          })),
        ),
        "kvferry",
      ),
    },
    {
      name: "kvferry: strides to be judged",
      bytes: forged(packageOf([layoutOf(0)]), (body) => strided(body, 61)),
    },
  ];
}

/** Shapes by strides whose overlap is hard to decide. */
function strided(body: Record<string, unknown>, rows: number): void {
  const numbers = new Float64Array(17 * rows);
  const words = new Uint32Array(6 * rows);
  for (let row = 0; row < rows; row++) {
    numbers.set(
      [101 + row, 97, 2, 89, 83, 8, 16, 1, -1, -1, -1, -1, 100_003, 1_009, 16, 9_973, 17],
      17 * row,
    );
    words.set([0, 0, 0xffff_ffff, 64, 0b11_10_01_00, 0], 6 * row);
  }
  body["shapeNumbers"] = new Uint8Array(numbers.buffer);
  body["shapeWords"] = new Uint8Array(words.buffer);
}
