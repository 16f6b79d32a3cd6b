import { describe, expect, test } from "bun:test";
import { chooseMethod, hostCopyMicros } from "../../lib/core/method.ts";
import type { Work } from "../../lib/core/work.ts";
import { explainPlan, formatExplanation } from "../../lib/core/explain.ts";
import type { LayoutRecord } from "../../lib/core/layout.ts";
import type { Hop, MethodCandidate } from "../../lib/core/plan.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import { rateAt } from "../../lib/core/profile.ts";
import type { PlanRequest } from "../../lib/core/request.ts";
import type { PlanEnvironment } from "../../lib/core/environment.ts";
import { findRoute } from "../../lib/core/route.ts";
import { HOST, HOST_AND_NIXL, type TestLayout, World } from "./planner-fixture.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function work(change: Partial<Work>): Work {
  return {
    executor: "host",
    op: "copy",
    bytes: MIB,
    descriptors: 1,
    sourceKind: 0,
    destinationKind: 0,
    ...change,
  };
}

describe("host copies", () => {
  test("short ones run on the caller's thread, long ones do not block it", () => {
    const short = chooseMethod(work({ bytes: 4 * KIB }), defaultProfile, HOST, undefined);
    expect(short).toMatchObject({ method: "host/plain", inline: true, width: 1 });
    expect(short.predictedMicros).toBeLessThan(defaultProfile.host.inlineLimitMicros);
    const long = chooseMethod(work({ bytes: 256 * MIB }), defaultProfile, HOST, undefined);
    expect(long).toMatchObject({ method: "host/nontemporal", inline: false, width: 2 });
  });

  test("many tiny rows are long even when they are few bytes", () => {
    const choice = chooseMethod(
      work({ bytes: 64 * KIB, descriptors: 64 * KIB }),
      defaultProfile,
      HOST,
      undefined,
    );
    expect(choice.inline).toBe(false);
    expect(choice.method).toBe("host/plain");
  });

  test("no more threads than the process may use", () => {
    const one = chooseMethod(work({ bytes: 256 * MIB }), defaultProfile, { executors: ["host"] }, undefined);
    expect(one.width).toBe(1);
    const many = chooseMethod(
      work({ bytes: 4096 * MIB, descriptors: 4096 }),
      defaultProfile,
      { ...HOST, processors: 64 },
      undefined,
    );
    expect(many.width).toBeGreaterThan(2);
    expect(many.width).toBeLessThanOrEqual(defaultProfile.host.threadScaling.length);
  });

  test("the prediction grows with bytes and with rows, and shrinks with threads", () => {
    const time = (bytes: number, rows: number, threads: number): number =>
      hostCopyMicros("nontemporal", bytes, rows, threads, defaultProfile);
    expect(time(64 * MIB, 64, 1)).toBeLessThan(time(128 * MIB, 128, 1));
    expect(time(64 * MIB, 64, 1)).toBeLessThan(time(64 * MIB, 16_384, 1));
    expect(time(64 * MIB, 64, 2)).toBeLessThan(time(64 * MIB, 64, 1));
    expect(time(0, 0, 1)).toBe(0);
  });

  test("every candidate has its time and a sentence; exactly one was taken, the fastest", () => {
    const choice = chooseMethod(
      work({ bytes: 64 * MIB, descriptors: 1000 }),
      defaultProfile,
      HOST,
      undefined,
    );
    const fastest = Math.min(...choice.candidates.map((candidate) => candidate.micros));
    expect(choice.predictedMicros).toBe(fastest);
    for (const candidate of choice.candidates) expect(candidate.reason).toMatch(/^[A-Z].*\.$/);
    expect(choice.candidates.map((candidate) => candidate.method)).toEqual([
      "host/plain",
      "host/nontemporal",
    ]);
  });

  test("a forced method is taken, an unknown one is refused with those that exist", () => {
    const forced = chooseMethod(work({ bytes: KIB }), defaultProfile, HOST, "host/nontemporal");
    expect(forced.method).toBe("host/nontemporal");
    expect(forced.candidates[1]?.reason).toContain("forces");
    try {
      chooseMethod(work({}), defaultProfile, HOST, "host/magic");
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({
        code: "ERR_KVF_NO_ROUTE",
        details: { method: "host/magic", methods: ["host/plain", "host/nontemporal"] },
      });
    }
  });
});

