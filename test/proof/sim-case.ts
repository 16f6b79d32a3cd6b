// One case: a few workers, a few hundred milliseconds of random work and mishaps, then peace, then the end. What must
// hold is looked at whenever bytes land, whenever somebody is told an outcome, and when all is over.
import { isKvferryError } from "../../lib/core/errors.ts";
import type { Arrival } from "../../lib/runtime/arrival.ts";
import type { CloseReport } from "../../lib/runtime/closing.ts";
import { SETTLE_BOUND_MILLIS } from "../../lib/runtime/task.ts";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { Peer } from "../../lib/runtime/peer.ts";
import type { LayoutHandle } from "../../lib/core/handle.ts";
import type { RemoteLayout } from "../../lib/runtime/remote-layout.ts";
import type { SettledTransfer, Transfer } from "../../lib/runtime/transfer.ts";
import { randomOf, type Random } from "../random.ts";
import type { SimFaults, SimNetwork } from "./sim-nixl.ts";
import { startWorker, type SimWorker } from "./sim-worker.ts";
import { SimWorld, type SimLanding, type SimProcess, type SimRegion, type SimRow } from "./sim-world.ts";

/** What became of a case. */
export interface SimOutcome {
  readonly findings: readonly string[];
  readonly trace: readonly string[];
  /** How often what happened: a proof of nothing but successes would prove nothing. */
  readonly tally: Readonly<Record<string, number>>;
}

const BLOCKS = 8;
const CONFIG = { numBlocks: BLOCKS, numLayers: 2, outerDim: 1, pageSize: 2, innerDim: 8 } as const;
const BLOCK_BYTES = 64;

/** Deadlines share timers in buckets of 16 ms, and a callback may wait for the turn of another. */
const TIMER_MILLIS = 40;

interface Range {
  readonly base: number;
  readonly bytes: number;
}

/** A transfer that was asked for. */
interface Claim {
  readonly worker: Member;
  readonly ranges: readonly Range[];
  readonly since: number;
  settled: SettledTransfer | null;
  settledAt: number;
}

/** A worker of the case with what its user knows. */
interface Member extends SimWorker {
  readonly layouts: LocalLayout[];
  readonly peers: Map<bigint, Peer>;
  closed: Promise<CloseReport> | null;
  closedAt: number;
}

/** What is asked for. */
interface SimRequest {
  readonly source: LocalLayout | RemoteLayout;
  readonly destination: LocalLayout | RemoteLayout;
  readonly blocks: readonly number[];
  readonly notify?: string;
}

/** Blocks that their owner was told to be quiet. */
interface Released {
  readonly ranges: readonly Range[];
  readonly from: SimProcess;
  readonly at: number;
  /** When the push began that they waited for. */
  readonly pushedAt: number;
  /** When they ceased to wait: who acknowledges speaks of what ran then. */
  readonly failedAt: number;
  readonly proof: string;
}

/** Plays the case of a seed and an index. */
export function playCase(seed: number, index: number, traced = false): SimOutcome {
  const random = randomOf(seed, index);
  const world = new SimWorld(random, traced);
  const play = new Play(world, random);
  try {
    play.run();
  } catch (error) {
    world.find(`thrown: ${Bun.inspect(error)}`);
  }
  return { findings: world.findings, trace: world.trace ?? [], tally: play.tally };
}

