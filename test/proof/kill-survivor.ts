// The process that lives on: moves blocks to and from a victim and a third process while the victim is killed, stopped, or
// cut off, and says after each case what it saw. Runs in a network namespace of its own.
import { readdirSync } from "node:fs";
import { isKvferryError, Transport, type LocalLayout, type Peer, type Transfer } from "../../index.ts";
import { randomOf, type Random } from "../random.ts";
import {
  BLOCKS,
  KILL_OPTIONS,
  POOL,
  type Fault,
  type KillReport,
  type PeerWord,
  type SurvivorWord,
} from "./kill-words.ts";

const [cases = 1, seed = 1, first = 0] = process.argv.slice(2).map(Number) as [number?, number?, number?];

/** How late a transfer may settle after its deadline, milliseconds. */
const LATE_MILLIS = 1_000;
/** A hang is one. */
const HANG_MILLIS = 15_000;

class Other {
  readonly workerId: number;
  readonly child: Bun.Subprocess<"ignore", "ignore", "inherit">;
  peer: Peer | undefined;
  #waiting: ((word: PeerWord) => void)[] = [];

  constructor(workerId: number) {
    this.workerId = workerId;
    this.child = Bun.spawn([process.execPath, `${import.meta.dir}/kill-peer.ts`, String(workerId)], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
      serialization: "advanced",
      ipc: (word: PeerWord) => this.#waiting.shift()?.(word),
    });
  }

  tell(word: SurvivorWord): void {
    this.child.send(word);
  }

  async ask(word: SurvivorWord): Promise<PeerWord> {
    const answer = new Promise<PeerWord>((resolve) => this.#waiting.push(resolve));
    this.child.send(word);
    return await within(answer, 20_000, `worker ${this.workerId} does not answer ${word.do}`);
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

const transport = await Transport.open({ workerId: 1n, ...KILL_OPTIONS });
const pool = await transport.register({ ...POOL, name: "pool" });
await pool.fill({ random: 1 });
const scratch = await transport.register({ ...POOL, name: "scratch" });
let scratchBlock = 0;
const third = await meet(3);
let victim = await meet(2);

for (let index = first; index < first + cases; index++) {
  const report = await tryCase(index);
  process.stdout.write(`${JSON.stringify(report)}\n`);
}
victim.kill("SIGKILL");
third.kill("SIGKILL");
const closing = await transport.close();
process.stdout.write(`${JSON.stringify({ closed: closing })}\n`);
process.exit(0);

async function meet(workerId: number): Promise<Other> {
  const other = new Other(workerId);
  await connect(other);
  return other;
}

/** Both import each other, anew where that is needed. */
async function connect(other: Other): Promise<void> {
  const word = await other.ask({ do: "export" });
  if (word.say !== "package") throw new Error(`worker ${other.workerId}: ${Bun.inspect(word)}`);
  other.peer = await transport.importMetadata(word.bytes);
  const answer = await other.ask({ do: "import", bytes: await transport.exportMetadata() });
  if (answer.say !== "imported") throw new Error(`worker ${other.workerId}: ${Bun.inspect(answer)}`);
}

interface Watched {
  readonly what: string;
  readonly transfer: Transfer;
  readonly since: number;
  readonly deadlineMs: number;
  readonly withThird: boolean;
}

async function tryCase(index: number): Promise<KillReport> {
  const random = randomOf(seed, index);
  const fault = (["kill", "stop", "link"] as const)[index % 3] ?? "kill";
  const problems: string[] = [];
  const tally: Record<string, number> = {};
  const count = (what: string): void => {
    tally[what] = (tally[what] ?? 0) + 1;
  };
  try {
    if (third.peer?.loss !== undefined) {
      // The end of the connection that the link had cut took the new one with it.
      count("third connected anew");
      await third.ask({ do: "forget" });
      await connect(third);
    }
    const heldBefore = held();
    const watched = start(random, problems, count);
    await Bun.sleep(random.between(0, 25));
    const over = strike(fault, random);
    await Promise.all(watched.map((one) => judge(one, fault, problems, count)));
    await over;
    await recover(fault, index, heldBefore, problems, count);
  } catch (error) {
    problems.push(`thrown: ${error instanceof Error ? error.message : Bun.inspect(error)}`);
  }
  return {
    index,
    fault,
    problems,
    tally,
    descriptors: readdirSync("/proc/self/fd").length,
    threads: readdirSync("/proc/self/task").length,
    rss: process.memoryUsage.rss(),
  };
}

/** Blocks 0 to 7 are pushed from, 8 to 15 pulled into, 16 to 23 pushed into by the victim, 24 to 31 the third's. */
function start(random: Random, problems: string[], count: (what: string) => void): Watched[] {
  const watched: Watched[] = [];
  const peer = victim.peer;
  const other = third.peer;
  if (peer === undefined || other === undefined) throw new Error("nobody to move blocks to");
  const begin = (
    what: string,
    deadlineMs: number,
    withThird: boolean,
    request: Parameters<Transport["transfer"]>[0],
  ): void => {
    watched.push({
      what,
      transfer: transport.transfer({ ...request, deadlineMs }),
      since: performance.now(),
      deadlineMs,
      withThird,
    });
  };
  for (let step = random.between(1, 4); step > 0; step--) {
    const some = ids(random, 8);
    const deadlineMs = random.pick([300, 1_000, 2_500]);
    if (random.chance(0.5))
      begin("push to the victim", deadlineMs, false, {
        source: pool,
        sourceBlocks: some,
        destination: peer.layout("pool"),
        destinationBlocks: some.map((id) => id + 8 * (step % 2)),
      });
    else {
      const blocks = freeOf(
        pool,
        some.map((id) => id + 8),
        count,
      );
      begin("pull from the victim", deadlineMs, false, {
        source: peer.layout("pool"),
        sourceBlocks: some.slice(0, blocks.length),
        destination: pool,
        destinationBlocks: blocks,
      });
    }
  }
  if (random.chance(0.6)) {
    const blocks = freeOf(
      pool,
      ids(random, 8).map((id) => id + 16),
      count,
    );
    const tag = `tag ${performance.now()}`;
    if (blocks.length > 0) {
      try {
        const since = performance.now();
        const deadlineMs = random.pick([300, 1_500]);
        const arrival = transport.expect({ layout: pool, blocks, from: peer, tag, deadlineMs });
        arrival.then(
          () => count("arrived"),
          (error: unknown) => {
            count(isKvferryError(error) ? `arrival ${error.code}` : "arrival ?");
            const late = performance.now() - since - deadlineMs;
            if (late > LATE_MILLIS) problems.push(`an arrival ended ${late.toFixed(0)} ms late`);
          },
        );
        victim.tell({
          do: "push",
          sourceBlocks: blocks.map((_, at) => at),
          destinationBlocks: blocks,
          deadlineMs,
          tag,
        });
      } catch (error) {
        count(isKvferryError(error) ? `expect ${error.code}` : "expect ?");
      }
    }
  }
  if (random.chance(0.5))
    victim.tell({
      do: "pull",
      sourceBlocks: ids(random, 8),
      destinationBlocks: [24, 25, 26].slice(0, random.between(1, 3)),
      deadlineMs: 1_000,
      tag: null,
    });
  const some = ids(random, 4);
  begin("push to the third", 5_000, true, {
    source: pool,
    sourceBlocks: some,
    destination: other.layout("pool"),
    destinationBlocks: some.map((id) => id + 24),
  });
  const blocks = freeOf(
    pool,
    some.map((id) => id + 24),
    count,
  );
  begin("pull from the third", 5_000, true, {
    source: other.layout("pool"),
    sourceBlocks: some.slice(0, blocks.length),
    destination: pool,
    destinationBlocks: blocks,
  });
  return watched;
}

/** @returns Resolves when the fault is over. */
function strike(fault: Fault, random: Random): Promise<void> {
  const millis = random.pick([100, 600, 1_800]);
  const over = Bun.sleep(millis);
  switch (fault) {
    case "kill":
      victim.kill("SIGKILL");
      return victim.child.exited.then(() => undefined);
    case "stop":
      victim.kill("SIGSTOP");
      return over.then(() => victim.kill("SIGCONT"));
    case "link":
      link("down");
      return over.then(() => link("up"));
  }
}

function link(state: "up" | "down"): void {
  const { exitCode, stderr } = Bun.spawnSync(["ip", "link", "set", "lo", state]);
  if (exitCode !== 0) throw new Error(`ip link set lo ${state}: ${stderr.toString()}`);
}

async function judge(
  { what, transfer, since, deadlineMs, withThird }: Watched,
  fault: Fault,
  problems: string[],
  count: (what: string) => void,
): Promise<void> {
  const outcome = await within(
    transfer.then(
      () => "done",
      (error: unknown) => (isKvferryError(error) ? `${error.code} ${error.settlement ?? ""}` : String(error)),
    ),
    HANG_MILLIS,
    `${what} hangs`,
  ).catch((error: unknown) => String(error));
  count(`${withThird ? "third" : "victim"}: ${outcome}`);
  const late = performance.now() - since - deadlineMs;
  if (late > LATE_MILLIS)
    problems.push(`${what} (${outcome}) ended ${late.toFixed(0)} ms after its deadline`);
  // A link that is down cuts off everybody who is reached by it.
  const affected = fault === "link";
  // A link that was down earlier may have left its blocks in doubt.
  const refused = outcome.startsWith("ERR_KVF_QUARANTINED");
  if (withThird && !affected && !refused && outcome !== "done")
    problems.push(`${what} was not done: ${outcome}`);
}

/** The victim is back, imported where that is needed, and its bytes are right. */
async function recover(
  fault: Fault,
  index: number,
  heldBefore: number,
  problems: string[],
  count: (what: string) => void,
): Promise<void> {
  const before = victim.peer;
  if (fault === "kill") {
    const loss = await within(
      before?.lost ?? Promise.resolve({ reason: "" }),
      5_000,
      "peer.lost does not resolve",
    );
    count(`lost: ${loss.reason.replaceAll(/\d+/g, "N").slice(0, 60)}`);
    victim = await meet(2);
  } else {
    // Over what is left of the fault, the two may have lost each other.
    await Bun.sleep(200);
    if (victim.peer?.loss !== undefined) count("lost while stopped");
    await victim.peer?.forget().catch(() => undefined);
    await victim.ask({ do: "forget" });
    await connect(victim);
    // A link that was down has cut off the third as well.
    if (fault === "link") {
      await third.peer?.forget().catch(() => undefined);
      await third.ask({ do: "forget" });
      await connect(third);
      await untilReached(third, count);
    }
  }
  await quiet(fault, heldBefore, problems, count);
  await victim.ask({ do: "fill", seed: index });
  await untilReached(victim, count);
  await verify(problems, count);
}

/** The end of an old connection may take a new one with it, since NIXL drops peers by their names: then anew. */
async function untilReached(other: Other, count: (what: string) => void): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      // Longer than what is left of the old connection.
      for (let step = 0; step < 3; step++) {
        await reach(other);
        await Bun.sleep(50);
      }
      return;
    } catch (error) {
      if (attempt === 5 || !isKvferryError(error)) throw error;
      count(`${other === third ? "third" : "victim"} connected anew`);
      await other.peer?.forget().catch(() => undefined);
      await other.ask({ do: "forget" });
      await connect(other);
    }
  }
}

