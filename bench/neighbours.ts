// Rows F14, F15, F18 and `share`: processes of one host that map each other's memory, beside NIXL for the same work, and
// what sharing memory costs against private memory.
import { gpuCount } from "./machine.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { CHUNKS, moves, REGION, SLOW_NIXL } from "./neighbour-moves.ts";
import type { Move } from "./neighbour-moves.ts";
import { notifications, PINGS } from "./neighbour-pings.ts";
import { MESSAGE_BYTES, MESSAGES, rates } from "./neighbour-rates.ts";
import { POOL, pools, sharing } from "./neighbour-sharing.ts";
import { inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Goal, RowSpec } from "./result.ts";
import { median } from "./statistics.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const NIXL = "NIXL";

interface Row extends RowSpec {
  /** Absent: notifications, or what sharing costs. */
  readonly move?: Move;
  readonly measure?: (samples: number, library: string) => Promise<Record<string, number[]>>;
  /** GPUs that it needs. */
  readonly gpus: number;
}

const SIZES: Readonly<Record<string, number>> = { "4k": 4 * KIB, "16k": 16 * KIB, "64k": 64 * KIB };

/** Transfers that are under way at once where a row is measured again like that. */
const DEEP = 4;

const SINGLE: readonly Row[] = [
  {
    id: "F18.notify",
    unit: "us",
    direction: "time",
    goal: { figure: "ours", value: 25 },
    note: `half a round trip between two processes that wait for messages, median of ${PINGS}; limit: an eventfd's in C`,
    gpus: 0,
    measure: notifications,
  },
  {
    id: "F18.rate",
    unit: "1000/s",
    direction: "rate",
    note: `${MESSAGES} messages of ${MESSAGE_BYTES} bytes to another process, until it says that it has them; the peer: by the socket alone`,
    gpus: 0,
    measure: (samples) => rates(samples),
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
    id: "share.ready",
    unit: "ms",
    direction: "time",
    note: `${POOL / 2 ** 30} GiB that neighbours can map, in files that the threads of this machine fill at once (at most 16 files and threads); the peers: in one file, private memory`,
    gpus: 0,
    measure: (samples) => pools(Math.min(samples, 5)),
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

const ROWS: readonly Row[] = SINGLE.flatMap((row) => [row, ...variantsOf(row)]);

/** The same by other lists each time, and with some transfers under way at once: one is planned while another one's bytes move. */
function variantsOf(row: Row): Row[] {
  const { move } = row;
  if (row.gpus === 0 || move === undefined || move.chunk !== 16 * KIB) return [];
  const { goal: _goal, ...rest } = row;
  return [
    {
      ...rest,
      id: `${row.id}.fresh`,
      note: "the same work by other lists of ids in every transfer",
      move: { ...move, fresh: true },
    },
    {
      ...rest,
      id: `${row.id}.x${DEEP}`,
      note: `the same work ${DEEP} times at once; limit: as many DMAs at once`,
      move: { ...move, deep: DEEP },
    },
  ];
}

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
    note: `10,000 scattered chunks to or from another process's GPU, by the same lists every time, a sample is as many in a row as move 2 GiB; limit: one DMA of the same bytes, ${link === "same" ? "within the GPU" : "between the two GPUs"}, in this process`,
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

function least(value: number): Goal {
  return { figure: "ratioToLimit", value };
}
