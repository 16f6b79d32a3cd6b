import type { Arrangement, OrderAxis } from "../core/arrangement.ts";
import type { ResolvedConfig } from "../core/config.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord, Storage, Tier } from "../core/layout.ts";
import type { Peer } from "./peer.ts";

/** What a peer's component is. */
export interface RemoteComponent {
  readonly name: string;
  readonly config: ResolvedConfig;
  readonly arrangement: Arrangement;
  readonly order: readonly OrderAxis[];
  readonly storage: Storage;
}

/** A peer's layout, as its metadata describes it. Valid until the peer is forgotten, lost or imported anew. */
export class RemoteLayout {
  readonly peer: Peer;
  #record: LayoutRecord;
  #components: Readonly<Record<string, RemoteComponent>> | undefined;

  /** @internal */
  constructor(peer: Peer, record: LayoutRecord) {
    this.peer = peer;
    this.#record = record;
  }

  /** What the registry holds of it. */
  get record(): LayoutRecord {
    return this.#record;
  }

  /** @internal The same layout in a newer package of its peer. */
  renew(record: LayoutRecord): void {
    if (record === this.#record) return;
    this.#record = record;
    this.#components = undefined;
  }

  /** The exporter's own handle. */
  get handle(): LayoutHandle {
    return this.record.handle;
  }

  get name(): string {
    return this.record.name;
  }

  get tier(): Tier {
    return this.record.tier;
  }

  get fingerprint(): string | null {
    return this.record.fingerprint;
  }

  /** Storage of the first component. */
  get storage(): Storage {
    return this.record.components[0]?.storage ?? { kind: "system" };
  }

  /** Only the peer itself can touch the bytes: transfers are staged with its help. */
  get stagedOnly(): boolean {
    return this.record.stagedOnly;
  }

  /** `neighbour` when the memory is mapped into this process, else `remote`. */
  get distance(): "neighbour" | "remote" {
    for (const { attachment } of this.#record.components)
      if (attachment.kind !== "addresses") return "remote";
    return "neighbour";
  }

  get components(): Readonly<Record<string, RemoteComponent>> {
    this.#components ??= Object.freeze(
      Object.fromEntries(
        this.record.components.map((component) => [component.shape.name, describe(component)]),
      ),
    );
    return this.#components;
  }
}

function describe(component: ComponentRecord): RemoteComponent {
  const { name, config, arrangement, order } = component.shape;
  return Object.freeze({ name, config, arrangement, order, storage: component.storage });
}