/** Reads a block into memory that nothing else uses. */
async function reach(other: Other): Promise<void> {
  if (other.peer === undefined) throw new Error(`worker ${other.workerId} is not there`);
  await within(
    transport.transfer({
      source: other.peer.layout("pool"),
      // Nobody pushes into it.
      sourceBlocks: [20],
      destination: scratch,
      destinationBlocks: [scratchBlock++ % BLOCKS],
      deadlineMs: 5_000,
    }),
    HANG_MILLIS,
    `the way to worker ${other.workerId} hangs`,
  );
}

async function verify(problems: string[], count: (what: string) => void): Promise<void> {
  const fresh = victim.peer;
  if (fresh === undefined) throw new Error("the victim did not come back");
  const blocks = freeOf(pool, [8, 9], count);
  await within(
    transport.transfer({
      source: fresh.layout("pool"),
      sourceBlocks: [20, 21].slice(0, blocks.length),
      destination: pool,
      destinationBlocks: blocks,
      deadlineMs: 10_000,
    }),
    HANG_MILLIS,
    "the pull after the fault hangs",
  );
  await within(
    transport.transfer({
      source: pool,
      sourceBlocks: [0, 1],
      destination: fresh.layout("pool"),
      destinationBlocks: [30, 31],
      deadlineMs: 10_000,
    }),
    HANG_MILLIS,
    "the push after the fault hangs",
  );
  const theirs = await victim.ask({ do: "checksums", blocks: [20, 21, 30, 31] });
  const sums = theirs.say === "sums" ? theirs.sums : [];
  const pulled = await pool.checksums(blocks);
  const pushed = await pool.checksums([0, 1]);
  if (pulled.some((sum, at) => sum !== sums[at])) problems.push("what was pulled after the fault is wrong");
  if (pushed[0] !== sums[2] || pushed[1] !== sums[3])
    problems.push("what was pushed after the fault is wrong");
}

