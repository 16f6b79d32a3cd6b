// Rows F8: NIXL between two processes over host memory, UCX's own choice of transport, no neighbour mapping.
import { join } from "node:path";

import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, RemoteLayout, Transfer } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import { pythonClient } from "../test/interop/python-peer.ts";
import { LineProcess } from "./line-process.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { BenchPeer, registerAll } from "./nixl-peer.ts";
import type { AliasSpec } from "./nixl-peer.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { Contender } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Goal, RowSpec } from "./result.ts";
import { shuffled } from "./statistics.ts";

const MIB = 2 ** 20;
const CHUNK = 16_384;
const CHUNKS = 10_000;
const REGION_MIB = 256;
const WARM_SAMPLES = 15;
const PYTHON = "NIXL's Python client";

/** A row of the suite: what a sample is. */
interface Case {
  readonly name: string;
  /** What the C program calls it, where that differs. */
  readonly anchor?: string;
  readonly operation: "write" | "read";
  readonly layout: "large" | "small";
  /** Blocks of one transfer; scattered ones are in random order on both sides. */
  readonly blocks: number;
  readonly scattered: boolean;
  /** Transfers of a sample, and how many of them at once. */
  readonly batch: number;
  readonly depth: number;
  /** The same bytes in one descriptor, as the C program calls it. */
  readonly merged?: string;
}

const CASES: readonly Case[] = [
  ...(["write", "read"] as const).flatMap((operation) =>
    ([1, 16, 64, 256] as const).map((size) => ({
      name: `${operation}.${size}m`,
      operation,
      layout: "large" as const,
      blocks: size,
      scattered: false,
      batch: size === 1 ? 128 : size === 16 ? 8 : 1,
      // Small ones are kept in flight, as who moves many does; what one alone takes is a row of its own.
      depth: size === 1 ? 4 : size === 16 ? 2 : 1,
    })),
  ),
  ...(["write", "read"] as const).map((operation) => ({
    name: `${operation}.1m.alone`,
    anchor: `${operation}.1m`,
    operation,
    layout: "large" as const,
    blocks: 1,
    scattered: false,
    batch: 128,
    depth: 1,
  })),
  {
    name: "scatter.16k",
    operation: "write",
    layout: "small",
    blocks: CHUNKS,
    scattered: true,
    batch: 1,
    depth: 1,
  },
  {
    name: "contiguous.16k",
    operation: "write",
    layout: "small",
    blocks: CHUNKS,
    scattered: false,
    batch: 1,
    depth: 1,
    merged: "contiguous.16k.merged",
  },
];

const SPECS: readonly LayoutSpec[] = [
  {
    name: "large",
    config: { numBlocks: REGION_MIB, numLayers: 1, outerDim: 1, pageSize: 16, innerDim: MIB / 32 },
    arrangement: "fully-contiguous",
    memory: { kind: "system" },
  },
];
const ALIAS: readonly AliasSpec[] = [
  {
    name: "small",
    of: "large",
    config: {
      numBlocks: (REGION_MIB * MIB) / CHUNK,
      numLayers: 1,
      outerDim: 1,
      pageSize: 16,
      innerDim: CHUNK / 32,
    },
  },
];

interface NixlWork {
  readonly cases: readonly string[];
  readonly samples: number;
  readonly anchor: string;
  readonly library: string;
  /** Import directories of the Python client; null without one. */
  readonly python: readonly string[] | null;
}

