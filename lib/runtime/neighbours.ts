import { closeSync } from "node:fs";
import { handleWorkerId, type LayoutHandle } from "../core/handle.ts";
import type { HostIdentity, MetadataPackage } from "../core/package.ts";
import type { NativeContext } from "../native/context.ts";
import { NeighbourSockets } from "../native/neighbour.ts";
import type { ServedLayout } from "./neighbour-describe.ts";
import type { NeighbourDevices } from "./neighbour-devices.ts";
import { NeighbourExporter } from "./neighbour-export.ts";
import { hostPlace } from "./neighbour-host.ts";
import { type NeighbourAttachment, NeighbourImporter } from "./neighbour-import.ts";
import type { MappedComponent } from "./neighbour-mapping.ts";
import { freshNonce, type MarkWord, type NeighbourName } from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";
import type { BlockMark } from "./sums.ts";

/** What neighbours need from the transport; given once it is there. */
export interface NeighbourHost {
  readonly find: (handle: LayoutHandle) => ServedLayout | undefined;
  /** Takes a neighbour's message. @returns Whether more may come. */
  readonly deliver: (from: NeighbourName, payload: Uint8Array<ArrayBuffer>) => boolean;
  /** A process that had layouts mapped is gone: it writes no more. */
  readonly gone: (from: NeighbourName, layouts: readonly LayoutHandle[]) => void;
  readonly used: (handle: LayoutHandle) => boolean;
  readonly idle: (handle: LayoutHandle) => Promise<void>;
  readonly lost: (wireName: string, reason: string) => void;
  readonly withdrawn: (wireName: string, handle: LayoutHandle) => void;
  /** A component that was mapped is something else to this process now. */
  readonly repinned: (
    wireName: string,
    handle: LayoutHandle,
    component: string,
    mapped: MappedComponent,
  ) => void;
  /** A neighbour says of blocks that they are bad, or good again. */
  readonly marked: (wireName: string, mark: BlockMark) => void;
  readonly warn: (message: string) => void;
}

/**
 * This transport's way to processes of its host: it hands out its layouts' memory and maps theirs.
 *
 * Nothing is started before the first package goes out or comes in.
 */
export class Neighbours {
  readonly #context: NativeContext;
  readonly #exporter: NeighbourExporter;
  readonly #importer: NeighbourImporter;
  readonly #place: ReturnType<typeof hostPlace>;
  readonly #worker: bigint;
  #host: NeighbourHost | undefined;
  #sockets: NeighbourSockets | undefined;
  #identity: HostIdentity | null | undefined;