/** Quarantines of a process that ended are proven; others end late, or when their peer says so. */
async function quiet(
  fault: Fault,
  heldBefore: number,
  problems: string[],
  count: (what: string) => void,
): Promise<void> {
  const end = performance.now() + (fault === "kill" ? 4_000 : 1_000);
  while (held() > heldBefore && performance.now() < end) await Bun.sleep(20);
  if (held() <= heldBefore) return;
  count(`quarantined after a ${fault}`);
  if (fault === "kill")
    problems.push(`${held()} blocks are in quarantine though the victim's process has ended`);
}

/** Blocks in quarantine, of this process and of others. */
function held(): number {
  return transport.metrics()["kvferry.blocks.quarantined"];
}

function ids(random: Random, most: number): number[] {
  return random.shuffled(Array.from({ length: 8 }, (_, id) => id)).slice(0, random.between(1, most));
}

/** Those of some blocks that are not in quarantine. */
function freeOf(layout: LocalLayout, blocks: readonly number[], count: (what: string) => void): number[] {
  const held = new Set(layout.quarantinedBlocks().map(({ block }) => block));
  if (held.size > 0) count("blocks were in quarantine");
  return blocks.filter((block) => !held.has(block));
}

async function within<T>(promise: PromiseLike<T>, millis: number, what: string): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} within ${millis} ms`)), millis);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
