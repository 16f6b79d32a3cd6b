// A neighbour ends in mid-transfer: killed, or by a clean exit. Whoever is left must settle every transfer, unmap what was
// the other's, get its own memory back, and neither fault nor leak. With a GPU its memory and pinned memory are tried as
// well, and nvidia-smi must agree.
import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import {
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type Transfer,
} from "../../index.ts";
import { CUDA_LIBRARY_VARIABLE } from "../../lib/native/no-cuda.ts";
import { randomOf } from "../random.ts";
import { listedMappings, NeighbourProcess, threadNames } from "../runtime/helpers/neighbour-process.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

/** Large enough that a transfer takes milliseconds and runs on another thread. */
const CONFIG: LayoutConfig = { numBlocks: 64, numLayers: 4, outerDim: 2, pageSize: 64, innerDim: 512 };
const IDS = Uint32Array.from({ length: 64 }, (_unused, index) => index);
const SETTLE_MILLIS = 10_000;
/** What a driver may keep for itself, far below the layouts of all cases. MiB. */
const DRIVER_NOISE = 64;

const PROGRESS_CASES = 20;

/** Neighbours at once, at most. */
const MOST_LANES = 6;

type Kind = "system" | "pinned" | "device";

/** Neighbours one after the other, each the same worker again, and the memory here that is moved to and from them. */
interface Lane {
  readonly worker: bigint;
  /** One of each kind. */
  readonly layouts: readonly LocalLayout[];
}

function specOf(name: string, kind: Kind): LayoutSpec {
  return { name, config: CONFIG, memory: { kind } };
}

/** Kinds of memory that are tried here. */
function kindsHere(): readonly Kind[] {
  const gpu = process.env[CUDA_LIBRARY_VARIABLE] !== undefined || existsSync("/dev/nvidiactl");
  return gpu ? ["system", "pinned", "device"] : ["system"];
}

/** Ends neighbours in mid-transfer, half of them by force. */
export async function run(options: ProofOptions): Promise<ProofResult> {
  const started = performance.now();
  const until = started + (options.minutes ?? Number.POSITIVE_INFINITY) * 60_000;
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  let cases = 0;
  let failures = 0;
  const kinds = kindsHere();
  const here = await Transport.open({
    workerId: 1n,
    nixl: false,
    ...(kinds.length > 1 ? {} : { cuda: false }),
  });
  const lanes: Lane[] = [];
  // On a large machine some neighbours at once: one ends while others are in the middle of theirs.
  for (let lane = 0; lane < Math.max(1, Math.min(MOST_LANES, navigator.hardwareConcurrency >> 2)); lane++) {
    const layouts: LocalLayout[] = [];
    for (const kind of kinds) {
      const own = await here.register(specOf(`own ${kind} ${lane}`, kind));
      await own.fill(1); // resident from the beginning
      layouts.push(own);
    }
    lanes.push({ worker: BigInt(2 + lane), layouts });
  }
  // The first cases warm up threads and sockets; what they leave is what every later one must leave.
  await Promise.all(
    lanes.map(async (lane) => {
      for (const own of lane.layouts) await tryCase(here, lane.worker, own, options.seed, -1, {});
    }),
  );
  // The engine opens a descriptor for the first line that it writes.
  options.progress?.("first cases done");
  const before = await footprint();
  const work = async ({ worker, layouts }: Lane): Promise<void> => {
    while (cases < options.cases && performance.now() < until) {
      const index = cases++;
      if (index > 0 && index % PROGRESS_CASES === 0)
        options.progress?.(
          `${index} cases begun after ${((performance.now() - started) / 1_000).toFixed(0)} s, ${failures} failures`,
        );
      const own = layouts[index % layouts.length] as LocalLayout; // there is one
      const problem = await tryCase(here, worker, own, options.seed, index, tally).catch((error: unknown) =>
        error instanceof Error ? (error.stack ?? error.message) : String(error),
      );
      if (problem === null) continue;
      failures++;
      if (findings.length < 20) findings.push(`seed ${options.seed} case ${index}: ${problem}`);
    }
  };
  await Promise.all(lanes.map(work));
  const after = await footprint();
  for (const what of ["mappings", "threads", "sharedKilobytes"] as const)
    if (after[what] > before[what]) {
      failures++;
      findings.push(`${what}: ${before[what]} after the first case, ${after[what]} after the last`);
    }
  if (after.descriptors.length > before.descriptors.length) {
    failures++;
    const more = after.descriptors.filter((line) => !before.descriptors.includes(line));
    findings.push(
      `descriptors: ${before.descriptors.length} after the first case, ${after.descriptors.length} after the last: ${more.join(", ")}`,
    );
  }
  if (after.gpuMebibytes > before.gpuMebibytes + DRIVER_NOISE) {
    failures++;
    findings.push(
      `GPU memory: ${before.gpuMebibytes} MiB after the first case, ${after.gpuMebibytes} after the last`,
    );
  }
  const report = await here.close();
  if (report.layouts.length > 0 || report.stuck > 0 || report.inDoubt > 0) {
    failures++;
    findings.push(`close had to leave ${JSON.stringify(report)}`);
  }
  const seconds = (performance.now() - started) / 1_000;
  return { name: "neighbours", cases, failures, seed: options.seed, seconds, findings, tally };
}