  constructor(
    context: NativeContext,
    self: NeighbourName,
    secrets: readonly SecretKey[],
    devices: NeighbourDevices,
  ) {
    this.#context = context;
    this.#place = hostPlace();
    this.#worker = BigInt(self.worker);
    const host = (): NeighbourHost => {
      if (this.#host === undefined) throw new Error("neighbours were used before the transport was there");
      return this.#host;
    };
    this.#exporter = new NeighbourExporter(() => this.#opened(), {
      self,
      secrets,
      find: (handle) => host().find(handle),
      exportDevice: devices.export,
      deliver: (from, payload) => host().deliver(from, payload),
      gone: (from, layouts) => host().gone(from, layouts),
      marked: (from, word) => host().marked(from.wire, markOf(word)),
      warn: (message) => host().warn(message),
    });
    devices.onOpened(() => this.#importer.pinAll());
    this.#importer = new NeighbourImporter(context, () => this.#opened(), {
      self,
      secrets,
      place: this.#place,
      used: (handle) => host().used(handle),
      idle: (handle) => host().idle(handle),
      lost: (wireName, reason) => host().lost(wireName, reason),
      withdrawn: (wireName, handle) => host().withdrawn(wireName, handle),
      warn: (message) => host().warn(message),
      marked: (wireName, word) => host().marked(wireName, markOf(word)),
      devices,
      repinned: (wireName, handle, component, mapped) => host().repinned(wireName, handle, component, mapped),
    });
  }

  /** Connects neighbours with the transport; before anything else. */
  serve(host: NeighbourHost): void {
    this.#host = host;
  }

  /**
   * Where neighbours can meet this process; opens the rendezvous the first time.
   *
   * @returns Null when it cannot be opened here: others then reach this process through NIXL.
   */
  identity(): HostIdentity | null {
    if (this.#identity !== undefined) return this.#identity;
    this.#identity = null;
    if (this.#place === null) return null;
    // Long enough that nobody takes the name before, and unlike any other transport's of this process.
    const rendezvous = `kvferry-${freshNonce().slice(0, 32)}`;
    try {
      this.#opened().listen(rendezvous);
      this.#identity = { ...this.#place, rendezvous };
    } catch (error) {
      this.#host?.warn(
        `neighbours cannot reach this process: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
    return this.#identity;
  }

  /** A package goes out: its layouts may be handed to those for whom it is meant. */
  exported({ layouts, audience }: MetadataPackage): void {
    this.#exporter.exported(
      layouts.map((layout) => layout.handle),
      audience,
    );
  }

  /** Maps what a package describes, as far as its exporter is a neighbour. Never fails. */
  attach(metadata: MetadataPackage): Promise<NeighbourAttachment> {
    return this.#importer.attach(metadata);
  }

  /** Lets go of a peer's memory once nothing here uses it. */
  detach(wireName: string): Promise<void> {
    return this.#importer.detach(wireName);
  }

  /** Whether messages to a peer go by a neighbour's connection. */
  reaches(wireName: string): boolean {
    return this.#importer.reaches(wireName);
  }

  /** Sends a user's message to a neighbour. @throws KvferryError `PEER_LOST`, `INVALID_CONFIG`. */
  notify(wireName: string, payload: Uint8Array): Promise<void> {
    return this.#importer.notify(wireName, payload);
  }

  /** Tells a neighbour that blocks are bad, or good again. @returns Whether it is there. */
  mark(wireName: string, { layout, group, blocks, bad }: BlockMark): boolean {
    const word = { say: "mark", layout: layout.toString(), group, blocks: Array.from(blocks), bad } as const;
    return handleWorkerId(layout) === this.#worker
      ? this.#exporter.mark(wireName, word)
      : this.#importer.mark(wireName, word);
  }

  /** Process ids of neighbours that have a layout of this process mapped. */
  holders(handle: LayoutHandle): readonly number[] {
    return this.#exporter.holders(handle);
  }

  /** Asks all neighbours to let go of a layout. @returns Whether they did in time. */
  release(handle: LayoutHandle, millis: number): Promise<boolean> {
    return this.#exporter.release(handle, millis);
  }

  /** Messages can be taken again. */
  resume(): void {
    this.#exporter.resume();
  }

  /** Deals with what the neighbour thread saw. */
  receive(): void {
    const sockets = this.#sockets;
    if (sockets === undefined) return;
    for (const event of sockets.take()) {
      const { connection } = event;
      if (event.kind === "accepted") this.#exporter.accepted(event);
      else if (event.kind === "closed") {
        if (!this.#exporter.closed(connection)) this.#importer.closed(connection, event.reason);
      } else if (event.kind === "exited") {
        if (!this.#exporter.exited(connection)) this.#importer.exited(connection);
      } else if (
        !this.#importer.received(connection, event.bytes, event.descriptors) &&
        !this.#exporter.received(connection, event.bytes)
      ) {
        for (const descriptor of event.descriptors) closeSync(descriptor);
      }
    }
  }

  /** Looks for what neighbours say, instead of being woken by it; until a call that ends that. */
  look(here: boolean): void {
    if (this.#sockets?.look(here) === true) this.receive();
  }

  /**
   * Tells neighbours that this transport closes, and waits for what is being let go here.
   *
   * @returns Whether all let go of its memory in time.
   */
  async closing(millis: number): Promise<boolean> {
    if (this.#sockets === undefined) return true;
    const [free] = await Promise.all([this.#exporter.closing(millis), this.#importer.settled()]);
    return free;
  }

  /** Ends every connection; after everything was let go. */
  close(): void {
    this.#sockets?.close();
  }

  #opened(): NeighbourSockets {
    this.#sockets ??= NeighbourSockets.open(this.#context);
    return this.#sockets;
  }
}

function markOf({ layout, group, blocks, bad }: MarkWord): BlockMark {
  return { layout: BigInt(layout) as LayoutHandle, group, blocks: Uint32Array.from(blocks), bad };
}