class Play {
  readonly tally: Record<string, number> = {};
  readonly #world: SimWorld;
  readonly #random: Random;
  readonly #network: SimNetwork;
  readonly #members: Member[] = [];
  readonly #claims: Claim[] = [];
  readonly #released: Released[] = [];
  readonly #arrivals: { readonly arrival: Arrival; settled: boolean }[] = [];
  readonly #transfers: Transfer[] = [];
  readonly #claimOf: Map<Transfer, Claim> = new Map();
  readonly #ended: Map<Member, Map<number, number>> = new Map();
  /** Memory of layouts that the transport does not own: it is given back the moment it may be. */
  readonly #adopted: Map<LocalLayout, SimRegion> = new Map();
  /** Packages that are imported later, or once more. */
  readonly #kept: { readonly of: Member; readonly bytes: Uint8Array }[] = [];
  /** Those who forgot somebody, and those who were forgotten. */
  readonly #forgetful: Set<SimProcess> = new Set();
  readonly #waits: { readonly what: string; readonly member: Member; done: boolean }[] = [];
  readonly #faulty: boolean;
  readonly #heartbeatMs: number;
  readonly #deadlineMs: number;
  /** Where layouts lie in the world; peers know some of them by offsets only. */
  readonly #bases: Map<LayoutHandle, number> = new Map();
  readonly #staging: {
    readonly sendBytes: number;
    readonly receiveBytes: number;
    readonly chunkBytes: number;
  };
  #named = 0;

  constructor(world: SimWorld, random: Random) {
    this.#world = world;
    this.#random = random;
    this.#faulty = random.chance(0.8);
    this.#heartbeatMs = random.pick([0, 200, 500]);
    this.#deadlineMs = random.pick([150, 600, 3_000]);
    const chunkBytes = random.pick([32, 64, 160]);
    this.#staging = {
      sendBytes: chunkBytes * random.between(1, 3),
      receiveBytes: chunkBytes * random.between(1, 3),
      chunkBytes,
    };
    this.#network = {
      world,
      route: random.pick(["cma", "tcp"]),
      faults: this.#faulty ? someFaults(random) : NO_FAULTS,
      agents: new Map(),
      inSockets: new Map(),
    };
    world.onLanding = (landing, row, origin) => this.#checkLanding(landing, row, origin);
  }

  run(): void {
    const world = this.#world;
    const count = this.#random.between(2, 3);
    for (let id = 1; id <= count; id++) this.#start(BigInt(id), id === 1);
    world.runUntil(world.now + 20);
    for (const a of this.#members) for (const b of this.#members) if (a !== b) this.#meet(a, b);
    world.runUntil(world.now + 60);
    const actions = this.#random.between(5, 40);
    for (let done = 0; done < actions; done++) {
      world.act(() => this.#act());
      world.runUntil(world.now + this.#random.between(0, 40) / 2);
    }
    this.#makePeace();
    this.#closeAll();
    // Those that died never close: this process would hold them until it ends, as many as there are cases.
    for (const { transport } of this.#members) transport.closeNow();
  }

  // ---- what happens ----

  #start(workerId: bigint, first: boolean): Member {
    const worker = startWorker(
      this.#network,
      {
        workerId,
        heartbeatMs: this.#heartbeatMs,
        deadlineMs: this.#deadlineMs,
        staging: this.#staging,
      },
      first,
    );
    const member: Member = {
      ...worker,
      layouts: [],
      peers: new Map(),
      closed: null,
      closedAt: Number.POSITIVE_INFINITY,
    };
    this.#members.push(member);
    const ended = new Map<number, number>();
    this.#ended.set(member, ended);
    worker.transport.on("transfer", ({ id }) => {
      ended.set(id, (ended.get(id) ?? 0) + 1);
      if ((ended.get(id) ?? 0) > 1) this.#world.find(`transfer ${id} of P${worker.process.id} ended twice`);
    });
    worker.transport.on("peer", ({ change, reason, workerId: lost }) => {
      if (change === "lost")
        this.#world.say(() => `P${worker.process.id} has lost worker ${lost}: ${reason}`);
      const silent = this.#members.some(
        (other) => other.workerId === lost && other.process.stoppedMillis > 0,
      );
      if (change === "lost" && !this.#faulty && !silent && reason.startsWith("silent"))
        this.#world.find(`worker ${lost} was given up without reason: ${reason}`);
    });
    this.#register(member);
    this.#register(member);
    return member;
  }

  #register(member: Member): void {
    const name = `l${++this.#named}`;
    const kind = this.#random.pick(["disk", "system", "system", "external", "external"] as const);
    const region =
      kind === "external" ? this.#world.allocate(member.process, BLOCKS * BLOCK_BYTES, name) : undefined;
    if (region !== undefined) this.#world.fill(region);
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
        this.#expected(error, ["NIXL", "CLOSED"]);
      });
  }

  /** The layout is gone: whoever owns its memory may do with it what he wants. */
  #giveBack(layout: LocalLayout): void {
    const region = this.#adopted.get(layout);
    if (region !== undefined) region.freed = true;
    if (region !== undefined) this.#world.say(() => `${region.name} is given back`);
  }

  /** A package of a worker: all of it or a part, or one that was made before. */
  async #packageOf(of: Member): Promise<Uint8Array> {
    const kept = this.#kept.filter((one) => one.of === of);
    if (kept.length > 0 && this.#random.chance(0.2)) return this.#random.pick(kept).bytes;
    const some = this.#random.chance(0.3);
    const asked = of.transport.exportMetadata(
      some ? { layouts: of.layouts.filter(() => this.#random.chance(0.7)) } : {},
    );
    // Another one is made meanwhile, and may be ready before.
    if (this.#random.chance(0.3)) void of.transport.exportMetadata().catch(() => undefined);
    const bytes = await asked;
    this.#kept.push({ of, bytes });
    // It travels for a while, or lies somewhere, while its maker goes on.
    const millis = this.#random.pick([0, 5, 40]);
    await new Promise<void>((resolve) => void this.#world.schedule(null, millis, resolve));
    return bytes;
  }

  #meet(at: Member, of: Member): void {
    this.#packageOf(of)
      .then(async (bytes) => {
        at.peers.set(of.workerId, await at.transport.importMetadata(bytes));
        this.#world.say(() => `P${at.process.id} has imported P${of.process.id}`);
        this.#count("imported");
      })
      .catch((error: unknown) =>
        this.#expected(error, [
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

  #act(): void {
    const random = this.#random;
    const member = random.pick(this.#members);
    if (!member.process.alive || member.process.stopped || member.closed !== null) {
      if (member.process.stopped && random.chance(0.5)) this.#world.resume(member.process);
      else if (!member.process.alive && random.chance(0.3)) this.#restart(member);
      return;
    }
    const dice = random.between(0, 99);
    if (dice < 30) this.#push(member, random.chance(0.6));
    else if (dice < 45) this.#pull(member);
    else if (dice < 55) this.#copy(member);
    else if (dice < 65) this.#cancel();
    else if (dice < 69) this.#register(member);
    else if (dice < 75) this.#unregister(member);
    else if (dice < 80) this.#update(member);
    else if (dice < 83) this.#forget(member);
    else if (dice < 88) this.#meetAgain(member);
    else if (!this.#faulty) this.#copy(member);
    else if (dice < 92) this.#world.stop(member.process);
    else if (dice < 96) this.#world.kill(member.process);
    else if (dice < 97) this.#close(member);
    else this.#useQuarantined(member);
  }

  #push(member: Member, expected: boolean): void {
    const random = this.#random;
    const source = pickOf(random, member.layouts);
    const target = this.#remote(member);
    if (source === undefined || target === undefined) return;
    const { peer, layout, owner } = target;
    const blocks = this.#freeBlocks(member, layout);
    if (blocks.length === 0) return;
    const tag = `t${++this.#named}`;
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
      this.#expect(owner, local, blocks, mirror, member, tag);
    this.#track(member, { source, destination: layout, blocks, notify: tag }, `push to ${peer.agentName}`);
  }

  #pull(member: Member): void {
    const destination = pickOf(this.#random, member.layouts);
    const target = this.#remote(member);
    if (destination === undefined || target === undefined) return;
    const blocks = this.#freeBlocks(member, destination);
    if (blocks.length === 0) return;
    this.#track(member, { source: target.layout, destination, blocks }, `pull from ${target.peer.agentName}`);
  }

  #copy(member: Member): void {
    const source = pickOf(this.#random, member.layouts);
    const destination = pickOf(this.#random, member.layouts);
    if (source === undefined || destination === undefined || source === destination) return;
    const blocks = this.#freeBlocks(member, destination);
    if (blocks.length === 0) return;
    this.#track(member, { source, destination, blocks }, "copy");
  }

  #options(): {
    readonly deadlineMs?: number;
    readonly signal?: AbortSignal;
    readonly after?: Transfer[];
    readonly layerwise?: true;
  } {
    const random = this.#random;
    const before = random.chance(0.1) ? pickOf(random, this.#transfers) : undefined;
    const controller = new AbortController();
    const aborts = random.chance(0.1);
    if (aborts) this.#world.schedule(null, random.between(0, 30), () => controller.abort());
    return {
      ...(random.chance(0.3) ? { deadlineMs: random.pick([1, 20, 100, 1_000]) } : undefined),
      ...(aborts ? { signal: controller.signal } : undefined),
      ...(before === undefined ? undefined : { after: [before] }),
      ...(random.chance(0.2) ? { layerwise: true as const } : undefined),
    };
  }

  #expect(
    owner: Member,
    layout: LocalLayout,
    blocks: readonly number[],
    from: Peer,
    writer: Member,
    tag: string,
  ): void {
    const deadlineMs = this.#random.pick([50, 300, 2_000]);
    const since = this.#world.now;
    const stopped = this.#world.stoppedSince(owner.process, 0);
    let arrival: Arrival;
    try {
      arrival = owner.transport.expect({ layout, blocks: [...blocks], from, tag, deadlineMs });
    } catch (error) {
      this.#expected(error, ["QUARANTINED", "PEER_LOST", "STALE_HANDLE", "CLOSED"]);
      return;
    }
    this.#count("expected");
    const entry = { arrival, settled: false };
    this.#arrivals.push(entry);
    const ranges = this.#rangesOf(layout, blocks);
    const late = (): void => {
      const took = this.#world.now - since - this.#world.stoppedSince(owner.process, stopped);
      if (took > deadlineMs + TIMER_MILLIS)
        this.#world.find(`an arrival with a deadline of ${deadlineMs} ms ended after ${took.toFixed(1)}`);
    };
    let failedAt = 0;
    arrival.then(late, (error: unknown) => {
      failedAt = this.#world.now;
      late();
      this.#count("arrival failed");
      this.#expected(error, ["TIMEOUT", "PEER_LOST", "CLOSED"]);
      const held = new Set(layout.quarantinedBlocks().map(({ block }) => block));
      if (!entry.settled && blocks.some((block) => !held.has(block)))
        this.#world.find("a failed arrival's blocks are not in quarantine");
    });
    void arrival.settled.then(({ proof }) => {
      entry.settled = true;
      this.#count(`arrival ${proof}`);
      if (proof !== "closed")
        this.#released.push({
          ranges,
          from: writer.process,
          at: this.#world.now,
          pushedAt: since,
          failedAt,
          proof,
        });
    });
  }

  #cancel(): void {
    const transfer = pickOf(
      this.#random,
      this.#transfers.filter(({ state }) => state === "running" || state === "waiting"),
    );
    if (transfer !== undefined) transfer.cancel();
  }

  #unregister(member: Member): void {
    const layout = pickOf(this.#random, member.layouts);
    if (layout === undefined) return;
    const wait = this.#random.chance(0.5);
    const entry = { what: `unregister of ${layout.name}`, member, done: false };
    if (wait) this.#waits.push(entry);
    layout.unregister({ wait }).then(
      () => {
        entry.done = true;
        this.#count("unregistered");
        this.#giveBack(layout);
        const at = member.layouts.indexOf(layout);
        if (at >= 0) member.layouts.splice(at, 1);
      },
      (error: unknown) => {
        entry.done = true;
        // Adopted memory that a peer may still reach: in a world with faults perhaps for longer than the deadline.
        this.#expected(error, wait && !this.#faulty ? ["NIXL", "CLOSED"] : ["IN_USE", "NIXL", "CLOSED"]);
      },
    );
  }

  #update(member: Member): void {
    const peer = pickOf(this.#random, [...member.peers.values()]);
    const owner = this.#ownerOf(peer);
    if (peer === undefined || owner === undefined || owner.closed !== null) return;
    this.#packageOf(owner)
      .then((bytes) => peer.update(bytes))
      .then(() => this.#count("updated"))
      .catch((error: unknown) =>
        this.#expected(error, [
          "PEER_LOST",
          "NIXL",
          "CLOSED",
          "METADATA_EXPIRED",
          "DUPLICATE_WORKER",
          "STALE_HANDLE",
        ]),
      );
  }

  #forget(member: Member): void {
    const peer = pickOf(this.#random, [...member.peers.values()]);
    if (peer === undefined) return;
    member.peers.delete(peer.workerId);
    this.#forgetful.add(member.process);
    const owner = this.#ownerOf(peer);
    if (owner !== undefined) this.#forgetful.add(owner.process);
    this.#world.say(() => `P${member.process.id} forgets ${peer.agentName}`);
    peer.forget().catch((error: unknown) => this.#expected(error, ["NIXL", "CLOSED"]));
  }

  #meetAgain(member: Member): void {
    const other = pickOf(
      this.#random,
      this.#members.filter(
        (candidate) =>
          candidate.workerId !== member.workerId && candidate.process.alive && candidate.closed === null,
      ),
    );
    if (other !== undefined) this.#meet(member, other);
  }

  /** The dead worker comes back under its id, in a new process. */
  #restart(member: Member): void {
    if (this.#members.some(({ workerId, process }) => workerId === member.workerId && process.alive)) return;
    this.#count("restarted");
    const fresh = this.#start(member.workerId, false);
    this.#world.schedule(null, 20, () => {
      for (const other of this.#members)
        if (other.workerId !== fresh.workerId && other.process.alive) {
          this.#meet(other, fresh);
          this.#meet(fresh, other);
        }
    });
  }

  #useQuarantined(member: Member): void {
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
      this.#count("quarantined refused");
      if (refused.state !== "failed") this.#world.find("a quarantined block was used as destination");
      // The source may be on its way out.
      refused.catch((error: unknown) => this.#expected(error, ["QUARANTINED", "STALE_HANDLE"]));
    }
  }

  #close(member: Member): void {
    if (member.closed !== null) return;
    const since = this.#world.now;
    const stopped = this.#world.stoppedSince(member.process, 0);
    this.#world.say(() => `P${member.process.id} closes`);
    member.closed = member.transport.close();
    member.closedAt = this.#world.now;
    const entry = { what: "close", member, done: false };
    this.#waits.push(entry);
    member.closed.then(
      ({ layouts }) => {
        entry.done = true;
        for (const layout of this.#adopted.keys())
          if (member.layouts.includes(layout) && !layouts.includes(layout.name)) this.#giveBack(layout);
        const took = this.#world.now - since - this.#world.stoppedSince(member.process, stopped);
        if (took > 12_000) this.#world.find(`close took ${took.toFixed(0)} ms`);
      },
      (error: unknown) => this.#world.find(`close failed: ${Bun.inspect(error)}`),
    );
  }

  // ---- the end ----

  /** Everything goes on and nothing more goes wrong: all that can be settled must be. */
  #makePeace(): void {
    const world = this.#world;
    for (const { process } of this.#members) world.resume(process);
    world.runUntil(world.now + 30_000);
    for (const transfer of this.#transfers)
      if (
        transfer.state !== "done" &&
        transfer.state !== "failed" &&
        this.#claimOf.get(transfer)?.worker.process.alive === true
      )
        world.find(`transfer ${transfer.id} has no outcome`);
    if (!this.#faulty)
      for (const { what, member, done } of this.#waits)
        if (!done && member.process.alive) world.find(`${what} of P${member.process.id} never ended`);
    for (const member of this.#members) {
      if (!member.process.alive || member.closed !== null) continue;
      this.#checkLeases(member);
    }
  }

  /** What is not in doubt holds nothing. */
  #checkLeases(member: Member): void {
    const dump = member.transport.dump();
    const doubtful =
      dump.metrics["kvferry.transfers.in_doubt"] + this.#arrivals.filter(({ settled }) => !settled).length;
    for (const layout of dump.layouts)
      if (doubtful === 0 && (layout.uses > 0 || layout.quarantined > 0))
        this.#world.find(
          `${layout.name} has ${layout.uses} uses and ${layout.quarantined} blocks in quarantine at peace`,
        );
    const { send, receive } = member.staging;
    if (send.waiting > 0 || receive.waiting > 0)
      this.#world.find(`P${member.process.id} has somebody who waits for a chunk at peace`);
    const { doubtful: kept } = dump.staging;
    // A write that hangs behind a copy that hung may still run, and has its chunk.
    if (dump.metrics["kvferry.transfers.in_doubt"] === 0 && send.lent > kept + member.agent.running)
      this.#world.find(`P${member.process.id} has lost ${send.lent} chunks of its own`);
    if (!this.#faulty && kept > 0)
      this.#world.find(`P${member.process.id} keeps ${kept} chunks though nothing has failed`);
    // Who was forgotten while something hung cannot always be told that it is over: only its end is a proof then.
    const unsaid = this.#faulty && this.#forgetful.has(member.process);
    if (
      receive.lent > kept &&
      dump.metrics["kvferry.transfers.in_doubt"] === 0 &&
      !unsaid &&
      this.#members.every((other) => other === member || this.#doubtless(other))
    )
      this.#world.find(`P${member.process.id} has lost ${receive.lent} chunks that it lent`);
    if (dump.metrics["kvferry.transfers.in_flight"] > 0)
      this.#world.find(`P${member.process.id} has transfers in flight at peace`);
  }

  /** Whether a worker has nothing open that could touch others' memory, and has ended for good where it has ended. */
  #doubtless({ process, transport, closed }: Member): boolean {
    if (!process.alive) return process.reaped;
    return closed === null && transport.dump().metrics["kvferry.transfers.in_doubt"] === 0;
  }

  #closeAll(): void {
    const world = this.#world;
    const living = this.#members.filter(({ process }) => process.alive);
    for (const member of living) world.act(() => this.#close(member));
    world.runUntil(world.now + 30_000);
    for (const { what, member, done } of this.#waits)
      if (!done && member.process.alive) world.find(`${what} of P${member.process.id} never ended`);
    for (const member of living)
      void member.closed?.then(({ layouts, stuck }) => {
        this.#count(stuck > 0 ? "closed with stuck lanes" : "closed");
        if (stuck > 0) return;
        if (layouts.length > 0) world.find(`close left ${layouts.join(", ")} though nothing was stuck`);
        for (const region of world.regions)
          if (region.process === member.process && !region.freed)
            world.find(`${region.name} was never freed`);
        for (const claim of this.#claims)
          if (claim.worker === member && claim.settled === null)
            world.find(`a transfer of P${member.process.id} was never settled`);
      });
    world.runUntil(world.now + 1);
  }

  // ---- what must hold ----

  #track(member: Member, { source, destination, blocks, notify }: SimRequest, what: string): void {
    const world = this.#world;
    const since = world.now;
    const stopped = world.stoppedSince(member.process, 0);
    const sourceBlocks = this.#anyBlocks(blocks.length);
    const ranges = this.#rangesOf(destination, blocks);
    const from = this.#rangesOf(source, sourceBlocks);
    const before = from.map(({ base, bytes }) => world.bytesAt(base, bytes));
    const options = this.#options();
    const deadlineMs = options.deadlineMs ?? this.#deadlineMs;
    const claim: Claim = {
      worker: member,
      ranges,
      since,
      settled: null,
      settledAt: Number.POSITIVE_INFINITY,
    };
    // A small copy is done before the call returns.
    this.#claims.push(claim);
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
      this.#count(settlement);
      world.say(() => `P${member.process.id} transfer ${transfer.id} ${settlement}`);
      if (++outcomes > 1) world.find(`transfer ${transfer.id} had two outcomes`);
      const took = world.now - since - world.stoppedSince(member.process, stopped);
      if (took > deadlineMs + SETTLE_BOUND_MILLIS + TIMER_MILLIS)
        world.find(`transfer ${transfer.id} (${what}) with ${deadlineMs} ms took ${took.toFixed(1)} ms`);
    };
    transfer.then(
      () => {
        ended("done");
        const alone = !this.#claims.some(
          (other) =>
            other !== claim &&
            (other.settledAt >= since || !PROVEN.has(other.settled?.proof ?? "")) &&
            [...ranges, ...from].some((range) => other.ranges.some((theirs) => overlap(theirs, range))),
        );
        if (!alone) return;
        this.#count("verified");
        for (const [index, { base, bytes }] of ranges.entries())
          if (!Buffer.from(before[index] ?? []).equals(world.bytesAt(base, bytes)))
            world.find(
              `transfer ${transfer.id} (${what}) is done, but block ${blocks[index]} has other bytes`,
            );
      },
      (error: unknown) => {
        ended(isKvferryError(error) ? `${error.settlement ?? "aborted"}` : "aborted");
        if (this.#faulty || !isKvferryError(error) || !member.process.alive) return;
        const starved = error.code === "ERR_KVF_TIMEOUT" && deadlineMs >= 3_000 && !options.after;
        if (starved || !BENIGN.has(error.code))
          world.find(`${what} failed without a fault: ${error.code} ${error.message}`);
      },
    );
    void transfer.settled.then((settled) => {
      if (claim.settled !== null) world.find(`transfer ${transfer.id} settled twice`);
      claim.settled = settled;
      claim.settledAt = world.now;
      this.#count(`proof ${settled.proof}`);
      world.say(
        () =>
          `P${member.process.id} transfer ${transfer.id} settled: ${settled.settlement}, ${settled.proof}`,
      );
    });
  }

  /** Bytes move: somebody must still have an open transfer for them, and nobody may have been told that they rest. */
  #checkLanding(
    { by, since, what }: SimLanding,
    { destination, bytes }: SimRow,
    origin: SimProcess,
  ): string | null {
    const into = this.#world.regionOf(destination);
    this.#world.say(() => `${what} lands at ${destination}`);
    // Whether a chunk is touched by one transfer alone was looked at when this began.
    if (into?.staging === true) return null;
    const range = { base: destination, bytes };
    for (const { ranges, from, at, pushedAt, failedAt, proof } of this.#released)
      if (
        from === origin &&
        (proof === "completed" && origin === by
          ? since === pushedAt
          : proof === "acknowledged"
            ? since <= failedAt
            : since < at) &&
        ranges.some((released) => overlap(released, range))
      )
        return `its receiver was told at ${at.toFixed(1)} that nobody writes there (${proof})`;
    if (!origin.alive) return null;
    const owner = into?.process;
    const open = this.#claims.some(
      (claim) =>
        claim.worker.process === origin &&
        claim.ranges.some((claimed) => overlap(claimed, range)) &&
        // What a closed agent has written into a socket is the receiver's to guard against.
        (claim.settled === null ||
          claim.settled.proof === "closed" ||
          (owner !== origin && claim.settled.proof === "agent-closed")),
    );
    return open ? null : `no transfer of P${origin.id} is open for it`;
  }

  #remote(
    member: Member,
  ): { readonly peer: Peer; readonly layout: RemoteLayout; readonly owner: Member } | undefined {
    const peer = pickOf(this.#random, [...member.peers.values()]);
    const owner = this.#ownerOf(peer);
    const layout = peer === undefined ? undefined : pickOf(this.#random, peer.layouts);
    return peer === undefined || owner === undefined || layout === undefined
      ? undefined
      : { peer, layout, owner };
  }

  #ownerOf(peer: Peer | undefined): Member | undefined {
    return this.#members.find(
      (member) => member.workerId === peer?.workerId && generationOf(member) === peer.generation,
    );
  }

  /** Up to three blocks into which this worker has nothing open: two writers at once would be their user's mistake. */
  #freeBlocks(member: Member, layout: LocalLayout | RemoteLayout): number[] {
    const taken = this.#claims.filter(({ worker, settled }) => worker === member && settled === null);
    const free = Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => {
      const [range] = this.#rangesOf(layout, [block]);
      return (
        range !== undefined && !taken.some(({ ranges }) => ranges.some((claimed) => overlap(claimed, range)))
      );
    });
    return this.#random.shuffled(free).slice(0, this.#random.between(1, 3));
  }

  #rangesOf(layout: LocalLayout | RemoteLayout, blocks: readonly number[]): Range[] {
    const base = this.#bases.get(layout.handle) ?? layout.record.components[0]?.regionAddresses[0] ?? 0;
    return blocks.map((block) => ({ base: base + block * BLOCK_BYTES, bytes: BLOCK_BYTES }));
  }

  #anyBlocks(count: number): number[] {
    return Array.from({ length: count }, () => this.#random.between(0, BLOCKS - 1));
  }

  #expected(error: unknown, words: readonly string[]): void {
    if (isKvferryError(error) && words.some((word) => error.code === `ERR_KVF_${word}`)) {
      this.#count(error.code);
      return;
    }
    this.#world.find(`unexpected: ${Bun.inspect(error)}`);
  }

  #count(what: string): void {
    this.tally[what] = (this.tally[what] ?? 0) + 1;
  }
}

/** Proofs after which nothing of a transfer is on its way, wherever it goes. */
const PROVEN: ReadonlySet<string> = new Set(["completed", "never-started", "backend-ended"]);

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

/** A world in which nothing goes wrong. */
export const NO_FAULTS: SimFaults = {
  refuse: 0,
  fail: 0,
  breakOff: 0,
  hang: 0,
  slow: 0,
  deafToCancel: 0,
  control: 0,
  slowCopy: 0,
  hangCopy: 0,
};

function someFaults(random: Random): SimFaults {
  const some = (): number => (random.chance(0.5) ? random.between(0, 30) / 100 : 0);
  return {
    refuse: some() / 4,
    fail: some(),
    breakOff: some(),
    hang: some(),
    slow: some(),
    deafToCancel: some(),
    control: some() / 4,
    slowCopy: some() * 2,
    hangCopy: some() / 4,
  };
}

function generationOf(member: Member): number {
  return member.transport.registry.incarnation;
}

function overlap(left: Range, right: Range): boolean {
  return left.base < right.base + right.bytes && right.base < left.base + left.bytes;
}

function pickOf<Value>(random: Random, values: readonly Value[]): Value | undefined {
  return values.length === 0 ? undefined : random.pick(values);
}
