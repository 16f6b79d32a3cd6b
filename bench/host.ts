// Rows F9: 64 MiB from host to host memory in scattered chunks, out of cache.
import { dlopen, FFIType } from "bun:ffi";

import { Transport } from "../index.ts";
import type { LocalLayout } from "../index.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Goal } from "./result.ts";
import { shuffled } from "./statistics.ts";

const MIB = 2 ** 20;
/** Bytes that one sample moves. */
const MOVED = 64 * MIB;
/** Bytes of each side: samples take turns in it, so that no byte is still in a cache. */
const REGION = 256 * MIB;
const SIZES: Readonly<Record<string, number>> = { "4k": 4096, "64k": 65_536, "1m": MIB };
/** Loops with non-temporal stores that `bench_copy` knows; the best one of this machine is the limit. */
const STREAMING_KINDS = [1, 2, 3, 4, 5];
const PROBES = 4;
const WARM_TRANSFERS = 1_000;
const WARM_PLANS = 100;

/** Measures rows F9.host.*. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const library = await buildNative("host_copy.c", "library", options.progress);
  const ids = Object.keys(SIZES).filter((size) => `F9.host.${size}`.includes(options.only));
  options.progress(`F9: ${ids.join(", ")} in ${options.processes} processes`);
  const processes = await inProcesses<Record<string, SampleSets[number]>>(
    import.meta.path,
    "measure",
    { library, sizes: ids, samples: options.samples },
    options.processes,
  );
  return ids.map((size) =>
    summarize(
      {
        id: `F9.host.${size}`,
        unit: "GB/s",
        direction: "rate",
        goal: goalsOf(size),
        note: `limit: best of ${STREAMING_KINDS.length} C loops with non-temporal stores on as many threads; chunks scattered on both sides, submit to await in JavaScript`,
      },
      processes.map((sets) => sets[size] ?? {}),
    ),
  );
}

function goalsOf(size: string): readonly Goal[] {
  const toLimit: Goal = { figure: "ratioToLimit", value: 0.97 };
  return size === "4k" ? [toLimit] : [toLimit, { figure: "ratioToPeer", value: 1.3 }];
}

/** In one process: samples of every size. */
export async function measure(parameters: {
  readonly library: string;
  readonly sizes: readonly string[];
  readonly samples: number;
}): Promise<Record<string, Record<string, number[]>>> {
  const { symbols } = dlopen(parameters.library, {
    bench_copy: {
      args: [
        FFIType.u32,
        FFIType.ptr,
        FFIType.ptr,
        FFIType.ptr,
        FFIType.ptr,
        FFIType.u32,
        FFIType.u32,
        FFIType.u32,
      ],
      returns: FFIType.f64,
    },
  });
  await using transport = await Transport.open({ workerId: 1n, nixl: false, cuda: false });
  const [from, to] = [await pool(transport, "from"), await pool(transport, "to")];
  from.bytes[0]?.fill(1);
  to.bytes[0]?.fill(2);
  const taken: Record<string, Record<string, number[]>> = {};
  for (const size of parameters.sizes) {
    const chunk = SIZES[size] ?? 0;
    const source = await adopted(transport, `from-${size}`, addressOf(from), chunk);
    const destination = await adopted(transport, `to-${size}`, addressOf(to), chunk);
    const turns = turnsOf(chunk);
    let turn = 0;
    const next = (): Turn => turns[turn++ % turns.length] as Turn; // in bounds
    const first = turns[0] as Turn; // REGION / MOVED of them
    const hop = transport.explain({ source, destination, ...first.blocks }).legs[0]?.hops[0];
    const threads = hop?.width ?? 1;
    const native = (kind: number, width: number): number => {
      const { fromOffset, toOffset } = next();
      const seconds = symbols.bench_copy(
        kind,
        addressOf(to) as never,
        addressOf(from) as never,
        toOffset,
        fromOffset,
        fromOffset.length,
        chunk,
        width,
      );
      return MOVED / seconds / 1e9;
    };
    const ours = async (): Promise<number> => {
      const { blocks } = next();
      const start = Bun.nanoseconds();
      await transport.transfer({ source, destination, ...blocks });
      return MOVED / (Bun.nanoseconds() - start);
    };
    await warmUp(transport, source, destination, turns);
    await verify(from, to, ours);
    const best = bestOf(STREAMING_KINDS, (kind) => native(kind, threads));
    taken[size] = await alternate(
      {
        ours,
        limit: () => native(best, threads),
        [`libc memcpy, ${threads} threads`]: () => native(0, threads),
        "libc memcpy, 1 thread": () => native(0, 1),
      },
      parameters.samples,
    );
  }
  return taken;
}

