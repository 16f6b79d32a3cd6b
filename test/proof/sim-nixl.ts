// NIXL and the copy pool of a simulated process: they take their time, refuse, break off, hang, and lie no more than
// the real ones do. What a released or failed request left on the wire still lands.
import { KvferryError } from "../../lib/core/errors.ts";
import type { Hop } from "../../lib/core/plan.ts";
import type { NixlNotification, NixlRegion } from "../../lib/native/agent.ts";
import { AwayPeers } from "../../lib/native/away-peers.ts";
import type { Executor, HopContext, HopOutcome, RunningHop } from "../../lib/runtime/executor.ts";
import { visitRows } from "../interpreter.ts";
import type { SimFaults } from "./sim-faults.ts";
import type { SimLanding, SimProcess, SimRoute, SimRow, SimWorld } from "./sim-world.ts";

/** What the agents of a world share. */
export interface SimNetwork {
  readonly world: SimWorld;
  readonly route: SimRoute;
  readonly faults: SimFaults;
  /** Live agents by their names on the wire. */
  readonly agents: Map<string, SimAgent>;
  /** Pieces that a process has sent over sockets to another and that have not landed: `from>to`. */
  readonly inSockets: Map<string, number>;
}

interface Piece {
  readonly landing: SimLanding;
  /** The first program that it has rows of. */
  readonly program: number;
  readonly bytes: number;
}

const GRACE_MILLIS = 300;

/** How long that takes which hangs. */
export const HANG_MILLIS = 20_000;

/** A NIXL agent of a simulated process. */
export class SimAgent {
  readonly name: string;
  readonly library: string = "simulated";
  readonly process: SimProcess;
  readonly #network: SimNetwork;
  readonly #peers: Map<string, SimAgent> = new Map();
  /** Agents that this one has a connection with: it is made by the first message, and needs both ends. */
  readonly #connected: Set<SimAgent> = new Set();
  readonly #inbox: NixlNotification[] = [];
  readonly #running: Set<SimTransfer> = new Set();
  #regions: readonly NixlRegion[] = [];
  #busyUntil = 0;
  #deliveredUntil: Map<SimAgent, number> = new Map();
  readonly #away: AwayPeers = new AwayPeers();
  #open = true;
  /** Nothing of it touches anything any more. */
  destroyed = false;
  onNotifications: (() => void) | undefined;
  onProgress: (() => void) | undefined;

  constructor(network: SimNetwork, process: SimProcess, name: string) {
    this.#network = network;
    this.process = process;
    this.name = name;
    network.agents.set(name, this);
  }

  get isOpen(): boolean {
    return this.#open;
  }

  get network(): SimNetwork {
    return this.#network;
  }

