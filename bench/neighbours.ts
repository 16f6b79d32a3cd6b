// Rows F14, F15, F18 and `share`: processes of one host that map each other's memory, beside NIXL for the same work, and
// what sharing memory costs against private memory.
import { dlopen, FFIType } from "bun:ffi";

import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, OpenOptions, RemoteLayout, TransferRequest } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { NeighbourPeer } from "./neighbour-peer.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { Contender, SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Goal, RowSpec } from "./result.ts";
import { median, shuffled } from "./statistics.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const CHUNKS = 10_000;
const REGION = 256 * MIB;
/** Notifications of one sample. */
const PINGS = 200;
const NIXL = "NIXL";
/** Rounds before the first that counts, between GPUs and over the link. */
const WARM_ROUNDS = 600;
const SLOW_NIXL = "slow NIXL";
const SLOW_SAMPLES = 3;

type Storage = "system" | "pinned" | "device";

/** Where the bytes of a row lie here and at the neighbour, and how they are cut. */
interface Move {
  readonly here: Storage;
  readonly there: Storage;
  /** GPU of the neighbour's memory. */
  readonly device: number;
  readonly push: boolean;
  readonly chunk: number;
  readonly chunks: number;
  readonly scattered: boolean;
}

interface Row extends RowSpec {
  /** Absent: notifications, or what sharing costs. */
  readonly move?: Move;
  readonly measure?: (samples: number, library: string) => Promise<Record<string, number[]>>;
  /** GPUs that it needs. */
  readonly gpus: number;
}

const SIZES: Readonly<Record<string, number>> = { "4k": 4 * KIB, "16k": 16 * KIB, "64k": 64 * KIB };

const ROWS: readonly Row[] = [
  {
    id: "F18.notify",
    unit: "us",
    direction: "time",
    goal: { figure: "ours", value: 25 },
    note: `half a round trip between two processes that wait for messages, median of ${PINGS}; limit: an eventfd's in C`,
    gpus: 0,
    measure: notifications,
  },
  ...(["push", "pull"] as const).flatMap((direction): Row[] => [
    hostRow(`F14.host.${direction}.64m`, direction, 64 * MIB, 1, false),
    hostRow(`F14.host.${direction}.16k`, direction, 16 * KIB, CHUNKS, true),
  ]),
  {
    id: "share.touch",
    unit: "ms",
    direction: "time",
    note: `${REGION / MIB} MiB that neighbours can map, registered and written for the first time; the peer: private memory`,
    gpus: 0,
    measure: (samples) => sharing(Math.min(samples, 5), "touch"),
  },
  {
    id: "share.copy",
    unit: "GB/s",
    direction: "rate",
    note: "10,000 x 16 KiB scattered, between layouts of one process that neighbours can map; the peer: private memory",
    gpus: 0,
    measure: (samples) => sharing(samples, "copy"),
  },
  ...(["push", "pull"] as const).flatMap((direction) =>
    Object.entries(SIZES).map(([size, chunk]) => gpuRow("nvlink", direction, size, chunk)),
  ),
  ...Object.entries(SIZES).map(([size, chunk]) => gpuRow("same", "push", size, chunk)),
  ...(["out", "in"] as const).flatMap((direction): Row[] => [
    poolRow(`F15.${direction}`, direction, 64 * KIB, 2_500, false, 0.97),
    poolRow(`F15.${direction}.16k`, direction, 16 * KIB, CHUNKS, true, direction === "out" ? 0.94 : 0.91),
  ]),
];

