// Random metadata packages: valid ones of the common form, and raw ones of Dynamo's formats with values at the edges.
import type { Arrangement, Order } from "../../lib/core/arrangement.ts";
import type { LayoutConfig } from "../../lib/core/config.ts";
import { resolveShape } from "../../lib/core/component-shape.ts";
import { resolveConfig } from "../../lib/core/config-resolve.ts";
import { makeHandle } from "../../lib/core/handle.ts";
import type { ComponentShape, Storage } from "../../lib/core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../../lib/core/package.ts";
import type {
  CustomAxis,
  DynamoDescriptor,
  DynamoFormat,
  DynamoPackage,
  KvBlockLayout,
} from "../../lib/wire/dynamo-types.ts";
import {
  BLOCK_DIMS,
  CUSTOM_AXES,
  INNER_SHAPES,
  KV_BLOCK_LAYOUTS,
  LOGICAL_TYPES,
  MEMORY_TYPES,
} from "../../lib/wire/dynamo-types.ts";
import type { Random } from "../random.ts";

export const WORKER_IDS: readonly bigint[] = [
  0n,
  1n,
  250n,
  251n,
  255n,
  256n,
  65_535n,
  65_536n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 53n + 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];

const NAMES = [
  "worker-7",
  "w",
  "é",
  "工作节点",
  "a\u0000b",
  "🦀",
  "x".repeat(300),
  "\ufeffbom",
  '"quoted"\\',
];

const ORDERS: readonly Order[] = [
  "nhd",
  "hnd",
  "universal-tp",
  "universal-pp",
  ["page", "layer", "head", "outer"],
  ["outer", "layer", "page", "head"],
];

/** What a random package may use. */
export interface Sayable {
  /** Null for everything that kvferry's own format can say. */
  readonly format: DynamoFormat | null;
  readonly layouts: number;
}

/** A random valid package, layouts in id order. */
export function makePackage(random: Random, sayable: Sayable): MetadataPackage {
  const own = sayable.format === null;
  const workerId = random.pick(WORKER_IDS);
  const agentName = random.pick(NAMES);
  const incarnation = own ? random.pick([0, 1, 2 ** 36 - 1]) : 0;
  const memory = { next: random.pick([4096, 0x7f00_0000_0000]) };
  const layouts: PackageLayout[] = [];
  let id = random.between(0, 3);
  const count = random.between(0, sayable.layouts);
  const repeat = random.chance(0.5) ? makeShapes(random, sayable) : null;
  for (let index = 0; index < count; index++, id += random.between(1, 3)) {
    const shapes = repeat ?? makeShapes(random, sayable);
    const storage = makeStorage(random, own);
    const disk = storage.kind === "disk";
    layouts.push({
      handle: makeHandle(workerId, id, incarnation * 4_096 + (own ? random.between(0, 4_095) : 0)),
      name: own ? random.pick(NAMES).slice(0, 256) : `layout-${id}`,
      tier: sayable.format === "dynamo-1.0" ? tierOf(storage) : random.pick(LOGICAL_TYPES),
      access: own && random.chance(0.3) ? "read" : "read-write",
      fingerprint: own && random.chance(0.5) ? random.pick(NAMES) : null,
      stagedOnly: disk || (own && random.chance(0.2)),
      components: shapes.map((shape) => makeComponent(random, shape, storage, memory)),
    });
  }
  return {
    format: sayable.format ?? "kvferry",
    workerId,
    agentName,
    wireName: own ? `${agentName}#1a` : agentName,
    incarnation,
    sequence: own ? random.between(0, 1_000) : 0,
    issuedAtMs: own && random.chance(0.5) ? 1_790_000_000_000 + random.between(0, 1_000_000) : null,
    expiresAtMs: own && random.chance(0.5) ? 1_890_000_000_000 : null,
    audience: own && random.chance(0.5) ? random.shuffled(WORKER_IDS).slice(random.between(0, 14)) : null,
    nixlMetadata: randomBytes(random, random.pick([0, 1, 5, 250, 251, 300])),
    host: own && random.chance(0.5) ? HOST : null,
    layouts,
  };
}

