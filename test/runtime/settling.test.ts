// Transfers whose work does not obey: when they are settled, and what is proof of their end.
import { describe, expect, test } from "bun:test";
import { isKvferryError, type KvferryError } from "../../lib/core/errors.ts";
import { makeHandle } from "../../lib/core/handle.ts";
import type { Hop, TransferPlan } from "../../lib/core/plan.ts";
import type { Clock } from "../../lib/runtime/deadlines.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { SETTLE_BOUND_MILLIS, type Task } from "../../lib/runtime/task.ts";
import type { HopOutcome } from "../../lib/runtime/executor.ts";
import { Leases } from "../../lib/runtime/leases.ts";
import { Transfer } from "../../lib/runtime/transfer.ts";

/** As docs/limits.md has it: the bound, and two timer steps. */
const STATED_MILLIS = SETTLE_BOUND_MILLIS + 32;
const SOURCE = makeHandle(1n, 0);
const DESTINATION = makeHandle(1n, 1);
const BLOCKS = [2, 3];

/** A clock that stands until it is told to go on. */
class StandingClock implements Clock {
  #now = 1_000;
  #timers: { at: number; callback: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  after(millis: number, callback: () => void): () => void {
    const timer = { at: this.#now + millis, callback };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  sleep(millis: number): Promise<void> {
    return new Promise((resolve) => void this.after(millis, resolve));
  }

  /** Lets time pass, a millisecond at a time. */
  pass(millis: number): void {
    for (const end = this.#now + millis; this.#now < end;) {
      this.#now++;
      const due = this.#timers.filter(({ at }) => at <= this.#now);
      this.#timers = this.#timers.filter(({ at }) => at > this.#now);
      for (const { callback } of due) callback();
    }
  }
}

interface Stubborn {
  readonly plan: TransferPlan;
  readonly clock: StandingClock;
  readonly engine: Engine;
  readonly leases: Leases;
  readonly transfer: Transfer;
  /** How the hop ends, whenever that is called. */
  readonly end: (outcome: HopOutcome) => void;
  readonly asked: string[];
}

/** A transfer over a hop that goes on whatever it is asked. */
function stubborn(deadlineMillis: number): Stubborn {
  const clock = new StandingClock();
  const leases = new Leases();
  const asked: string[] = [];
  let end: (outcome: HopOutcome) => void = () => undefined;
  const engine = new Engine(
    {
      clock,
      executor: () => ({
        start: (_hop, _context, done) => {
          end = done;
          return {
            cancel: () => void asked.push("cancel"),
            abandon: () => void asked.push("abandon"),
            programsDone: () => 0,
            bytesDone: () => 7,
          };
        },
      }),
      report: () => undefined,
      quarantine: (change) => void asked.push(`quarantine ${change}`),
      wallClock: () => 0,
    },
    leases,
  );
  const hop = { executor: "nixl", agent: "peer", programs: [], bytes: 100 } as unknown as Hop; // what the engine reads
  const plan = {
    source: SOURCE,
    destination: DESTINATION,
    route: "system -> system (remote)",
    legs: [{ destination: DESTINATION, hops: [hop] }],
    bytes: 100,
    layers: null,
  } as unknown as TransferPlan; // likewise
  const task: Task = {
    plan,
    destinationBlocks: () => new Map([["default", Uint32Array.from(BLOCKS)]]),
    notification: null,
    deadlineMillis,
    agent: "peer",
    deliver: null,
    onLayer: null,
  };
  const transfer = new Transfer(1, false);
  engine.run(transfer, task);
  return { clock, engine, plan, leases, transfer, end: (outcome) => end(outcome), asked };
}

async function failureOf(transfer: Transfer): Promise<KvferryError> {
  const error = await transfer.then(
    () => new Error("it was done"),
    (reason: unknown) => reason,
  );
  if (!isKvferryError(error)) throw error;
  return error;
}

const ENDED: HopOutcome = {
  ok: false,
  cancelled: true,
  touched: true,
  inDoubt: false,
  bytes: 7,
  error: null,
};

describe("a transfer whose work never ends", () => {
  test("is settled within the bound after it was cancelled, long before its deadline", async () => {
    const { clock, transfer } = stubborn(60_000);
    clock.pass(10);
    transfer.cancel();
    clock.pass(SETTLE_BOUND_MILLIS - 1);
    expect(transfer.state).toBe("running");
    clock.pass(STATED_MILLIS - SETTLE_BOUND_MILLIS + 1);
    expect((await failureOf(transfer)).settlement).toBe("in-doubt");
  });

  test("keeps its blocks in quarantine and its layouts leased until the work ends after all, and only then is settled", async () => {
    const { clock, leases, transfer, end, asked } = stubborn(100);
    clock.pass(100 + STATED_MILLIS);
    let settled = false;
    void transfer.settled.then(() => {
      settled = true;
    });
    clock.pass(60_000);
    await Promise.resolve();
    expect(settled).toBe(false);
    expect(leases.quarantinedCount).toBe(BLOCKS.length);
    end(ENDED);
    expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
    expect(leases.quarantinedCount).toBe(0);
    expect([leases.uses(SOURCE), leases.uses(DESTINATION)]).toEqual([0, 0]);
    expect(asked.filter((word) => word.startsWith("quarantine"))).toEqual([
      "quarantine begin",
      "quarantine end",
    ]);
  });

  test("of a peer whose process has ended stays in doubt while this process still works on it", async () => {
    const { clock, engine, leases, transfer, end } = stubborn(100);
    clock.pass(100 + STATED_MILLIS);
    engine.agentGone("peer");
    expect(leases.quarantinedCount).toBe(BLOCKS.length);
    end({ ...ENDED, inDoubt: true });
    expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "peer-gone" });
    expect(leases.quarantinedCount).toBe(0);
  });
});

describe("transfers with a peer that is paused twice", () => {
  test("wait until both pauses are over, in whatever order they end", () => {
    for (const order of [
      [0, 1],
      [1, 0],
    ] as const) {
      const { engine, plan } = stubborn(100);
      const resume = [engine.pause("peer"), engine.pause("peer")];
      resume[order[0]]?.();
      expect(engine.paused("peer", plan)).toBeInstanceOf(Promise);
      resume[order[1]]?.();
      expect(engine.paused("peer", plan)).toBeUndefined();
    }
  });
});