async function tryCase(
  here: Transport,
  worker: bigint,
  own: LocalLayout,
  seed: number,
  index: number,
  tally: Record<string, number>,
): Promise<string | null> {
  const random = randomOf(seed, index + 1);
  // Half are killed; of the others half close their transport, half just exit.
  const kind = index % 2 === 0 ? "killed" : index % 4 === 1 ? "closed" : "exited";
  const memory = own.storage.kind as Kind; // as it was registered
  // Also where a case ends early.
  await using far = new NeighbourProcess();
  await far.call({ do: "open", options: { workerId: worker, ...(memory === "system" ? {} : { cuda: {} }) } });
  await far.call({ do: "register", specs: [specOf("theirs", memory)] });
  // Handed to the neighbour, and to be had back after its end.
  const lent = await here.register(specOf(`lent ${worker}`, memory));
  await far.call({ do: "import", bytes: await here.exportMetadata({ layouts: [lent] }) });
  const peer = await here.importMetadata(await far.call<Uint8Array>({ do: "export" }));
  const theirs = peer.layout("theirs");
  const inodes = new Set(listedMappings(far.pid).map(({ inode }) => inode));
  const shared = listedMappings("self").filter(({ inode }) => inodes.has(inode)).length;
  if (theirs.distance !== "neighbour" || shared !== (memory === "device" ? 0 : 2))
    return `${theirs.distance}, ${shared} shared mappings`;
  await far.call({
    do: "storm",
    move: { own: "theirs", peers: `lent ${worker}`, direction: "push", ids: [...IDS] },
  });

  const transfers: Transfer[] = [];
  const start = (): void => {
    for (const [source, destination] of [
      [own, theirs],
      [theirs, own],
    ] as const)
      transfers.push(here.transfer({ source, destination, sourceBlocks: IDS, destinationBlocks: IDS }));
  };
  start();
  await Bun.sleep(random.between(0, 8));
  start();
  if (kind === "killed") await far.kill();
  else if (kind === "closed") await far.call({ do: "close" });
  far.leave();
  count(tally, `${memory} ${kind}`);
  for (const transfer of transfers) {
    await transfer.catch(() => undefined);
    const settled = await within(transfer.settled);
    if (settled === null) return "a transfer did not settle";
    count(tally, `${settled.settlement}, ${settled.proof}`);
  }
  if ((await within(peer.lost)) === null) return "the peer was not lost";
  await far[Symbol.asyncDispose]();
  if ((await within(lent.unregister({ wait: true }).then(() => true))) === null)
    return "what was lent did not come back";
  const end = performance.now() + SETTLE_MILLIS;
  while (listedMappings("self").some(({ inode }) => inodes.has(inode))) {
    if (performance.now() > end) return "memory of the dead process is still mapped";
    await Bun.sleep(1);
  }
  // The dead process neither maps it nor has it open: without a descriptor here either, the kernel has it back.
  if (openInodes().some((inode) => inodes.has(inode))) return "memory of the dead process is still open";
  if (own.quarantinedBlocks().length > 0) return "blocks are in quarantine that nobody touches";
  return null;
}

interface Footprint {
  readonly mappings: number;
  /** What is open: its number and what it leads to. */
  readonly descriptors: readonly string[];
  readonly threads: number;
  /** Shared memory that is resident in this process. */
  readonly sharedKilobytes: number;
  /** Memory in use on the GPUs that this process sees, as nvidia-smi says. */
  readonly gpuMebibytes: number;
}

/** What of this process could leak, once everything that ends has ended. */
async function footprint(): Promise<Footprint> {
  // First: the engine keeps descriptors of the first process that it starts and waits for.
  const memory = await settled(3, 20, gpuMebibytes);
  const own = await settled(20, 5, () => ({
    mappings: readFileSync("/proc/self/maps", "utf8").split("/memfd:").length,
    descriptors: descriptors().map(({ descriptor, target }) => `${descriptor} ${target}`),
    threads: threadNames("self").filter((name) => name.startsWith("kvf-")).length,
    sharedKilobytes: Number(/^RssShmem:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]),
  }));
  return { ...own, gpuMebibytes: memory };
}

/** What a look finds once it has found the same so many times. */
async function settled<Found>(times: number, pauseMillis: number, look: () => Found): Promise<Found> {
  let last = look();
  for (let same = 0, tries = 0; same < times && tries < 1_000; tries++) {
    await Bun.sleep(pauseMillis);
    const now = look();
    same = Bun.deepEquals(now, last) ? same + 1 : 0;
    last = now;
  }
  return last;
}

function gpuMebibytes(): number {
  const { CUDA_VISIBLE_DEVICES: visible } = process.env;
  const which = visible === undefined ? [] : [`--id=${visible}`];
  const query = ["nvidia-smi", ...which, "--query-gpu=memory.used", "--format=csv,noheader,nounits"];
  if (!existsSync("/dev/nvidiactl") || Bun.which("nvidia-smi") === null) return 0;
  const { stdout } = Bun.spawnSync(query, { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
  return stdout
    .toString()
    .trim()
    .split("\n")
    .reduce((sum, line) => sum + Number(line), 0);
}

/** Inodes of the files in memory that this process has open. */
function openInodes(): string[] {
  return descriptors()
    .filter(({ target }) => target.startsWith("/memfd:kvferry"))
    .map(({ inode }) => inode);
}

/** What this process has open. */
function descriptors(): { descriptor: string; target: string; inode: string }[] {
  return readdirSync("/proc/self/fd").flatMap((descriptor) => {
    const path = `/proc/self/fd/${descriptor}`;
    try {
      return [{ descriptor, target: readlinkSync(path), inode: String(statSync(path).ino) }];
    } catch {
      return []; // what listed the descriptors was one of them
    }
  });
}

function count(tally: Record<string, number>, what: string): void {
  tally[what] = (tally[what] ?? 0) + 1;
}

/** The promise's value, or null when it takes longer than anything may. */
async function within<T>(promise: Promise<T>): Promise<T | null> {
  const { promise: late, resolve } = Promise.withResolvers<null>();
  const timer = setTimeout(() => resolve(null), SETTLE_MILLIS);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
