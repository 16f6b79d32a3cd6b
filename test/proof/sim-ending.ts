// How a case ends: peace, in which all that can be settled must be and nothing may be held, and then everybody closes.
import type { SimArrivals } from "./sim-arrivals.ts";
import type { SimClaims } from "./sim-claims.ts";
import type { SimLayouts } from "./sim-layouts.ts";
import type { SimPeers } from "./sim-peers.ts";
import type { Member, SimPlay } from "./sim-play.ts";
import type { SimTransfers } from "./sim-transfers.ts";

/** What is looked at when a case ends. */
export interface EndingParts {
  readonly layouts: SimLayouts;
  readonly peers: SimPeers;
  readonly claims: SimClaims;
  readonly arrivals: SimArrivals;
  readonly transfers: SimTransfers;
}

export class SimEnding {
  readonly #play: SimPlay;
  readonly #parts: EndingParts;

  constructor(play: SimPlay, parts: EndingParts) {
    this.#play = play;
    this.#parts = parts;
  }

  /** Everything goes on and nothing more goes wrong: all that can be settled must be. */
  makePeace(): void {
    const { world, members, faulty } = this.#play;
    for (const { process } of members) world.resume(process);
    world.runUntil(world.now + 30_000);
    for (const { id } of this.#parts.transfers.unfinished) world.find(`transfer ${id} has no outcome`);
    if (!faulty) this.#checkWaits();
    for (const member of members) {
      if (!member.process.alive || member.closed !== null) continue;
      this.#checkLeases(member);
    }
  }

  close(member: Member): void {
    if (member.closed !== null) return;
    const { world, waits } = this.#play;
    const since = world.now;
    const stopped = world.stoppedSince(member.process, 0);
    world.say(() => `P${member.process.id} closes`);
    member.closed = member.transport.close();
    const entry = { what: "close", member, done: false };
    waits.push(entry);
    member.closed.then(
      ({ layouts }) => {
        entry.done = true;
        this.#parts.layouts.closed(member, layouts);
        const took = world.now - since - world.stoppedSince(member.process, stopped);
        if (took > 12_000) world.find(`close took ${took.toFixed(0)} ms`);
      },
      (error: unknown) => world.find(`close failed: ${Bun.inspect(error)}`),
    );
  }

  closeAll(): void {
    const { world, members } = this.#play;
    const living = members.filter(({ process }) => process.alive);
    for (const member of living) world.act(() => this.close(member));
    world.runUntil(world.now + 30_000);
    this.#checkWaits();
    for (const member of living)
      void member.closed?.then(({ layouts, stuck }) => {
        this.#play.count(stuck > 0 ? "closed with stuck lanes" : "closed");
        if (stuck > 0) return;
        if (layouts.length > 0) world.find(`close left ${layouts.join(", ")} though nothing was stuck`);
        for (const region of world.regions)
          if (region.process === member.process && !region.freed)
            world.find(`${region.name} was never freed`);
        const open = this.#parts.claims.openOf(member).length;
        if (open > 0) world.find(`${open} transfers of P${member.process.id} were never settled`);
      });
    world.runUntil(world.now + 1);
  }

  #checkWaits(): void {
    for (const { what, member, done } of this.#play.waits)
      if (!done && member.process.alive)
        this.#play.world.find(`${what} of P${member.process.id} never ended`);
  }

  /** What is not in doubt holds nothing. */
  #checkLeases(member: Member): void {
    const { world, members, faulty } = this.#play;
    const dump = member.transport.dump();
    const doubtful = dump.metrics["kvferry.transfers.in_doubt"] + this.#parts.arrivals.unsettled;
    for (const layout of dump.layouts)
      if (doubtful === 0 && (layout.uses > 0 || layout.quarantined > 0))
        world.find(
          `${layout.name} has ${layout.uses} uses and ${layout.quarantined} blocks in quarantine at peace`,
        );
    const { send, receive } = member.staging;
    if (send.waiting > 0 || receive.waiting > 0)
      world.find(`P${member.process.id} has somebody who waits for a chunk at peace`);
    const { doubtful: kept } = dump.staging;
    // A write that hangs behind a copy that hung may still run, and has its chunk.
    if (dump.metrics["kvferry.transfers.in_doubt"] === 0 && send.lent > kept + member.agent.running)
      world.find(`P${member.process.id} has lost ${send.lent} chunks of its own`);
    if (!faulty && kept > 0)
      world.find(`P${member.process.id} keeps ${kept} chunks though nothing has failed`);
    // Who was forgotten while something hung cannot always be told that it is over: only its end is a proof then.
    const unsaid = faulty && this.#parts.peers.forgot(member.process);
    if (
      receive.lent > kept &&
      dump.metrics["kvferry.transfers.in_doubt"] === 0 &&
      !unsaid &&
      members.every((other) => other === member || isDoubtless(other))
    )
      world.find(`P${member.process.id} has lost ${receive.lent} chunks that it lent`);
    if (dump.metrics["kvferry.transfers.in_flight"] > 0)
      world.find(`P${member.process.id} has transfers in flight at peace`);
  }
}

/** Whether a worker has nothing open that could touch others' memory, and has ended for good where it has ended. */
function isDoubtless({ process, transport, closed }: Member): boolean {
  if (!process.alive) return process.reaped;
  return closed === null && transport.dump().metrics["kvferry.transfers.in_doubt"] === 0;
}
