// What it costs to decode an input: each is measured in a process of its own, so that memory which another input left
// behind is not taken for room. Time is measured twice: in a process that has decoded small packages of all formats, as
// a worker that has peers has done, and in one that has decoded nothing, whose engine has compiled nothing. Memory is
// measured in the first.
import { heapStats } from "bun:jsc";
import { readFileSync, writeFileSync } from "node:fs";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { componentOf, layoutOf, packageOf } from "../wire/builders.ts";
import type { HostileInput } from "../wire/hostile-inputs.ts";
import type { Verdict } from "../wire/laws.ts";

/** Inputs of a mebibyte must be decoded or refused within this. */
const LIMIT = { milliseconds: 10, mebibytes: 8 } as const;

/** What one decoding took. */
export interface Cost {
  /** The best of many tries, so that other work of the machine does not count. */
  readonly milliseconds: number;
  /** First decodings of processes that had decoded nothing: the median of some, and the slowest of them, which may have waited. */
  readonly firstMedian: number;
  readonly firstWorst: number;
  /**
   * How far the process or its heap grew, garbage and all, from before the first decoding of this input to its end: the
   * larger of the two, since pages that were already there are reused.
   */
  readonly grownMebibytes: number;
  /** Of that, what the value holds after a collection of garbage. */
  readonly heldMebibytes: number;
}

/** Measures one input; of each kind some processes, until one stays within the limits. */
export async function costOf({ bytes }: HostileInput): Promise<Cost> {
  const first = await firstDecodings(bytes);
  let best = await inProcess<Grown>(bytes, "ready");
  for (let again = 0; again < 4 && exceeds({ ...best, ...NO_FIRST }) !== null; again++) {
    const other = await inProcess<Grown>(bytes, "ready");
    best = {
      ...other,
      milliseconds: Math.min(best.milliseconds, other.milliseconds),
      grownMebibytes: Math.min(best.grownMebibytes, other.grownMebibytes),
    };
  }
  return { ...best, ...first };
}

/** Processes that decode an input first, and as many as are asked where these say that it takes too long. */
const FIRST_TRIES = 5;
const MORE_TRIES = 15;
const NO_FIRST = { firstMedian: 0, firstWorst: 0 } as const;

type First = Pick<Cost, "firstMedian" | "firstWorst">;
type Grown = Omit<Cost, keyof First>;

/**
 * A first decoding cannot be tried twice in one process: so, several processes. A single one may have waited for a
 * processor, for as long as other work and the engine's own threads took it: what most took is what decoding takes.
 */
async function firstDecodings(bytes: Uint8Array): Promise<First> {
  const tries: number[] = [];
  const median = (): number => tries[tries.length >> 1] ?? Number.POSITIVE_INFINITY;
  while (tries.length < FIRST_TRIES || (median() > LIMIT.milliseconds && tries.length < MORE_TRIES)) {
    tries.push((await inProcess<{ readonly milliseconds: number }>(bytes, "first")).milliseconds);
    tries.sort((a, b) => a - b);
  }
  return { firstMedian: median(), firstWorst: tries.at(-1) ?? Number.POSITIVE_INFINITY };
}

/** What is too much, in words. */
export function exceeds(cost: Cost): Verdict {
  if (cost.milliseconds > LIMIT.milliseconds) return `${cost.milliseconds.toFixed(1)} ms`;
  if (cost.firstMedian > LIMIT.milliseconds)
    return `${cost.firstMedian.toFixed(1)} ms in a process that has decoded nothing before`;
  if (cost.grownMebibytes > LIMIT.mebibytes) return `${cost.grownMebibytes.toFixed(1)} MiB`;
  return null;
}

/** What the value holds, measured in this process. */
export function heldMebibytes(bytes: Uint8Array): number {
  Bun.gc(true);
  const before = heapStats().heapSize;
  const value = attempt(bytes);
  Bun.gc(true);
  // Counted while the value is still in use.
  const held = heapStats().heapSize - before;
  return value === undefined ? Number.POSITIVE_INFINITY : held / 2 ** 20;
}

async function inProcess<Result>(bytes: Uint8Array, how: "first" | "ready"): Promise<Result> {
  const child = Bun.spawn([process.execPath, import.meta.path, how], {
    stdin: bytes,
    stdout: "pipe",
    stderr: "inherit",
  });
  const text = await new Response(child.stdout).text();
  const code = await child.exited;
  if (code !== 0) throw new Error(`the process that decodes ended with ${code}`);
  return JSON.parse(text) as Result;
}

function measureFirst(bytes: Uint8Array): { readonly milliseconds: number } {
  const started = performance.now();
  attempt(bytes);
  return { milliseconds: performance.now() - started };
}

async function measure(bytes: Uint8Array): Promise<Grown> {
  decodeSmall();
  // Time for the compiler's threads to end.
  await Bun.sleep(50);
  Bun.gc(true);
  const heap = heapStats();
  const before = residentMebibytes("VmRSS");
  // From here on the high-water mark counts anew.
  writeFileSync("/proc/self/clear_refs", "5");
  const value = attempt(bytes);
  const after = heapStats();
  const blocks = after.heapCapacity - heap.heapCapacity + after.extraMemorySize - heap.extraMemorySize;
  const grown = Math.max(residentMebibytes("VmHWM") - before, blocks / 2 ** 20);
  const held = keep(value, heap.heapSize);
  let best = Number.POSITIVE_INFINITY;
  for (let again = 0; again < 25; again++) {
    const at = performance.now();
    attempt(bytes);
    best = Math.min(best, performance.now() - at);
  }
  return {
    milliseconds: best,
    grownMebibytes: grown,
    heldMebibytes: held,
  };
}

function keep(value: unknown, heap: number): number {
  Bun.gc(true);
  const held = heapStats().heapSize - heap;
  return value === undefined ? Number.POSITIVE_INFINITY : held / 2 ** 20;
}

function decodeSmall(): void {
  const parts = [
    componentOf(),
    componentOf({ arrangement: "layer-separate/block-first", addresses: [0x20000, 0x10000] }),
  ];
  const value = packageOf(
    Array.from({ length: 60 }, (_, id) => layoutOf(id, parts.slice(id % 2, (id % 2) + 1))),
  );
  for (const format of ["kvferry", "dynamo-1.0", "kvbm-physical-1"] as const) {
    const bytes = encodePackage(value, format);
    for (let again = 0; again < 400; again++) decodePackage(bytes);
  }
}

/** A figure of this process from the kernel. */
function residentMebibytes(field: "VmRSS" | "VmHWM"): number {
  const found = new RegExp(`${field}:\\s+(\\d+) kB`).exec(readFileSync("/proc/self/status", "utf8"));
  return Number(found?.[1]) / 1_024;
}

function attempt(bytes: Uint8Array): unknown {
  try {
    return decodePackage(bytes);
  } catch (error) {
    // Refused or not: here only the cost counts.
    return error;
  }
}

if (import.meta.main) {
  const bytes = new Uint8Array(await Bun.stdin.arrayBuffer());
  process.stdout.write(
    JSON.stringify(process.argv[2] === "first" ? measureFirst(bytes) : await measure(bytes)),
  );
}
