// What all parts of a case share: its world and what was drawn for it, who is in it, and what is written down.
import { isKvferryError } from "../../lib/core/errors.ts";
import type { CloseReport } from "../../lib/runtime/closing.ts";
import type { LocalLayout } from "../../lib/runtime/local-layout.ts";
import type { Peer } from "../../lib/runtime/peer.ts";
import type { Random } from "../random.ts";
import { NO_FAULTS, someFaults } from "./sim-faults.ts";
import type { SimNetwork } from "./sim-nixl.ts";
import type { SimWorker } from "./sim-worker.ts";
import type { SimWorld } from "./sim-world.ts";

/** Deadlines share timers in buckets of 16 ms, and a callback may wait for the turn of another. */
export const TIMER_MILLIS = 40;

/** A worker of the case with what its user knows. */
export interface Member extends SimWorker {
  readonly layouts: LocalLayout[];
  readonly peers: Map<bigint, Peer>;
  closed: Promise<CloseReport> | null;
}

/** Something that must end. */
export interface SimWait {
  readonly what: string;
  readonly member: Member;
  done: boolean;
}

export class SimPlay {
  readonly tally: Record<string, number> = {};
  readonly world: SimWorld;
  readonly random: Random;
  readonly network: SimNetwork;
  readonly members: Member[] = [];
  readonly waits: SimWait[] = [];
  /** Whether anything may go wrong in this case. */
  readonly faulty: boolean;
  /** Options of every transport of the case. */
  readonly options: {
    readonly heartbeatMs: number;
    readonly deadlineMs: number;
    readonly staging: {
      readonly sendBytes: number;
      readonly receiveBytes: number;
      readonly chunkBytes: number;
    };
  };
  #named = 0;

  constructor(world: SimWorld, random: Random) {
    this.world = world;
    this.random = random;
    this.faulty = random.chance(0.8);
    const heartbeatMs = random.pick([0, 200, 500]);
    const deadlineMs = random.pick([150, 600, 3_000]);
    const chunkBytes = random.pick([32, 64, 160]);
    const staging = {
      sendBytes: chunkBytes * random.between(1, 3),
      receiveBytes: chunkBytes * random.between(1, 3),
      chunkBytes,
    };
    this.options = { heartbeatMs, deadlineMs, staging };
    this.network = {
      world,
      route: random.pick(["cma", "tcp"]),
      faults: this.faulty ? someFaults(random) : NO_FAULTS,
      agents: new Map(),
      inSockets: new Map(),
    };
  }

  /** A name that nothing else of the case has. */
  name(prefix: string): string {
    return `${prefix}${++this.#named}`;
  }

  /** One of the values, or undefined where there is none. */
  pickOf<Value>(values: readonly Value[]): Value | undefined {
    return values.length === 0 ? undefined : this.random.pick(values);
  }

  /** The member that a peer stands for, in the incarnation that the peer is of. */
  ownerOf(peer: Peer | undefined): Member | undefined {
    return this.members.find(
      (member) => member.workerId === peer?.workerId && generationOf(member) === peer.generation,
    );
  }

  count(what: string): void {
    this.tally[what] = (this.tally[what] ?? 0) + 1;
  }

  /** An error that may be one of these; any other is a finding. */
  expected(error: unknown, words: readonly string[]): void {
    if (isKvferryError(error) && words.some((word) => error.code === `ERR_KVF_${word}`)) {
      this.count(error.code);
      return;
    }
    this.world.find(`unexpected: ${Bun.inspect(error)}`);
  }
}

export function generationOf(member: Member): number {
  return member.transport.registry.incarnation;
}
