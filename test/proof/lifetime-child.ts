// A process in which transports, layouts and transfers come and go at random, some of them over memory that is unmapped
// the moment it may be. Prints one JSON object; a report of the sanitizer, a crash or a hang says the rest.
import {
  isKvferryError,
  Transport,
  type LocalLayout,
  type Peer,
  type RemoteLayout,
  type SettledTransfer,
  type Transfer,
} from "../../index.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { randomOf, type Random } from "../random.ts";
import { Adoptions } from "./lifetime-memory.ts";

const [steps = 100, seed = 1, minutes = 1_000] = process.argv.slice(2).map(Number) as [
  number?,
  number?,
  number?,
];

const CONFIG = { numBlocks: 8, numLayers: 2, outerDim: 2, pageSize: 16, numHeads: 8, headDim: 16 } as const;
const BYTES = 8 * 2 * 2 * 16 * 8 * 16 * 2;
/** Long enough for anything that ends at all. */
const PATIENCE_MILLIS = 30_000;

interface Member {
  readonly transport: Transport;
  readonly layouts: LocalLayout[];
  readonly peers: Peer[];
}

const random: Random = randomOf(seed, 0);
/** Both ends must want to be neighbours: in every other process most do. */
const nearness = seed % 2 === 0 ? 0.9 : 0.2;
const findings: string[] = [];
const tally: Record<string, number> = {};
/** What must end by itself, by what it is. */
const pending = new Map<Promise<unknown>, string>();
/** Waits for memory that somebody may still touch: where nobody can prove the contrary they end at close. */
const waits = new Map<Promise<unknown>, string>();
const unsettled = new Set<PromiseLike<unknown>>();
const transfers: Transfer[] = [];
const adoptions = new Adoptions(BYTES, (finding) => find(finding));
let names = 0;
let workers = 0n;
let quarantines = 0;

const started = performance.now();
const members: Member[] = [await open(), await open(), await open()];
/** Transports that are being closed: what they held in doubt may end without proof. */
const closing = new WeakSet<Transport>();
let step = 0;
for (; step < steps && performance.now() - started < minutes * 60_000; step++) {
  act();
  adoptions.look();
  if (random.chance(0.3)) await Bun.sleep(random.between(0, 3));
  if (pending.size > 60) await settled("pending work");
}
await settled("what was begun");
for (const member of members.splice(0)) await close(member);
await within(Promise.all(waits.keys()), "waits that end at close");
await within(Promise.all(unsettled), "a transfer or an arrival was never settled");
if (quarantines !== 0) count("blocks left in quarantine to closed transports", quarantines);
adoptions.close();
process.stdout.write(`${JSON.stringify({ steps: step, findings, tally })}\n`);
process.exit(0);

async function open(): Promise<Member> {
  const neighbours = random.chance(nearness);
  const transport = await Transport.open({
    workerId: ++workers,
    nixl: findNixl() === null ? false : { backends: { UCX: {} } },
    cuda: false,
    neighbours,
    heartbeatMs: random.pick([0, 50]),
    deadlineMs: 2_000,
    secret: new Uint8Array(32).fill(1),
    trustedNetwork: true,
  });
  count(`opened ${neighbours ? "with" : "without"} neighbours`);
  transport.on("quarantine", ({ change, blocks }) => {
    quarantines += change === "begin" ? blocks.length : -blocks.length;
    count(`quarantine ${change}`);
  });
  return { transport, layouts: [], peers: [] };
}

function act(): void {
  const member = random.pick(members);
  const dice = random.between(0, 999);
  if (dice < 180) register(member);
  else if (dice < 460) transfer(member);
  else if (dice < 500) prepared(member);
  else if (dice < 580) random.pick([...transfers, undefined])?.cancel();
  else if (dice < 720) unregister(member);
  else if (dice < 820) meet(member, random.pick(members));
  else if (dice < 870) update(member);
  else if (dice < 910) forget(member);
  else if (dice < 980) expectPush(member);
  else if (dice < 986) reopen(member);
}