/** Measures what this machine can; says what it cannot. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const gpus = gpuCount();
  const library = await buildNative("event_pair.c", "library", options.progress);
  const chosen = ROWS.filter(({ id }) => id.includes(options.only));
  for (const row of chosen)
    if (row.gpus > gpus) options.progress(`NOT RUN: ${row.id} needs ${row.gpus} GPUs, there are ${gpus}`);
  const rows = chosen.filter((row) => row.gpus <= gpus);
  const sets: Record<string, SampleSets[number]>[] = [];
  for (let count = 0; count < options.processes; count += 1) {
    options.progress(`neighbours: process ${count + 1} of ${options.processes}, ${rows.length} rows`);
    sets.push(
      ...(await inProcesses<Record<string, SampleSets[number]>>(
        import.meta.path,
        "measure",
        { library, ids: rows.map(({ id }) => id), samples: options.samples, slow: count === 0 },
        1,
      )),
    );
  }
  return rows.map(({ measure: _measure, move: _move, gpus: _gpus, ...spec }) => {
    const own = sets.map((set) => set[spec.id] ?? {});
    // Shown, not compared: a sample of NIXL's may take a second.
    const slow = own.flatMap((set) => [...(set[SLOW_NIXL] ?? [])]);
    const result = summarize(
      spec,
      own.map((set) => Object.fromEntries(Object.entries(set).filter(([name]) => name !== SLOW_NIXL))),
    );
    return slow.length === 0 ? result : { ...result, peers: { ...result.peers, [NIXL]: median(slow) } };
  });
}

/** In one process: samples of the named rows. */
export async function measure(parameters: {
  readonly library: string;
  readonly ids: readonly string[];
  readonly samples: number;
  readonly slow: boolean;
}): Promise<Record<string, Record<string, number[]>>> {
  const taken: Record<string, Record<string, number[]>> = {};
  for (const row of ROWS.filter(({ id }) => parameters.ids.includes(id)))
    taken[row.id] =
      row.measure !== undefined
        ? await row.measure(parameters.samples, parameters.library)
        : await moves(row.move as Move, parameters.samples, parameters.slow); // one of both is there
  return taken;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

function hostRow(
  id: string,
  direction: "push" | "pull",
  chunk: number,
  chunks: number,
  scattered: boolean,
): Row {
  return {
    id,
    unit: "GB/s",
    direction: "rate",
    goal: least(0.95),
    note: "host memory to or from a neighbour's; limit: the same copy inside one process",
    gpus: 0,
    move: {
      here: "system",
      there: "system",
      device: 0,
      push: direction === "push",
      chunk,
      chunks,
      scattered,
    },
  };
}

function gpuRow(link: "nvlink" | "same", direction: "push" | "pull", size: string, chunk: number): Row {
  const goal = link === "same" ? 0.9 : direction === "push" ? 0.89 : 0.91;
  return {
    id: `F14.${link}.${direction}.${size}`,
    unit: "GB/s",
    direction: "rate",
    ...(size === "4k" ? {} : { goal: least(goal) }),
    note: `10,000 scattered chunks to or from another process's GPU; limit: one DMA of the same bytes, ${link === "same" ? "within the GPU" : "between the two GPUs"}, in this process`,
    gpus: link === "same" ? 1 : 2,
    move: {
      here: "device",
      there: "device",
      device: link === "same" ? 0 : 1,
      push: direction === "push",
      chunk,
      chunks: CHUNKS,
      scattered: true,
    },
  };
}

function poolRow(
  id: string,
  direction: "out" | "in",
  chunk: number,
  chunks: number,
  scattered: boolean,
  goal: number,
): Row {
  return {
    id,
    unit: "GB/s",
    direction: "rate",
    goal: least(goal),
    note: "GPU to or from a neighbour's pinned pool; limit: one DMA of the same bytes to pinned memory of this process",
    gpus: 1,
    move: { here: "device", there: "pinned", device: 0, push: direction === "out", chunk, chunks, scattered },
  };
}

// ---- moving bytes ----------------------------------------------------------------------------------------------------

async function moves(move: Move, samples: number, slow: boolean): Promise<Record<string, number[]>> {
  const gpu = move.here === "device" || move.there === "device";
  const cuda: Partial<OpenOptions> = gpu ? {} : { cuda: false };
  const bytes = move.chunk * move.chunks;
  const lists = listsOf(move);
  await using far = new NeighbourPeer();
  await using here = await Transport.open({ workerId: 1n, nixl: false, ...cuda });
  const own = await here.register(specOf("own", move, move.here, 0));
  const theirs = specOf("pool", move, move.there, move.device);
  const exported = await far.call<Uint8Array>({
    do: "open",
    options: { nixl: false, ...cuda },
    specs: [theirs],
  });
  const pool = (await here.importMetadata(exported)).layout("pool");
  if (pool.distance !== "neighbour") throw new Error("the neighbour's memory is not mapped");
  // The same memory kinds in this process, for the limit.
  const double = await here.register(specOf("double", move, move.there, move.device));
  await double.fill(1);
  if (move.there === "pinned") await pinned(here, own, pool);
  const ours = requestOf(move, own, pool, lists);
  await verify(far, here, own, ours, move);
  const limit: TransferRequest = gpu
    ? { ...requestOf({ ...move, scattered: false }, own, double, inOrder(move)), method: "cuda/dma" }
    : requestOf(move, own, double, lists);
  const contenders: Record<string, Contender> = {
    ours: () => rateOf(here, ours, bytes),
    limit: () => rateOf(here, limit, bytes),
  };
  // JavaScript's engine compiles what runs often: what is measured in microseconds is measured after that.
  const taken = await alternate(contenders, samples, gpu ? WARM_ROUNDS : 5);
  if (slow && findNixl() !== null) {
    // A NIXL that cannot reach this memory leaves our own figures as they are.
    const rates = await overNixl(move, theirs, lists, cuda).catch((error: unknown) => {
      process.stderr.write(`NOT RUN: NIXL: ${error instanceof Error ? error.message : String(error)}\n`);
      return [];
    });
    if (rates.length > 0) taken[SLOW_NIXL] = rates;
  }
  return taken;
}

/** The same work through NIXL, between two other processes' agents. */
async function overNixl(
  move: Move,
  theirs: LayoutSpec,
  lists: Lists,
  cuda: Partial<OpenOptions>,
): Promise<number[]> {
  const options: Partial<OpenOptions> = {
    nixl: {},
    neighbours: false,
    capabilities: { gpuRdma: true },
    ...cuda,
  };
  await using far = new NeighbourPeer();
  await using here = await Transport.open({ workerId: 1n, ...options });
  const own = await here.register(specOf("own", move, move.here, 0));
  const exported = await far.call<Uint8Array>({ do: "open", options, specs: [theirs] });
  // A descriptor for each chunk, as NIXL itself moves them.
  const request = {
    ...requestOf(move, own, (await here.importMetadata(exported)).layout("pool"), lists),
    method: move.push ? "nixl/write" : "nixl/read",
  };
  const rates: number[] = [];
  for (let count = 0; count <= SLOW_SAMPLES; count += 1)
    rates.push(await rateOf(here, request, move.chunk * move.chunks));
  return rates.slice(1);
}

/** Waits until the neighbour's pool is pinned here as well, which happens in the background. */
async function pinned(here: Transport, own: LocalLayout, pool: RemoteLayout): Promise<void> {
  const [sourceBlocks, destinationBlocks] = [[0], [0]];
  const end = performance.now() + 30_000;
  const plan = (): string =>
    here.explain({
      source: own,
      sourceBlocks,
      destination: pool.peer.layout(pool.name),
      destinationBlocks,
    }).route;
  while (!plan().includes("pinned")) {
    if (performance.now() > end) throw new Error("the neighbour's pool was not pinned within 30 s");
    await Bun.sleep(10);
  }
}

async function rateOf(here: Transport, request: TransferRequest, bytes: number): Promise<number> {
  const begun = Bun.nanoseconds();
  await here.transfer({ ...request, deadlineMs: 120_000 });
  return bytes / (Bun.nanoseconds() - begun);
}

interface Lists {
  readonly here: Uint32Array;
  readonly there: Uint32Array;
}

function listsOf(move: Move): Lists {
  if (!move.scattered) return inOrder(move);
  const all = blocksOf(move);
  return { here: shuffled(all, 1).slice(0, move.chunks), there: shuffled(all, 2).slice(0, move.chunks) };
}

function inOrder(move: Move): Lists {
  const ids = Uint32Array.from({ length: move.chunks }, (_unused, index) => index);
  return { here: ids, there: ids };
}

function blocksOf({ chunk, chunks }: Move): number {
  return Math.max(chunks, Math.floor(REGION / chunk));
}

function specOf(name: string, move: Move, storage: Storage, device: number): LayoutSpec {
  return {
    name,
    config: { numBlocks: blocksOf(move), numLayers: 1, outerDim: 1, pageSize: 1, innerDim: move.chunk / 2 },
    arrangement: "fully-contiguous",
    memory: storage === "device" ? { kind: "device", device } : { kind: storage },
  };
}

function requestOf(
  move: Move,
  own: LocalLayout,
  other: LocalLayout | RemoteLayout,
  lists: Lists,
): TransferRequest {
  // A layout that was pinned meanwhile is described anew.
  const theirs = "peer" in other ? other.peer.layout(other.name) : other;
  return move.push
    ? { source: own, sourceBlocks: lists.here, destination: theirs, destinationBlocks: lists.there }
    : { source: theirs, sourceBlocks: lists.there, destination: own, destinationBlocks: lists.here };
}

async function verify(
  far: NeighbourPeer,
  here: Transport,
  own: LocalLayout,
  request: TransferRequest,
  move: Move,
): Promise<void> {
  if (move.push) await own.fill({ random: 5 });
  else await far.call({ do: "fill", layout: "pool", seed: 5 });
  await here.transfer(request);
  const { sourceBlocks, destinationBlocks } = request;
  const [ownIds, farIds] = (
    move.push ? [sourceBlocks, destinationBlocks] : [destinationBlocks, sourceBlocks]
  ) as [Uint32Array, Uint32Array];
  const picked = [0, move.chunks >> 1, move.chunks - 1];
  const wanted = await own.checksums(picked.map((index) => ownIds[index] ?? 0));
  const found = await far.call<string[]>({
    do: "checksums",
    layout: "pool",
    blocks: picked.map((index) => farIds[index] ?? 0),
  });
  if (wanted.join() !== found.join()) throw new Error("the bytes did not arrive");
}

// ---- notifications and sharing ----------------------------------------------------------------------------------------

async function notifications(samples: number, library: string): Promise<Record<string, number[]>> {
  const { symbols } = dlopen(library, {
    bench_event_start: { args: [], returns: FFIType.i32 },
    bench_event_half_trip: { args: [], returns: FFIType.f64 },
    bench_event_stop: { args: [], returns: FFIType.void },
  });
  // Before there are threads that a fork would leave behind.
  if (symbols.bench_event_start() !== 0) throw new Error("the eventfd's process could not be started");
  try {
    const near = await pingPong({ nixl: false });
    const taken = await alternate(
      {
        ours: () => near.half(),
        limit: () => median(Array.from({ length: PINGS }, () => symbols.bench_event_half_trip())),
      },
      samples,
    );
    await near.close();
    if (findNixl() === null) return taken;
    // Not in turn with ours: while somebody waits, NIXL looks for messages without a pause.
    const far = await pingPong({ nixl: {}, neighbours: false });
    await far.half();
    taken[SLOW_NIXL] = [await far.half(), await far.half(), await far.half()];
    await far.close();
    return taken;
  } finally {
    symbols.bench_event_stop();
  }
}

/** Two transports in two processes that send each message back. */
async function pingPong(options: Partial<OpenOptions>): Promise<{
  readonly half: () => Promise<number>;
  readonly close: () => Promise<void>;
}> {
  const far = new NeighbourPeer();
  const here = await Transport.open({ workerId: 1n, cuda: false, ...options });
  const exported = await far.call<Uint8Array>({
    do: "open",
    options: { cuda: false, ...options },
    specs: [],
  });
  const peer = await here.importMetadata(exported);
  await far.call({ do: "echo", bytes: await here.exportMetadata() });
  const messages = here.notifications();
  return {
    async half() {
      const times: number[] = [];
      for (let count = 0; count < PINGS; count += 1) {
        const begun = Bun.nanoseconds();
        await here.notify(peer, "ping");
        await messages.next();
        times.push((Bun.nanoseconds() - begun) / 2_000);
      }
      return median(times);
    },
    async close() {
      await here.close();
      await far[Symbol.asyncDispose]();
    },
  };
}

async function sharing(samples: number, what: "touch" | "copy"): Promise<Record<string, number[]>> {
  const move: Move = {
    here: "system",
    there: "system",
    device: 0,
    push: true,
    chunk: 16 * KIB,
    chunks: CHUNKS,
    scattered: true,
  };
  const open = (neighbours: boolean): Promise<Transport> =>
    Transport.open({ workerId: 1n, nixl: false, cuda: false, neighbours });
  await using shared = await open(true);
  await using own = await open(false);
  if (what === "touch") {
    const touch = async (transport: Transport): Promise<number> => {
      const begun = Bun.nanoseconds();
      const layout = await transport.register(specOf("fresh", move, "system", 0));
      await layout.fill(1);
      const millis = (Bun.nanoseconds() - begun) / 1e6;
      await layout.unregister();
      return millis;
    };
    return await alternate({ ours: () => touch(shared), "private memory": () => touch(own) }, samples, 1);
  }
  const lists = listsOf(move);
  const copier = async (transport: Transport): Promise<Contender> => {
    const from = await transport.register(specOf("from", move, "system", 0));
    const to = await transport.register(specOf("to", move, "system", 0));
    await from.fill(1);
    await to.fill(2);
    const request = requestOf(move, from, to, lists);
    return () => rateOf(transport, request, move.chunk * move.chunks);
  };
  return await alternate({ ours: await copier(shared), "private memory": await copier(own) }, samples);
}

function least(value: number): Goal {
  return { figure: "ratioToLimit", value };
}

function gpuCount(): number {
  if (Bun.which("nvidia-smi") === null) return 0;
  const found = Bun.spawnSync(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    env: process.env,
  });
  return found.exitCode === 0 ? found.stdout.toString().trim().split("\n").filter(Boolean).length : 0;
}
