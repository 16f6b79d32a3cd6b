import { describe, expect, test } from "bun:test";
import { gpuWork } from "../../lib/core/gpu-work.ts";
import { chooseMethod, type Choice } from "../../lib/core/method.ts";
import type { Work } from "../../lib/core/work.ts";
import { cudaProfileOf, defaultProfile, hopperCuda, unknownCuda } from "../../lib/core/machine-figures.ts";
import type { CudaProfile } from "../../lib/core/profile.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import type { GpuFacts, PlanEnvironment } from "../../lib/core/environment.ts";
import { copyProgram } from "../copy-program.ts";

// Which way a GPU copies is chosen by predicted time; what cannot run must never be taken, what is pitched or aligned
// must be so for the library as well.

const KIB = 1024;
const MIB = 1024 * KIB;
const H200: GpuFacts = { sms: 132, kernels: true, bulk: true, batch: true, busy: false };

/** From a GPU to pinned memory, one page unless more is said. */
function program(change: Partial<Omit<CopyProgram, "pairs" | "rows" | "bytes">> = {}): CopyProgram {
  return copyProgram({
    srcBase: Float64Array.of(65_536),
    dstBase: Float64Array.of(1_048_576),
    rowBytes: 4096,
    srcMemory: { kind: 1, device: 0 },
    ...change,
  });
}

function choose(
  programs: readonly CopyProgram[],
  {
    pageable = false,
    facts = H200,
    forced,
    cuda = defaultProfile.cuda,
  }: { pageable?: boolean; facts?: GpuFacts | null; forced?: string; cuda?: CudaProfile } = {},
): Choice {
  const gpu = gpuWork(programs, pageable);
  const bytes = programs.reduce((sum, one) => sum + one.bytes, 0);
  const work: Work = {
    executor: "cuda",
    op: "copy",
    bytes,
    descriptors: programs.reduce((sum, one) => sum + one.rows, 0),
    sourceKind: programs[0]?.srcMemory.kind ?? 0,
    destinationKind: programs[0]?.dstMemory.kind ?? 0,
    gpu,
  };
  const environment: PlanEnvironment = {
    executors: ["cuda"],
    ...(facts === null ? {} : { gpu: () => facts }),
  };
  return chooseMethod(work, { ...defaultProfile, cuda }, environment, forced);
}

/** Blocks of layers with memory of their own on the device, whole blocks in a pool on the host. */
function offload(blocks: number, chunk: number): CopyProgram {
  const layers = 160;
  const ids = Float64Array.from({ length: blocks }, (_unused, index) => (index * 7919) % blocks);
  return program({
    srcBase: Float64Array.from(
      { length: layers },
      (_unused, layer) => 2 ** 40 + layer * blocks * chunk + layer * layer * 256,
    ),
    dstBase: Float64Array.from({ length: layers }, (_unused, layer) => 2 ** 30 + layer * chunk),
    srcOffset: ids.map((id) => id * chunk),
    dstOffset: ids.map((id) => ((id * 31) % blocks) * layers * chunk),
    rowBytes: chunk,
  });
}

