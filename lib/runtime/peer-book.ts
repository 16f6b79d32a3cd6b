import { KvferryError, type ErrorDetails } from "../core/errors.ts";
import type { Attachment } from "../core/layout.ts";
import type { MetadataPackage } from "../core/package.ts";
import type { PeerRecord } from "../core/registry.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { forgetPeer, setAttachment, takeBackLayout } from "../core/registry-peers.ts";
import { getPeer } from "../core/registry-queries.ts";
import type { Engine } from "./engine.ts";
import type { EventHub } from "./events.ts";
import type { ExchangeParts } from "./exchange.ts";
import type { NeighbourAttachment } from "./neighbour-import.ts";
import { attachmentsOf } from "./package-attachment.ts";
import { readPackage } from "./package-intake.ts";
import { Peer, type PeerHost } from "./peer.ts";
import type { PeersInNixl } from "./peers-in-nixl.ts";
import type { RemoteLayout } from "./remote-layout.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/** Who is told of peers that come and go. */
export interface PeerWatcher {
  /**
   * A package was imported, or a newer one of a known peer.
   *
   * @param brought - Layouts that only the newer package has; null for a new peer.
   */
  arrived(peer: Peer, metadata: MetadataPackage, brought: ReadonlySet<LayoutHandle> | null): void;
  /** The peer is about to be forgotten; it can still be reached. Bounded in time. */
  leaving(peer: Peer): Promise<void>;
  /** The peer is forgotten, lost or replaced. */
  left(peer: Peer): void;
}

/**
 * Imports, updates and forgets peers.
 *
 * An import is all or nothing: what fails leaves the snapshot, NIXL and this book as they were.
 */
export class PeerBook implements PeerHost {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #engine: Engine;
  readonly #events: EventHub;
  readonly #peers: Map<bigint, Peer> = new Map();
  readonly #byWireName: Map<string, Peer> = new Map();
  /** Workers, and names on NIXL's wire, whose import is under way: of two imports at once exactly one succeeds. */
  readonly #arriving: Map<bigint | string, Promise<void>> = new Map();
  /** Null without an agent. */
  readonly #inNixl: PeersInNixl | null;
  /** Peers that are being forgotten, by their names on NIXL's wire: only then can they be imported again. */
  readonly #leaving: Map<string, Promise<void>> = new Map();
  /** Why nothing of a peer can be mapped; null where that has to be tried. */
  readonly #unmapped: string | null;

  watcher: PeerWatcher | undefined;

  constructor(session: Session, state: TransportState, engine: Engine, events: EventHub) {
    this.#session = session;
    this.#state = state;
    this.#engine = engine;
    this.#events = events;
    const { agent, overNixl, neighbours } = session;
    this.#unmapped = neighbours === null ? "This transport was opened with neighbours: false." : null;
    this.#inNixl =
      agent === null || overNixl === null ? null : new overNixl.PeersInNixl(agent, engine, session.clock);
  }

