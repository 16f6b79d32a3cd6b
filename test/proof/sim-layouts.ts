// The layouts of a case: registered, taken back, and where their blocks lie in the world.
import type { LayoutHandle } from "../../lib/core/handle.ts";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { RemoteLayout } from "../../lib/runtime/remote-layout.ts";
import type { Range } from "./sim-claims.ts";
import type { Member, SimPlay } from "./sim-play.ts";
import type { SimRegion } from "./sim-world.ts";

/** Blocks of every layout. */
export const BLOCKS = 8;

const CONFIG = { numBlocks: BLOCKS, numLayers: 2, outerDim: 1, pageSize: 2, innerDim: 8 } as const;
const BLOCK_BYTES = 64;

export class SimLayouts {
  readonly #play: SimPlay;
  /** Memory of layouts that the transport does not own: it is given back the moment it may be. */
  readonly #adopted: Map<LocalLayout, SimRegion> = new Map();
  /** Where layouts lie in the world; peers know some of them by offsets only. */
  readonly #bases: Map<LayoutHandle, number> = new Map();

  constructor(play: SimPlay) {
    this.#play = play;
  }

  register(member: Member): void {
    const { world, random } = this.#play;
    const name = this.#play.name("l");
    const kind = random.pick(["disk", "system", "system", "external", "external"] as const);
    const region =
      kind === "external" ? world.allocate(member.process, BLOCKS * BLOCK_BYTES, name) : undefined;
    if (region !== undefined) world.fill(region);
    const memory =
      kind === "external"
        ? {
            kind,
            storage: "system" as const,
            regions: [{ address: region?.base ?? 0, size: BLOCKS * BLOCK_BYTES }],
          }
        : { kind };
    member.transport
      .register({ name, config: CONFIG, arrangement: "fully-contiguous", memory })
      .then((layout) => {
        member.layouts.push(layout);
        if (region !== undefined) this.#adopted.set(layout, region);
        this.#bases.set(layout.handle, layout.record.components[0]?.regionAddresses[0] ?? 0);
      })
      .catch((error: unknown) => {
        if (region !== undefined) region.freed = true;
        this.#play.expected(error, ["NIXL", "CLOSED"]);
      });
  }

  unregister(member: Member): void {
    const { random, waits, faulty } = this.#play;
    const layout = this.#play.pickOf(member.layouts);
    if (layout === undefined) return;
    const wait = random.chance(0.5);
    const entry = { what: `unregister of ${layout.name}`, member, done: false };
    if (wait) waits.push(entry);
    layout.unregister({ wait }).then(
      () => {
        entry.done = true;
        this.#play.count("unregistered");
        this.#giveBack(layout);
        const at = member.layouts.indexOf(layout);
        if (at >= 0) member.layouts.splice(at, 1);
      },
      (error: unknown) => {
        entry.done = true;
        // Adopted memory that a peer may still reach: in a world with faults perhaps for longer than the deadline.
        this.#play.expected(error, wait && !faulty ? ["NIXL", "CLOSED"] : ["IN_USE", "NIXL", "CLOSED"]);
      },
    );
  }

  /** Tries to write to blocks that must not be used. */
  useQuarantined(member: Member): void {
    for (const layout of member.layouts) {
      const held = layout.quarantinedBlocks()[0];
      const other = member.layouts.find((candidate) => candidate !== layout);
      if (held === undefined || other === undefined) continue;
      const refused = member.transport.transfer({
        source: other,
        sourceBlocks: [0],
        destination: layout,
        destinationBlocks: [held.block],
      });
      this.#play.count("quarantined refused");
      if (refused.state !== "failed") this.#play.world.find("a quarantined block was used as destination");
      // The source may be on its way out.
      refused.catch((error: unknown) => this.#play.expected(error, ["QUARANTINED", "STALE_HANDLE"]));
    }
  }

  /** A worker has closed: all of its layouts are gone but those that it had to leave. */
  closed(member: Member, left: readonly string[]): void {
    for (const layout of this.#adopted.keys())
      if (member.layouts.includes(layout) && !left.includes(layout.name)) this.#giveBack(layout);
  }

  /** Where blocks lie in the world. */
  rangesOf(layout: LocalLayout | RemoteLayout, blocks: readonly number[]): Range[] {
    const base = this.#bases.get(layout.handle) ?? layout.record.components[0]?.regionAddresses[0] ?? 0;
    return blocks.map((block) => ({ base: base + block * BLOCK_BYTES, bytes: BLOCK_BYTES }));
  }

  /** The layout is gone: whoever owns its memory may do with it what he wants. */
  #giveBack(layout: LocalLayout): void {
    const region = this.#adopted.get(layout);
    if (region !== undefined) region.freed = true;
    if (region !== undefined) this.#play.world.say(() => `${region.name} is given back`);
  }
}
