import { arrangementView } from "../core/arrangement-view.ts";
import type { ResolvedConfig } from "../core/config.ts";
import type { ComponentRecord, ComponentShape, LayoutRecord } from "../core/layout.ts";

/** Host memory that blocks pass through. */
export interface StageMemory {
  readonly address: number;
  readonly storage: "system" | "pinned";
  release(): Promise<void>;
}

/** A layout over host memory that holds blocks of a component in logical order. Never registered. */
export function stageRecord(
  component: ComponentRecord,
  staged: ResolvedConfig,
  { address, storage }: StageMemory,
): LayoutRecord {
  const { name, group } = component.shape;
  const shape: ComponentShape = {
    name,
    config: staged,
    arrangement: "fully-contiguous",
    order: ["layer", "outer", "page", "head"],
    view: arrangementView(staged, "fully-contiguous", "nhd"),
    group,
    wholeBlocks: component.shape.wholeBlocks,
    alias: false,
  };
  const bases = Float64Array.of(address);
  return {
    // A handle that no registry gives out: layout id 65,535.
    handle: (65_535n << 64n) as LayoutRecord["handle"],
    layoutId: 65_535,
    generation: 0,
    owner: null,
    name: "stage",
    tier: "G2",
    access: "read-write",
    fingerprint: null,
    stagedOnly: false,
    components: [
      {
        shape,
        storage: { kind: storage },
        regionAddresses: bases,
        regionSizes: Float64Array.of(staged.totalBytes),
        attachment: { kind: "addresses", bases, origin: "own" },
        nixlDevice: 0,
      },
    ],
  };
}