/** Measures rows F8. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const nixl = findNixl();
  if (nixl === null) {
    options.progress("F8 needs NIXL: run `kvferry setup`");
    return [];
  }
  const anchor = await buildNative("nixl_anchor.c", "program", options.progress);
  const client = pythonClient("1.5.1");
  if ("missing" in client) options.progress(`without NIXL's Python client: ${client.missing}`);
  const cases = CASES.filter(({ name }) => `F8.${name}`.includes(options.only));
  const work: NixlWork = {
    cases: cases.map(({ name }) => name),
    samples: options.samples,
    anchor,
    library: nixl.library,
    python: "paths" in client ? client.paths : null,
  };
  options.progress(`F8: ${work.cases.join(", ")} in ${options.processes} processes`);
  const processes = await inProcesses<Record<string, Record<string, number[]>>>(
    import.meta.path,
    "measure",
    work,
    options.processes,
  );
  return cases.map((one) =>
    summarize(
      rowOf(one),
      processes.map((sets) => sets[one.name] ?? {}),
    ),
  );
}

function rowOf({ name, anchor, batch, depth, merged }: Case): RowSpec {
  const limit =
    merged === undefined ? "the C program, one descriptor a run" : "the C program, merged by hand";
  return {
    id: `F8.${name}`,
    unit: "GB/s",
    direction: "rate",
    ...(anchor === undefined ? { goal: goalOf(merged) } : {}),
    note: `limit: ${limit}; a sample is ${batch} transfers, ${depth} at once, each submitted and awaited in JavaScript`,
  };
}

function goalOf(merged: string | undefined): Goal {
  return merged === undefined
    ? { figure: "ratioToLimit", value: 0.97 }
    : { figure: "ratioToPeer", value: 1.8 };
}

/** In one process: samples of every case, ours against the C program and the Python client, each a pair of processes. */
export async function measure(work: NixlWork): Promise<Record<string, Record<string, number[]>>> {
  await using anchor = new LineProcess([work.anchor, work.library]);
  await using python = await pausedPython(work.python);
  await using peer = new BenchPeer();
  await using transport = await Transport.open({ workerId: 1n, nixl: {}, cuda: false, neighbours: false });
  const local = await registerAll(transport, SPECS, ALIAS);
  const metadata = await peer.call<Uint8Array>({ do: "open", specs: SPECS, alias: ALIAS });
  const remote = await transport.importMetadata(metadata);
  await peer.call({ do: "import", bytes: await transport.exportMetadata() });

  const taken: Record<string, Record<string, number[]>> = {};
  for (const one of CASES.filter(({ name }) => work.cases.includes(name))) {
    const here = local.get(one.layout);
    const there = remote.layout(one.layout);
    if (here === undefined || there === undefined) throw new Error(`no layout ${one.layout}`);
    const mover = moverOf(transport, one, here, there);
    await verify(peer, one, here, mover);
    // Small transfers are measured when the code that starts them is compiled.
    for (let count = 0; count < WARM_SAMPLES; count += 1) if (one.blocks === 1) await mover.sample();
    const bytes = one.batch * one.blocks * (one.layout === "large" ? MIB : CHUNK);
    const anchorName = one.anchor ?? one.name;
    const command = (name: string): string => `run ${name} 1 ${one.batch} ${one.depth}`;
    const asked = async (process: LineProcess, name: string): Promise<number> => {
      const { seconds } = await process.ask<{ readonly seconds: readonly number[] }>(command(name));
      return bytes / (seconds[0] ?? Number.NaN) / 1e9;
    };
    taken[one.name] = await alternate(
      {
        ours: async () => {
          const start = Bun.nanoseconds();
          await mover.sample();
          return bytes / (Bun.nanoseconds() - start);
        },
        limit: () => asked(anchor, one.merged ?? anchorName),
        ...(one.merged === undefined
          ? {}
          : { "C program, one descriptor a chunk": () => asked(anchor, anchorName) }),
        ...(python === null
          ? {}
          : { [PYTHON]: () => python.sample((process) => asked(process, anchorName)) }),
      } satisfies Record<string, Contender>,
      work.samples,
    );
  }
  return taken;
}

/** Our side of a case. */
interface Mover {
  /** One transfer. */
  readonly once: () => Transfer;
  /** As many transfers as a sample has. */
  readonly sample: () => Promise<void>;
}

