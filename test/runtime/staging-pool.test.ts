// Staging memory that many share: nobody gets what another one has, nobody waits without a reason, and a peer that falls
// silent with what it was given leaves chunks for others.
import { expect, test } from "bun:test";
import fc from "fast-check";
import type { MappedMemory } from "../../lib/native/memory.ts";
import type { Chunk, ChunkSource } from "../../lib/runtime/chunks.ts";
import { StagingPool } from "../../lib/runtime/staging-pool.ts";

/** A pool over addresses that nothing touches. */
function poolOf(count: number): StagingPool {
  const memory = {
    map: (bytes: number): MappedMemory => ({ address: 4096, bytes }) as MappedMemory, // no chunk is ever touched
    release: async (): Promise<void> => undefined,
  };
  return new StagingPool(memory, null, count * 64, 64);
}

/** Somebody who keeps what it is given until the test says otherwise. */
class User {
  readonly live: Chunk[] = [];
  readonly silent: Chunk[] = [];
  waiting = 0;
  readonly #source: ChunkSource;

  constructor(pool: StagingPool, peer: string | null) {
    this.#source = pool.source(null, null, peer);
  }

  ask(): void {
    this.waiting++;
    const grant = (chunk: Chunk): void => {
      this.waiting--;
      this.live.push(chunk);
    };
    this.#source.request({ grant, refuse: () => this.waiting-- });
  }

  /** Gives its oldest chunk back. */
  release(): void {
    const chunk = this.live.shift();
    if (chunk !== undefined) this.#source.release(chunk);
  }

  /** Its oldest chunk may still be touched. */
  giveUp(): void {
    const chunk = this.live.shift();
    if (chunk === undefined) return;
    this.silent.push(chunk);
    this.#source.giveUp(chunk);
  }

  /** What was given up is touched no more. */
  recover(): void {
    const chunk = this.silent.shift();
    if (chunk !== undefined) this.#source.release(chunk);
  }
}

const actions = ["ask", "ask", "release", "giveUp", "recover"] as const;

test("no chunk has two users, no more than the pool has are in use, and nobody waits while there is one for it", () => {
  const steps = fc.array(fc.tuple(fc.nat({ max: 2 }), fc.constantFrom(...actions)), { maxLength: 80 });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5 }), steps, (count, sequence) => {
      const pool = poolOf(count);
      const users = ["a", "b", "c"].map((peer) => new User(pool, peer));
      for (const [who, action] of sequence) {
        users[who]?.[action]();
        const live = users.flatMap((user) => user.live);
        const lent = [...live, ...users.flatMap((user) => user.silent)];
        expect(new Set(lent.map(({ address }) => address)).size).toBe(lent.length);
        expect(live.length).toBeLessThanOrEqual(count);
        expect(pool.lent).toBe(lent.length);
        const left = 2 * count - lent.length;
        for (const user of users) {
          if (user.waiting === 0 || live.length === count) continue;
          const has = user.live.length + user.silent.length;
          // Only who has as much as is left for all others waits, unless nothing that it has works and two are left.
          expect(has).toBeGreaterThanOrEqual(left);
          expect(user.live.length > 0 || left < 2).toBe(true);
        }
      }
      // Each turn ends with a chunk at least, or nobody has one.
      for (let turn = 0; turn < sequence.length; turn++)
        for (const user of users) {
          user.recover();
          user.release();
        }
      expect(users.map((user) => user.waiting)).toEqual([0, 0, 0]);
      expect(pool.lent).toBe(0);
      // All that it had it has again.
      for (let times = 0; times < count; times++) users[0]?.ask();
      expect(users[0]?.live).toHaveLength(count);
    }),
  );
});

