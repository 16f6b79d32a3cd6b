// Who knows whom: packages that are made, travel for a while, and are imported, and peers that are updated and forgotten.
import type { Peer } from "../../lib/runtime/peer.ts";
import type { RemoteLayout } from "../../lib/runtime/remote-layout.ts";
import type { Member, SimPlay } from "./sim-play.ts";
import type { SimProcess } from "./sim-world.ts";

export class SimPeers {
  readonly #play: SimPlay;
  /** Packages that are imported later, or once more. */
  readonly #kept: { readonly of: Member; readonly bytes: Uint8Array }[] = [];
  /** Those who forgot somebody, and those who were forgotten. */
  readonly #forgetful: Set<SimProcess> = new Set();

  constructor(play: SimPlay) {
    this.#play = play;
  }

  meet(at: Member, of: Member): void {
    this.#packageOf(of)
      .then(async (bytes) => {
        at.peers.set(of.workerId, await at.transport.importMetadata(bytes));
        this.#play.world.say(() => `P${at.process.id} has imported P${of.process.id}`);
        this.#play.count("imported");
      })
      .catch((error: unknown) =>
        this.#play.expected(error, [
          "NIXL",
          "CLOSED",
          "DUPLICATE_WORKER",
          "METADATA_EXPIRED",
          "AGENT_MISMATCH",
          "PEER_LOST",
          "STALE_HANDLE",
        ]),
      );
  }

  meetAgain(member: Member): void {
    const other = this.#play.pickOf(
      this.#play.members.filter(
        (candidate) =>
          candidate.workerId !== member.workerId && candidate.process.alive && candidate.closed === null,
      ),
    );
    if (other !== undefined) this.meet(member, other);
  }

  update(member: Member): void {
    const peer = this.#play.pickOf([...member.peers.values()]);
    const owner = this.#play.ownerOf(peer);
    if (peer === undefined || owner === undefined || owner.closed !== null) return;
    this.#packageOf(owner)
      .then((bytes) => peer.update(bytes))
      .then(() => this.#play.count("updated"))
      .catch((error: unknown) =>
        this.#play.expected(error, [
          "PEER_LOST",
          "NIXL",
          "CLOSED",
          "METADATA_EXPIRED",
          "DUPLICATE_WORKER",
          "STALE_HANDLE",
        ]),
      );
  }

  forget(member: Member): void {
    const peer = this.#play.pickOf([...member.peers.values()]);
    if (peer === undefined) return;
    member.peers.delete(peer.workerId);
    this.#forgetful.add(member.process);
    const owner = this.#play.ownerOf(peer);
    if (owner !== undefined) this.#forgetful.add(owner.process);
    this.#play.world.say(() => `P${member.process.id} forgets ${peer.agentName}`);
    peer.forget().catch((error: unknown) => this.#play.expected(error, ["NIXL", "CLOSED"]));
  }

  /** Whether a process has forgotten somebody, or was forgotten. */
  forgot(process: SimProcess): boolean {
    return this.#forgetful.has(process);
  }

  /** A layout of somebody whom this worker knows, and who that is. */
  remote(
    member: Member,
  ): { readonly peer: Peer; readonly layout: RemoteLayout; readonly owner: Member } | undefined {
    const peer = this.#play.pickOf([...member.peers.values()]);
    const owner = this.#play.ownerOf(peer);
    const layout = peer === undefined ? undefined : this.#play.pickOf(peer.layouts);
    return peer === undefined || owner === undefined || layout === undefined
      ? undefined
      : { peer, layout, owner };
  }

  /** A package of a worker: all of it or a part, or one that was made before. */
  async #packageOf(of: Member): Promise<Uint8Array> {
    const { random, world } = this.#play;
    const kept = this.#kept.filter((one) => one.of === of);
    if (kept.length > 0 && random.chance(0.2)) return random.pick(kept).bytes;
    const some = random.chance(0.3);
    const asked = of.transport.exportMetadata(
      some ? { layouts: of.layouts.filter(() => random.chance(0.7)) } : {},
    );
    // Another one is made meanwhile, and may be ready before.
    if (random.chance(0.3)) void of.transport.exportMetadata().catch(() => undefined);
    const bytes = await asked;
    this.#kept.push({ of, bytes });
    // It travels for a while, or lies somewhere, while its maker goes on.
    const millis = random.pick([0, 5, 40]);
    await new Promise<void>((resolve) => void world.schedule(null, millis, resolve));
    return bytes;
  }
}
