// What planning scattered pairs takes.
import { dlopen, FFIType } from "bun:ffi";

import { measure as measureWithMitata } from "mitata";

import { defaultProfile, planTransfer } from "../lib/core/index.ts";
import type { LayoutHandle, PlanEnvironment, PlanRequest, RegistrySnapshot } from "../lib/core/index.ts";
import { alternate } from "./processes.ts";
import { localTransport } from "./registering.ts";
import { seededRandom } from "./statistics.ts";

/** Scattered pairs of one request. */
export const PAIRS = 100_000;

/** Milliseconds to plan, beside a loop in C that fills the offsets. */
export async function planning(library: string, samples: number): Promise<Record<string, number[]>> {
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
}

/** Nanoseconds for each of so many pairs. */
export async function growingPlan(count: number): Promise<Record<string, number[]>> {
  const planner = await plannerOf(count);
  const stats = await measureWithMitata(() => planner.plan(planner.next()), { inner_gc: false });
  return { ours: stats.samples.map((nanoseconds) => nanoseconds / count) };
}

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
