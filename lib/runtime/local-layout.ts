import type { Arrangement, OrderAxis } from "../core/arrangement.ts";
import type { ResolvedConfig } from "../core/config.ts";
import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { LayoutRecord, Region, Storage, Tier } from "../core/layout.ts";
import { ViewSet } from "../native/memory.ts";
import type { BlockRange, FillPattern } from "./block-arguments.ts";
import type { BlockIo } from "./block-io.ts";
import type { LayoutMemory } from "./layout-memory.ts";
import type { QuarantinedBlock } from "./leases.ts";
import { LocalComponent } from "./local-component.ts";

/** Options of `unregister`. */
export interface UnregisterOptions {
  /** Wait until nothing uses the layout, instead of refusing. */
  readonly wait?: boolean;
}

/** What a local layout needs from its transport. */
export interface LayoutHost {
  readonly io: BlockIo;
  unregister(layout: LocalLayout, options: UnregisterOptions): Promise<void>;
  quarantined(handle: LayoutHandle): readonly QuarantinedBlock[];
}

/**
 * A layout that this transport registered.
 *
 * It owns the memory that was allocated for it until `unregister`; adopted memory stays the caller's and must live
 * as long as the layout is registered.
 */
export class LocalLayout implements AsyncDisposable {
  readonly record: LayoutRecord;
  readonly #host: LayoutHost;
  readonly #memory: LayoutMemory;
  #components: Readonly<Record<string, LocalComponent>> | undefined;
  #views: ViewSet | undefined;
  #registered = true;

  /** @internal */
  constructor(host: LayoutHost, record: LayoutRecord, memory: LayoutMemory) {
    this.#host = host;
    this.record = record;
    this.#memory = memory;
  }

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
    return this.#first().storage;
  }

  /** The layout's components by name; the short form has the one component `kv`. */
  get components(): Readonly<Record<string, LocalComponent>> {
    this.#components ??= Object.freeze(
      Object.fromEntries(
        this.record.components.map((component) => [
          component.shape.name,
          new LocalComponent(this, component),
        ]),
      ),
    );
    return this.#components;
  }

  get config(): ResolvedConfig {
    return this.#only("config").config;
  }

  get arrangement(): Arrangement {
    return this.#only("arrangement").arrangement;
  }

  get order(): readonly OrderAxis[] {
    return this.#only("order").order;
  }

  get regions(): Region[] {
    return this.#only("regions").regions;
  }

  get bytes(): Uint8Array<ArrayBuffer>[] {
    return this.#only("bytes").bytes;
  }

  address(block: number, layer: number, outer: number): Region {
    return this.#only("address").address(block, layer, outer);
  }

  view(region: number, part: { readonly offset: number; readonly length: number }): Uint8Array<ArrayBuffer> {
    return this.#only("view").view(region, part);
  }

  async read(block: number, options?: BlockRange): Promise<Uint8Array<ArrayBuffer>> {
    return this.#only("read").read(block, options);
  }

  async write(block: number, data: Uint8Array, options?: BlockRange): Promise<void> {
    return this.#only("write").write(block, data, options);
  }

  async fill(pattern: FillPattern, options?: { readonly blocks?: readonly number[] }): Promise<void> {
    return this.#only("fill").fill(pattern, options);
  }

  async checksums(blocks: readonly number[] | Uint32Array): Promise<string[]> {
    return this.#only("checksums").checksums(blocks);
  }

  /** Blocks that must not be used until it is proven that nobody writes to them. */
  quarantinedBlocks(): readonly QuarantinedBlock[] {
    return this.#host.quarantined(this.record.handle);
  }

  /**
   * Takes the layout out of the transport and gives its memory back.
   *
   * Memory that this transport allocated stays mapped until no worker that imported the layout can touch it. Memory
   * that the caller owns may be freed once this resolves, not before.
   *
   * @throws KvferryError `IN_USE` while a transfer or a neighbour uses it, unless `wait` is set; for the caller's own
   * memory also when a worker that imported it does not let go of it in time: call again to wait on.
   */
  unregister(options: UnregisterOptions = {}): Promise<void> {
    return this.#host.unregister(this, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.unregister({ wait: true });
  }

  /** @internal */
  get memory(): LayoutMemory {
    return this.#memory;
  }

  /** @internal Empties views; the transport then frees the memory. */
  retire(): void {
    this.#registered = false;
    this.#views?.detach();
  }

  /** @internal */
  views(): ViewSet {
    this.#views ??= new ViewSet();
    return this.#views;
  }

  /** @internal @throws KvferryError `STALE_HANDLE` when the layout is not registered any more. */
  io(operation: string): BlockIo {
    this.demandRegistered(operation);
    return this.#host.io;
  }

  /** @internal */
  demandRegistered(operation: string): void {
    if (this.#registered) return;
    throw new KvferryError(
      "STALE_HANDLE",
      operation,
      `layout ${this.record.name} is not registered any more`,
      "Register it again.",
      { name: this.record.name },
    );
  }

  #first(): LocalComponent {
    const component = this.record.components[0];
    if (component === undefined)
      throw new KvferryError(
        "INVALID_CONFIG",
        "components",
        "the layout has no component",
        "This is a defect: please report it.",
      );
    return this.components[component.shape.name] ?? new LocalComponent(this, component);
  }

  #only(member: string): LocalComponent {
    if (this.record.components.length === 1) return this.#first();
    throw new KvferryError(
      "INVALID_CONFIG",
      member,
      `layout ${this.record.name} has ${this.record.components.length} components`,
      `Say which: layout.components.NAME.${member}.`,
      { components: this.record.components.map((component) => component.shape.name) },
    );
  }
}
