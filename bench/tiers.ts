// Rows F17: blocks between host memory and a file, past the page cache; and between a GPU and a file in two hops.
import { dlopen, FFIType } from "bun:ffi";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, MemorySpec } from "../index.ts";
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";
import { shuffled } from "./statistics.ts";

const MIB = 2 ** 20;
/** Bytes of the file and of the memory, and bytes that one sample moves. */
const REGION = 1024 * MIB;
/** fio counts whole milliseconds: a sample takes many. */
const MOVED = 256 * MIB;
const DEPTH = 32;
const SIZES: Readonly<Record<string, number>> = { "64k": 65_536, "1m": MIB, "16m": 16 * MIB };
const WAYS = ["read", "write"] as const;

/** Measures rows F17.*. Files lie in KVFERRY_DISK_CACHE_DIR, else in the system's directory for temporary files. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const library = await buildNative("file_io.c", "library", options.progress);
  const rows = WAYS.flatMap((way) => Object.keys(SIZES).map((size) => `${way}.${size}`));
  const ids = rows.filter((row) => `F17.${row}`.includes(options.only));
  const gpu = ["gpu-out", "gpu-in"].filter((row) => `F17.${row}`.includes(options.only));
  options.progress(`F17: ${[...ids, ...gpu].join(", ")} in ${options.processes} processes`);
  const processes = await inProcesses<Record<string, SampleSets[number]>>(
    import.meta.path,
    "measure",
    { library, ids, gpu, samples: options.samples },
    options.processes,
  );
  return [...ids, ...gpu]
    .filter((row) => processes.every((sets) => sets[row] !== undefined))
    .map((row) =>
      summarize(
        {
          id: `F17.${row}`,
          unit: "GB/s",
          direction: "rate",
          goal: { figure: "ratioToLimit", value: gpu.includes(row) ? 0.9 : 0.95 },
          note: gpu.includes(row)
            ? "limit: the file hop alone, to and from pinned memory"
            : `limit: ${Bun.which("fio") === null ? "a C loop" : "fio"} on io_uring with ${DEPTH} requests in flight, direct=1, to and from memory for so many requests, in huge pages, as ours; blocks in random order`,
        },
        processes.map((sets) => sets[row] ?? {}),
      ),
    );
}

/** In one process: samples of every row. */
export async function measure(parameters: {
  readonly library: string;
  readonly ids: readonly string[];
  readonly gpu: readonly string[];
  readonly samples: number;
}): Promise<Record<string, Record<string, number[]>>> {
  const folder = mkdtempSync(join(process.env["KVFERRY_DISK_CACHE_DIR"] ?? tmpdir(), "kvferry-bench-"));
  try {
    const taken: Record<string, Record<string, number[]>> = {};
    for (const id of parameters.ids) taken[id] = await measureHost(parameters, folder, id);
    for (const id of parameters.gpu) {
      const sets = await measureGpu(parameters.samples, folder, id === "gpu-out");
      if (sets !== null) taken[id] = sets;
    }
    return taken;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measureHost(
  { library, samples }: { readonly library: string; readonly samples: number },
  folder: string,
  id: string,
): Promise<Record<string, number[]>> {
  const { symbols } = dlopen(library, {
    bench_file: {
      args: [
        FFIType.ptr,
        FFIType.u32,
        FFIType.ptr,
        FFIType.ptr,
        FFIType.ptr,
        FFIType.u32,
        FFIType.u32,
        FFIType.u32,
      ],
      returns: FFIType.f64,
    },
    bench_window: { args: [FFIType.ptr, FFIType.ptr], returns: FFIType.ptr },
  });
  const [way, size = ""] = id.split(".");
  const block = SIZES[size] ?? MIB;
  const path = join(folder, `${id}.bin`);
  await using transport = await Transport.open({ workerId: 1n, nixl: false, cuda: false });
  const host = await transport.register(spec("host", block, { kind: "system" }));
  // fio has memory for the requests that are in flight, which the processor's cache keeps where they are small: a device
  // moves 64 KiB a quarter faster to and from there. What is compared has no more of it.
  const address = Number(symbols.bench_window((DEPTH * block) as never, REGION as never));
  if (address === 0) throw new Error("there are no addresses for the memory that is compared");
  const regions = [{ address, size: REGION }];
  const window = await transport.register(
    spec("window", block, { kind: "external", storage: "system", regions }),
  );
  const disk = await transport.register(spec("disk", block, { kind: "disk", path }));
  await host.fill({ random: 1 });
  await disk.fill({ random: 2 });
  const turns = turnsOf(block);
  const name = new TextEncoder().encode(`${path}\0`);
  let turn = 0;
  const next = (): Turn => turns[turn++ % turns.length] as Turn; // in bounds
  const writing = way === "write";
  const move = async (own: LocalLayout): Promise<number> => {
    const { memory, file } = next();
    const start = Bun.nanoseconds();
    await transport.transfer(
      writing
        ? { source: own, sourceBlocks: memory, destination: disk, destinationBlocks: file }
        : { source: disk, sourceBlocks: file, destination: own, destinationBlocks: memory },
    );
    return MOVED / (Bun.nanoseconds() - start);
  };
  const ours = (): Promise<number> => move(window);
  const limit = (): number => {
    const { memory, file } = next();
    const scaled = (ids: Uint32Array): Float64Array => Float64Array.from(ids, (each) => each * block);
    const seconds = symbols.bench_file(
      name as never,
      writing ? 1 : 0,
      address as never,
      scaled(memory),
      scaled(file),
      memory.length,
      block,
      DEPTH,
    );
    if (seconds < 0) throw new Error(`the C loop failed: errno ${-seconds}`);
    return MOVED / seconds / 1e9;
  };
  for (const _turn of turns) await move(host);
  const [checked] = turns;
  if (checked !== undefined) {
    await move(host);
    const first = turns[(turn - 1) % turns.length];
    const wanted = await host.checksums(first?.memory ?? []);
    if (wanted.join() !== (await disk.checksums(first?.file ?? [])).join())
      throw new Error("the bytes did not arrive");
  }
  const beside = { [`ours, with ${REGION / MIB} MiB of memory`]: () => move(host) };
  // fio is the reference where it is installed; the C loop then stands beside it.
  if (Bun.which("fio") === null) return await alternate({ ours, limit, ...beside }, samples);
  return await alternate(
    { ours, limit: () => fioRate(path, writing, block), "C loop on io_uring": limit, ...beside },
    samples,
  );
}

/**
 * GB/s of fio over as many bytes, in blocks of the same size at random places, with as many requests in flight. Its buffers
 * are what it allocates with malloc, which asks for huge pages here and is asked for so much more that they consist of
 * those: with small ones fio has half of the rate. They are registered, where a process may lock so much memory, and so
 * are there before the time is taken.
 */
function fioRate(path: string, writing: boolean, block: number): number {
  const command = [
    "fio",
    "--name=limit",
    `--filename=${path}`,
    `--rw=${writing ? "randwrite" : "randread"}`,
    `--bs=${block}`,
    `--size=${REGION}`,
    `--io_size=${MOVED}`,
    `--iodepth=${DEPTH}`,
    "--ioengine=io_uring",
    "--direct=1",
    "--fallocate=none",
    "--randrepeat=0",
    "--allow_file_create=0",
    "--iomem_align=2M",
    "--output-format=json",
  ];
  const env = { ...process.env, GLIBC_TUNABLES: "glibc.malloc.hugetlb=1" };
  let ended = Bun.spawnSync([...command, "--fixedbufs=1"], { env });
  if (ended.exitCode !== 0) ended = Bun.spawnSync(command, { env });
  if (ended.exitCode !== 0) throw new Error(`fio failed: ${ended.stderr.toString().slice(0, 500)}`);
  const { jobs } = JSON.parse(ended.stdout.toString()) as {
    jobs: readonly Record<"read" | "write", { readonly bw_bytes: number }>[];
  };
  const rate = jobs[0]?.[writing ? "write" : "read"].bw_bytes;
  if (rate === undefined || rate === 0) throw new Error("fio moved nothing");
  return rate / 1e9;
}

/** Null where there is no GPU. */
async function measureGpu(
  samples: number,
  folder: string,
  out: boolean,
): Promise<Record<string, number[]> | null> {
  await using transport = await Transport.open({ workerId: 1n, nixl: false });
  const block = MIB;
  const gpu = await transport.register(spec("gpu", block, { kind: "device" })).catch(() => null);
  if (gpu === null) return null;
  const pinned = await transport.register(spec("pinned", block, { kind: "pinned" }));
  const disk = await transport.register(
    spec("disk", block, { kind: "disk", path: join(folder, `gpu-${out}.bin`) }),
  );
  await Promise.all([gpu.fill({ random: 1 }), pinned.fill({ random: 2 })]);
  await disk.fill({ random: 3 });
  const turns = turnsOf(block);
  let turn = 0;
  const between = async (memory: LocalLayout): Promise<number> => {
    const at = turns[turn++ % turns.length] as Turn; // in bounds
    const start = Bun.nanoseconds();
    await transport.transfer(
      out
        ? { source: memory, sourceBlocks: at.memory, destination: disk, destinationBlocks: at.file }
        : { source: disk, sourceBlocks: at.file, destination: memory, destinationBlocks: at.memory },
    );
    return MOVED / (Bun.nanoseconds() - start);
  };
  return await alternate({ ours: () => between(gpu), limit: () => between(pinned) }, samples);
}

interface Turn {
  readonly memory: Uint32Array;
  readonly file: Uint32Array;
}

function turnsOf(block: number): Turn[] {
  const all = REGION / block;
  const each = MOVED / block;
  const [memory, file] = [shuffled(all, 1), shuffled(all, 2)];
  return Array.from({ length: all / each }, (_unused, turn) => ({
    memory: memory.slice(turn * each, (turn + 1) * each),
    file: file.slice(turn * each, (turn + 1) * each),
  }));
}

function spec(name: string, block: number, memory: MemorySpec): LayoutSpec {
  return {
    name,
    config: { numBlocks: REGION / block, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: block / 2 },
    arrangement: "fully-contiguous",
    memory,
  };
}