  /** Imported peers in worker id order. */
  get peers(): Peer[] {
    return [...this.#peers.values()].toSorted((a, b) => (a.workerId < b.workerId ? -1 : 1));
  }

  get remoteLayouts(): RemoteLayout[] {
    return this.peers.flatMap((peer) =>
      peer.layouts.toSorted((a, b) => a.record.layoutId - b.record.layoutId),
    );
  }

  peer(workerId: bigint): Peer | undefined {
    return this.#peers.get(workerId);
  }

  byWireName(name: string): Peer | undefined {
    return this.#byWireName.get(name);
  }

  /** Resolves when the import or update of that name on NIXL's wire has ended; undefined when none is under way. */
  arrival(wireName: string): Promise<void> | undefined {
    return this.#arriving.get(wireName);
  }

  async import(bytes: Uint8Array): Promise<Peer> {
    this.#state.demandOpen("importMetadata");
    const { metadata, exchange } = await readPackage(bytes, this.#session.options, "importMetadata");
    return await this.#alone("importMetadata", metadata, () => this.#enter(metadata, exchange));
  }

  async update(peer: Peer, bytes: Uint8Array): Promise<void> {
    this.#state.demandOpen("update");
    const { metadata, exchange } = await readPackage(bytes, this.#session.options, "update");
    if (
      metadata.workerId !== peer.workerId ||
      metadata.incarnation !== peer.generation ||
      metadata.format !== "kvferry"
    ) {
      throw new KvferryError(
        "DUPLICATE_WORKER",
        "update",
        `the package is not a newer one of peer ${peer.agentName} in its present incarnation`,
        "Forget the peer and import the package.",
        {
          expected: { workerId: peer.workerId.toString(), incarnation: peer.generation },
          found: { workerId: metadata.workerId.toString(), incarnation: metadata.incarnation },
        },
      );
    }
    await this.#alone("update", metadata, () => this.#renew(peer, metadata, exchange));
  }

  /** The peer took one of its layouts back: its handle is stale from now on. */
  takeBack(peer: Peer, handle: LayoutHandle): void {
    if (this.#peers.get(peer.workerId) !== peer) return;
    this.#state.snapshot = takeBackLayout(this.#state.snapshot, handle);
    peer.replaceLayouts(getPeer(this.#state.snapshot, peer.workerId)?.layouts ?? []);
  }

  /** Another way leads to a component of a peer's layout. */
  reattach(peer: Peer, handle: LayoutHandle, component: string, attachment: Attachment): void {
    if (this.#peers.get(peer.workerId) !== peer) return;
    this.#state.snapshot = setAttachment(this.#state.snapshot, handle, component, attachment);
    peer.replaceLayouts(getPeer(this.#state.snapshot, peer.workerId)?.layouts ?? []);
  }

  async forget(peer: Peer): Promise<void> {
    if (this.#peers.get(peer.workerId) !== peer) return;
    this.#remove(peer);
    const gone = peerLost(peer, "transfer", "was forgotten", "Import its metadata again.");
    this.#engine.failAgent(peer.wireName, gone);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#leaving.set(peer.wireName, promise);
    try {
      await this.watcher?.leaving(peer);
      await this.#session.neighbours?.detach(peer.wireName);
      await this.#session.agent?.forgetPeer(peer.wireName);
    } catch (error) {
      // A transport that closes forgets everybody anyway.
      if (this.#state.isOpen) throw error;
    } finally {
      peer.markLost("forgotten");
      this.watcher?.left(peer);
      this.#leaving.delete(peer.wireName);
      resolve();
    }
    this.#events.emit("peer", {
      change: "forgotten",
      workerId: peer.workerId,
      agentName: peer.agentName,
      reason: "forgotten",
    });
  }

  /** The peer is known to be gone: its layouts are stale, its transfers settle, `lost` resolves. */
  lose(peer: Peer, reason: string): void {
    if (this.#peers.get(peer.workerId) !== peer) return;
    this.#remove(peer);
    const remedy = "Import its metadata again once it is back.";
    this.#cutOff(peer, reason, peerLost(peer, "transfer", `is gone: ${reason}`, remedy, { reason }));
    this.#events.emit("peer", { change: "lost", workerId: peer.workerId, agentName: peer.agentName, reason });
  }

  /** Forgets everybody; for `close`. */
  async forgetAll(): Promise<void> {
    await Promise.allSettled(this.peers.map((peer) => this.forget(peer)));
  }

  /** @throws KvferryError `DUPLICATE_WORKER` while the same worker, or the same agent, is being imported. */
  async #alone<T>(operation: string, metadata: MetadataPackage, work: () => Promise<T>): Promise<T> {
    const { workerId, wireName } = metadata;
    if (this.#arriving.has(workerId) || this.#arriving.has(wireName)) throw twice(operation, metadata);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#arriving.set(workerId, promise).set(wireName, promise);
    try {
      return await work();
    } finally {
      this.#arriving.delete(workerId);
      this.#arriving.delete(wireName);
      resolve();
    }
  }

  async #enter(metadata: MetadataPackage, exchange: ExchangeParts): Promise<Peer> {
    const { checkImport, importChecked, namesStaging } = exchange;
    // Every check that needs no NIXL comes first, on the snapshot of now; those that another one can fail come again.
    const checked = checkImport(this.#state.snapshot, metadata);
    await this.#leaving.get(metadata.wireName);
    const before = this.#peers.get(metadata.workerId);
    const near = (await this.#session.neighbours?.attach(metadata)) ?? null;
    let record: PeerRecord;
    try {
      await this.#inNixl?.load(metadata);
      this.#state.demandOpen("importMetadata");
      const reached = attachmentsOf(metadata, near ?? this.#unmapped);
      const entered = importChecked(this.#state.snapshot, checked, reached);
      this.#state.snapshot = entered.snapshot;
      record = entered.peer;
    } catch (error) {
      await near?.undo();
      await this.#session.agent?.forgetPeer(metadata.wireName).catch(() => undefined);
      throw error;
    }
    if (before !== undefined) this.#replaced(before);
    const peer = new Peer(this, { ...metadata, layouts: record.layouts, gathers: namesStaging(metadata) });
    this.#inNixl?.loaded(peer, metadata);
    this.#peers.set(peer.workerId, peer);
    this.#byWireName.set(peer.wireName, peer);
    this.#settle(peer, near);
    this.watcher?.arrived(peer, metadata, null);
    this.#events.emit("peer", {
      change: "imported",
      workerId: peer.workerId,
      agentName: peer.agentName,
      reason: `${record.layouts.length} layouts`,
    });
    return peer;
  }

  /** Takes a newer package of a peer. What fails leaves the peer as it was. */
  async #renew(peer: Peer, metadata: MetadataPackage, exchange: ExchangeParts): Promise<void> {
    const updates = { updates: peer.workerId };
    // Throws for a sequence that is not higher, before NIXL hears of it.
    const checked = exchange.checkImport(this.#state.snapshot, metadata, updates);
    const near = (await this.#session.neighbours?.attach(metadata)) ?? null;
    const resume = await this.#inNixl
      ?.renew(peer, metadata, (reason) => this.lose(peer, reason))
      .catch(async (error: unknown) => {
        await near?.undo();
        throw error;
      });
    let record: PeerRecord;
    try {
      this.#state.demandOpen("update");
      if (this.#peers.get(peer.workerId) !== peer) throw await this.#forgottenMeanwhile(peer);
      const reached = attachmentsOf(metadata, near ?? this.#unmapped);
      const entered = exchange.importChecked(this.#state.snapshot, checked, reached, updates);
      this.#state.snapshot = entered.snapshot;
      record = entered.peer;
    } catch (error) {
      await near?.undo();
      throw error;
    } finally {
      resume?.();
    }
    const known = new Set(peer.layouts.map(({ handle }) => handle));
    peer.replaceLayouts(record.layouts);
    this.#settle(peer, near);
    const brought = record.layouts.map(({ handle }) => handle).filter((handle) => !known.has(handle));
    this.watcher?.arrived(peer, metadata, new Set(brought));
    this.#events.emit("peer", {
      change: "updated",
      workerId: peer.workerId,
      agentName: peer.agentName,
      reason: `sequence ${metadata.sequence}`,
    });
  }

  /** A peer was forgotten during its update, perhaps before NIXL took the newer metadata. */
  async #forgottenMeanwhile(peer: Peer): Promise<KvferryError> {
    // While it is being forgotten it still has to be told things.
    if (!this.#byWireName.has(peer.wireName) && !this.#leaving.has(peer.wireName))
      await this.#session.agent?.forgetPeer(peer.wireName).catch(() => undefined);
    return peerLost(peer, "update", "was forgotten during its update", "Import its metadata again.");
  }

  /** A higher incarnation of a known worker was imported: the old one is gone. */
  #replaced(before: Peer): void {
    this.#byWireName.delete(before.wireName);
    const remedy = "Use the layouts of the newly imported peer.";
    this.#cutOff(
      before,
      "it came back in a new incarnation",
      peerLost(before, "transfer", "came back in a new incarnation", remedy),
    );
  }

  /** Nothing more goes to a peer: what runs with it fails, what is mapped or known of it is let go. */
  #cutOff(peer: Peer, reason: string, gone: KvferryError): void {
    this.#engine.failAgent(peer.wireName, gone);
    void this.#session.neighbours?.detach(peer.wireName);
    void this.#session.agent?.forgetPeer(peer.wireName).catch(() => undefined);
    peer.markLost(reason);
    this.watcher?.left(peer);
  }

  #remove(peer: Peer): void {
    this.#peers.delete(peer.workerId);
    this.#byWireName.delete(peer.wireName);
    this.#state.snapshot = forgetPeer(this.#state.snapshot, peer.workerId);
  }

  /** An import stands: what is mapped for the peer stays, and memory that its owner has pinned is pinned here too. */
  #settle(peer: Peer, near: NeighbourAttachment | null): void {
    if (near === null) return;
    // Bytes reached it by no transfer yet, but its memory is here: a slow first transfer is not for want of a way.
    if (peer.layouts.some((layout) => layout.distance === "neighbour"))
      this.#engine.noteReached(peer.wireName);
    near.keep();
  }
}

function twice(operation: string, { workerId, agentName }: MetadataPackage): KvferryError {
  return new KvferryError(
    "DUPLICATE_WORKER",
    operation,
    `worker ${workerId} or agent ${agentName} is being imported at this moment`,
    "Await the first import and use its peer.",
    { workerId: workerId.toString(), agentName },
  );
}

function peerLost(
  { agentName, workerId }: Peer,
  operation: string,
  what: string,
  remedy: string,
  details: ErrorDetails = {},
): KvferryError {
  const facts = { workerId: workerId.toString(), ...details };
  return new KvferryError("PEER_LOST", operation, `peer ${agentName} ${what}`, remedy, facts);
}
