// Rows F10 and F11: planning, the registry, submission; and how each grows.
import { heapStats } from "bun:jsc";
import { dlopen, FFIType } from "bun:ffi";

import { measure as measureWithMitata } from "mitata";

import { Transport } from "../index.ts";
import type { LayoutSpec } from "../index.ts";
import { defaultProfile, planTransfer } from "../lib/core/index.ts";
import type { LayoutHandle, PlanEnvironment, PlanRequest, RegistrySnapshot } from "../lib/core/index.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { alternate, inProcesses } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Direction, RowSpec } from "./result.ts";
import { seededRandom } from "./statistics.ts";

const MOST_LAYOUTS = 65_535;
const PAIRS = 100_000;
/** The end of the growth is row F11.register. */
const GROWING_LAYOUTS = [1, 10, 100, 1_000, 10_000];
const GROWING_BLOCKS = [1, 10, 100, 1_000, 10_000, PAIRS, 1_000_000];

/** What a process measures, and with what. */
interface PlanWork {
  readonly what: string;
  readonly library: string;
  readonly samples: number;
}

interface PlanRow extends RowSpec {
  /** A key of {@link MEASURES}, with what it is given after a colon. */
  readonly what: string;
}

const ROWS: readonly PlanRow[] = [
  row(
    "F10.plan",
    "ms",
    "plan",
    2,
    `planTransfer of ${PAIRS} scattered pairs; limit: a C loop that fills the offsets`,
  ),
  row(
    "F11.register",
    "ms",
    "register",
    150,
    `${MOST_LAYOUTS} times Transport.register of external memory, no NIXL; limit: a Map`,
  ),
  row("F11.export", "ms", "export", 5, "Transport.exportMetadata of 1,000 layouts; limit: a Map"),
  row("F11.import", "ms", "import", 5, "Transport.importMetadata of 1,000 layouts; limit: a Map"),
  row(
    "submit.1.inline",
    "us",
    "submit:4096",
    10,
    "transfer() of one block of 4 KiB until it returns: the copy itself is done inside",
  ),
  row(
    "submit.1.thread",
    "us",
    "submit:1048576",
    10,
    "transfer() of one block of 1 MiB until it returns: a thread copies",
  ),
  row(
    "memory.layout",
    "bytes",
    "memory",
    undefined,
    "JavaScript heap for each registered layout of one region",
  ),
  ...GROWING_LAYOUTS.map((count) =>
    row(`growth.register.${count}`, "us/layout", `growth-register:${count}`, undefined, "Transport.register"),
  ),
  ...GROWING_BLOCKS.map((count) =>
    row(
      `growth.plan.${count}`,
      "ns/block",
      `growth-plan:${count}`,
      undefined,
      "planTransfer of scattered pairs, by mitata",
    ),
  ),
];

/** Measures planning and the registry. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const library = await buildNative("host_copy.c", "library", options.progress);
  const results: BenchResult[] = [];
  for (const spec of ROWS) {
    if (!spec.id.includes(options.only)) continue;
    options.progress(spec.id);
    const work: PlanWork = { what: spec.what, library, samples: options.samples };
    // What has no goal shows a shape, for which less will do.
    const less = spec.goal === undefined;
    const sets = await inProcesses<Record<string, number[]>>(
      import.meta.path,
      "measure",
      less ? { ...work, samples: Math.min(work.samples, 5) } : work,
      less ? Math.min(options.processes, 2) : options.processes,
    );
    results.push(summarize(spec, sets));
  }
  return results;
}

/** In one process: the samples of one row. */
export async function measure(work: PlanWork): Promise<Record<string, number[]>> {
  const [name = "", given = "0"] = work.what.split(":");
  const measured = MEASURES[name];
  if (measured === undefined) throw new Error(`no measure ${name}`);
  return await measured(work, Number(given));
}

type Measure = (work: PlanWork, given: number) => Promise<Record<string, number[]>>;

