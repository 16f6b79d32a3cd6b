// A process in which transports, layouts and transfers come and go at random, some of them over memory that is unmapped
// the moment it may be. Prints one JSON object; a report of the sanitizer, a crash or a hang says the rest.
import { isKvferryError, Transport, type LocalLayout, type Peer, type Transfer } from "../../index.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { NativeContext } from "../../lib/native/context.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { mapMemory, unmapMemory, type MappedMemory } from "../../lib/native/memory.ts";
import { randomOf, type Random } from "../random.ts";

const [steps = 100, seed = 1, minutes = 1_000] = process.argv.slice(2).map(Number) as [
  number?,
  number?,
  number?,
];

const CONFIG = { numBlocks: 8, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 128 } as const;
const BYTES = 8 * 2 * 2 * 16 * 128 * 2;
/** Long enough for anything that ends at all. */
const PATIENCE_MILLIS = 30_000;

interface Member {
  readonly transport: Transport;
  readonly layouts: LocalLayout[];
  readonly peers: Peer[];
}

const random: Random = randomOf(seed, 0);
const findings: string[] = [];
const tally: Record<string, number> = {};
const pending = new Set<Promise<unknown>>();
const unsettled = new Set<PromiseLike<unknown>>();
const transfers: Transfer[] = [];
/** Memory of adopted layouts has an owner of its own, as an engine's has. */
const own = NativeContext.open(openLibrary(), 64);
let names = 0;
let workers = 0n;
let quarantines = 0;

const started = performance.now();
const members: Member[] = [await open(), await open(), await open()];
let step = 0;
for (; step < steps && performance.now() - started < minutes * 60_000; step++) {
  act();
  if (random.chance(0.3)) await Bun.sleep(random.between(0, 3));
  if (pending.size > 60) await settled("pending work");
}
await settled("what was begun");
for (const member of members.splice(0)) await close(member);
await within(Promise.all(unsettled), "a transfer or an arrival was never settled");
if (quarantines !== 0) count(`quarantines left to closed transports: ${quarantines}`);
own.close(1_000);
process.stdout.write(`${JSON.stringify({ steps: step, findings, tally })}\n`);
process.exit(0);

async function open(): Promise<Member> {
  const transport = await Transport.open({
    workerId: ++workers,
    nixl: findNixl() === null ? false : { backends: { UCX: {} } },
    cuda: false,
    neighbours: random.chance(0.3),
    heartbeatMs: random.pick([0, 50]),
    deadlineMs: 2_000,
    secret: new Uint8Array(32).fill(1),
    trustedNetwork: true,
  });
  transport.on("quarantine", ({ change, blocks }) => {
    quarantines += change === "begin" ? blocks.length : -blocks.length;
    count(`quarantine ${change}`);
  });
  return { transport, layouts: [], peers: [] };
}

function act(): void {
  const member = random.pick(members);
  const dice = random.between(0, 99);
  if (dice < 18) register(member);
  else if (dice < 50) transfer(member);
  else if (dice < 58) random.pick([...transfers, undefined])?.cancel();
  else if (dice < 72) unregister(member);
  else if (dice < 82) meet(member, random.pick(members));
  else if (dice < 87) update(member);
  else if (dice < 91) forget(member);
  else if (dice < 97) expectPush(member);
  else if (dice < 98) reopen(member);
}

function register(member: Member): void {
  if (member.layouts.length > 6) return;
  const name = `l${++names}`;
  const adopted = random.chance(0.4) ? mapMemory(own, BYTES, false) : null;
  const memory =
    adopted === null
      ? { kind: "system" as const }
      : {
          kind: "external" as const,
          storage: "system" as const,
          regions: [{ address: adopted.address, size: BYTES }],
        };
  run(
    "register",
    member.transport.register({ name, config: CONFIG, arrangement: "fully-contiguous", memory }).then(
      (layout) => {
        member.layouts.push(layout);
        if (adopted !== null) adoptions.set(layout, adopted);
      },
      (error: unknown) => {
        if (adopted !== null) unmapMemory(own, adopted);
        throw error;
      },
    ),
  );
}

const adoptions = new Map<LocalLayout, MappedMemory>();

function transfer(member: Member): void {
  const local = pick(member.layouts);
  const peer = pick(member.peers);
  const remote = peer === undefined ? undefined : pick(peer.layouts);
  const other = remote !== undefined && random.chance(0.7) ? remote : pick(member.layouts);
  if (local === undefined || other === undefined || local === other) return;
  const blocks = random.shuffled([0, 1, 2, 3, 4, 5, 6, 7]).slice(0, random.between(1, 8));
  const controller = new AbortController();
  if (random.chance(0.2)) setTimeout(() => controller.abort(), random.between(0, 2));
  const push = random.chance(0.5);
  const begun = member.transport.transfer({
    source: push ? local : other,
    sourceBlocks: blocks,
    destination: push ? other : local,
    destinationBlocks: blocks.toReversed(),
    signal: controller.signal,
    ...(random.chance(0.3) ? { deadlineMs: random.between(1, 20) } : undefined),
    ...(random.chance(0.3) ? { notify: `n${names}` } : undefined),
    ...(random.chance(0.2) ? { layerwise: true } : undefined),
  });
  transfers.push(begun);
  if (transfers.length > 20) transfers.shift();
  track(begun.settled);
  run("transfer", begun);
}

