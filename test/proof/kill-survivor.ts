// The process that lives on: moves blocks to and from a victim and a third process while the victim is killed, stopped, or
// cut off, and says after each case what it saw. Runs in a network namespace of its own.
// Words: how many cases, seed, first case, how many processes in all (2 or 3).
import { readdirSync, readlinkSync } from "node:fs";
import { isKvferryError, Transport } from "../../index.ts";
import { randomOf, type Random } from "../random.ts";
import { Other, within } from "./kill-other.ts";
import { HANG_MILLIS, Traffic, type Book } from "./kill-traffic.ts";
import { ALL_BLOCKS, KILL_OPTIONS, POOL, USE, type Fault, type KillReport } from "./kill-words.ts";

const [cases = 1, seed = 1, first = 0, processes = 3] = process.argv.slice(2).map(Number) as [
  number?,
  number?,
  number?,
  number?,
];
const VICTIM = 2;
const THIRD = 3;
/** Every so many cases the third is another process: it lives through faults of the link, and not for ever. */
const THIRD_LIVES = 6;
/** How long the proof may take that a process which ended touches nothing. Milliseconds. */
const PROOF_MILLIS = 5_000;

const transport = await Transport.open({ workerId: 1n, ...KILL_OPTIONS });
const pool = await transport.register({ ...POOL, name: "pool" });
await pool.fill({ random: 1 });
const scratch = await transport.register({ ...POOL, name: "scratch" });
let scratchBlock = 0;
let third = processes > 2 ? await meet(THIRD, 1) : null;
let victim = await meet(VICTIM, 2);
/** Whether the link was down since the third process began. */
let thirdWasCut = false;

for (let index = first; index < first + cases; index++) {
  const report = await tryCase(index);
  process.stdout.write(`${JSON.stringify(report)}\n`);
}
victim.kill("SIGKILL");
third?.kill("SIGKILL");
const closing = await transport.close();
process.stdout.write(`${JSON.stringify({ closed: closing })}\n`);
process.exit(0);

async function meet(workerId: number, bytes: number): Promise<Other> {
  const other = new Other(workerId);
  await other.connect(transport);
  await other.fill(bytes);
  return other;
}

async function tryCase(index: number): Promise<KillReport> {
  const random = randomOf(seed, index);
  const fault = (["kill", "stop", "link"] as const)[index % 3] ?? "kill";
  const problems: string[] = [];
  const tally: Record<string, number> = {};
  const book: Book = {
    problems,
    count: (what, by = 1) => {
      tally[what] = (tally[what] ?? 0) + by;
    },
  };
  try {
    // What the link had cut may have taken a later connection with it.
    if (third !== null && third.peer?.loss !== undefined) {
      book.count("third connected anew");
      await third.reconnect(transport);
    }
    await pool.fill({ random: index + 3_000_000 }, { blocks: USE.survivor.sources });
    const traffic = new Traffic(transport, pool, random, { fault, thirdWasCut }, book);
    traffic.begin(victim, third);
    await Bun.sleep(random.between(0, random.pick([0, 6, 60])));
    book.count(traffic.open > 0 ? "struck amid transfers" : "struck after all transfers");
    const over = strike(fault, random);
    if (random.chance(0.5)) traffic.begin(victim, third);
    await traffic.ended();
    await over;
    const lost = await recover(fault, index, book);
    const alive = [...(lost ? [] : [victim]), ...(third === null ? [] : [third])];
    await traffic.compare(alive);
    await verify(fault, index, book);
    if (third !== null && index % THIRD_LIVES === 0) await reached(await anotherThird(third, index), book);
  } catch (error) {
    problems.push(`thrown: ${error instanceof Error ? (error.stack ?? error.message) : Bun.inspect(error)}`);
  }
  return {
    index,
    fault,
    problems,
    tally,
    descriptors: descriptorKinds(),
    fresh: victim.reconnections === 0 && (third?.reconnections ?? 0) === 0,
    threads: readdirSync("/proc/self/task").length,
    rss: process.memoryUsage.rss(),
  };
}