const MEASURES: Readonly<Record<string, Measure>> = {
  plan: async ({ library, samples }) => {
    const { symbols } = dlopen(library, {
      bench_fill: {
        args: [FFIType.ptr, FFIType.ptr, FFIType.u32, FFIType.f64, FFIType.f64, FFIType.ptr, FFIType.ptr],
        returns: FFIType.f64,
      },
    });
    const planner = await plannerOf(PAIRS);
    const [from, to] = [
      new Float64Array(new ArrayBuffer(PAIRS * 8)),
      new Float64Array(new ArrayBuffer(PAIRS * 8)),
    ];
    return await alternate(
      {
        ours: () => {
          const request = planner.next();
          const start = Bun.nanoseconds();
          const plan = planner.plan(request);
          const spent = (Bun.nanoseconds() - start) / 1e6;
          if (plan.legs[0]?.hops[0]?.programs[0]?.pairs !== PAIRS) throw new Error("pairs were merged");
          return spent;
        },
        limit: () => {
          const { sourceBlocks, destinationBlocks } = planner.next();
          return symbols.bench_fill(sourceBlocks, destinationBlocks, PAIRS, 65_536, 65_536, from, to) * 1e3;
        },
      },
      samples,
      20,
    );
  },

  register: async ({ samples }) => {
    const specs = specsOf(MOST_LAYOUTS);
    return await alternate(
      { ours: () => registering(specs, 1e6), limit: () => mapping(MOST_LAYOUTS) },
      samples,
      3,
    );
  },

  "growth-register": async ({ samples }, count) => {
    const specs = specsOf(count);
    // A few layouts register within a clock's tick or two: several transports in turn make a sample.
    const times = Math.max(1, Math.min(50, Math.floor(2_000 / count)));
    return await alternate(
      {
        ours: async () => {
          let spent = 0;
          for (let time = 0; time < times; time += 1) spent += await registering(specs, 1e3);
          return spent / times / count;
        },
      },
      samples,
      3,
    );
  },

  export: async ({ samples }) => {
    await using transport = await localTransport(1n);
    for (const spec of specsOf(1_000)) await transport.register(spec);
    return await alternate(
      {
        ours: async () => {
          const start = Bun.nanoseconds();
          const bytes = await transport.exportMetadata();
          const spent = (Bun.nanoseconds() - start) / 1e6;
          if (bytes.length < 1_000) throw new Error("the package is too short");
          return spent;
        },
        limit: () => mapping(1_000),
      },
      samples,
      30,
    );
  },

  import: async ({ samples }) => {
    await using sender = await localTransport(1n);
    for (const spec of specsOf(1_000)) await sender.register(spec);
    const bytes = await sender.exportMetadata();
    await using receiver = await localTransport(2n);
    return await alternate(
      {
        ours: async () => {
          const start = Bun.nanoseconds();
          const peer = await receiver.importMetadata(bytes);
          const spent = (Bun.nanoseconds() - start) / 1e6;
          if (peer.layouts.length !== 1_000) throw new Error("layouts are missing");
          await peer.forget();
          return spent;
        },
        limit: () => mapping(1_000),
      },
      samples,
      30,
    );
  },

  submit: async ({ samples }, bytes) => {
    await using transport = await localTransport(1n);
    const config = { numBlocks: 64, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: bytes / 128 } as const;
    const [source, destination] = [
      await transport.register({ name: "source", config, memory: { kind: "system" } }),
      await transport.register({ name: "destination", config, memory: { kind: "system" } }),
    ];
    let block = 0;
    const once = async (): Promise<number> => {
      const request = { source, destination, sourceBlocks: [block], destinationBlocks: [63 - block] };
      block = (block + 1) % 64;
      const start = Bun.nanoseconds();
      const transfer = transport.transfer(request);
      const spent = Bun.nanoseconds() - start;
      await transfer;
      return spent / 1e3;
    };
    return await alternate({ ours: () => middleOf(200, once) }, samples, 20);
  },

  memory: async ({ samples }) => {
    const specs = specsOf(10_000);
    return await alternate(
      {
        ours: async () => {
          await using transport = await localTransport(1n);
          const before = heapBytes();
          for (const spec of specs) await transport.register(spec);
          return (heapBytes() - before) / specs.length;
        },
      },
      Math.min(samples, 5),
      1,
    );
  },

  "growth-plan": async (_work, count) => {
    const planner = await plannerOf(count);
    const stats = await measureWithMitata(() => planner.plan(planner.next()), { inner_gc: false });
    return { ours: stats.samples.map((nanoseconds) => nanoseconds / count) };
  },
};

/** Two layouts, and requests for so many scattered pairs between them that differ from turn to turn. */
async function plannerOf(count: number): Promise<{
  readonly next: () => PlanRequest & {
    readonly sourceBlocks: Uint32Array;
    readonly destinationBlocks: Uint32Array;
  };
  readonly plan: (request: PlanRequest) => ReturnType<typeof planTransfer>;
}> {
  const { snapshot, source, destination } = await planned(Math.max(64, count * 2));
  const blocks = Math.max(64, count * 2);
  const requests = [1, 2, 3, 4].map((seed) => ({
    source,
    destination,
    sourceBlocks: scattered(blocks, count, seed),
    destinationBlocks: scattered(blocks, count, seed + 100),
  }));
  const environment: PlanEnvironment = { executors: ["host"], processors: navigator.hardwareConcurrency };
  let turn = 0;
  return {
    next: () => requests[turn++ % requests.length] as (typeof requests)[number], // in bounds
    plan: (request) => planTransfer(snapshot, request, defaultProfile, environment),
  };
}

