import type { MetadataPackage } from "../core/package.ts";
import type { NixlAgent } from "../native/agent.ts";
import type { Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import { mergedRegions, regionsOf, type KnownRegions } from "./known-regions.ts";
import { unpackBlobs } from "./nixl-blobs.ts";
import type { Peer } from "./peer.ts";

/** What NIXL was given for each peer, and how it takes more. */
export class PeersInNixl {
  readonly #agent: NixlAgent;
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #given: WeakMap<Peer, { readonly blob: Uint8Array; readonly regions: KnownRegions }> =
    new WeakMap();

  constructor(agent: NixlAgent, engine: Engine, clock: Clock) {
    this.#agent = agent;
    this.#engine = engine;
    this.#clock = clock;
  }

  /** @throws KvferryError `NIXL` when NIXL refuses the metadata, `PEER_LOST` when they are another agent's. */
  async load(metadata: MetadataPackage): Promise<void> {
    for (const blob of unpackBlobs(metadata.nixlMetadata))
      await this.#agent.loadPeer(blob, metadata.wireName);
  }

  /** Remembers what a new peer's import gave to NIXL. */
  loaded(peer: Peer, metadata: MetadataPackage): void {
    this.#given.set(peer, { blob: metadata.nixlMetadata, regions: regionsOf(metadata) });
  }

  /**
   * Gives newer metadata of a peer to NIXL. What only adds to what NIXL knows disturbs nobody. What contradicts it is
   * taken after the peer was forgotten: transfers with the peer end first, and those that come meanwhile wait.
   *
   * @param lose - Called when NIXL took neither the new metadata nor again the old ones.
   * @returns Lets transfers that wait go on: to be called once the snapshot has the newer layouts.
   * @throws KvferryError `NIXL`; NIXL then knows what it knew before.
   */
  async renew(peer: Peer, metadata: MetadataPackage, lose: (reason: string) => void): Promise<() => void> {
    const wanted = regionsOf(metadata);
    const merged = mergedRegions(this.#given.get(peer)?.regions ?? [], wanted);
    if (merged !== null) {
      const added = await this.#agent.whileAway(peer.wireName, () =>
        this.load(metadata).then(
          () => true,
          // Whatever it was: a peer whose metadata were refused is not known to NIXL any more, or only in part. Transfers
          // that have to end first need their messages.
          async () => {
            await this.#again(peer).catch(() => undefined);
            return false;
          },
        ),
      );
      if (added) {
        this.#given.set(peer, { blob: metadata.nixlMetadata, regions: merged });
        return () => undefined;
      }
    }
    const resume = this.#engine.pause(peer.wireName);
    try {
      await this.#engine.ended(peer.wireName);
      await this.#anew(peer, metadata, wanted, lose);
      return resume;
    } catch (error) {
      resume();
      throw error;
    }
  }

  async #anew(
    peer: Peer,
    metadata: MetadataPackage,
    regions: KnownRegions,
    lose: (reason: string) => void,
  ): Promise<void> {
    await this.#agent.whileAway(peer.wireName, async () => {
      // NIXL does not say when messages have arrived, and those that come after may go another way.
      await this.#clock.sleep(ARRIVE_MILLIS);
      try {
        await this.#agent.forgetPeer(peer.wireName);
        await this.load(metadata);
        this.#given.set(peer, { blob: metadata.nixlMetadata, regions });
      } catch (error) {
        await this.#again(peer).catch((again: unknown) =>
          lose(again instanceof Error ? again.message : String(again)),
        );
        throw error;
      }
    });
  }

  /** NIXL is given once more what it had before. */
  async #again(peer: Peer): Promise<void> {
    const before = this.#given.get(peer)?.blob;
    await this.#agent.forgetPeer(peer.wireName).catch(() => undefined);
    for (const blob of unpackBlobs(before ?? NOTHING)) await this.#agent.loadPeer(blob, peer.wireName);
  }
}

/** Time for messages that are under way when a peer is forgotten. */
const ARRIVE_MILLIS = 20;

const NOTHING = new Uint8Array(0);