test("a peer that keeps all that it is given, for ever, cannot keep others from theirs", () => {
  for (const count of [1, 2, 4, 16]) {
    const pool = poolOf(count);
    const silent = new User(pool, "silent");
    const other = new User(pool, "other");
    for (let times = 0; times < 4 * count; times++) {
      silent.ask();
      silent.giveUp();
    }
    expect(silent.silent.length).toBe(2 * count - 1);
    // One after the other, however many ask.
    for (let times = 0; times < 3; times++) other.ask();
    for (let times = 0; times < 3; times++) {
      expect(other.live).toHaveLength(1);
      other.release();
    }
    expect(other.waiting).toBe(0);
    // And the silent one again, once it is heard of.
    const owed = silent.waiting;
    expect(owed).toBeGreaterThan(0);
    for (let times = 0; times < 2 * count - 1; times++) silent.recover();
    expect(silent.live.length).toBe(Math.min(count, owed));
  }
});

test("memory of a GPU is made once, when it is first asked for, as many bytes as were said and none to spare", async () => {
  const made: number[] = [];
  const mapping = Promise.withResolvers<MappedMemory>();
  const memory = {
    map: (bytes: number) => (made.push(bytes), mapping.promise),
    release: async (): Promise<void> => undefined,
  };
  const pool = new StagingPool(memory, null, 4 * 64, 64, 1);
  const [one, two] = [new User(pool, "one"), new User(pool, "two")];
  for (let times = 0; times < 4; times++) one.ask();
  two.ask();
  expect([made, one.waiting, two.waiting, pool.registration]).toEqual([[256], 4, 1, null]);
  mapping.resolve({ address: 4096, bytes: 256, files: [] });
  await mapping.promise;
  await Bun.sleep(0);
  // Half for one peer, so that one that falls silent leaves some: then who asked next.
  expect([made.length, one.live.length, two.live.length]).toEqual([1, 2, 1]);
  expect(pool.source(null).device).toBe(1);
  for (const user of [one, two]) while (user.live.length > 0) user.release();
  expect([pool.lent, await pool.close()]).toEqual([0, 0]);
});

test("who waits for memory of a GPU that cannot be had is refused, and so is who asks again", async () => {
  const refusedWith: string[] = [];
  const memory = {
    map: async (): Promise<MappedMemory> => {
      throw new Error("full");
    },
    release: async (): Promise<void> => undefined,
  };
  const pool = new StagingPool(memory, null, 4 * 64, 64, 1);
  const waiter = () => ({
    grant: () => refusedWith.push("granted"),
    refuse: (error: Error) => refusedWith.push(error.message),
  });
  for (let times = 0; times < 2; times++) {
    pool.source(null).request(waiter());
    await Bun.sleep(0);
  }
  expect([refusedWith, pool.waiting, pool.lent]).toEqual([["full", "full"], 0, 0]);
});

test("one peer alone gets all chunks while none was given up, and so do two that ask in turn", () => {
  const pool = poolOf(4);
  const [one, two] = [new User(pool, "one"), new User(pool, "two")];
  for (let times = 0; times < 6; times++) one.ask();
  expect([one.live.length, one.waiting]).toEqual([4, 2]);
  two.ask();
  one.release();
  one.release();
  // Who asked first is served first.
  expect([one.live.length, one.waiting, two.live.length]).toEqual([4, 0, 0]);
  one.release();
  expect([one.live.length, two.live.length]).toEqual([3, 1]);
});

test("a chunk that comes back while spare ones are gone goes to who waits", () => {
  const pool = poolOf(2);
  const users = ["a", "b", "c"].map((peer) => new User(pool, peer));
  const [a, b, c] = users as [User, User, User];
  for (const user of [a, b]) {
    user.ask();
    user.giveUp();
    user.ask();
    user.giveUp();
  }
  // Four chunks: three are kept by a and b, and the last is left for somebody else.
  expect([a.silent.length + b.silent.length, a.waiting + b.waiting]).toEqual([3, 1]);
  c.ask();
  expect(c.live).toHaveLength(1);
  c.ask();
  expect(c.waiting).toBe(1);
  a.recover();
  a.recover();
  expect(c.live.length + b.live.length).toBe(2);
});

test("work of this process alone goes on with the last chunk when others hang", () => {
  const pool = poolOf(1);
  const local = new User(pool, null);
  local.ask();
  local.giveUp();
  local.ask();
  expect([local.live.length, local.waiting]).toEqual([1, 0]);
});