/** @returns Resolves when the fault is over. */
function strike(fault: Fault, random: Random): Promise<void> {
  const over = Bun.sleep(random.pick([100, 500, 1_500]));
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

/** Everybody is there again and imported. @returns Whether the victim is another process than before. */
async function recover(fault: Fault, index: number, book: Book): Promise<boolean> {
  if (fault === "kill") {
    const lost = victim.peer?.lost ?? Promise.resolve({ reason: "it was never imported" });
    const { reason } = await within(lost, 5_000, "peer.lost does not resolve");
    book.count(`lost: ${reason.replaceAll(/\d+/g, "N").slice(0, 60)}`);
    await provenQuiet(index, book);
    victim = await meet(VICTIM, index);
    return true;
  }
  if (victim.peer?.loss !== undefined) book.count(`lost after a ${fault}`);
  await victim.reconnect(transport);
  if (fault === "link" && third !== null) {
    thirdWasCut = true;
    await third.reconnect(transport);
    await reached(third, book);
  }
  await reached(victim, book);
  await victim.ask({ do: "end" }, "ended");
  return false;
}

/** Who wrote here has ended: every quarantine must end by that proof. */
async function provenQuiet(index: number, book: Book): Promise<void> {
  const before = held();
  if (await quietWithin(thirdWasCut ? PROOF_MILLIS / 5 : PROOF_MILLIS)) {
    if (before > 0) book.count("blocks whose quarantine ended with the victim", before);
    return;
  }
  if (third !== null && thirdWasCut) {
    // A link that was down had cut off the third as well: what it may still touch is free once it has ended too.
    const rest = held();
    third.kill("SIGKILL");
    await third.child.exited;
    if (await quietWithin(PROOF_MILLIS)) book.count("blocks whose quarantine ended with the third", rest);
    await anotherThird(third, index);
  }
  if (held() > 0)
    book.problems.push(
      `${held()} blocks are in quarantine though the process has ended: ${Bun.inspect(pool.quarantinedBlocks().slice(0, 2))}`,
    );
}

async function anotherThird(before: Other, bytes: number): Promise<Other> {
  before.kill("SIGKILL");
  await before.child.exited;
  third = await meet(THIRD, bytes);
  thirdWasCut = false;
  return third;
}

async function quietWithin(millis: number): Promise<boolean> {
  const end = performance.now() + millis;
  while (held() > 0 && performance.now() < end) await Bun.sleep(10);
  return held() === 0;
}

/** The end of an old connection may take a new one with it, since NIXL drops peers by their names: then anew. */
async function reached(other: Other, book: Book): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      // Longer than what is left of the old connection.
      for (let step = 0; step < 3; step++) {
        await reach(other);
        await Bun.sleep(40);
      }
      return;
    } catch (error) {
      if (attempt === 5 || !isKvferryError(error)) throw error;
      book.count(`${other === third ? "third" : "victim"} connected anew`);
      await other.reconnect(transport);
    }
  }
}

/** Reads a block into memory that nothing else uses. */
async function reach(other: Other): Promise<void> {
  if (other.peer === undefined) throw new Error(`worker ${other.workerId} is not there`);
  await within(
    transport.transfer({
      source: other.peer.layout("pool"),
      sourceBlocks: [USE.other.sources[0] ?? 0],
      destination: scratch,
      destinationBlocks: [scratchBlock++ % ALL_BLOCKS.length],
      deadlineMs: 5_000,
    }),
    HANG_MILLIS,
    `the way to worker ${other.workerId} hangs`,
  );
}

/**
 * The victim that came back is imported, and its bytes are right both ways. Blocks that left quarantine, or never were
 * in it, are written anew: nothing that was still on its way may change them.
 */
async function verify(fault: Fault, index: number, book: Book): Promise<void> {
  const quarantined = new Set(pool.quarantinedBlocks().map(({ block }) => block));
  if (quarantined.size > 0) book.count(`blocks in quarantine after a ${fault}`, quarantined.size);
  const { pulledFromVictim, pushedByVictim, pulledFromThird } = USE.survivor;
  const free = [...pulledFromVictim, ...pushedByVictim, ...pulledFromThird].filter(
    (block) => !quarantined.has(block),
  );
  await pool.fill({ random: index + 1_000_000 }, { blocks: free });
  const marked = await pool.checksums(free);
  await victim.fill(index + 2_000_000);
  await reached(victim, book);
  const there = victim.peer?.layout("pool");
  if (there === undefined) throw new Error("the victim did not come back");
  await within(
    transport.transfer({
      source: there,
      sourceBlocks: USE.other.sources,
      destination: scratch,
      destinationBlocks: USE.other.sources,
      deadlineMs: 10_000,
    }),
    HANG_MILLIS,
    "the pull after the fault hangs",
  );
  const pulled = await scratch.checksums(USE.other.sources);
  if (pulled.some((sum, at) => sum !== victim.sums[USE.other.sources[at] ?? -1]))
    book.problems.push("what was pulled after the fault is wrong");
  const sources = USE.survivor.sources.slice(0, USE.other.verified.length);
  await within(
    transport.transfer({
      source: pool,
      sourceBlocks: sources,
      destination: there,
      destinationBlocks: USE.other.verified,
      deadlineMs: 10_000,
    }),
    HANG_MILLIS,
    "the push after the fault hangs",
  );
  const pushed = await victim.checksums(USE.other.verified);
  const expected = await pool.checksums(sources);
  if (pushed.some((sum, at) => sum !== expected[at] || sum === victim.sums[USE.other.verified[at] ?? -1]))
    book.problems.push("what was pushed after the fault is wrong");
  const after = await pool.checksums(free);
  if (after.some((sum, at) => sum !== marked[at]))
    book.problems.push("a late write changed a block that was not in quarantine any more");
}

/** Descriptors that are open, by what they are: `socket:[1234]` is one of `socket`. */
function descriptorKinds(): Record<string, number> {
  const kinds: Record<string, number> = {};
  for (const descriptor of readdirSync("/proc/self/fd")) {
    let what = "closed meanwhile";
    try {
      what = readlinkSync(`/proc/self/fd/${descriptor}`).replace(/:?\[\d+\]$/, "");
    } catch {
      // The one that the directory was read by.
    }
    // Shared memory and whatever the outputs are have names of their own.
    const kind = what.startsWith("/") ? "file" : what;
    kinds[kind] = (kinds[kind] ?? 0) + 1;
  }
  return kinds;
}

/** Blocks in quarantine, of this process and of others. */
function held(): number {
  return transport.metrics()["kvferry.blocks.quarantined"];
}
