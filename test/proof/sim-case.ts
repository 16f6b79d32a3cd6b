// One case: a few workers, a few hundred milliseconds of random work and mishaps, then peace, then the end. What must
// hold is looked at whenever bytes land, whenever somebody is told an outcome, and when all is over.
import { randomOf, type Random } from "../random.ts";
import { SimArrivals } from "./sim-arrivals.ts";
import { SimClaims } from "./sim-claims.ts";
import { SimEnding } from "./sim-ending.ts";
import { SimLayouts } from "./sim-layouts.ts";
import { SimPeers } from "./sim-peers.ts";
import { SimPlay, type Member } from "./sim-play.ts";
import { SimTransfers } from "./sim-transfers.ts";
import { startWorker } from "./sim-worker.ts";
import { SimWorld } from "./sim-world.ts";

/** What became of a case. */
export interface SimOutcome {
  readonly findings: readonly string[];
  readonly trace: readonly string[];
  /** How often what happened: a proof of nothing but successes would prove nothing. */
  readonly tally: Readonly<Record<string, number>>;
}

/** Plays the case of a seed and an index. */
export function playCase(seed: number, index: number, traced = false): SimOutcome {
  const random = randomOf(seed, index);
  const world = new SimWorld(random, traced);
  const play = new SimPlay(world, random);
  try {
    new Course(play).run();
  } catch (error) {
    world.find(`thrown: ${Bun.inspect(error)}`);
  }
  return { findings: world.findings, trace: world.trace ?? [], tally: play.tally };
}

/** The course of a case: who starts, what is done next, and when it is over. */
class Course {
  readonly #play: SimPlay;
  readonly #layouts: SimLayouts;
  readonly #peers: SimPeers;
  readonly #transfers: SimTransfers;
  readonly #ending: SimEnding;

  constructor(play: SimPlay) {
    const layouts = new SimLayouts(play);
    const peers = new SimPeers(play);
    const claims = new SimClaims(play.world);
    const arrivals = new SimArrivals(play, layouts, claims);
    const transfers = new SimTransfers(play, { layouts, peers, claims, arrivals });
    this.#play = play;
    this.#layouts = layouts;
    this.#peers = peers;
    this.#transfers = transfers;
    this.#ending = new SimEnding(play, { layouts, peers, claims, arrivals, transfers });
  }

  run(): void {
    const { world, random, members } = this.#play;
    const count = random.between(2, 3);
    for (let id = 1; id <= count; id++) this.#start(BigInt(id), id === 1);
    world.runUntil(world.now + 20);
    for (const a of members) for (const b of members) if (a !== b) this.#peers.meet(a, b);
    world.runUntil(world.now + 60);
    const actions = random.between(5, 40);
    for (let done = 0; done < actions; done++) {
      world.act(() => this.#act(random));
      world.runUntil(world.now + random.between(0, 40) / 2);
    }
    this.#ending.makePeace();
    this.#ending.closeAll();
    // Those that died never close: this process would hold them until it ends, as many as there are cases.
    for (const { transport } of members) transport.closeNow();
  }

  #start(workerId: bigint, first: boolean): Member {
    const { world, network, options, members, faulty } = this.#play;
    const worker = startWorker(network, { workerId, ...options }, first);
    const member: Member = {
      ...worker,
      layouts: [],
      peers: new Map(),
      closed: null,
    };
    members.push(member);
    const ended = new Map<number, number>();
    worker.transport.on("transfer", ({ id }) => {
      ended.set(id, (ended.get(id) ?? 0) + 1);
      if ((ended.get(id) ?? 0) > 1) world.find(`transfer ${id} of P${worker.process.id} ended twice`);
    });
    worker.transport.on("peer", ({ change, reason, workerId: lost }) => {
      if (change === "lost") world.say(() => `P${worker.process.id} has lost worker ${lost}: ${reason}`);
      const silent = members.some((other) => other.workerId === lost && other.process.stoppedMillis > 0);
      if (change === "lost" && !faulty && !silent && reason.startsWith("silent"))
        world.find(`worker ${lost} was given up without reason: ${reason}`);
    });
    this.#layouts.register(member);
    this.#layouts.register(member);
    return member;
  }

  #act(random: Random): void {
    const { world, members, faulty } = this.#play;
    const member = random.pick(members);
    if (!member.process.alive || member.process.stopped || member.closed !== null) {
      if (member.process.stopped && random.chance(0.5)) world.resume(member.process);
      else if (!member.process.alive && random.chance(0.3)) this.#restart(member);
      return;
    }
    const dice = random.between(0, 99);
    if (dice < 30) this.#transfers.push(member, random.chance(0.6));
    else if (dice < 45) this.#transfers.pull(member);
    else if (dice < 55) this.#transfers.copy(member);
    else if (dice < 65) this.#transfers.cancel();
    else if (dice < 69) this.#layouts.register(member);
    else if (dice < 75) this.#layouts.unregister(member);
    else if (dice < 80) this.#peers.update(member);
    else if (dice < 83) this.#peers.forget(member);
    else if (dice < 88) this.#peers.meetAgain(member);
    else if (!faulty) this.#transfers.copy(member);
    else if (dice < 92) world.stop(member.process);
    else if (dice < 96) world.kill(member.process);
    else if (dice < 97) this.#ending.close(member);
    else this.#layouts.useQuarantined(member);
  }

  /** The dead worker comes back under its id, in a new process. */
  #restart(member: Member): void {
    const { world, members } = this.#play;
    if (members.some(({ workerId, process }) => workerId === member.workerId && process.alive)) return;
    this.#play.count("restarted");
    const fresh = this.#start(member.workerId, false);
    world.schedule(null, 20, () => {
      for (const other of members)
        if (other.workerId !== fresh.workerId && other.process.alive) {
          this.#peers.meet(other, fresh);
          this.#peers.meet(fresh, other);
        }
    });
  }
}