const HOST = {
  bootId: "6f0f3c2e-7a7a-4d1c-9d59-000000000001",
  namespaces: { pid: "4026531836", ipc: "4026531839", net: "4026531840", user: "4026531837" },
  userId: 1_000,
  processId: 4_242,
  rendezvous: "kvferry-4242-1a",
} as const;

function makeShapes(random: Random, sayable: Sayable): readonly ComponentShape[] {
  if (sayable.format !== null || random.chance(0.7)) return [makeShape(random, "kv", sayable.format)];
  return Array.from({ length: random.between(1, 4) }, (_, index) =>
    makeShape(random, index === 0 ? "kv" : `part-${index}`, null),
  );
}

function makeShape(random: Random, name: string, format: DynamoFormat | null): ComponentShape {
  const config = resolveConfig(makeConfig(random, format), "test");
  const own = format === null;
  const separate = random.chance(0.5);
  const arrangement = makeArrangement(random, own, separate, config);
  const plain = format === "dynamo-1.0" || separate || !config.headsKnown ? ORDERS.slice(0, 2) : ORDERS;
  const order =
    typeof arrangement !== "string" || arrangement.length < 6 ? undefined : random.pick(own ? ORDERS : plain);
  const alias = own && random.chance(0.1);
  const wholeBlocks = own && random.chance(0.2);
  const group = own && random.chance(0.3) ? "other" : "default";
  return resolveShape({ name, config, arrangement, order, group, wholeBlocks, alias }, "test");
}

function makeConfig(random: Random, format: DynamoFormat | null): LayoutConfig {
  const own = format === null;
  const numLayers = random.between(1, 5);
  const heads = random.between(1, 4);
  const known = format !== "dynamo-1.0" && random.chance(0.7);
  const window = own && random.chance(0.3) ? { layerWindow: { start: random.between(0, 9), total: 20 } } : {};
  const list =
    own && window.layerWindow === undefined && random.chance(0.3)
      ? { layers: random.shuffled([0, 1, 2, 3, 5, 8, 13, 65_535]).slice(0, numLayers) }
      : {};
  return {
    numBlocks: random.pick([1, 2, 3, 250, 251, 4_096]),
    numLayers,
    outerDim: random.pick([1, 2] as const),
    pageSize: random.pick([1, 3, 16]),
    ...(known
      ? { numHeads: heads, headDim: random.pick([8, 64, 576]) }
      : { innerDim: random.pick([8, 128]) }),
    ...(own && random.chance(0.4)
      ? { dtype: random.pick(["bf16", "fp8", "fp4", "f64"] as const) }
      : { dtypeBits: random.pick([16, 32, 64]) }),
    alignment: random.pick([1, 2, 4_096]),
    ...(own && known && random.chance(0.3) ? { headWindow: { start: 2, total: heads + 2 } } : {}),
    ...window,
    ...list,
  };
}

function makeArrangement(
  random: Random,
  own: boolean,
  separate: boolean,
  config: ReturnType<typeof resolveConfig>,
): Arrangement {
  if (own && random.chance(0.2))
    return random.pick(["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC", "NHD", "HND"] as const);
  if (own && random.chance(0.2)) {
    // Padding behind each block, and layers that interleave in one allocation.
    const cell = config.cellBytes + 64;
    const regions = random.pick(["one", "per-layer", "per-layer-and-outer"] as const);
    return {
      strides: {
        block: cell * config.outerDim * config.numLayers,
        ...(regions === "one" ? { layer: cell * config.outerDim } : {}),
        ...(regions === "per-layer-and-outer" ? {} : { outer: cell }),
        page: config.tokenBytes,
        ...(random.chance(0.5) ? { head: config.headBytes } : {}),
      },
      regions,
    };
  }
  if (!separate) return "fully-contiguous";
  return random.pick(["layer-separate/block-first", "layer-separate/block-second"] as const);
}

function makeStorage(random: Random, own: boolean): Storage {
  const device = random.pick([0, 1, 7, 2 ** 32 - 2]);
  return random.pick<Storage>([
    { kind: "system" },
    { kind: "pinned" },
    { kind: "device", device },
    ...(own ? ([{ kind: "disk" }, { kind: "pinned", device }] as const) : []),
  ]);
}