describe("other executors", () => {
  test("NIXL: descriptors cost, so merged ones are predicted faster", () => {
    const many = chooseMethod(
      work({ executor: "nixl", op: "write", descriptors: 10_000 }),
      defaultProfile,
      HOST,
      undefined,
    );
    const few = chooseMethod(
      work({ executor: "nixl", op: "write", descriptors: 10 }),
      defaultProfile,
      HOST,
      undefined,
    );
    expect(many).toMatchObject({ method: "nixl/write", inline: false });
    expect(many.width).toBeGreaterThan(few.width);
    expect(many.predictedMicros).toBeGreaterThan(few.predictedMicros * 10);
    const tcp = { ...HOST, nixlTransport: () => "tcp" };
    const read = chooseMethod(
      work({ executor: "nixl", op: "read", agent: "peer" }),
      defaultProfile,
      tcp,
      undefined,
    );
    const write = chooseMethod(
      work({ executor: "nixl", op: "write", agent: "peer" }),
      defaultProfile,
      tcp,
      undefined,
    );
    expect(read.method).toBe("nixl/read");
    expect(read.predictedMicros).toBeGreaterThan(write.predictedMicros);
    const unknown = chooseMethod(
      work({ executor: "nixl", op: "write", agent: "peer" }),
      defaultProfile,
      { ...HOST, nixlTransport: () => "pigeon" },
      undefined,
    );
    expect(unknown.predictedMicros).toBeLessThan(write.predictedMicros);
  });

  test.each([
    ["one large run", { bytes: 64 * MIB, descriptors: 1, destinationKind: 1 }, "cuda/dma"],
    ["small runs inward", { bytes: 64 * MIB, descriptors: 8192, destinationKind: 1 }, "cuda/kernel"],
    ["small runs outward", { bytes: 64 * MIB, descriptors: 8192, sourceKind: 1 }, "cuda/kernel"],
    [
      "small runs on the device",
      { bytes: 64 * MIB, descriptors: 8192, sourceKind: 1, destinationKind: 1 },
      "cuda/kernel",
    ],
  ] as const)("CUDA: %s", (_, change, method) => {
    const choice = chooseMethod(work({ executor: "cuda", ...change }), defaultProfile, HOST, undefined);
    expect(choice.method).toBe(method);
    expect(choice.candidates.length).toBeGreaterThanOrEqual(3);
  });

  test("files and bounce pools have one way each", () => {
    const file = chooseMethod(
      work({ executor: "file", destinationKind: 2 }),
      defaultProfile,
      HOST,
      undefined,
    );
    expect(file.method).toBe("file/direct");
    const staged = chooseMethod(work({ executor: "staged" }), defaultProfile, HOST, undefined);
    expect(staged.method).toBe("staged/pipeline");
  });
});

test("rates are measured at the ends and in between follow the size", () => {
  const points = [
    { bytes: 100, gigabytesPerSecond: 1 },
    { bytes: 10_000, gigabytesPerSecond: 3 },
  ];
  expect(rateAt(points, 1)).toBe(1);
  expect(rateAt(points, 1000)).toBeCloseTo(2, 10);
  expect(rateAt(points, 1e9)).toBe(3);
  expect(rateAt([], 5)).toBe(1);
});

