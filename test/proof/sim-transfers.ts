// The transfers of a case: random ones are asked for, and each must have one outcome, in time, and the right bytes.
import { isKvferryError } from "../../lib/core/errors.ts";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { RemoteLayout } from "../../lib/runtime/remote-layout.ts";
import { SETTLE_BOUND_MILLIS } from "../../lib/runtime/task.ts";
import type { Transfer } from "../../lib/runtime/transfer.ts";
import type { SimArrivals } from "./sim-arrivals.ts";
import { overlap, type Claim, type SimClaims } from "./sim-claims.ts";
import { BLOCKS, type SimLayouts } from "./sim-layouts.ts";
import type { SimPeers } from "./sim-peers.ts";
import { generationOf, TIMER_MILLIS, type Member, type SimPlay } from "./sim-play.ts";

/** What is asked for. */
interface SimRequest {
  readonly source: LocalLayout | RemoteLayout;
  readonly destination: LocalLayout | RemoteLayout;
  readonly blocks: readonly number[];
  readonly notify?: string;
}

/** What the transfers of a case have to do with. */
export interface AroundTransfers {
  readonly layouts: SimLayouts;
  readonly peers: SimPeers;
  readonly claims: SimClaims;
  readonly arrivals: SimArrivals;
}

export class SimTransfers {
  readonly #play: SimPlay;
  readonly #around: AroundTransfers;
  readonly #transfers: Transfer[] = [];
  readonly #claimOf: Map<Transfer, Claim> = new Map();

  constructor(play: SimPlay, around: AroundTransfers) {
    this.#play = play;
    this.#around = around;
  }