function tierOf(storage: Storage): "G1" | "G2" | "G3" {
  return storage.kind === "device" ? "G1" : storage.kind === "disk" ? "G3" : "G2";
}

function makeComponent(
  random: Random,
  shape: ComponentShape,
  storage: Storage,
  memory: { next: number },
): PackageComponent {
  const count = storage.kind === "disk" ? 0 : shape.view.regionCount;
  const regionAddresses = new Float64Array(count);
  const regionSizes = new Float64Array(count);
  const slack = random.pick([0, 0, 1, 512]);
  for (let index = 0; index < count; index++) {
    regionAddresses[index] = memory.next;
    regionSizes[index] = shape.view.regionBytes + slack;
    memory.next += shape.view.regionBytes + slack + random.pick([0, 0, 4_096]);
  }
  const nixlDevice = storage.kind === "device" ? storage.device : 0;
  return { ...shape, storage, regionAddresses, regionSizes, nixlDevice };
}

/** A random raw package of Dynamo's: any values that the format can hold, whether they make sense or not. */
export function makeRawPackage(random: Random, format: DynamoFormat): DynamoPackage {
  return {
    worker_address: { worker_id: makeWide(random, 64n), nixl_agent_name: random.pick(NAMES) },
    nixl_metadata: randomBytes(random, random.pick([0, 1, 250, 251, 300])),
    layouts: Array.from({ length: random.between(0, 3) }, () => {
      const handle = makeWide(random, 128n);
      const layout = makeDescriptor(random, format);
      return format === "dynamo-1.0"
        ? { handle, layout }
        : { handle, logical_type: random.pick(LOGICAL_TYPES), layout };
    }),
  };
}

function makeDescriptor(random: Random, format: DynamoFormat): DynamoDescriptor {
  const u64 = (): bigint => makeWide(random, 64n);
  const common = {
    num_blocks: u64(),
    num_layers: u64(),
    outer_dim: u64(),
    page_size: u64(),
    inner_dim: u64(),
    alignment: u64(),
    dtype_width_bytes: u64(),
  };
  const kv = format === "dynamo-1.0" ? {} : { kv_block_layout: makeBlockLayout(random) };
  return {
    version: Number(makeWide(random, 32n)),
    layout_config:
      format === "dynamo-1.0"
        ? { ...common, inner_shape: random.pick(INNER_SHAPES) }
        : { ...common, num_heads: random.chance(0.3) ? null : u64() },
    location: random.pick([
      "System" as const,
      "Pinned" as const,
      { Device: Number(makeWide(random, 32n)) },
      { Disk: u64() },
    ]),
    nixl_metadata: { agent_name: random.pick(NAMES), mem_type: random.pick(MEMORY_TYPES), device_id: u64() },
    memory_descriptors: Array.from({ length: random.between(0, 4) }, () => ({ addr: u64(), size: u64() })),
    layout_type_details: random.chance(0.5)
      ? { FullyContiguous: { block_format: "Operational", ...kv } }
      : { LayerSeparate: { block_dim: random.pick(BLOCK_DIMS), ...kv } },
  };
}

function makeBlockLayout(random: Random): KvBlockLayout {
  const word = random.pick(KV_BLOCK_LAYOUTS);
  if (word !== "Custom") return word;
  const axis = (): CustomAxis => random.pick(CUSTOM_AXES);
  return { Custom: [axis(), axis(), axis(), axis()] };
}

/** An unsigned integer, most often next to where the encoding changes its length. */
function makeWide(random: Random, bits: bigint): bigint {
  const edges = [
    0n,
    1n,
    249n,
    250n,
    251n,
    252n,
    255n,
    256n,
    2n ** 16n,
    2n ** 32n,
    2n ** 53n,
    2n ** 64n,
    2n ** bits,
  ];
  const value = random.pick(edges) + BigInt(random.between(-2, 2));
  return BigInt.asUintN(Number(bits), value < 0n ? 7n : value);
}

/** Random bytes. */
export function randomBytes(random: Random, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => random.between(0, 255));
}