describe("the route table names the way or what is missing", () => {
  const system: TestLayout = {};
  const device: TestLayout = { storage: { kind: "device", device: 1 } };
  const pinned: TestLayout = { storage: { kind: "pinned" } };
  const file: TestLayout = { storage: { kind: "disk" }, reach: "file" };
  const peer: TestLayout = { reach: "nixl" };
  const peerDevice: TestLayout = { reach: "nixl", storage: { kind: "device", device: 0 } };
  const staged: TestLayout = { reach: "staged", storage: { kind: "disk" } };
  const neighbour: TestLayout = { reach: "mapped" };
  const everything: PlanEnvironment = {
    executors: ["host", "nixl", "cuda", "file", "staged"],
    gpuRdma: true,
    processors: 2,
  };

  function route(
    from: TestLayout,
    to: TestLayout,
    environment: PlanEnvironment,
  ): ReturnType<typeof findRoute> {
    const world = new World();
    const source = world.add(from).components[0];
    const destination = world.add(to).components[0];
    if (source === undefined || destination === undefined) throw new Error("no component");
    return findRoute(source, destination, environment);
  }

  test.each([
    ["system -> system", system, system, "host", "copy"],
    ["pinned -> system", pinned, system, "host", "copy"],
    ["system (neighbour) -> system", neighbour, system, "host", "copy"],
    ["system (neighbour) -> system (neighbour)", neighbour, neighbour, "host", "copy"],
    ["device -> pinned", device, pinned, "cuda", "copy"],
    ["system -> device", system, device, "cuda", "copy"],
    ["device -> device", device, device, "cuda", "copy"],
    ["system -> system (remote)", system, peer, "nixl", "write"],
    ["system (remote) -> pinned", peer, pinned, "nixl", "read"],
    ["device -> system (remote)", device, peer, "nixl", "write"],
    ["device (remote) -> device", peerDevice, device, "nixl", "read"],
    ["system -> disk", system, file, "file", "copy"],
    ["disk -> pinned", file, pinned, "file", "copy"],
    ["device -> disk", device, file, "staged", "copy"],
    ["disk -> device", file, device, "staged", "copy"],
    ["disk -> disk", file, file, "staged", "copy"],
    ["disk -> system (remote)", file, peer, "staged", "write"],
    ["system (remote) -> disk", peer, file, "staged", "read"],
    ["system -> disk (remote)", system, staged, "staged", "write"],
    ["disk (remote) -> device", staged, device, "staged", "read"],
    ["disk -> disk (remote)", file, staged, "staged", "write"],
    ["device (remote) -> disk", peerDevice, file, "staged", "read"],
  ] as const)("%s", (key, from, to, executor, op) => {
    const found = route(from, to, everything);
    expect(found).toMatchObject({ key, executor, op, agent: key.includes("remote") ? "peer" : null });
    expect(found.assisted).toBe(executor === "staged" && /(disk|device) .remote/.test(key));
    expect(found.reason).toMatch(/\.$/);
  });

  test.each([
    ["both sides remote", peer, peer, everything, "NO_ROUTE"],
    ["NIXL missing", system, peer, HOST, "NO_NIXL"],
    ["CUDA missing", device, system, HOST, "NO_CUDA"],
    ["files missing", system, file, HOST, "NO_ROUTE"],
    ["no bounce pool", device, file, HOST, "NO_ROUTE"],
    ["a peer's GPU without RDMA", system, peerDevice, HOST_AND_NIXL, "NO_ROUTE"],
    ["a peer's disk without NIXL", system, staged, { executors: ["host", "staged"] }, "NO_NIXL"],
    ["a file to a peer without a bounce pool", file, peer, HOST_AND_NIXL, "NO_ROUTE"],
    ["not even a host executor", system, system, { executors: [] }, "NO_ROUTE"],
  ] as const)("%s", (_, from, to, environment, word) => {
    try {
      route(from, to, environment);
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({ code: `ERR_KVF_${word}`, settlement: "never-started" });
      expect((error as { remedy: string }).remedy).toMatch(/\.$/);
      expect((error as { details: { route: string } }).details.route).toContain("->");
    }
  });

  test("the caller's own reason for a missing executor is passed on", () => {
    const missing = { nixl: { reason: "libnixl_capi.so was not found", remedy: "Install it." } };
    expect(() => route(system, peer, { ...HOST, missing })).toThrow("libnixl_capi.so was not found");
  });

  test("faster ways that were not taken are named", () => {
    expect(route(system, peer, HOST_AND_NIXL).passedOver[0]?.route).toBe("neighbour");
    expect(route(system, system, { ...HOST_AND_NIXL, prefer: "nixl" }).passedOver[0]?.route).toBe("nixl");
    expect(route(system, system, HOST).passedOver).toEqual([]);
  });

  test("components that go different ways are hops of their own", () => {
    const world = new World();
    const from = world.add({ components: { kv: {}, idx: {} } });
    const to = world.add({ components: { kv: {}, idx: { reach: "nixl" } } });
    const request = {
      source: from.handle,
      destination: to.handle,
      sourceBlocks: [1],
      destinationBlocks: [2],
    };
    const plan = world.plan(request, HOST_AND_NIXL);
    expect(plan.route).toBe("system -> system, system -> system (remote)");
    expect(plan.legs[0]?.hops.map((hop) => [hop.executor, hop.bytes])).toEqual([
      ["host", 512],
      ["nixl", 512],
    ]);
  });

  test("many small descriptors of GPU memory go gathered to a peer that helps, few large ones by themselves", () => {
    const world = new World();
    const config = {
      numBlocks: 4096,
      numLayers: 1,
      outerDim: 1,
      pageSize: 1,
      numHeads: 1,
      headDim: 256,
    } as const;
    const from = world.add({ ...device, config });
    const to = world.add({ ...peerDevice, config });
    const scattered = Array.from({ length: 2000 }, (_unused, index) => (index * 7) % 4096);
    const run = Array.from({ length: 2000 }, (_unused, index) => index);
    const hop = (blocks: number[], environment: PlanEnvironment, method?: string): unknown => {
      const plan = world.plan(
        {
          source: from.handle,
          destination: to.handle,
          sourceBlocks: blocks,
          destinationBlocks: blocks,
          ...(method === undefined ? {} : { method }),
        },
        environment,
      );
      const found = plan.legs[0]?.hops[0];
      return [found?.executor, found?.method, found?.components?.length];
    };
    const helping: PlanEnvironment = { ...everything, assists: (agent) => agent === "peer" };
    expect(hop(scattered, helping)).toEqual(["staged", "staged/slab", 1]);
    expect(hop(run, helping)).toEqual(["nixl", "nixl/write", undefined]);
    expect(hop(scattered, everything)).toEqual(["nixl", "nixl/write", undefined]);
    expect(hop(scattered, { ...helping, assists: () => false })).toEqual(["nixl", "nixl/write", undefined]);
    expect(hop(run, helping, "staged/slab")).toEqual(["staged", "staged/slab", 1]);
    expect(hop(scattered, helping, "nixl/write")).toEqual(["nixl", "nixl/write", undefined]);
    // Over staging memory on both GPUs it costs less, and explain says which it is.
    const slab = (environment: PlanEnvironment) =>
      world
        .plan(
          {
            source: from.handle,
            destination: to.handle,
            sourceBlocks: scattered,
            destinationBlocks: scattered,
          },
          environment,
        )
        .legs[0]?.hops[0]?.candidates.find(({ method }) => method === "staged/slab");
    const onGpus = slab({ ...helping, deviceSlabs: (agent) => agent === "peer" });
    const throughHosts = slab({ ...helping, deviceSlabs: () => false });
    expect(onGpus?.micros).toBeLessThan(throughHosts?.micros ?? 0);
    expect(onGpus?.reason).toContain("memory of the GPUs at both ends");
    expect(throughHosts?.reason).toContain("through host memory");
  });

  test.each([
    [256, 4000, "cma", "staged/slab"],
    [256, 100, "cma", "nixl/write"],
    [2048, 4000, "cma", "staged/slab"],
    [16_384, 1000, "cma", "nixl/write"],
    [16_384, 1000, "tcp", "staged/slab"],
    [256, 4000, "rdma", "nixl/write"],
    [1_048_576, 100, "tcp", "nixl/write"],
  ] as const)(
    "host memory to host memory of a peer: pieces of %d bytes, %d of them, over %s go by %s",
    (bytes, count, transport, method) => {
      const world = new World();
      const config = {
        numBlocks: 8192,
        numLayers: 1,
        outerDim: 1,
        pageSize: 1,
        numHeads: 1,
        headDim: bytes / 2,
      } as const;
      const from = world.add({ config });
      const to = world.add({ config, reach: "nixl" });
      const blocks = Array.from({ length: count }, (_unused, index) => (index * 7) % 8192);
      const plan = world.plan(
        { source: from.handle, destination: to.handle, sourceBlocks: blocks, destinationBlocks: blocks },
        { ...everything, assists: () => true, nixlTransport: () => transport },
      );
      const [hop] = plan.legs[0]?.hops ?? [];
      expect(hop?.method).toBe(method);
      const times = new Map(hop?.candidates.map((candidate) => [candidate.method, candidate.micros]));
      expect([...times.keys()].toSorted()).toEqual(["nixl/write", "staged/slab"]);
      expect(times.get(method)).toBe(Math.min(...times.values()));
      for (const { reason } of hop?.candidates ?? []) expect(reason).toMatch(/\.$/);
    },
  );

  test.each([
    ["read", "tcp", true, true],
    ["read", "tcp", false, false],
    ["read", "cma", true, false],
    ["read", "rdma", true, false],
    ["write", "tcp", true, false],
  ] as const)(
    "between GPU memory here and host memory of a peer a %s over %s, where it helps: %p, goes with its help: %p",
    (op, transport, assists, helped) => {
      const world = new World();
      const gpu = world.add({ ...device });
      const host = world.add({ reach: "nixl" });
      const [source, destination] = op === "read" ? [host, gpu] : [gpu, host];
      const plan = world.plan(
        { source: source.handle, destination: destination.handle, sourceBlocks: [1], destinationBlocks: [2] },
        { ...everything, gpuRdma: false, assists: () => assists, nixlTransport: () => transport },
      );
      const [hop] = plan.legs[0]?.hops ?? [];
      expect([hop?.executor, hop?.op, hop?.agent]).toEqual(["staged", op, "peer"]);
      expect(hop?.components).toEqual(helped ? ["kv"] : undefined);
    },
  );

  describe("GPU memory and files: GPUDirect Storage", () => {
    const config = {
      numBlocks: 8,
      numLayers: 2,
      outerDim: 2,
      pageSize: 16,
      numHeads: 8,
      headDim: 128,
    } as const;
    /** The candidates of both directions by method. */
    const ways = (
      memory: TestLayout,
      gds: PlanEnvironment["gds"],
      method?: string,
      blocks: readonly number[] = [1, 2],
    ): { readonly hop: Hop | undefined; readonly tried: Map<string, MethodCandidate> }[] => {
      const world = new World();
      const gpu = world.add({ ...device, ...memory });
      const file = world.add({ ...memory, storage: { kind: "disk" }, reach: "file", at: [0] });
      return [
        [gpu, file],
        [file, gpu],
      ].map(([source, destination]) => {
        const plan = world.plan(
          {
            source: (source as LayoutRecord).handle,
            destination: (destination as LayoutRecord).handle,
            sourceBlocks: blocks,
            destinationBlocks: blocks,
            ...(method === undefined ? undefined : { method }),
          },
          { ...everything, ...(gds === undefined ? undefined : { gds }) },
        );
        const hop = plan.legs[0]?.hops[0];
        return {
          hop,
          tried: new Map(hop?.candidates.map((candidate) => [candidate.method, candidate])),
        };
      });
    };
    const aligned: TestLayout = { config, at: [1 << 20] };

    test("that nobody asked for, or that cannot serve these layouts, is a candidate that says so", () => {
      for (const [gds, reason] of [
        [undefined, "`capabilities: { gds: true }`"],
        [(): string => "The plugin is out of order.", "The plugin is out of order."],
      ] as const)
        for (const [index, { hop, tried }] of ways(aligned, gds).entries()) {
          expect(hop).toMatchObject({ method: "staged/pipeline", executor: "staged", op: "copy" });
          const candidate = tried.get(index === 0 ? "gds/write" : "gds/read");
          expect(candidate?.micros).toBe(Number.POSITIVE_INFINITY);
          expect(candidate?.reason).toContain(reason);
        }
    });

    test("that cannot run is no time in the words of explain", () => {
      const world = new World();
      const gpu = world.add({ ...device, ...aligned });
      const file = world.add({ ...aligned, storage: { kind: "disk" }, reach: "file", at: [0] });
      const blocks = { sourceBlocks: [1], destinationBlocks: [2] };
      const plan = world.plan({ source: gpu.handle, destination: file.handle, ...blocks }, everything);
      expect(formatExplanation(explainPlan(plan))).toContain(
        "- gds/write: cannot run. GPUDirect Storage is off",
      );
    });

    test("that can serve one component of two takes that one, and the other goes its own way", () => {
      const world = new World();
      const component = { config, storage: { kind: "device", device: 1 } } as const;
      const stored = { config, storage: { kind: "disk" }, reach: "file" } as const;
      const gpu = world.add({
        components: { kv: { ...component, at: [1 << 20] }, other: { ...component, at: [1 << 21] } },
      });
      const file = world.add({
        components: { kv: { ...stored, at: [0] }, other: { ...stored, at: [1 << 20] } },
      });
      const { legs } = world.plan(
        { source: gpu.handle, destination: file.handle, sourceBlocks: [1, 2], destinationBlocks: [2, 1] },
        { ...everything, gds: ({ shape }) => (shape.name === "kv" ? null : "Not this one.") },
      );
      expect(legs[0]?.hops.map((hop) => [hop.method, hop.programs[0]?.srcBase[0]])).toEqual([
        ["gds/write", 1 << 20],
        ["staged/pipeline", 1 << 21],
      ]);
    });

    test("that is proven is asked for these two layouts, and moves blocks in one hop", () => {
      const asked: unknown[] = [];
      const found = ways(aligned, (memory, file) => {
        asked.push([memory.storage.kind, file.storage.kind]);
        return null;
      });
      expect(asked).toEqual([
        ["device", "disk"],
        ["device", "disk"],
      ]);
      expect(found.map(({ hop }) => [hop?.method, hop?.executor, hop?.op, hop?.agent])).toEqual([
        ["gds/write", "gds", "write", null],
        ["gds/read", "gds", "read", null],
      ]);
      for (const { hop, tried } of found) {
        expect(hop?.programs[0]?.srcMemory.kind).toBe(hop?.op === "write" ? 1 : 2);
        expect(tried.get("staged/pipeline")?.reason).toMatch(/\.$/);
        expect(hop?.predictedMicros).toBeLessThan(tried.get("staged/pipeline")?.micros ?? 0);
      }
    });

    test.each([
      ["GPU memory", { config, at: [(1 << 20) + 512] }],
      ["rows", { config: { ...config, pageSize: 1, numHeads: 1, headDim: 1 }, at: [1 << 20] }],
      ["blocks", { config: { ...config, outerDim: 1, numLayers: 1, pageSize: 3 }, at: [1 << 20] }],
    ] as const)("takes no %s that are not whole pages", (_what, memory) => {
      for (const [index, { hop, tried }] of ways(memory, () => null).entries()) {
        expect(hop?.method).toBe("staged/pipeline");
        expect(tried.get(index === 0 ? "gds/write" : "gds/read")?.reason).toContain("4096");
      }
      expect(() => ways(memory, () => null, "gds/write")).toThrow(/gds\/write.*4096/);
    });

    test("is passed over for many small pieces, and taken all the same where a request forces it", () => {
      const small: TestLayout = {
        config: { ...config, numBlocks: 4096, numLayers: 1, outerDim: 1, pageSize: 2 },
        at: [1 << 20],
      };
      const blocks = Array.from({ length: 1024 }, (_unused, index) => index * 3);
      const [written] = ways(small, () => null, undefined, blocks);
      expect(written?.hop?.method).toBe("staged/pipeline");
      expect(written?.tried.get("gds/write")?.micros).toBeLessThan(Number.POSITIVE_INFINITY);
      const [forced] = ways({ ...small }, () => null, "staged/pipeline", blocks);
      expect(forced?.hop?.method).toBe("staged/pipeline");
    });
  });

  test("programs carry the kind and number of each side's memory", () => {
    const world = new World();
    const from = world.add(device);
    const request = (to: TestLayout): PlanRequest => ({
      source: from.handle,
      destination: world.add(to).handle,
      sourceBlocks: [1],
      destinationBlocks: [2],
    });
    const kinds = (to: TestLayout): unknown => {
      const [program] = world.plan(request(to), everything).legs[0]?.hops[0]?.programs ?? [];
      return [program?.srcMemory, program?.dstMemory];
    };
    expect(kinds(pinned)).toEqual([
      { kind: 1, device: 1 },
      { kind: 0, device: 0 },
    ]);
    expect(kinds(peerDevice)).toEqual([
      { kind: 1, device: 1 },
      { kind: 1, device: 0 },
    ]);
    expect(kinds(file)).toEqual([
      { kind: 1, device: 1 },
      { kind: 2, device: 7 },
    ]);
  });
});