function moverOf(transport: Transport, one: Case, here: LocalLayout, there: RemoteLayout): Mover {
  const [source, destination] = one.operation === "write" ? [here, there] : [there, here];
  const lists = listsOf(one);
  let turn = 0;
  const once = (): Transfer => {
    const [sourceBlocks, destinationBlocks] = lists[turn++ % lists.length] as Lists; // in bounds
    return transport.transfer({ source, destination, sourceBlocks, destinationBlocks });
  };
  return {
    once,
    sample: async () => {
      const flying: Transfer[] = [];
      for (let count = 0; count < one.batch; count += 1) {
        if (flying.length === one.depth) await flying.shift();
        flying.push(once());
      }
      await Promise.all(flying);
    },
  };
}

type Lists = readonly [Uint32Array, Uint32Array];

/** Transfers of large blocks take turns in the region, as those of the C program do. */
function listsOf(one: Case): readonly Lists[] {
  if (one.scattered) return [[shuffled(one.blocks, 1), shuffled(one.blocks, 2)]];
  const turns = one.layout === "large" ? REGION_MIB / one.blocks : 1;
  return Array.from({ length: turns }, (_, turn) => {
    const blocks = Uint32Array.from({ length: one.blocks }, (_, index) => turn * one.blocks + index);
    return [blocks, blocks];
  });
}

/** One transfer of fresh bytes: the blocks at both ends must hash alike, pair for pair. */
async function verify(peer: BenchPeer, one: Case, here: LocalLayout, mover: Mover): Promise<void> {
  await here.fill({ random: 1 });
  await peer.call({ do: "fill", layout: one.layout, seed: 2 });
  await mover.once();
  const [sourceBlocks, destinationBlocks] = listsOf(one)[0] ?? [];
  const [mine, theirs] =
    one.operation === "write" ? [sourceBlocks, destinationBlocks] : [destinationBlocks, sourceBlocks];
  const some = sampled(mine?.length ?? 0);
  const near = await here.checksums(some.map((index) => mine?.[index] ?? 0));
  const far = await peer.call<readonly string[]>({
    do: "checksums",
    layout: one.layout,
    blocks: some.map((index) => theirs?.[index] ?? 0),
  });
  if (near.length === 0 || near.join() !== far.join())
    throw new Error(`${one.name}: the bytes did not arrive`);
}

/** Indices spread over a list, the first and the last among them. */
function sampled(length: number): number[] {
  const most = 512;
  if (length <= most) return Array.from({ length }, (_, index) => index);
  return Array.from({ length: most }, (_, index) => Math.floor((index * (length - 1)) / (most - 1)));
}

/**
 * The Python client and its target. Its progress threads never sleep, which would rob the others of a processor each:
 * both processes are stopped while it is not their turn.
 */
async function pausedPython(paths: readonly string[] | null): Promise<PausedPython | null> {
  if (paths === null) return null;
  const client = new LineProcess(
    ["python3", join(import.meta.dirname, "native/nixl_client.py"), "nixl_cu12"],
    {
      PYTHONPATH: paths.join(":"),
      NIXL_LOG_LEVEL: "FATAL",
      UCX_LOG_LEVEL: "fatal",
      UCX_MEM_EVENTS: "n",
    },
  );
  const { pids } = await client.next<{ readonly pids: readonly number[] }>();
  return new PausedPython(client, pids);
}

class PausedPython implements AsyncDisposable {
  readonly #client: LineProcess;
  readonly #pids: readonly number[];

  constructor(client: LineProcess, pids: readonly number[]) {
    this.#client = client;
    this.#pids = pids;
    this.#signal("SIGSTOP");
  }

  async sample(take: (client: LineProcess) => Promise<number>): Promise<number> {
    this.#signal("SIGCONT");
    try {
      return await take(this.#client);
    } finally {
      this.#signal("SIGSTOP");
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal("SIGCONT");
    await this.#client[Symbol.asyncDispose]();
  }

  #signal(signal: "SIGSTOP" | "SIGCONT"): void {
    for (const pid of this.#pids) process.kill(pid, signal);
  }
}