/** Layouts over addresses that nobody touches. */
async function planned(numBlocks: number): Promise<{
  readonly snapshot: RegistrySnapshot;
  readonly source: LayoutHandle;
  readonly destination: LayoutHandle;
}> {
  const config = { numBlocks, numLayers: 4, outerDim: 2, pageSize: 16, numHeads: 2, headDim: 16 } as const;
  await using transport = await localTransport(1n);
  const region = numBlocks * 2 * 16 * 32 * 2;
  const source = await transport.register({
    name: "source",
    config,
    arrangement: "layer-separate/block-first",
    memory: {
      kind: "external",
      storage: "system",
      regions: [0, 1, 2, 3].map((layer) => ({ address: 2 ** 32 + layer * region, size: region })),
    },
  });
  const destination = await transport.register({
    name: "destination",
    config,
    arrangement: "fully-contiguous",
    memory: { kind: "external", storage: "system", regions: [{ address: 2 ** 40, size: 4 * region }] },
  });
  return { snapshot: transport.registry, source: source.handle, destination: destination.handle };
}

function scattered(below: number, count: number, seed: number): Uint32Array {
  const random = seededRandom(seed);
  const order = Uint32Array.from({ length: below }, (_, index) => index);
  for (let index = 0; index < count; index += 1) {
    const other = index + Math.floor(random() * (below - index));
    const kept = order[index] as number; // in bounds
    order[index] = order[other] as number; // in bounds
    order[other] = kept;
  }
  return order.slice(0, count);
}

/** External memory of one region each, at addresses that nobody touches. */
function specsOf(count: number): LayoutSpec[] {
  const config = {
    numBlocks: 64,
    numLayers: 32,
    outerDim: 2,
    pageSize: 16,
    numHeads: 8,
    headDim: 128,
  } as const;
  const size = 64 * 32 * 2 * 16 * 8 * 128 * 2;
  return Array.from({ length: count }, (_, index) => ({
    name: `layout-${index}`,
    config,
    arrangement: "fully-contiguous",
    memory: {
      kind: "external",
      storage: "system",
      regions: [{ address: 2 ** 32 + index * size, size }],
    },
  }));
}

/** Time to register every one with a new transport, in units of so many nanoseconds. */
async function registering(specs: readonly LayoutSpec[], unit: number): Promise<number> {
  const transport = await localTransport(1n);
  const pending: Promise<unknown>[] = [];
  // What earlier samples left is not this one's to sweep.
  if (specs.length > 1_000) Bun.gc(true);
  const start = Bun.nanoseconds();
  for (const spec of specs) pending.push(transport.register(spec));
  await Promise.all(pending);
  const spent = (Bun.nanoseconds() - start) / unit;
  if (transport.localLayouts.length !== specs.length) throw new Error("layouts are missing");
  transport.closeNow();
  return spent;
}

/** Milliseconds to fill a Map with so many plain records. */
function mapping(count: number): number {
  const start = Bun.nanoseconds();
  const map = new Map<bigint, { readonly name: string; readonly address: number; readonly size: number }>();
  for (let index = 0; index < count; index += 1)
    map.set(1n | (BigInt(index) << 64n), { name: `layout-${index}`, address: index, size: index });
  const spent = (Bun.nanoseconds() - start) / 1e6;
  if (map.size !== count) throw new Error("records are missing");
  return spent;
}

async function middleOf(times: number, once: () => Promise<number>): Promise<number> {
  const taken: number[] = [];
  for (let time = 0; time < times; time += 1) taken.push(await once());
  return taken.toSorted((left, right) => left - right)[times >> 1] ?? Number.NaN;
}

function heapBytes(): number {
  Bun.gc(true);
  const { heapSize, extraMemorySize } = heapStats();
  return heapSize + extraMemorySize;
}

function localTransport(workerId: bigint): Promise<Transport> {
  return Transport.open({ workerId, nixl: false, cuda: false });
}

function row(
  id: string,
  unit: string,
  what: string,
  goal: number | undefined,
  note: string,
  direction: Direction = "time",
): PlanRow {
  return {
    id,
    unit,
    direction,
    what,
    note,
    ...(goal === undefined ? {} : { goal: { figure: "ours" as const, value: goal } }),
  };
}