function register(member: Member): void {
  if (member.layouts.length > 6) return;
  const name = `l${++names}`;
  const split = random.chance(0.4);
  const arrangement = split ? "layer-separate/block-second" : "fully-contiguous";
  const order = random.pick(["nhd", "hnd"] as const);
  const access = random.pick(["read", "read-write", "read-write", "read-write"] as const);
  const spec = { name, config: CONFIG, arrangement, order, access } as const;
  if (random.chance(0.15)) {
    run(
      "register a file",
      member.transport
        .register({ ...spec, memory: { kind: "disk" } })
        .then((layout) => member.layouts.push(layout)),
    );
    return;
  }
  const adopted = random.chance(0.5) ? adoptions.map() : null;
  const regions = split ? 2 : 1;
  const memory =
    adopted === null
      ? { kind: "system" as const }
      : {
          kind: "external" as const,
          storage: "system" as const,
          regions: Array.from({ length: regions }, (_, at) => ({
            address: adopted.address + (at * BYTES) / regions,
            size: BYTES / regions,
          })),
        };
  run(
    `register ${adopted === null ? "own" : "adopted"} memory`,
    member.transport.register({ ...spec, memory }).then(
      (layout) => {
        member.layouts.push(layout);
        if (adopted !== null) adoptions.adopt(layout, adopted);
      },
      (error: unknown) => {
        if (adopted !== null) adoptions.unmap(adopted);
        throw error;
      },
    ),
  );
}

/** A layout of the member and another one, mostly a peer's. */
function pair(member: Member): { local: LocalLayout; other: LocalLayout | RemoteLayout } | undefined {
  const local = pick(member.layouts);
  const peer = pick(member.peers);
  const remote = peer === undefined ? undefined : pick(peer.layouts);
  const other = remote !== undefined && random.chance(0.7) ? remote : pick(member.layouts);
  return local === undefined || other === undefined || local === other ? undefined : { local, other };
}

function watch(member: Member, way: string, begun: Transfer): void {
  transfers.push(begun);
  if (transfers.length > 20) transfers.shift();
  track(member, begun.settled);
  run(`transfer ${way}`, begun);
}

function blocksOf(): number[] {
  return random.shuffled([0, 1, 2, 3, 4, 5, 6, 7]).slice(0, random.between(1, 8));
}

function signalOf(): AbortSignal {
  const controller = new AbortController();
  if (random.chance(0.2)) setTimeout(() => controller.abort(), random.between(0, 2));
  return controller.signal;
}

function transfer(member: Member): void {
  const found = pair(member);
  if (found === undefined) return;
  const { local, other } = found;
  const blocks = blocksOf();
  const push = random.chance(0.5);
  const request = {
    source: push ? local : other,
    sourceBlocks: blocks,
    destination: push ? other : local,
    destinationBlocks: blocks.toReversed(),
  };
  const begun = member.transport.transfer({
    ...request,
    signal: signalOf(),
    ...(random.chance(0.3) ? { deadlineMs: random.between(1, 20) } : undefined),
    ...(random.chance(0.3) ? { notify: `n${names}` } : undefined),
    ...(random.chance(0.2) ? { layerwise: true } : undefined),
    ...(random.chance(0.2) ? { checksum: true } : undefined),
  });
  watch(member, wayOf(member, request), begun);
}

/** The route that a transfer takes, for the tally. */
function wayOf(member: Member, request: Parameters<Transport["explain"]>[0]): string {
  try {
    return member.transport.explain(request).route;
  } catch {
    return "that is refused";
  }
}

/** Several runs of one plan, with layouts and peers that go meanwhile. */
function prepared(member: Member): void {
  const found = pair(member);
  if (found === undefined) return;
  const { local, other } = found;
  try {
    const plan = member.transport.prepare({ source: other, destination: local });
    for (let at = random.between(1, 4); at > 0; at--) {
      const blocks = blocksOf();
      const options = random.chance(0.3) ? { deadlineMs: random.between(1, 20) } : { signal: signalOf() };
      watch(member, "prepared", plan.run(blocks, blocks.toReversed(), options));
      if (random.chance(0.3)) unregister(member);
    }
  } catch (error) {
    note("prepare", error);
  }
}

