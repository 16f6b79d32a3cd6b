import { KvferryError } from "../core/errors.ts";
import type { LayoutRecord } from "../core/layout.ts";
import type { PackageFormat } from "../core/package.ts";
import { RemoteLayout } from "./remote-layout.ts";

/** What a peer needs from its transport. */
export interface PeerHost {
  update(peer: Peer, bytes: Uint8Array): Promise<void>;
  forget(peer: Peer): Promise<void>;
}

/** Why a peer is known to be gone. */
export interface PeerLoss {
  readonly reason: string;
}

/** What a transport knows of a peer; replaced as a whole by an update. */
export interface PeerFacts {
  readonly workerId: bigint;
  readonly agentName: string;
  readonly wireName: string;
  readonly format: PackageFormat;
  /** Rises with every start of the peer; 0 for Dynamo's formats. */
  readonly incarnation: number;
  readonly sequence: number;
  readonly layouts: readonly LayoutRecord[];
  /** Whether its package names staging memory. */
  readonly gathers: boolean;
}

/** A worker whose metadata was imported. */
export class Peer implements AsyncDisposable {
  readonly workerId: bigint;
  readonly agentName: string;
  /** @internal The name on NIXL's wire. */
  readonly wireName: string;
  /** @internal Whether the peer is a kvferry transport: others would take control messages for users'. */
  readonly understandsControl: boolean;
  /** @internal Whether NIXL reaches staging memory of the peer, by the package that it was first imported from. */
  readonly gathers: boolean;
  /** The peer's incarnation: higher after each of its restarts; 0 for Dynamo's formats. */
  readonly generation: number;
  readonly #host: PeerHost;
  readonly #lost: PromiseWithResolvers<PeerLoss> = Promise.withResolvers<PeerLoss>();
  #loss: PeerLoss | undefined;
  #layouts: readonly RemoteLayout[] = [];
  /** Made when it is first asked for. */
  #byName: ReadonlyMap<string, RemoteLayout> | undefined;

  /** @internal */
  constructor(host: PeerHost, facts: PeerFacts) {
    this.#host = host;
    this.workerId = facts.workerId;
    this.agentName = facts.agentName;
    this.wireName = facts.wireName;
    this.understandsControl = facts.format === "kvferry";
    this.gathers = facts.gathers;
    this.generation = facts.incarnation;
    this.replaceLayouts(facts.layouts);
  }

  /** The peer's layouts in the order of its package. */
  get layouts(): readonly RemoteLayout[] {
    return this.#layouts;
  }

  /** Resolves with the reason when the peer is known to be gone; never rejects. */
  get lost(): Promise<PeerLoss> {
    return this.#lost.promise;
  }

  /** The reason when the peer is known to be gone. */
  get loss(): PeerLoss | undefined {
    return this.#loss;
  }

  /**
   * A layout by name.
   *
   * @throws KvferryError `UNKNOWN_HANDLE` with the names that the peer exported.
   */
  layout(name: string): RemoteLayout {
    this.#byName ??= new Map(this.#layouts.map((layout) => [layout.name, layout]));
    const found = this.#byName.get(name);
    if (found !== undefined) return found;
    const names = [...this.#byName.keys()];
    throw new KvferryError(
      "UNKNOWN_HANDLE",
      "layout",
      `peer ${this.agentName} exported no layout ${JSON.stringify(name)}`,
      `It has: ${names.join(", ") || "none"}.`,
      {
        name,
        names: names.slice(0, 64),
      },
    );
  }

  /**
   * Takes a newer package of the same incarnation: its layouts replace the old ones in place, running transfers
   * keep theirs.
   *
   * @throws KvferryError `METADATA_EXPIRED` for a lower sequence, `DUPLICATE_WORKER` for another incarnation.
   */
  update(bytes: Uint8Array): Promise<void> {
    return this.#host.update(this, bytes);
  }

  /** Settles its transfers, and releases everything that NIXL and this transport keep for the peer. */
  forget(): Promise<void> {
    return this.#host.forget(this);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.forget();
  }

  /** @internal */
  replaceLayouts(records: readonly LayoutRecord[]): void {
    const before = this.#layouts;
    const known = before.length === 0 ? undefined : new Map(before.map((layout) => [layout.handle, layout]));
    const layouts: RemoteLayout[] = [];
    for (const record of records) {
      const layout = known?.get(record.handle);
      layout?.renew(record);
      layouts.push(layout ?? new RemoteLayout(this, record));
    }
    // Read-only by type: a frozen list becomes a hash table in JavaScriptCore.
    this.#layouts = layouts;
    this.#byName = undefined;
  }

  /** @internal */
  markLost(reason: string): void {
    this.#loss ??= { reason };
    this.#lost.resolve(this.#loss);
  }
}