/** One sample's blocks, as ids and as byte offsets. */
interface Turn {
  readonly blocks: { readonly sourceBlocks: Uint32Array; readonly destinationBlocks: Uint32Array };
  readonly fromOffset: Float64Array;
  readonly toOffset: Float64Array;
}

/** Disjoint parts of both regions, chunks in random order over the whole of each. */
function turnsOf(chunk: number): Turn[] {
  const all = REGION / chunk;
  const each = MOVED / chunk;
  const sources = shuffled(all, 1);
  const destinations = shuffled(all, 2);
  return Array.from({ length: all / each }, (_, turn) => {
    const sourceBlocks = sources.slice(turn * each, (turn + 1) * each);
    const destinationBlocks = destinations.slice(turn * each, (turn + 1) * each);
    return {
      blocks: { sourceBlocks, destinationBlocks },
      fromOffset: Float64Array.from(sourceBlocks, (block) => block * chunk),
      toOffset: Float64Array.from(destinationBlocks, (block) => block * chunk),
    };
  });
}

/** Has the code that plans and submits compiled, as it is in a program that has run for a second. */
async function warmUp(
  transport: Transport,
  source: LocalLayout,
  destination: LocalLayout,
  turns: readonly Turn[],
): Promise<void> {
  for (let count = 0; count < WARM_TRANSFERS; count += 1) {
    const { sourceBlocks, destinationBlocks } = (turns[count % turns.length] as Turn).blocks; // in bounds
    const [from, to] = [sourceBlocks.subarray(0, 1), destinationBlocks.subarray(0, 1)];
    await transport.transfer({ source, destination, sourceBlocks: from, destinationBlocks: to });
  }
  for (let count = 0; count < WARM_PLANS; count += 1)
    transport.explain({ source, destination, ...(turns[count % turns.length] as Turn).blocks }); // in bounds
}

/** The whole of a region moves in as many turns as it has: afterwards every byte of the destination is new. */
async function verify(from: LocalLayout, to: LocalLayout, ours: () => Promise<number>): Promise<void> {
  const [source, destination] = [from.bytes[0], to.bytes[0]];
  if (source === undefined || destination === undefined) throw new Error("a pool has no bytes");
  source.fill(7);
  destination.fill(8);
  for (let turn = 0; turn < REGION / MOVED; turn += 1) await ours();
  if (!source.every((byte) => byte === 7) || Buffer.compare(source, destination) !== 0)
    throw new Error("the bytes did not arrive");
}

function bestOf(kinds: readonly number[], rate: (kind: number) => number): number {
  let best = kinds[0] ?? 0;
  let most = 0;
  for (let probe = 0; probe < PROBES; probe += 1)
    for (const kind of kinds) {
      const found = rate(kind);
      if (found > most) [best, most] = [kind, found];
    }
  return best;
}

function pool(transport: Transport, name: string): Promise<LocalLayout> {
  return transport.register({
    name,
    config: configOf(MIB),
    arrangement: "fully-contiguous",
    memory: { kind: "system" },
  });
}

function adopted(transport: Transport, name: string, address: number, chunk: number): Promise<LocalLayout> {
  return transport.register({
    name,
    config: configOf(chunk),
    arrangement: "fully-contiguous",
    memory: { kind: "external", storage: "system", regions: [{ address, size: REGION }] },
  });
}

function configOf(chunk: number): {
  readonly numBlocks: number;
  readonly numLayers: number;
  readonly outerDim: 1;
  readonly pageSize: number;
  readonly innerDim: number;
} {
  return { numBlocks: REGION / chunk, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: chunk / 2 };
}

function addressOf(layout: LocalLayout): number {
  return layout.components["kv"]?.regions[0]?.address ?? 0;
}
