// The receiving side of a push: an arrival ends in time, what failed is in quarantine, and what settled is quiet.
import type { Arrival } from "../../lib/runtime/arrival.ts";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { Peer } from "../../lib/runtime/peer.ts";
import type { SimClaims } from "./sim-claims.ts";
import type { SimLayouts } from "./sim-layouts.ts";
import { TIMER_MILLIS, type Member, type SimPlay } from "./sim-play.ts";

/** What a receiver expects, and of whom. */
export interface SimExpectation {
  readonly layout: LocalLayout;
  readonly blocks: readonly number[];
  readonly from: Peer;
  readonly writer: Member;
  readonly tag: string;
}

export class SimArrivals {
  readonly #play: SimPlay;
  readonly #layouts: SimLayouts;
  readonly #claims: SimClaims;
  readonly #arrivals: { settled: boolean }[] = [];

  constructor(play: SimPlay, layouts: SimLayouts, claims: SimClaims) {
    this.#play = play;
    this.#layouts = layouts;
    this.#claims = claims;
  }

  /** Arrivals that have not settled. */
  get unsettled(): number {
    return this.#arrivals.filter(({ settled }) => !settled).length;
  }

  expect(owner: Member, { layout, blocks, from, writer, tag }: SimExpectation): void {
    const { world, random } = this.#play;
    const deadlineMs = random.pick([50, 300, 2_000]);
    const since = world.now;
    const stopped = world.stoppedSince(owner.process, 0);
    let arrival: Arrival;
    try {
      arrival = owner.transport.expect({ layout, blocks: [...blocks], from, tag, deadlineMs });
    } catch (error) {
      this.#play.expected(error, ["QUARANTINED", "PEER_LOST", "STALE_HANDLE", "CLOSED"]);
      return;
    }
    this.#play.count("expected");
    const entry = { settled: false };
    this.#arrivals.push(entry);
    const ranges = this.#layouts.rangesOf(layout, blocks);
    const late = (): void => {
      const took = world.now - since - world.stoppedSince(owner.process, stopped);
      if (took > deadlineMs + TIMER_MILLIS)
        world.find(`an arrival with a deadline of ${deadlineMs} ms ended after ${took.toFixed(1)}`);
    };
    let failedAt = 0;
    arrival.then(late, (error: unknown) => {
      failedAt = world.now;
      late();
      this.#play.count("arrival failed");
      this.#play.expected(error, ["TIMEOUT", "PEER_LOST", "CLOSED"]);
      const held = new Set(layout.quarantinedBlocks().map(({ block }) => block));
      if (!entry.settled && blocks.some((block) => !held.has(block)))
        world.find("a failed arrival's blocks are not in quarantine");
    });
    void arrival.settled.then(({ proof }) => {
      entry.settled = true;
      this.#play.count(`arrival ${proof}`);
      if (proof !== "closed")
        this.#claims.release({
          ranges,
          from: writer.process,
          at: world.now,
          pushedAt: since,
          failedAt,
          proof,
        });
    });
  }
}