describe("explain is a view of the plan that would run", () => {
  test("the numbers are the plan's, and survive JSON", () => {
    const world = new World();
    const from = world.add({ arrangement: "layer-separate/block-first", fingerprint: "x" });
    const to = world.add({ order: "hnd" });
    const plan = world.plan({
      source: from.handle,
      destination: to.handle,
      sourceBlocks: [0, 1, 2, 6],
      destinationBlocks: [1, 2, 3, 0],
      layerwise: true,
    });
    const explanation = explainPlan(plan);
    const [hop] = plan.legs[0]?.hops ?? [];
    expect(explanation).toMatchObject({
      route: plan.route,
      bytes: plan.bytes,
      coverage: 1,
      predictedMicros: plan.predictedMicros,
      descriptorsBefore: hop?.descriptorsBefore,
      descriptorsAfter: hop?.descriptorsAfter,
    });
    expect(explanation.legs[0]?.hops[0]?.candidates).toEqual(hop?.candidates ?? []);
    expect(explanation.legs[0]?.hops[0]?.programs[0]).toMatchObject({
      bases: 1,
      pairs: 2,
      blocks: 4,
      rowBytes: 8,
      layers: { start: 0, end: 1 },
    });
    expect(JSON.parse(JSON.stringify(explanation))).toEqual(explanation);
  });

  test("who asked may change the list of methods: whoever asks next gets the plan's", () => {
    const world = new World();
    const request = {
      source: world.add().handle,
      destination: world.add().handle,
      sourceBlocks: [0],
      destinationBlocks: [1],
    };
    const asked = (): MethodCandidate[] =>
      explainPlan(world.plan(request)).legs[0]?.hops[0]?.candidates as MethodCandidate[]; // as JavaScript may
    const wanted = structuredClone(asked());
    expect(wanted.length).toBeGreaterThan(1);
    const mine = asked();
    mine.reverse();
    Object.assign(mine[0] ?? {}, { micros: -1 });
    expect(asked()).toEqual(wanted);
  });

  test("the text names route, method, descriptors, candidates, warnings", () => {
    const world = new World();
    const from = world.add({ fingerprint: "x" });
    const to = world.add({ reach: "nixl", config: { layers: [0, 1, 3], numLayers: 3 } });
    const request = {
      source: from.handle,
      destination: to.handle,
      sourceBlocks: [0, 5],
      destinationBlocks: [1, 3],
    };
    const text = formatExplanation(explainPlan(world.plan(request, HOST_AND_NIXL)));
    for (const part of [
      "system -> system (remote): 768 B in ",
      "descriptors: 12 before merging, 6 after",
      "write by nixl/write, width 1, peer peer",
      "* nixl/write",
      "passed over neighbour",
      "warning: Only the source has a fingerprint",
    ])
      expect(text).toContain(part);
    const steps = formatExplanation(
      explainPlan(world.plan({ ...request, destination: from.handle, layerwise: true })),
    );
    expect(steps).toContain("layers complete in the order 0, 1, 2, 3");
    expect(steps).toContain("completes layers 3 to 3");
    expect(steps).toContain("on the caller's thread");
  });

  test("sizes and times of every magnitude, and long lists of programs cut short", () => {
    const world = new World();
    const config = { numLayers: 12, numBlocks: 100_000, pageSize: 256, numHeads: 32, headDim: 128 };
    const from = world.add({ config, arrangement: "layer-separate/block-first" });
    const to = world.add({ config });
    const ids = Uint32Array.from({ length: 5000 }, (_, index) => index * 3);
    const request = {
      source: from.handle,
      destination: to.handle,
      sourceBlocks: ids,
      destinationBlocks: ids,
      layerwise: true,
    } as const;
    const text = formatExplanation(explainPlan(world.plan(request)));
    expect(text).toMatch(/GiB in \d+\.\d\d s/);
    expect(text).toContain("and 4 more programs");
    expect(text).toContain("MiB");
    const some = { ...request, sourceBlocks: [1], destinationBlocks: [2] };
    expect(formatExplanation(explainPlan(world.plan(some)))).toMatch(/MiB in \d+\.\d\d ms/);
  });
});
