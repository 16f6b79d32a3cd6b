import type { Arrangement, OrderAxis } from "../core/arrangement.ts";
import type { ResolvedConfig } from "../core/config.ts";
import { KvferryError } from "../core/errors.ts";
import type { ComponentRecord, Region, Storage } from "../core/layout.ts";
import type { BlockRange, FillPattern } from "./block-arguments.ts";
import type { LocalLayout } from "./local-layout.ts";

/** A named component of a registered layout: its shape, and access to its blocks. */
export class LocalComponent {
  readonly #layout: LocalLayout;
  readonly #record: ComponentRecord;

  /** @internal */
  constructor(layout: LocalLayout, record: ComponentRecord) {
    this.#layout = layout;
    this.#record = record;
  }

  get name(): string {
    return this.#record.shape.name;
  }

  get config(): ResolvedConfig {
    return this.#record.shape.config;
  }

  get arrangement(): Arrangement {
    return this.#record.shape.arrangement;
  }

  get order(): readonly OrderAxis[] {
    return this.#record.shape.order;
  }

  get storage(): Storage {
    return this.#record.storage;
  }

  /** Address and size of each region, in order. */
  get regions(): Region[] {
    return Array.from(this.#record.regionAddresses, (address, index) => ({
      address,
      size: this.#record.regionSizes[index] ?? 0,
    }));
  }

  /**
   * Address and size in bytes of one (block, layer, outer) cell, where the order makes it one run.
   *
   * @throws KvferryError `BLOCK_OUT_OF_RANGE` or `LAYER_RANGE` for an index past the end, `INCOMPATIBLE_LAYOUTS`
   * where the cell is not one run.
   */
  address(block: number, layer: number, outer: number): Region {
    return cellAddress(this.#record, block, layer, outer);
  }

  /**
   * One view for each region, of the live memory. Empty (length 0) after `unregister`.
   *
   * @throws KvferryError `ACCESS` for memory that the host cannot address, `INVALID_CONFIG` for a region above 4 GiB.
   */
  get bytes(): Uint8Array<ArrayBuffer>[] {
    this.#demandHost("bytes");
    return Array.from(this.#record.regionAddresses, (address) =>
      this.#layout.views().view(address, this.#record.shape.view.regionBytes),
    );
  }

  /** A view of a part of a region, `offset` and `length` in bytes. Empty after `unregister`. */
  view(region: number, part: { readonly offset: number; readonly length: number }): Uint8Array<ArrayBuffer> {
    this.#demandHost("view");
    const address = this.#record.regionAddresses[region];
    const { regionBytes } = this.#record.shape.view;
    const { offset, length } = part;
    if (
      address === undefined ||
      !(Number.isSafeInteger(offset) && offset >= 0) ||
      !(Number.isSafeInteger(length) && length >= 0) ||
      offset + length > regionBytes
    ) {
      throw new KvferryError(
        "INVALID_CONFIG",
        "view",
        `region ${region} has no bytes ${offset} to ${offset + length}`,
        `Regions have ${regionBytes} bytes here.`,
        {
          region,
          offset,
          length,
          regionBytes,
        },
      );
    }
    return this.#layout.views().view(address + offset, length);
  }

  /** A copy of one block's bytes in the logical order layer, outer, page, head, element. */
  async read(block: number, options?: BlockRange): Promise<Uint8Array<ArrayBuffer>> {
    return this.#layout.io("read").read(this.#layout.record, this.#record, block, options);
  }

  /** Writes one block's bytes, given in the logical order. */
  async write(block: number, data: Uint8Array, options?: BlockRange): Promise<void> {
    return this.#layout.io("write").write(this.#layout.record, this.#record, block, data, options);
  }

  /** Fills blocks (default all): a constant byte, Dynamo's sequential pattern, or seeded random bytes. */
  async fill(pattern: FillPattern, options?: { readonly blocks?: readonly number[] }): Promise<void> {
    return this.#layout.io("fill").fill(this.#layout.record, this.#record, pattern, options?.blocks);
  }

  /** BLAKE3 of each block over layers and outers in order, lower-case hex. */
  async checksums(blocks: readonly number[] | Uint32Array): Promise<string[]> {
    return this.#layout.io("checksums").checksums(this.#layout.record, this.#record, blocks);
  }

  #demandHost(operation: string): void {
    this.#layout.demandRegistered(operation);
    const { kind } = this.#record.storage;
    if (kind === "system" || kind === "pinned") return;
    throw new KvferryError(
      "ACCESS",
      operation,
      `${kind} memory has no host view`,
      "Use read and write, which work for every memory kind.",
      { kind },
    );
  }
}

function cellAddress(record: ComponentRecord, block: number, layer: number, outer: number): Region {
  const { view, config } = record.shape;
  if (!(Number.isInteger(block) && block >= 0 && block < view.blocks)) {
    throw new KvferryError(
      "BLOCK_OUT_OF_RANGE",
      "address",
      `block ${block} is not one of ${view.blocks}`,
      "Block ids start at 0.",
      { block, blocks: view.blocks },
    );
  }
  if (
    !(Number.isInteger(layer) && layer >= 0 && layer < view.layers) ||
    !(Number.isInteger(outer) && outer >= 0 && outer < view.outers)
  ) {
    throw new KvferryError(
      "LAYER_RANGE",
      "address",
      `there is no layer ${layer}, outer ${outer}`,
      `This component has ${view.layers} layers and ${view.outers} outers.`,
      {
        layer,
        outer,
        layers: view.layers,
        outers: view.outers,
      },
    );
  }
  const pageInner = view.heads === 1 || view.strideHead === view.rowBytes;
  const oneRun = pageInner
    ? view.pages === 1 || view.stridePage === view.heads * view.rowBytes
    : (view.pages === 1 || view.stridePage === view.rowBytes) &&
      view.strideHead === view.pages * view.rowBytes;
  if (!oneRun) {
    throw new KvferryError(
      "INCOMPATIBLE_LAYOUTS",
      "address",
      "a cell is not one run of bytes in this order",
      "Use read and write, or an order that keeps pages and heads together.",
      {
        order: record.shape.order,
      },
    );
  }
  const region =
    view.regionScheme === "one" ? 0 : view.regionScheme === "per-layer" ? layer : layer * view.outers + outer;
  const base = record.regionAddresses[region] ?? 0;
  return {
    address: base + block * view.strideBlock + layer * view.strideLayer + outer * view.strideOuter,
    size: config.cellBytes,
  };
}