  /** Transfers of living workers that have no outcome. */
  get unfinished(): Transfer[] {
    return this.#transfers.filter(
      (transfer) =>
        transfer.state !== "done" &&
        transfer.state !== "failed" &&
        this.#claimOf.get(transfer)?.worker.process.alive === true,
    );
  }

  push(member: Member, expected: boolean): void {
    const source = this.#play.pickOf(member.layouts);
    const target = this.#around.peers.remote(member);
    if (source === undefined || target === undefined) return;
    const { peer, layout, owner } = target;
    const blocks = this.#freeBlocks(member, layout);
    if (blocks.length === 0) return;
    const tag = this.#play.name("t");
    const mirror = owner.peers.get(member.workerId);
    const local = owner.layouts.find(({ handle }) => handle === layout.handle);
    if (
      expected &&
      mirror !== undefined &&
      local !== undefined &&
      mirror.generation === generationOf(member) &&
      !owner.process.stopped &&
      owner.process.alive
    )
      this.#around.arrivals.expect(owner, { layout: local, blocks, from: mirror, writer: member, tag });
    this.#track(member, { source, destination: layout, blocks, notify: tag }, `push to ${peer.agentName}`);
  }

  pull(member: Member): void {
    const destination = this.#play.pickOf(member.layouts);
    const target = this.#around.peers.remote(member);
    if (destination === undefined || target === undefined) return;
    const blocks = this.#freeBlocks(member, destination);
    if (blocks.length === 0) return;
    this.#track(member, { source: target.layout, destination, blocks }, `pull from ${target.peer.agentName}`);
  }

  copy(member: Member): void {
    const source = this.#play.pickOf(member.layouts);
    const destination = this.#play.pickOf(member.layouts);
    if (source === undefined || destination === undefined || source === destination) return;
    const blocks = this.#freeBlocks(member, destination);
    if (blocks.length === 0) return;
    this.#track(member, { source, destination, blocks }, "copy");
  }

  cancel(): void {
    const transfer = this.#play.pickOf(
      this.#transfers.filter(({ state }) => state === "running" || state === "waiting"),
    );
    if (transfer !== undefined) transfer.cancel();
  }

  #options(): {
    readonly deadlineMs?: number;
    readonly signal?: AbortSignal;
    readonly after?: Transfer[];
    readonly layerwise?: true;
  } {
    const { random, world } = this.#play;
    const before = random.chance(0.1) ? this.#play.pickOf(this.#transfers) : undefined;
    const controller = new AbortController();
    const aborts = random.chance(0.1);
    if (aborts) world.schedule(null, random.between(0, 30), () => controller.abort());
    return {
      ...(random.chance(0.3) ? { deadlineMs: random.pick([1, 20, 100, 1_000]) } : undefined),
      ...(aborts ? { signal: controller.signal } : undefined),
      ...(before === undefined ? undefined : { after: [before] }),
      ...(random.chance(0.2) ? { layerwise: true as const } : undefined),
    };
  }

  #track(member: Member, { source, destination, blocks, notify }: SimRequest, what: string): void {
    const { world, faulty } = this.#play;
    const { layouts, claims } = this.#around;
    const since = world.now;
    const stopped = world.stoppedSince(member.process, 0);
    const sourceBlocks = this.#anyBlocks(blocks.length);
    const ranges = layouts.rangesOf(destination, blocks);
    const from = layouts.rangesOf(source, sourceBlocks);
    const before = from.map(({ base, bytes }) => world.bytesAt(base, bytes));
    const options = this.#options();
    const deadlineMs = options.deadlineMs ?? this.#play.options.deadlineMs;
    // A small copy is done before the call returns.
    const claim = claims.open(member, ranges);
    const transfer = member.transport.transfer({
      source,
      sourceBlocks,
      destination,
      destinationBlocks: [...blocks],
      ...(notify === undefined ? undefined : { notify }),
      ...options,
    });
    this.#transfers.push(transfer);
    this.#claimOf.set(transfer, claim);
    world.say(() => `P${member.process.id} transfer ${transfer.id}: ${what}, blocks ${blocks.join(" ")}`);
    let outcomes = 0;
    const ended = (settlement: string): void => {
      // Nobody is there to be told.
      if (!member.process.alive) return;
      this.#play.count(settlement);
      world.say(() => `P${member.process.id} transfer ${transfer.id} ${settlement}`);
      if (++outcomes > 1) world.find(`transfer ${transfer.id} had two outcomes`);
      const took = world.now - since - world.stoppedSince(member.process, stopped);
      if (took > deadlineMs + SETTLE_BOUND_MILLIS + TIMER_MILLIS)
        world.find(`transfer ${transfer.id} (${what}) with ${deadlineMs} ms took ${took.toFixed(1)} ms`);
    };
    transfer.then(
      () => {
        ended("done");
        if (!claims.alone(claim, [...ranges, ...from])) return;
        this.#play.count("verified");
        for (const [index, { base, bytes }] of ranges.entries())
          if (!Buffer.from(before[index] ?? []).equals(world.bytesAt(base, bytes)))
            world.find(
              `transfer ${transfer.id} (${what}) is done, but block ${blocks[index]} has other bytes`,
            );
      },
      (error: unknown) => {
        ended(isKvferryError(error) ? `${error.settlement ?? "aborted"}` : "aborted");
        if (faulty || !isKvferryError(error) || !member.process.alive) return;
        const starved = error.code === "ERR_KVF_TIMEOUT" && deadlineMs >= 3_000 && !options.after;
        if (starved || !BENIGN.has(error.code))
          world.find(`${what} failed without a fault: ${error.code} ${error.message}`);
      },
    );
    void transfer.settled.then((settled) => {
      if (claim.settled !== null) world.find(`transfer ${transfer.id} settled twice`);
      claim.settled = settled;
      claim.settledAt = world.now;
      this.#play.count(`proof ${settled.proof}`);
      world.say(
        () =>
          `P${member.process.id} transfer ${transfer.id} settled: ${settled.settlement}, ${settled.proof}`,
      );
    });
  }

  /** Up to three blocks into which this worker has nothing open: two writers at once would be their user's mistake. */
  #freeBlocks(member: Member, layout: LocalLayout | RemoteLayout): number[] {
    const { random } = this.#play;
    const taken = this.#around.claims.openOf(member);
    const free = Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => {
      const [range] = this.#around.layouts.rangesOf(layout, [block]);
      return (
        range !== undefined && !taken.some(({ ranges }) => ranges.some((claimed) => overlap(claimed, range)))
      );
    });
    return random.shuffled(free).slice(0, random.between(1, 3));
  }

  #anyBlocks(count: number): number[] {
    return Array.from({ length: count }, () => this.#play.random.between(0, BLOCKS - 1));
  }
}

const BENIGN: ReadonlySet<string> = new Set([
  "ERR_KVF_NO_ROUTE",
  "ERR_KVF_TIMEOUT",
  "ERR_KVF_CLOSED",
  "ERR_KVF_STALE_HANDLE",
  "ERR_KVF_UNKNOWN_HANDLE",
  "ERR_KVF_PEER_LOST",
  "ERR_KVF_QUARANTINED",
  "ERR_KVF_IN_USE",
]);
