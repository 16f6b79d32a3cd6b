// Who may write where: bytes may land only while their writer's transfer is open, and nowhere that somebody was told
// is quiet.
import type { SettledTransfer } from "../../lib/runtime/transfer.ts";
import type { Member } from "./sim-play.ts";
import type { SimLanding, SimProcess, SimRow, SimWorld } from "./sim-world.ts";

export interface Range {
  readonly base: number;
  readonly bytes: number;
}

/** A transfer that was asked for. */
export interface Claim {
  readonly worker: Member;
  readonly ranges: readonly Range[];
  readonly since: number;
  settled: SettledTransfer | null;
  settledAt: number;
}

/** Blocks that their owner was told to be quiet. */
export interface Released {
  readonly ranges: readonly Range[];
  readonly from: SimProcess;
  readonly at: number;
  /** When the push began that they waited for. */
  readonly pushedAt: number;
  /** When they ceased to wait: who acknowledges speaks of what ran then. */
  readonly failedAt: number;
  readonly proof: string;
}

export class SimClaims {
  readonly #world: SimWorld;
  readonly #claims: Claim[] = [];
  readonly #released: Released[] = [];

  constructor(world: SimWorld) {
    this.#world = world;
    world.onLanding = (landing, row, origin) => this.#checkLanding(landing, row, origin);
  }

  /** A worker is about to write to these ranges. */
  open(worker: Member, ranges: readonly Range[]): Claim {
    const claim: Claim = {
      worker,
      ranges,
      since: this.#world.now,
      settled: null,
      settledAt: Number.POSITIVE_INFINITY,
    };
    this.#claims.push(claim);
    return claim;
  }

  release(released: Released): void {
    this.#released.push(released);
  }

  /** What a worker has open. */
  openOf(member: Member): Claim[] {
    return this.#claims.filter(({ worker, settled }) => worker === member && settled === null);
  }

  /** Whether nothing else can have written to any of these ranges since the claim was opened. */
  alone(claim: Claim, ranges: readonly Range[]): boolean {
    return !this.#claims.some(
      (other) =>
        other !== claim &&
        (other.settledAt >= claim.since || !PROVEN.has(other.settled?.proof ?? "")) &&
        ranges.some((range) => other.ranges.some((theirs) => overlap(theirs, range))),
    );
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
}

export function overlap(left: Range, right: Range): boolean {
  return left.base < right.base + right.bytes && right.base < left.base + left.bytes;
}

/** Proofs after which nothing of a transfer is on its way, wherever it goes. */
const PROVEN: ReadonlySet<string> = new Set(["completed", "never-started", "backend-ended"]);
