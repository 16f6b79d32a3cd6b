import { KvferryError } from "../core/errors.ts";
import type { Attachment } from "../core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import type { PeerRecord } from "../core/registry.ts";
import { forgetPeer, importPackage } from "../core/registry-peers.ts";
import { decodePackage } from "../wire/index.ts";
import { macOf } from "./authentication.ts";
import type { Engine } from "./engine.ts";
import type { EventHub } from "./events.ts";
import { checkPackage } from "./package-trust.ts";
import { Peer, type PeerHost } from "./peer.ts";
import type { RemoteLayout } from "./remote-layout.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

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
  /** Workers whose import is under way: of two imports at once exactly one succeeds. */
  readonly #arriving: Set<bigint> = new Set();

  constructor(session: Session, state: TransportState, engine: Engine, events: EventHub) {
    this.#session = session;
    this.#state = state;
    this.#engine = engine;
    this.#events = events;
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

  async import(bytes: Uint8Array): Promise<Peer> {
    this.#state.demandOpen("importMetadata");
    const metadata = this.#decode(bytes, "importMetadata");
    if (this.#arriving.has(metadata.workerId)) throw twice(metadata.workerId);
    this.#arriving.add(metadata.workerId);
    try {
      return await this.#enter(metadata);
    } finally {
      this.#arriving.delete(metadata.workerId);
    }
  }

  async update(peer: Peer, bytes: Uint8Array): Promise<void> {
    this.#state.demandOpen("update");
    const metadata = this.#decode(bytes, "update");
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
    if (this.#arriving.has(peer.workerId)) throw twice(peer.workerId);
    this.#arriving.add(peer.workerId);
    try {
      // Throws for a sequence that is not higher, before NIXL hears of it.
      importPackage(this.#state.snapshot, metadata, this.#attach(metadata), { updates: peer.workerId });
      await this.#loadIntoNixl(metadata);
      const entered = importPackage(this.#state.snapshot, metadata, this.#attach(metadata), {
        updates: peer.workerId,
      });
      this.#state.snapshot = entered.snapshot;
      peer.replaceLayouts(entered.peer.layouts);
      this.#events.emit("peer", {
        change: "updated",
        workerId: peer.workerId,
        agentName: peer.agentName,
        reason: `sequence ${metadata.sequence}`,
      });
    } finally {
      this.#arriving.delete(peer.workerId);
    }
  }

  async forget(peer: Peer): Promise<void> {
    if (this.#peers.get(peer.workerId) !== peer) return;
    this.#remove(peer);
    const gone = new KvferryError(
      "PEER_LOST",
      "transfer",
      `peer ${peer.agentName} was forgotten`,
      "Import its metadata again.",
      { workerId: peer.workerId.toString() },
    );
    this.#engine.failAgent(peer.wireName, gone);
    await this.#session.agent?.forgetPeer(peer.wireName);
    peer.markLost("forgotten");
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
    const gone = new KvferryError(
      "PEER_LOST",
      "transfer",
      `peer ${peer.agentName} is gone: ${reason}`,
      "Import its metadata again once it is back.",
      {
        workerId: peer.workerId.toString(),
        reason,
      },
    );
    this.#engine.failAgent(peer.wireName, gone);
    void this.#session.agent?.forgetPeer(peer.wireName).catch(() => undefined);
    peer.markLost(reason);
    this.#events.emit("peer", { change: "lost", workerId: peer.workerId, agentName: peer.agentName, reason });
  }

  /** Forgets everybody; for `close`. */
  async forgetAll(): Promise<void> {
    await Promise.allSettled(this.peers.map((peer) => this.forget(peer)));
  }

  #decode(bytes: Uint8Array, operation: string): MetadataPackage {
    // A copy: the caller may change its buffer while the import is under way.
    const { options } = this.#session;
    const decoded = decodePackage(bytes.slice(), {
      acceptUnauthenticated: options.acceptUnauthenticated,
      ...(options.secrets.length === 0 ? undefined : { mac: macOf(options.secrets) }),
    });
    return checkPackage(decoded, options, Date.now(), operation);
  }

  async #enter(metadata: MetadataPackage): Promise<Peer> {
    const attach = this.#attach(metadata);
    // Every check that needs no NIXL comes first, on the snapshot of now; the same checks decide again at the end.
    const trial = importPackage(this.#state.snapshot, metadata, attach);
    const before = this.#peers.get(metadata.workerId);
    await this.#loadIntoNixl(metadata);
    let record: PeerRecord;
    try {
      this.#state.demandOpen("importMetadata");
      const entered = importPackage(this.#state.snapshot, metadata, attach);
      this.#state.snapshot = entered.snapshot;
      record = entered.peer;
    } catch (error) {
      await this.#session.agent?.forgetPeer(metadata.wireName).catch(() => undefined);
      throw error;
    }
    if (before !== undefined) this.#replaced(before);
    const peer = new Peer(this, { ...metadata, layouts: record.layouts });
    this.#peers.set(peer.workerId, peer);
    this.#byWireName.set(peer.wireName, peer);
    this.#events.emit("peer", {
      change: "imported",
      workerId: peer.workerId,
      agentName: peer.agentName,
      reason: `${trial.peer.layouts.length} layouts`,
    });
    return peer;
  }

  /** A higher incarnation of a known worker was imported: the old one is gone. */
  #replaced(before: Peer): void {
    this.#byWireName.delete(before.wireName);
    const gone = new KvferryError(
      "PEER_LOST",
      "transfer",
      `peer ${before.agentName} came back in a new incarnation`,
      "Use the layouts of the newly imported peer.",
      {
        workerId: before.workerId.toString(),
      },
    );
    this.#engine.failAgent(before.wireName, gone);
    void this.#session.agent?.forgetPeer(before.wireName).catch(() => undefined);
    before.markLost("it came back in a new incarnation");
  }

  #remove(peer: Peer): void {
    this.#peers.delete(peer.workerId);
    this.#byWireName.delete(peer.wireName);
    this.#state.snapshot = forgetPeer(this.#state.snapshot, peer.workerId);
  }

  async #loadIntoNixl(metadata: MetadataPackage): Promise<void> {
    const { agent } = this.#session;
    if (agent === null || metadata.nixlMetadata.byteLength === 0) return;
    await agent.loadPeer(metadata.nixlMetadata, metadata.wireName);
  }

  #attach(metadata: MetadataPackage): (layout: PackageLayout, component: PackageComponent) => Attachment {
    const reachable = metadata.nixlMetadata.byteLength > 0;
    return (layout, component) => {
      if (layout.stagedOnly || !reachable || component.storage.kind === "disk")
        return { kind: "staged", agent: metadata.wireName };
      return { kind: "nixl", agent: metadata.wireName, bases: component.regionAddresses };
    };
  }
}

function twice(workerId: bigint): KvferryError {
  return new KvferryError(
    "DUPLICATE_WORKER",
    "importMetadata",
    `worker ${workerId} is being imported at this moment`,
    "Await the first import and use its peer.",
    {
      workerId: workerId.toString(),
    },
  );
}