function unregister(member: Member): void {
  const layout = pick(member.layouts);
  if (layout === undefined) return;
  member.layouts.splice(member.layouts.indexOf(layout), 1);
  const wait = random.chance(0.7);
  run(
    wait ? "unregister, waiting" : "unregister",
    layout.unregister({ wait }).then(
      () => free(layout),
      (error: unknown) => {
        // Still in use: another step may take it back, or close says what becomes of it.
        if (isKvferryError(error, "IN_USE")) member.layouts.push(layout);
        throw error;
      },
    ),
    wait ? waits : pending,
  );
}

/** Whatever still touches the memory is seen. */
function free(layout: LocalLayout): void {
  const watched = random.chance(0.5);
  if (adoptions.free(layout, watched)) count(watched ? "watched after it was let go" : "unmapped");
}

function meet(at: Member, of: Member): void {
  if (at === of) return;
  run(
    "import",
    of.transport
      .exportMetadata(random.chance(0.3) ? { layouts: of.layouts.filter(() => random.chance(0.5)) } : {})
      .then((bytes) => at.transport.importMetadata(bytes))
      .then((peer) => {
        at.peers.push(peer);
        for (const layout of peer.layouts) count(`imported as ${layout.distance}`);
      }),
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
    track(member, arrival.settled);
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
  track(writer, pushed.settled);
  run("push", pushed);
}

function reopen(member: Member): void {
  // Others must be there for the next steps.
  if (members.length < 3) return;
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
}

async function close(member: Member): Promise<void> {
  closing.add(member.transport);
  const report = await member.transport.close();
  if (report.stuck > 0) count("stuck at close", report.stuck);
  const left = new Set(report.layouts);
  for (const layout of member.layouts) if (!left.has(layout.name)) free(layout);
  count(`closed, ${left.size > 0 ? "some" : "no"} layouts left`);
}

function run(what: string, promise: PromiseLike<unknown>, among = pending): void {
  const done: Promise<unknown> = Promise.resolve(promise)
    .then(
      () => count(`${what}: done`),
      (error: unknown) => note(what, error),
    )
    .finally(() => among.delete(done));
  among.set(done, what);
}

/** Each must be settled before the end, and without proof only when its transport is closed. */
function track({ transport }: Member, promise: PromiseLike<SettledTransfer>): void {
  unsettled.add(promise);
  void promise.then(({ settlement, proof }) => {
    unsettled.delete(promise);
    count(`settled ${settlement}: ${proof}`);
    if (proof === "closed" && !closing.has(transport)) find("settled without proof by an open transport");
  });
}

function note(what: string, error: unknown): void {
  if (isKvferryError(error)) count(`${what}: ${error.code}`);
  else if (error instanceof DOMException) count(`${what}: aborted`);
  else find(`${what}: ${Bun.inspect(error)}`);
}

function find(finding: string): void {
  if (findings.length < 20) findings.push(finding);
}

async function settled(what: string): Promise<void> {
  await within(Promise.all(pending.keys()), what);
}

async function within(promise: Promise<unknown>, what: string): Promise<void> {
  let timer: Timer | undefined;
  const late = new Promise<"late">((resolve) => {
    timer = setTimeout(() => resolve("late"), PATIENCE_MILLIS);
  });
  if ((await Promise.race([promise, late])) === "late") {
    find(`${what}: not within ${PATIENCE_MILLIS} ms: ${[...pending.values(), ...waits.values()].join(", ")}`);
    process.stdout.write(`${JSON.stringify({ steps: step, findings, tally })}\n`);
    process.exit(1);
  }
  clearTimeout(timer);
}

function count(what: string, by = 1): void {
  tally[what] = (tally[what] ?? 0) + by;
}

function pick<Value>(values: readonly Value[]): Value | undefined {
  return values.length === 0 ? undefined : random.pick(values);
}
