// Rows F16: scattered blocks to and from another process through NIXL, no neighbour mapping: gathered here and scattered
// there, against a descriptor for each and against one contiguous run of the same bytes.
import type { LayoutSpec, LocalLayout, RemoteLayout, Transport } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import type { SuiteOptions } from "./main.ts";
import { BenchPair, withTransports } from "./nixl-pair.ts";
import type { BenchPeer } from "./nixl-peer.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";
import { shuffled } from "./statistics.ts";

/** A row: so many blocks of that size, in random order on both sides. */
interface Case {
  readonly name: string;
  readonly memory: "device" | "system";
  readonly transport: "cma" | "tcp" | null;
  readonly operation: "write" | "read";
  readonly bytes: number;
  readonly count: number;
  /** Least part of the limit; left out where none is asked for. */
  readonly goal?: number;
}

const CASES: readonly Case[] = [
  ...([100_000, 10_000] as const).map((count): Case => ({
    name: count === 100_000 ? "scatter.16k" : "scatter.16k.10000",
    memory: "device",
    transport: null,
    operation: "write",
    bytes: 16_384,
    count,
    ...(count === 100_000 ? { goal: 0.7 } : {}),
  })),
  ...(["cma", "tcp"] as const).flatMap((transport) =>
    (["write", "read"] as const).flatMap((operation) =>
      (
        [
          ["256", 256, 16_384],
          ["2k", 2048, 8192],
          ["16k", 16_384, 2048],
        ] as const
      ).map(([size, bytes, count]): Case => ({
        name: `host.${transport}.${operation}.${size}`,
        memory: "system",
        transport,
        operation,
        bytes,
        count,
      })),
    ),
  ),
];

/** On a link as fast as between GPUs a part takes as long as the words about it where it is as large as this. */
const DEVICE_STAGING = {
  sendBytes: 64 * 2 ** 20,
  receiveBytes: 64 * 2 ** 20,
  deviceBytes: 1_536 * 2 ** 20,
  deviceChunkBytes: 112 * 2 ** 20,
} as const;

const DIRECT = "NIXL, one descriptor a block";
const SLAB = "gathered and scattered";

/** Measures rows F16. Those of GPU memory need two GPUs. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  if (findNixl() === null) {
    options.progress("F16 needs NIXL: run `kvferry setup`");
    return [];
  }
  const results: BenchResult[] = [];
  for (const one of CASES.filter(({ name }) => `F16.${name}`.includes(options.only))) {
    options.progress(`F16.${one.name} in ${options.processes} processes`);
    const sets = await withTransports(one.transport === "tcp" ? "tcp,self" : null, () =>
      inProcesses<SampleSets[number] | null>(
        import.meta.path,
        "measure",
        { name: one.name, samples: options.samples },
        options.processes,
      ),
    );
    const taken = sets.filter((set) => set !== null);
    if (taken.length < sets.length) {
      options.progress(`NOT RUN: F16.${one.name} needs two GPUs`);
      continue;
    }
    results.push(
      summarize(
        {
          id: `F16.${one.name}`,
          unit: "GB/s",
          direction: "rate",
          ...(one.goal === undefined ? {} : { goal: { figure: "ratioToLimit", value: one.goal } as const }),
          note: `${one.count} x ${one.bytes} B by the predicted method; limit: one contiguous run of the same bytes by NIXL`,
        },
        taken,
      ),
    );
  }
  return results;
}

/** In one process: samples of a row; null where it cannot be measured here. */
export async function measure(parameters: {
  readonly name: string;
  readonly samples: number;
}): Promise<Record<string, number[]> | null> {
  const one = CASES.find(({ name }) => name === parameters.name);
  if (one === undefined) throw new Error(`no row ${parameters.name}`);
  const onGpu = one.memory === "device";
  const options = onGpu
    ? ({ capabilities: { gpuRdma: true }, staging: DEVICE_STAGING } as const)
    : ({ cuda: false } as const);
  await using pair = await BenchPair.open({
    options,
    near: [specOf(one, 0)],
    far: [specOf(one, 1)],
    ...(onGpu ? { gpu: "nixl", staging: DEVICE_STAGING } : {}),
    farMayLack: true,
  });
  if (pair === null) return null;
  const { transport } = pair;
  const here = pair.layout("blocks");
  const remote = pair.remote.layout("blocks");
  const [source, destination] = one.operation === "write" ? [here, remote] : [remote, here];
  const [from, to] = [shuffled(2 * one.count, 1), shuffled(2 * one.count, 2)].map((ids) =>
    ids.slice(0, one.count),
  ) as [Uint32Array, Uint32Array];
  const run = Uint32Array.from({ length: one.count }, (_unused, index) => index);
  await heard(transport, source, destination, from, to);
  const rate = async (method: string | null, sourceBlocks: Uint32Array, destinationBlocks: Uint32Array) => {
    const start = Bun.nanoseconds();
    await transport.transfer({
      source,
      destination,
      sourceBlocks,
      destinationBlocks,
      ...(method === null ? {} : { method }),
    });
    return (one.count * one.bytes) / (Bun.nanoseconds() - start);
  };
  const direct = `nixl/${one.operation}`;
  for (const method of [direct, "staged/slab"])
    await verify(pair.far, one, here, () => rate(method, from, to), from, to);
  return await alternate(
    {
      ours: () => rate(null, from, to),
      limit: () => rate(direct, run, run),
      [DIRECT]: () => rate(direct, from, to),
      [SLAB]: () => rate("staged/slab", from, to),
    },
    parameters.samples,
  );
}

/** Fresh bytes at the source must hash alike at both ends, pair for pair. */
async function verify(
  peer: BenchPeer,
  { operation, count }: Case,
  here: LocalLayout,
  move: () => Promise<number>,
  from: Uint32Array,
  to: Uint32Array,
): Promise<void> {
  const [mine, theirs] = operation === "write" ? [from, to] : [to, from];
  await here.fill({ random: 1 });
  await peer.call({ do: "fill", layout: "blocks", seed: 2 });
  await move();
  const some = Array.from({ length: 256 }, (_unused, index) => Math.floor((index * (count - 1)) / 255));
  const near = await here.checksums(some.map((index) => mine[index] ?? 0));
  const far = await peer.call<readonly string[]>({
    do: "checksums",
    layout: "blocks",
    blocks: some.map((index) => theirs[index] ?? 0),
  });
  if (near.join() !== far.join()) throw new Error("the bytes did not arrive");
}

/** Resolves when the peer is known to help. */
async function heard(
  transport: Transport,
  source: LocalLayout | RemoteLayout,
  destination: LocalLayout | RemoteLayout,
  sourceBlocks: Uint32Array,
  destinationBlocks: Uint32Array,
): Promise<void> {
  for (let tries = 0; tries < 200; tries += 1) {
    const { legs } = transport.explain({ source, destination, sourceBlocks, destinationBlocks });
    const methods = legs.flatMap(({ hops }) => hops.flatMap(({ candidates }) => candidates));
    if (methods.some(({ method }) => method === "staged/slab")) return;
    await Bun.sleep(20);
  }
  throw new Error("the peer does not help");
}

function specOf({ memory, bytes, count }: Case, device: number): LayoutSpec {
  return {
    name: "blocks",
    config: { numBlocks: 2 * count, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: bytes / 2 },
    arrangement: "fully-contiguous",
    memory: memory === "device" ? { kind: "device", device } : { kind: "system" },
  };
}