  register(_memory: number, regions: readonly NixlRegion[]): Promise<void> {
    return this.#order("register", 0.5, () => {
      this.#regions = [...this.#regions, ...regions];
    });
  }

  deregister(_memory: number, regions: readonly NixlRegion[]): Promise<void> {
    return this.#order(
      "unregister",
      0.5,
      () => {
        const gone = new Set(regions.map(({ address }) => address));
        this.#regions = this.#regions.filter(({ address }) => !gone.has(address));
      },
      0,
    );
  }

  metadata(): Promise<Uint8Array<ArrayBuffer>> {
    return this.#order("exportMetadata", 0.2, () => new TextEncoder().encode(`blob of ${this.name}`));
  }

  partialMetadata(): Promise<Uint8Array<ArrayBuffer>> {
    return this.metadata();
  }

  loadPeer(bytes: Uint8Array, expected: string): Promise<void> {
    const named = new TextDecoder().decode(bytes).slice("blob of ".length);
    return this.#order("importMetadata", 3, () => {
      const peer = this.#network.agents.get(named);
      // Nobody connects to an agent that is gone, whatever its metadata say.
      if (named !== expected) throw failure("AGENT_MISMATCH", `blob of ${named}`);
      if (peer === undefined || peer.destroyed) throw failure("NIXL", `${named} does not answer`);
      this.#peers.set(named, peer);
    });
  }

  /** Lets go of a peer: queued transfers are refused, running ones get a grace and are then released unfinished. */
  forgetPeer(name: string): Promise<void> {
    // In its turn: what was ordered before still goes out.
    const leave = (): void => {
      const peer = this.#peers.get(name);
      this.#peers.delete(name);
      for (const transfer of this.#running) if (transfer.peer === peer) transfer.leave();
    };
    this.#order("forget", 0, leave, 0).catch(() => undefined);
    return this.#order("forget", 1, () => undefined, this.#network.faults.control / 4);
  }

  whileAway<Result>(peer: string, work: () => Promise<Result>): Promise<Result> {
    return this.#away.while(peer, work);
  }

  notify(peer: string, payload: Uint8Array): Promise<void> {
    const copy = payload.slice();
    const send = (): Promise<void> =>
      this.#order(
        "notify",
        0.1,
        () => {
          const target = this.#peers.get(peer);
          if (target === undefined) throw failure("PEER_LOST", `${peer} is not loaded`);
          if (!target.process.alive && this.#network.world.random.chance(0.7))
            throw failure("PEER_LOST", `${peer} does not answer`);
          this.deliver(target, copy);
        },
        0,
      );
    return this.#away.say(peer, send);
  }

  /** Sends a message; order is kept between two agents. */
  deliver(target: SimAgent, payload: Uint8Array<ArrayBuffer>): void {
    const { world } = this.#network;
    const at = Math.max(world.now + world.random.between(1, 20) / 10, this.#deliveredUntil.get(target) ?? 0);
    this.#deliveredUntil.set(target, at);
    world.schedule(target.process, at - world.now, () => {
      if (!target.#open || !this.reaches(target)) return;
      world.say(
        () =>
          `P${target.process.id} hears P${this.process.id} say ${payload[0] === 0 ? `control ${payload[9]}` : new TextDecoder().decode(payload)}`,
      );
      target.#inbox.push({ from: this.name, payload });
      target.onNotifications?.();
    });
  }

  takeNotifications(): NixlNotification[] {
    return this.#inbox.splice(0);
  }

  listen(): void {}

  abandon(): void {}

  knows(name: string): SimAgent | undefined {
    return this.#peers.get(name);
  }

  /** Whether anything can go to an agent. */
  reaches(peer: SimAgent): boolean {
    if (this.#connected.has(peer)) return true;
    if (!peer.isOpen) return false;
    this.#connected.add(peer);
    return true;
  }

  /** Stops everything; transfers that hang in a call are left behind. */
  close(): Promise<number> {
    if (!this.#open) return Promise.resolve(0);
    this.#open = false;
    for (const transfer of this.#running) transfer.leave();
    const { world } = this.#network;
    return new Promise((resolve) => {
      const end = world.now + 2_000;
      const look = (): void => {
        if (this.#running.size > 0 && world.now < end) {
          world.schedule(this.process, 20, look);
          return;
        }
        this.destroyed = this.#running.size === 0;
        if (this.destroyed) this.#network.agents.delete(this.name);
        resolve(this.#running.size);
      };
      world.schedule(this.process, 5, look);
    });
  }

  begin(transfer: SimTransfer): void {
    this.#running.add(transfer);
  }

  /** Transfers that have not ended. */
  get running(): number {
    return this.#running.size;
  }

  ended(transfer: SimTransfer): void {
    this.#running.delete(transfer);
  }

  /** One call of the control thread: they run one after the other. */
  #order<T>(
    operation: string,
    millis: number,
    work: () => T,
    failing: number = this.#network.faults.control,
  ): Promise<T> {
    if (!this.#open) return Promise.reject(failure("CLOSED", `${operation}: the agent is closed`));
    const { world } = this.#network;
    const fails = world.random.chance(failing);
    const takes = (millis * world.random.between(5, 20)) / 10;
    this.#busyUntil = Math.max(world.now, this.#busyUntil) + takes;
    return new Promise((resolve, reject) => {
      world.schedule(this.process, this.#busyUntil - world.now, () => {
        if (fails) {
          reject(failure("NIXL", `${operation} failed`));
          return;
        }
        try {
          resolve(work());
        } catch (error) {
          reject(error);
        }
      });
    });
  }
}

/** The executor of transfers to and from peers. */
export function simNixlExecutor(agent: SimAgent): Executor {
  return {
    start(hop, context, done): RunningHop {
      if (agent.network.world.random.chance(agent.network.faults.refuse))
        throw failure("IN_USE", "all job slots are taken");
      const transfer = new SimTransfer(agent, agent.knows(hop.agent ?? ""), hop, context, done);
      transfer.begin();
      return transfer;
    },
  };
}

/** What copies inside a process meet. */
export type SimCopyFaults = Pick<SimFaults, "fail" | "slowCopy" | "hangCopy">;

/** What the executors of a process share. */
export interface SimCopies {
  /** Copies that have not ended. */
  running: number;
}

/**
 * The executor of copies inside a process, and of its files: at once when they are small, else on a thread.
 */
export function simHostExecutor(
  world: SimWorld,
  process: SimProcess,
  copies: SimCopies,
  faultsNow: () => SimCopyFaults,
): Executor {
  return {
    start(hop, _context, done): RunningHop {
      const pieces = piecesOf(world, hop, process, `${hop.executor} copy in P${process.id}`);
      const faults = faultsNow();
      const befalls = (chance: number): boolean => chance > 0 && world.random.chance(chance);
      const failsAt = befalls(faults.fail) ? world.random.between(0, 2) : -1;
      let landed = 0;
      let cancelled = false;
      let programs = 0;
      const slow = befalls(faults.slowCopy);
      const hangs = befalls(faults.hangCopy);
      const inline = !slow && !hangs && world.random.chance(0.5);
      const later = (): void => {
        const millis = world.random.between(0, slow ? 400 : 5);
        world.schedule(process, hangs && landed === 0 ? HANG_MILLIS : millis, next);
      };
      copies.running++;
      const finish = (ok: boolean): void => {
        copies.running--;
        for (const { landing } of pieces) world.drop(landing);
        done({
          ok,
          cancelled,
          touched: landed > 0,
          inDoubt: false,
          bytes: ok ? hop.bytes : 0,
          error: ok ? null : failure("IO", cancelled ? "cancelled" : "the device reports an error"),
        });
      };
      const next = (): void => {
        const piece = pieces[landed];
        if (piece === undefined) {
          programs = hop.programs.length;
          finish(true);
          return;
        }
        if (cancelled || landed === failsAt) {
          finish(false);
          return;
        }
        world.land(piece.landing);
        landed++;
        programs = Math.min(...pieces.slice(landed).map(({ program }) => program), hop.programs.length);
        if (inline) next();
        else later();
      };
      // A thread may be at any of them.
      for (const { landing } of pieces) world.begin(landing, process);
      if (inline) next();
      else later();
      return {
        cancel: () => {
          cancelled = true;
        },
        abandon: () => undefined,
        programsDone: () => programs,
        bytesDone: () => pieces.slice(0, landed).reduce((sum, { bytes }) => sum + bytes, 0),
      };
    },
  };
}

/** A transfer to or from a peer. */
class SimTransfer implements RunningHop {
  readonly peer: SimAgent | undefined;
  readonly #agent: SimAgent;
  readonly #hop: Hop;
  readonly #context: HopContext;
  readonly #done: (outcome: HopOutcome) => void;
  readonly #pieces: readonly Piece[];
  readonly #what: string;
  readonly #fate: keyof SimFaults | "none";
  readonly #faultAt: number;
  #posted = 0;
  #landed = 0;
  #cancelled = false;
  #over = false;

  constructor(
    agent: SimAgent,
    peer: SimAgent | undefined,
    hop: Hop,
    context: HopContext,
    done: (outcome: HopOutcome) => void,
  ) {
    const { world, faults } = agent.network;
    this.#agent = agent;
    this.peer = peer;
    this.#hop = hop;
    this.#context = context;
    this.#done = done;
    this.#what = `${hop.op} of P${agent.process.id} ${hop.op === "write" ? "to" : "from"} ${hop.agent}`;
    this.#pieces = piecesOf(world, hop, agent.process, this.#what);
    const fates = (["fail", "breakOff", "hang", "slow", "deafToCancel"] as const).filter((fate) =>
      world.random.chance(faults[fate]),
    );
    this.#fate = fates[0] ?? "none";
    this.#faultAt = world.random.between(0, Math.max(0, this.#pieces.length - 1));
  }

  begin(): void {
    this.#agent.begin(this);
    this.#later(1, () => this.#post());
  }

  cancel(): void {
    if (this.#fate !== "deafToCancel") this.#cancelled = true;
  }

  abandon(): void {}

  programsDone(): number {
    return Math.min(
      ...this.#pieces.slice(this.#landed).map(({ program }) => program),
      this.#hop.programs.length,
    );
  }

  bytesDone(): number {
    return this.#pieces.slice(0, this.#landed).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** The peer is forgotten, or the agent closes: no more posts, and an end after a grace. */
  leave(): void {
    this.#cancelled = true;
    this.#later(GRACE_MILLIS, () => {
      // A thread that is stuck in the kernel does not come back for being asked.
      if (this.#agent.network.route === "cma" && this.#posted > this.#landed) return;
      this.#end({ inDoubt: this.#posted > this.#landed, error: failure("PEER_LOST", "given up") });
    });
  }

  #post(): void {
    if (this.#over) return;
    const { world, route } = this.#agent.network;
    const piece = this.#pieces[this.#posted];
    if (this.peer === undefined || !this.#agent.reaches(this.peer)) {
      this.#end({ inDoubt: false, error: failure("PEER_LOST", "the peer is not there") });
      return;
    }
    if (this.#cancelled) {
      this.#end({ inDoubt: false, error: failure("IO", "cancelled"), cancelled: true });
      return;
    }
    if (piece === undefined) {
      this.#later(0.2, () => this.#succeed());
      return;
    }
    if (this.#fate === "fail" && this.#posted === this.#faultAt) {
      this.#end({ inDoubt: false, error: failure("NIXL", "the request could not be made") });
      return;
    }
    this.#posted++;
    if (route === "cma") this.#throughKernel(piece);
    else this.#throughSocket(piece);
    if (this.#fate === "breakOff" && this.#posted - 1 === this.#faultAt)
      this.#later(world.random.between(0, 30) / 10, () =>
        this.#end({ inDoubt: true, error: failure("NIXL", "the post was refused") }),
      );
  }

  /** The posting thread copies; a dead peer's memory is gone. */
  #throughKernel(piece: Piece): void {
    const { process } = this.#agent;
    process.inKernel.add(piece.landing);
    this.#agent.network.world.begin(piece.landing, process);
    const stuck = this.#fate === "hang" && this.#posted - 1 === this.#faultAt;
    this.#later(stuck ? HANG_MILLIS : this.#duration(), () => {
      process.inKernel.delete(piece.landing);
      if (this.peer?.process.alive === false) {
        this.#agent.network.world.drop(piece.landing);
        this.#end({ inDoubt: true, error: failure("PEER_LOST", "the peer is gone") });
        return;
      }
      this.#agent.network.world.land(piece.landing);
      this.#arrived();
    });
  }

  /** A message carries the bytes; who receives them copies them, whatever became of the sender. */
  #throughSocket(piece: Piece): void {
    const { world, inSockets } = this.#agent.network;
    const peer = this.peer;
    if (peer === undefined) return;
    const write = this.#hop.op === "write";
    const [from, to] = write ? [this.#agent, peer] : [peer, this.#agent];
    const way = `${from.process.id}>${to.process.id}`;
    const hangs = this.#fate === "hang" && this.#posted - 1 === this.#faultAt;
    const millis = this.#duration() + (hangs ? HANG_MILLIS : 0);
    if (!peer.process.alive) {
      this.#later(50, () => this.#end({ inDoubt: true, error: failure("PEER_LOST", "connection reset") }));
      return;
    }
    world.begin(piece.landing, write ? to.process : peer.process);
    const arrive = (): void => {
      // An answer takes the bytes along.
      if (!write) {
        world.leave(piece.landing);
        piece.landing.carrier = to.process;
      }
      inSockets.set(way, (inSockets.get(way) ?? 0) + 1);
      world.schedule(to.process, millis, () => {
        inSockets.set(way, (inSockets.get(way) ?? 1) - 1);
        // An agent that was destroyed has closed its sockets: what is in them is lost.
        if (to.destroyed) {
          world.drop(piece.landing);
          return;
        }
        world.land(piece.landing);
        if (write) this.#later(0.1, () => this.#arrived());
        else this.#arrived();
      });
    };
    if (write) world.leave(piece.landing);
    // A read is a question first: a peer that dies before it answers never does.
    if (write) arrive();
    else world.schedule(peer.process, 0.1, arrive);
    this.#later(millis + 60, () => {
      if (!peer.process.alive && !this.#over)
        this.#end({ inDoubt: true, error: failure("PEER_LOST", "connection reset") });
    });
    if (millis > 1_000)
      for (let wait = 500; wait < millis; wait += 500)
        this.#later(wait, () => {
          if (!peer.process.alive && !this.#over)
            this.#end({ inDoubt: true, error: failure("PEER_LOST", "connection reset") });
        });
  }

  #arrived(): void {
    this.#landed++;
    if (this.#over) return;
    if (this.#context.watch) this.#agent.onProgress?.();
    this.#post();
  }

  #succeed(): void {
    if (this.#over) return;
    const { notification } = this.#context;
    if (notification !== null && this.peer !== undefined)
      this.#agent.deliver(this.peer, Uint8Array.from(notification));
    this.#over = true;
    this.#agent.ended(this);
    this.#done({
      ok: true,
      cancelled: false,
      touched: true,
      inDoubt: false,
      bytes: this.#hop.bytes,
      error: null,
    });
  }

  #end(how: { readonly inDoubt: boolean; readonly error: KvferryError; readonly cancelled?: boolean }): void {
    if (this.#over) return;
    this.#over = true;
    this.#agent.ended(this);
    this.#done({
      ok: false,
      cancelled: how.cancelled ?? false,
      touched: this.#posted > 0,
      inDoubt: how.inDoubt,
      bytes: 0,
      error: how.error,
    });
  }

  #duration(): number {
    const base = this.#agent.network.world.random.between(1, 30) / 10;
    return this.#fate === "slow" ? base * 200 : base;
  }

  #later(millis: number, run: () => void): void {
    this.#agent.network.world.schedule(this.#agent.process, millis, run);
  }
}

/** A hop in pieces of some rows each. */
function piecesOf(world: SimWorld, hop: Hop, by: SimProcess, what: string): Piece[] {
  const rows: { readonly program: number; readonly row: SimRow }[] = [];
  for (const [program, value] of hop.programs.entries())
    visitRows(value, (source, destination, bytes) =>
      rows.push({ program, row: { source, destination, bytes } }),
    );
  const most = Math.max(1, Math.ceil(rows.length / world.random.between(1, 4)));
  const pieces: Piece[] = [];
  for (let at = 0; at < rows.length; at += most) {
    const part = rows.slice(at, at + most);
    const landing = { what, rows: part.map(({ row }) => row), by, since: world.now };
    const bytes = landing.rows.reduce((sum, row) => sum + row.bytes, 0);
    pieces.push({ landing, program: part[0]?.program ?? 0, bytes });
  }
  return pieces;
}

function failure(word: ConstructorParameters<typeof KvferryError>[0], message: string): KvferryError {
  return new KvferryError(word, "simulation", message, "It is only a simulation.");
}
