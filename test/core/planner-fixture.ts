// Layouts over pretended or real bytes for tests of the planner. No native code.
import type { Arrangement, Order } from "../../lib/core/arrangement.ts";
import { resolveShape } from "../../lib/core/component-shape.ts";
import type { LayoutConfig } from "../../lib/core/config.ts";
import { resolveConfig } from "../../lib/core/config-resolve.ts";
import { isKvferryError, type ErrorWord, type KvferryError } from "../../lib/core/errors.ts";
import type { Attachment, ComponentRecord, LayoutRecord, Storage } from "../../lib/core/layout.ts";
import type { TransferPlan } from "../../lib/core/plan.ts";
import { planTransfer } from "../../lib/core/planner.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import { emptyRegistry, registerLayout, type RegistrySnapshot } from "../../lib/core/registry.ts";
import type { PlanRequest } from "../../lib/core/request.ts";
import type { PlanEnvironment } from "../../lib/core/environment.ts";
import { interpret } from "../interpreter.ts";

/** A component as tests describe it. */
export interface TestComponent {
  readonly config?: Partial<LayoutConfig>;
  readonly arrangement?: Arrangement;
  readonly order?: Order;
  readonly group?: string;
  readonly wholeBlocks?: boolean;
  readonly alias?: boolean;
  /** Address of each region; by default new memory. */
  readonly at?: readonly number[];
  /** Bytes between regions. */
  readonly gap?: number;
  readonly storage?: Storage;
  readonly reach?: "own" | "mapped" | "nixl" | "staged" | "file";
}

/** A layout as tests describe it. */
export interface TestLayout extends TestComponent {
  readonly components?: Readonly<Record<string, TestComponent>>;
  readonly fingerprint?: string;
  readonly access?: "read" | "read-write";
  /** Worker that owns it; a local layout when left out. */
  readonly owner?: bigint;
}

/** Eight blocks of 4 layers x K,V x 4 tokens x 2 heads x 4 two-byte elements: cells of 64 bytes, blocks of 512. */
export const CONFIG: LayoutConfig = {
  numBlocks: 8,
  numLayers: 4,
  outerDim: 2,
  pageSize: 4,
  numHeads: 2,
  headDim: 4,
  dtype: "bf16",
};

export const HOST: PlanEnvironment = { executors: ["host"], processors: 2 };
export const HOST_AND_NIXL: PlanEnvironment = { executors: ["host", "nixl"], processors: 2 };

/** A registry that grows, and the memory that its layouts lie in. */
export class World {
  snapshot: RegistrySnapshot = emptyRegistry({
    workerId: 1n,
    agentName: "test",
    wireName: "test",
    incarnation: 1,
  });
  #next: number = ORIGIN;

  /** Registers a layout and gives its record. */
  add(layout: TestLayout = {}): LayoutRecord {
    const components = Object.entries(layout.components ?? { kv: layout }).map(([name, component]) =>
      this.#component(name, component),
    );
    const made = registerLayout(this.snapshot, {
      name: `layout-${this.snapshot.localCount}`,
      tier: "G2",
      access: layout.access ?? "read-write",
      fingerprint: layout.fingerprint ?? null,
      stagedOnly: false,
      components,
    });
    this.snapshot = made.snapshot;
    if (layout.owner === undefined) return made.layout;
    // A peer's layout, put in as an import would.
    const record: LayoutRecord = { ...made.layout, owner: layout.owner };
    const handle = (layout.owner | (BigInt(made.layout.layoutId) << 64n)) as LayoutRecord["handle"];
    const owned: LayoutRecord = { ...record, handle, generation: 0 };
    this.snapshot = {
      ...this.snapshot,
      peers: new Map(this.snapshot.peers).set(layout.owner, {
        workerId: layout.owner,
        agentName: "peer",
        wireName: "peer",
        format: "kvferry",
        incarnation: 0,
        sequence: 0,
        host: null,
        layouts: [owned],
        byLayoutId: new Map([[owned.layoutId, owned]]),
        removed: new Map(),
      }),
    };
    return owned;
  }

  plan(request: PlanRequest, environment: PlanEnvironment = HOST): TransferPlan {
    return planTransfer(this.snapshot, request, defaultProfile, environment);
  }

  /** The refusal of a request; fails when it is planned. */
  refusal(word: ErrorWord, request: PlanRequest, environment: PlanEnvironment = HOST): KvferryError {
    try {
      this.plan(request, environment);
    } catch (error) {
      if (isKvferryError(error, word)) return error;
      throw error;
    }
    throw new Error(`planned instead of refusing with ${word}`);
  }

  /** Memory with a different byte at every address, near enough, in which all layouts lie. */
  memory(): Uint8Array {
    const memory = new Uint8Array(this.#next - ORIGIN);
    for (let index = 0; index < memory.length; index++)
      memory[index] = (Math.imul(index, 2_654_435_761) >>> 24) ^ index;
    return memory;
  }

  #component(name: string, given: TestComponent): ComponentRecord {
    const config = resolveConfig({ ...CONFIG, ...given.config } as LayoutConfig, "test");
    const shape = resolveShape(
      {
        name,
        config,
        arrangement: given.arrangement ?? "fully-contiguous",
        order: given.order,
        group: given.group ?? "default",
        wholeBlocks: given.wholeBlocks ?? false,
        alias: given.alias ?? false,
      },
      "test",
    );
    const { regionCount, regionBytes } = shape.view;
    const bases = given.at === undefined ? new Float64Array(regionCount) : Float64Array.from(given.at);
    if (given.at === undefined) {
      for (let region = 0; region < regionCount; region++) {
        bases[region] = this.#next;
        // Regions at uneven distances, so that they cannot be taken for one.
        this.#next += regionBytes + (given.gap ?? 16 + ((region * region) % 7));
      }
    }
    const attachments: Readonly<Record<NonNullable<TestComponent["reach"]>, Attachment>> = {
      own: { kind: "addresses", bases, origin: "own" },
      mapped: { kind: "addresses", bases, origin: "mapped" },
      nixl: { kind: "nixl", agent: "peer", bases },
      staged: { kind: "staged", agent: "peer" },
      file: { kind: "file", file: 7, bases },
    };
    return {
      shape,
      storage: given.storage ?? { kind: "system" },
      regionAddresses: bases,
      regionSizes: new Float64Array(regionCount).fill(regionBytes),
      attachment: attachments[given.reach ?? "own"],
      nixlDevice: 0,
    };
  }
}

/** Address of the first byte of a world's memory. */
export const ORIGIN = 65_536;

/** Runs a plan over a world's memory, hop by hop. */
export function runPlan(plan: TransferPlan, memory: Uint8Array): void {
  for (const leg of plan.legs)
    for (const hop of leg.hops) for (const program of hop.programs) interpret(program, memory, ORIGIN);
}

/** The bytes of one cell of a component in fully-contiguous nhd order. */
export function cellOf(
  layout: LayoutRecord,
  memory: Uint8Array,
  block: number,
  layer: number,
  outer: number,
): Uint8Array {
  const component = layout.components[0];
  if (component === undefined) throw new Error("no component");
  const { config } = component.shape;
  const at =
    (component.regionAddresses[0] ?? 0) -
    ORIGIN +
    block * config.blockBytes +
    (layer * config.outerDim + outer) * config.cellBytes;
  return memory.slice(at, at + config.cellBytes);
}
