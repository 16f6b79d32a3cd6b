import type { NixlAgent } from "../native/agent.ts";
import type { Importer, Importers } from "./importers.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";

/** A message without a body, and the blob of an agent that cannot be reached. */
export const NOTHING: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(0));

/** What reaching others works with. */
export interface ReachParts {
  /** Null without NIXL: then nobody is told anything this way. */
  readonly agent: Pick<NixlAgent, "partialMetadata" | "loadPeer" | "forgetPeer"> | null;
  readonly peers: PeerBook;
  readonly messenger: Messenger;
}

/** Who can be told things: imported peers, and workers that NIXL knows only because they imported this one. */
export class Reach {
  readonly #parts: ReachParts;
  readonly #importers: Importers;
  /** Peers that are about to be forgotten, and can still be told something. */
  readonly #leaving: Map<string, Peer> = new Map();
  /** Workers that NIXL knows only because they imported this one. */
  readonly #connected: Set<string> = new Set();
  #connection: Promise<Uint8Array<ArrayBuffer>> | undefined;
  #closing = false;

  constructor(parts: ReachParts, importers: Importers) {
    this.#parts = parts;
    this.#importers = importers;
  }

  /** Whether a worker can be told things: an imported peer, or one that imported this transport. */
  has(wireName: string): boolean {
    const peer = this.#parts.peers.byWireName(wireName) ?? this.#leaving.get(wireName);
    return peer?.understandsControl ?? this.#connected.has(wireName);
  }

  /** Makes a worker that imported this one reachable where it is not yet. @returns Whether it can be told things. */
  async ensure(wireName: string): Promise<boolean> {
    const importer = this.#importers.importer(wireName);
    if (!this.has(wireName) && importer !== undefined) await this.connect(importer);
    return this.has(wireName);
  }

  /** @returns Whether the peer can be told anything. */
  tell(wireName: string, type: number, body: Uint8Array<ArrayBuffer>): boolean {
    if (!this.has(wireName)) return false;
    const { messenger } = this.#parts;
    messenger.controlTo(wireName, type, body).catch(async () => {
      // A failed import of the same worker made NIXL forget it.
      const importer = this.#importers.importer(wireName);
      if (importer === undefined || !this.#connected.delete(wireName)) return;
      await this.connect(importer);
      if (this.#connected.has(wireName))
        await messenger.controlTo(wireName, type, body).catch(() => undefined);
    });
    return true;
  }

  /** Makes NIXL know a worker that imported this one and that is not imported here, so that it can be told things. */
  async connect({ wireName, connection }: Importer): Promise<void> {
    const { agent, peers } = this.#parts;
    // An agent that closes is not made to connect anew with everybody whom it has just let go.
    if (agent === null || connection.byteLength === 0 || this.#closing) return;
    if (peers.byWireName(wireName) !== undefined || this.#connected.has(wireName)) return;
    this.#connected.add(wireName);
    await agent.loadPeer(connection, wireName).catch(() => this.#connected.delete(wireName));
  }

  /** Drops what NIXL knows of a worker that was only known for having imported this one. */
  disconnect(wireName: string): void {
    const { agent, peers } = this.#parts;
    if (!this.#connected.delete(wireName) || agent === null) return;
    const drop = (): void => {
      if (peers.byWireName(wireName) !== undefined || this.#connected.has(wireName)) return;
      agent.forgetPeer(wireName).catch(() => undefined);
    };
    // What an import under way gave to NIXL must not be taken from it.
    const arrival = peers.arrival(wireName);
    if (arrival === undefined) drop();
    else void arrival.then(drop);
  }

  /** NIXL knows the worker for having been imported from now on. */
  arrived(wireName: string): void {
    this.#connected.delete(wireName);
  }

  /** The peer is about to be forgotten. */
  leaving(peer: Peer): void {
    this.#leaving.set(peer.wireName, peer);
  }

  /** NIXL has forgotten the peer. */
  left(wireName: string): void {
    this.#leaving.delete(wireName);
    this.#connected.delete(wireName);
  }

  /** Connects with nobody more. @returns All who can be told things. */
  stop(): string[] {
    this.#closing = true;
    const known = this.#parts.peers.peers.filter((peer) => peer.understandsControl);
    return [...new Set([...known.map(({ wireName }) => wireName), ...this.#connected])];
  }

  /** How others reach this agent, without any of its memory. */
  connectionInfo(): Promise<Uint8Array<ArrayBuffer>> {
    const { agent } = this.#parts;
    if (agent === null) return Promise.resolve(NOTHING);
    this.#connection ??= agent.partialMetadata(0, []).catch(() => NOTHING);
    return this.#connection;
  }
}