describe("what is known of a hop", () => {
  test("long runs on the host side are found behind scattered layers on the device", () => {
    const work = gpuWork([offload(64, 32 * KIB)], false);
    expect(work).toMatchObject({ direction: "out", device: 0, row: 32 * KIB, rows: 64 * 160, aligned: true });
    expect(work.hostRun).toBeGreaterThanOrEqual(160 * 32 * KIB);
    expect(work.boxes).toBe(64 * 160);
  });

  test("runs of uneven length lengthen the host's runs by their own blocks, not by those of other regions", () => {
    const regions = (start: number): Float64Array =>
      Float64Array.from({ length: 16 }, (_unused, layer) => start + layer * 2 ** 20 + layer * layer * 256);
    const work = gpuWork(
      [
        program({
          srcBase: regions(2 ** 40),
          dstBase: regions(2 ** 30),
          srcOffset: Float64Array.of(0, 65_536, 131_072),
          dstOffset: Float64Array.of(32_768, 0, 200_704),
          run: Uint32Array.of(1, 2, 3),
          srcRunStride: 4096,
          dstRunStride: 4096,
        }),
      ],
      false,
    );
    expect(work.hostRun).toBe(2 * 4096);
  });

  test("evenly spaced rows are boxes, one for each pair", () => {
    const even = program({
      count: [8, 16],
      srcStride: [65_536, 4096],
      dstStride: [16_384, 1024],
      rowBytes: 1024,
    });
    // The inner loop joins the destination but not the source: rows stay 1 KiB at pitches of 4 KiB and 1 KiB.
    expect(gpuWork([even], false)).toMatchObject({ boxes: 1, row: 1024, rows: 128 });
    const two = program({
      count: [16],
      srcStride: [4096],
      dstStride: [2048],
      rowBytes: 1024,
      srcOffset: Float64Array.of(0, 1_000_000),
      dstOffset: Float64Array.of(0, 500_000),
    });
    expect(gpuWork([two], false).boxes).toBe(2);
    const backwards = program({ count: [16], srcStride: [-4096], dstStride: [2048], rowBytes: 1024 });
    expect(gpuWork([backwards], false).boxes).toBeNull();
    const slanted = program({
      count: [4, 16],
      srcStride: [70_001, 4096],
      dstStride: [65_536, 2048],
      rowBytes: 1024,
    });
    expect(gpuWork([slanted], false).boxes).toBeNull();
  });

  test("one odd address is enough not to be aligned", () => {
    expect(gpuWork([program()], false).aligned).toBe(true);
    for (const change of [
      { rowBytes: 4088 },
      { srcBase: Float64Array.of(65_544) },
      { dstOffset: Float64Array.of(8) },
      { count: [2], srcStride: [4104], dstStride: [8192] },
    ])
      expect(gpuWork([program(change)], false).aligned).toBe(false);
  });

  test("programs that were cut from one, and share some of its arrays, are each described by what they are", () => {
    // From pages with gaps to pages one after the other, of two regions each.
    const whole = program({
      srcBase: Float64Array.of(65_536, 131_072),
      dstBase: Float64Array.of(1_048_576, 1_056_768),
      count: [4],
      srcStride: [8192],
      dstStride: [2048],
      rowBytes: 2048,
      srcOffset: Float64Array.of(0, 2_097_152),
      dstOffset: Float64Array.of(0, 4_194_304),
    });
    const cut = [
      { srcStride: [2048] },
      { dstStride: [4096] },
      { srcBase: Float64Array.of(65_544, 131_080) },
      { dstBase: Float64Array.of(1_048_576, 2_097_152) },
      { rowBytes: 1024, bytes: whole.bytes / 2 },
      { run: Uint32Array.of(2, 1), srcRunStride: 32_768, dstRunStride: 8192 },
    ];
    const described = cut.flatMap((change) => [whole, { ...whole, ...change }]);
    const apart = described.map((one) => ({ ...one, count: [...one.count] }));
    expect(described.map((one) => gpuWork([one], false))).toEqual(apart.map((one) => gpuWork([one], false)));
    expect(new Set(apart.map((one) => JSON.stringify(gpuWork([one], false)))).size).toBe(1 + cut.length);
  });

  test("the device that runs it holds the source, else the destination", () => {
    const to = gpuWork(
      [program({ srcMemory: { kind: 0, device: 0 }, dstMemory: { kind: 1, device: 3 } })],
      false,
    );
    expect(to).toMatchObject({ direction: "in", device: 3 });
    const between = { srcMemory: { kind: 1, device: 2 }, dstMemory: { kind: 1, device: 1 } } as const;
    expect(gpuWork([program(between)], false)).toMatchObject({ direction: "peer", device: 2, hostRun: 0 });
    const within = { srcMemory: { kind: 1, device: 2 }, dstMemory: { kind: 1, device: 2 } } as const;
    expect(gpuWork([program(within)], false)).toMatchObject({ direction: "local", device: 2 });
  });
});