function unregister(member: Member): void {
  const layout = pick(member.layouts);
  if (layout === undefined) return;
  member.layouts.splice(member.layouts.indexOf(layout), 1);
  const again = (): Promise<void> =>
    layout.unregister({ wait: random.chance(0.7) }).then(
      () => free(layout),
      (error: unknown) => {
        // Still in use: it stays the caller's to keep.
        if (isKvferryError(error, "IN_USE")) abandoned.add(layout);
        throw error;
      },
    );
  run("unregister", again());
}

const abandoned = new Set<LocalLayout>();

/** The memory goes at once: whatever still touches it is seen. */
function free(layout: LocalLayout): void {
  const adopted = adoptions.get(layout);
  if (adopted === undefined) return;
  adoptions.delete(layout);
  unmapMemory(own, adopted);
  count("unmapped");
}

function meet(at: Member, of: Member): void {
  if (at === of) return;
  run(
    "import",
    of.transport
      .exportMetadata(random.chance(0.3) ? { layouts: of.layouts.filter(() => random.chance(0.5)) } : {})
      .then((bytes) => at.transport.importMetadata(bytes))
      .then((peer) => at.peers.push(peer)),
  );
}

function update(member: Member): void {
  const peer = pick(member.peers);
  const owner = members.find(({ transport }) => transport.workerId === peer?.workerId);
  if (peer === undefined || owner === undefined) return;
  run(
    "update",
    owner.transport.exportMetadata().then((bytes) => peer.update(bytes)),
  );
}

function forget(member: Member): void {
  const peer = pick(member.peers);
  if (peer === undefined) return;
  member.peers.splice(member.peers.indexOf(peer), 1);
  run("forget", peer.forget());
}

function expectPush(member: Member): void {
  const layout = pick(member.layouts);
  const from = pick(member.peers);
  if (layout === undefined || from === undefined) return;
  const writer = members.find(({ transport }) => transport.workerId === from.workerId);
  const back = writer?.peers.find(({ workerId }) => workerId === member.transport.workerId);
  const there = back?.layouts.find(({ handle }) => handle === layout.handle);
  const source = writer === undefined ? undefined : pick(writer.layouts);
  const tag = `t${++names}`;
  try {
    const arrival = member.transport.expect({
      layout,
      blocks: [0, 1],
      from,
      tag,
      deadlineMs: random.pick([5, 500]),
    });
    track(arrival.settled);
    run("arrival", arrival);
  } catch (error) {
    note("expect", error);
    return;
  }
  if (there === undefined || source === undefined || writer === undefined || random.chance(0.2)) return;
  const pushed = writer.transport.transfer({
    source,
    sourceBlocks: [2, 3],
    destination: there,
    destinationBlocks: [0, 1],
    notify: tag,
  });
  track(pushed.settled);
  run("push", pushed);
}

function reopen(member: Member): void {
  members.splice(members.indexOf(member), 1);
  for (const other of members)
    for (const peer of other.peers.filter(({ workerId }) => workerId === member.transport.workerId))
      other.peers.splice(other.peers.indexOf(peer), 1);
  run(
    "close",
    close(member).then(async () => {
      members.push(await open());
    }),
  );
  // Somebody must be there for the next step.
  if (members.length === 0) throw new Error("all transports close at once");
}

async function close(member: Member): Promise<void> {
  const report = await member.transport.close();
  if (report.stuck > 0) count("stuck at close");
  const left = new Set(report.layouts);
  for (const layout of member.layouts) if (!left.has(layout.name)) free(layout);
  count(`closed, ${left.size > 0 ? "some" : "no"} layouts left`);
}

function run(what: string, promise: PromiseLike<unknown>): void {
  const done: Promise<unknown> = Promise.resolve(promise)
    .then(
      () => count(`${what}: done`),
      (error: unknown) => note(what, error),
    )
    .finally(() => pending.delete(done));
  pending.add(done);
}

function track(promise: PromiseLike<unknown>): void {
  unsettled.add(promise);
  void promise.then(() => unsettled.delete(promise));
}

function note(what: string, error: unknown): void {
  if (isKvferryError(error)) count(`${what}: ${error.code}`);
  else if (error instanceof DOMException) count(`${what}: aborted`);
  else if (findings.length < 20) findings.push(`${what}: ${Bun.inspect(error)}`);
}

async function settled(what: string): Promise<void> {
  await within(Promise.all(pending), what);
}

async function within(promise: Promise<unknown>, what: string): Promise<void> {
  let timer: Timer | undefined;
  const late = new Promise<"late">((resolve) => {
    timer = setTimeout(() => resolve("late"), PATIENCE_MILLIS);
  });
  if ((await Promise.race([promise, late])) === "late") {
    findings.push(`${what}: not within ${PATIENCE_MILLIS} ms`);
    process.stdout.write(`${JSON.stringify({ steps: step, findings, tally })}\n`);
    process.exit(1);
  }
  clearTimeout(timer);
}

function count(what: string): void {
  tally[what] = (tally[what] ?? 0) + 1;
}

function pick<Value>(values: readonly Value[]): Value | undefined {
  return values.length === 0 ? undefined : random.pick(values);
}