describe("choice", () => {
  test("one long run is one DMA, many short ones a kernel", () => {
    expect(choose([program({ rowBytes: 64 * MIB })]).method).toBe("cuda/dma");
    expect(choose([offload(1, 2 * KIB)]).method).toBe("cuda/kernel");
    expect(choose([offload(1, 32 * KIB)]).method).toBe("cuda/kernel");
  });

  test("large transfers with long runs on the host go through slabs", () => {
    expect(choose([offload(64, 64 * KIB)]).method).toBe("cuda/slab");
  });

  test("what cannot run is never taken, whatever it costs else", () => {
    const pageable = choose([offload(64, 4 * KIB)], { pageable: true });
    expect(["cuda/dma", "cuda/batch"]).toContain(pageable.method);
    const refused = pageable.candidates.filter(({ micros }) => micros === Number.POSITIVE_INFINITY);
    expect(refused.map(({ method }) => method).toSorted()).toEqual([
      "cuda/bulk",
      "cuda/kernel",
      "cuda/pitched",
      "cuda/slab",
    ]);
    const bare = choose([offload(64, 4 * KIB)], { facts: { ...H200, kernels: false, bulk: false } });
    expect(["cuda/dma", "cuda/batch"]).toContain(bare.method);
    for (const forced of ["cuda/kernel", "cuda/slab", "cuda/bulk"])
      expect(() => choose([offload(4, KIB)], { pageable: true, forced })).toThrow("not pinned");
  });

  test("a busy GPU keeps its multiprocessors: fewer CTAs, and copies before kernels", () => {
    const busy = { ...H200, busy: true };
    const usual = choose([offload(64, 8 * KIB)], { forced: "cuda/kernel" });
    const less = choose([offload(64, 8 * KIB)], { forced: "cuda/kernel", facts: busy });
    expect(less.width).toBeLessThan(usual.width);
    expect(choose([offload(64, 8 * KIB)], { facts: busy }).method).toBe("cuda/slab");
  });

  test("a device that nobody described still gets a plan", () => {
    expect(choose([offload(4, KIB)], { facts: null }).method).toBe("cuda/kernel");
  });

  test("kernels within a device take every multiprocessor, bulk copies where they were measured to be faster", () => {
    const local = { srcMemory: { kind: 1, device: 0 }, dstMemory: { kind: 1, device: 0 } } as const;
    const many = (rowBytes: number): CopyProgram =>
      program({ ...local, srcOffset: new Float64Array(512), dstOffset: new Float64Array(512), rowBytes });
    for (const rowBytes of [2 * KIB, 64 * KIB])
      expect(choose([many(rowBytes)])).toMatchObject({
        method: "cuda/kernel",
        width: hopperCuda.deviceCtas * 132,
      });
    const cuda = { ...hopperCuda, bulkDevice: [{ bytes: 16 * KIB, gigabytesPerSecond: 2000 }] };
    expect(choose([many(64 * KIB)], { cuda })).toMatchObject({ method: "cuda/bulk", width: 132 });
    // An odd address forbids them.
    expect(choose([{ ...many(64 * KIB), srcBase: Float64Array.of(65_544) }], { cuda }).method).toBe(
      "cuda/kernel",
    );
  });
});

test("measured cards have their figures, others conservative ones that keep the order of the methods", () => {
  for (const name of ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"])
    expect(cudaProfileOf(name)).toBe(hopperCuda);
  for (const name of ["NVIDIA GeForce RTX 4090", "Tesla T4", "Stand-in 0"])
    expect(cudaProfileOf(name)).toBe(unknownCuda);
  expect(unknownCuda.hostToDevice).toBeLessThan(hopperCuda.hostToDevice);
  expect(unknownCuda.bulkDeviceToHost).toBeNull();
});
