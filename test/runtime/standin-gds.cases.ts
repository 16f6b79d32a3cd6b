// Run by standin.test.ts in a process of its own, with stand-ins for NIXL and for a driver of two GPUs: GPUDirect Storage is a
// method only where a round trip in this process has proven it, and what fails in it is never taken for success. No result
// here is about NIXL or a GPU.
import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import {
  Transport,
  type Explanation,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type OpenOptions,
  type TransferOptions,
} from "../../index.ts";
import { answer, native } from "../cuda/harness.ts";
import { refused } from "./helpers/refusal.ts";
import { failNext, OPTIONS, standin } from "./helpers/standin.ts";
import { freshWorker, until } from "./helpers/transports.ts";

const PLUGINS = join(dirname(process.env["KVFERRY_NIXL_LIBRARY"] ?? ""), "plugins");
const FOLDER = mkdtempSync(join(dirname(PLUGINS), "files-"));
process.env["KVFERRY_DISK_CACHE_DIR"] = join(FOLDER, "cache");
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

/** Blocks of 2 layers, K and V: 4 cells of 16 KiB. */
const CONFIG: LayoutConfig = { numBlocks: 8, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 512 };
const FROM = [0, 1, 2, 5];
const TO = [6, 3, 4, 0];

/** Which plugins lie beside the library. */
function plugins(...names: string[]): void {
  rmSync(PLUGINS, { recursive: true, force: true });
  mkdirSync(PLUGINS, { recursive: true });
  for (const name of names) writeFileSync(join(PLUGINS, `libplugin_${name}.so`), "");
}

beforeEach(() => plugins("UCX", "GDS", "GDS_MT"));
afterEach(() => {
  standin("reset");
  // Whatever happened, no file is left.
  expect(readdirSync(join(FOLDER, "cache"), { recursive: true })).toEqual([]);
});

const open = (options: Partial<OpenOptions> = {}): Promise<Transport> =>
  Transport.open({
    ...OPTIONS,
    cuda: {},
    capabilities: { gds: true },
    workerId: freshWorker(),
    ...options,
  });

function spec(kind: "device" | "disk", arrangement: "FC" | "LS" = "FC", memory: object = {}): LayoutSpec {
  return {
    config: CONFIG,
    arrangement: arrangement === "FC" ? "fully-contiguous" : "layer-separate/block-second",
    memory: { kind, ...memory } as LayoutSpec extends { memory: infer M } ? M : never,
  } as LayoutSpec;
}

interface Ends extends AsyncDisposable {
  readonly transport: Transport;
  readonly gpu: LocalLayout;
  readonly file: LocalLayout;
}

async function ends(options: Partial<OpenOptions> = {}, disk: object = {}): Promise<Ends> {
  const transport = await open(options);
  const gpu = await transport.register(spec("device"));
  const file = await transport.register(spec("disk", "FC", disk));
  await gpu.fill({ random: 1 });
  await file.fill({ random: 2 });
  return {
    transport,
    gpu,
    file,
    async [Symbol.asyncDispose]() {
      standin("reset");
      await transport.close();
    },
  };
}

/** How a transfer between the two would go. */
function plan(transport: Transport, source: LocalLayout, destination: LocalLayout): Explanation {
  return transport.explain({ source, destination, sourceBlocks: FROM, destinationBlocks: TO });
}

const methodOf = ({ legs }: Explanation): string | undefined => legs[0]?.hops[0]?.method;

/** Why GPUDirect Storage is not taken. */
function reasonOf({ legs }: Explanation): string {
  return legs[0]?.hops[0]?.candidates.find(({ method }) => method.startsWith("gds/"))?.reason ?? "";
}

const blocksOf = (layout: LocalLayout): Promise<Uint8Array<ArrayBuffer>[]> =>
  Promise.all(Array.from({ length: CONFIG.numBlocks }, (_unused, block) => layout.read(block)));

/** Moves blocks and compares all blocks of both sides with what they must hold. */
async function moved(
  transport: Transport,
  source: LocalLayout,
  destination: LocalLayout,
  options: TransferOptions = {},
): Promise<void> {
  const [from, wanted] = [await blocksOf(source), await blocksOf(destination)];
  FROM.forEach((block, index) => {
    wanted[TO[index] ?? 0] = from[block] ?? new Uint8Array(0);
  });
  await transport.transfer({ source, destination, sourceBlocks: FROM, destinationBlocks: TO, ...options });
  expect(await blocksOf(destination)).toEqual(wanted);
  expect(await blocksOf(source)).toEqual(from);
}

describe("without proof", () => {
  test("nobody asked: it is not tried, and explain says how to ask", async () => {
    const before = standin("calls create_backend");
    await using made = await ends({ capabilities: {} });
    const { transport, gpu, file } = made;
    expect(standin("calls create_backend")).toBe(before + 1);
    expect(methodOf(plan(transport, gpu, file))).toBe("staged/pipeline");
    expect(reasonOf(plan(transport, gpu, file))).toContain("`capabilities: { gds: true }`");
    expect(transport.dump()).toMatchObject({ gds: null, gdsProblem: null });
    await moved(transport, gpu, file);
    await moved(transport, file, gpu);
  });

  for (const [copy, words] of [
    [1, "(write): 1 of 1048576 bytes of the file differ"],
    [2, "(read): 1 of 1048576 bytes of device memory differ"],
  ] as const)
    test(`a wrong byte in copy ${copy} of the trial keeps it off, and is no error of open`, async () => {
      plugins("UCX", "GDS_MT");
      standin(`flip ${copy} 70000`);
      await using made = await ends();
      const { transport, gpu, file } = made;
      for (const [source, destination] of [
        [gpu, file],
        [file, gpu],
      ] as const) {
        const explained = plan(transport, source, destination);
        expect(methodOf(explained)).toBe("staged/pipeline");
        expect(reasonOf(explained)).toContain(`GDS_MT: the trial failed ${words}`);
        const posts = standin("calls post_xfer_req");
        await moved(transport, source, destination);
        expect(standin("calls post_xfer_req")).toBe(posts);
      }
      expect(transport.dump()).toMatchObject({ gds: null });
      expect(transport.dump().gdsProblem).toContain(words);
    });

  test("what stops the trial is told apart, and leaves nothing of NIXL behind", async () => {
    plugins("UCX", "GDS");
    const live = standin("live");
    for (const [fault, words] of [
      ["fail create_backend 2 -2", "GDS: the plugin does not come up: "],
      ["fail register_mem 1 -2", "GDS: the trial failed (memory): "],
      ["fail register_mem 2 -2", "GDS: the trial failed (memory): "],
      ["fail post_xfer_req 1 -2", "GDS: the trial failed (write): "],
      ["fail post_xfer_req 2 -2", "GDS: the trial failed (read): "],
      ["short 1 4096 -2", "GDS: the trial failed (write): "],
      ["short 1 4096 0", "bytes of the file differ"],
    ] as const) {
      standin(fault);
      const transport = await open();
      expect(transport.dump().gdsProblem).toContain(words);
      await transport.close();
      standin("reset");
    }
    expect(standin("live")).toBe(live);
  });

  test("without a plugin, a GPU or NIXL there is nothing to try", async () => {
    plugins("UCX", "POSIX");
    for (const [options, words] of [
      [{}, "no plugin for it beside"],
      [{ cuda: false }, "there is no GPU: "],
      [{ nixl: false }, "opened with nixl: false"],
    ] as const) {
      await using transport = await open(options);
      expect(transport.dump().gdsProblem).toContain(words);
    }
  });

  test("a trial that hangs ends with the deadline, and open goes on", async () => {
    plugins("UCX", "GDS");
    standin("block post_xfer_req");
    const transport = await open({ deadlineMs: 100 });
    expect(transport.dump().gdsProblem).toContain("did not end within 100 ms");
    const gpu = await transport.register(spec("device"));
    const file = await transport.register(spec("disk"));
    await moved(transport, gpu, file);
    standin("unblock post_xfer_req");
    expect((await transport.close()).layouts).toEqual([]);
  }, 20_000);

  test("the next plugin is tried where one fails", async () => {
    standin("flip 1 70000");
    await using made = await ends();
    expect(made.transport.dump()).toMatchObject({ gds: "GDS", gdsProblem: null });
    await moved(made.transport, made.gpu, made.file);
  });
});

describe("proven", () => {
  for (const from of ["FC", "LS"] as const)
    for (const to of ["FC", "LS"] as const)
      test(`${from} to ${to}, GPU memory to a file and back, in one hop`, async () => {
        await using transport = await open();
        expect(transport.dump()).toMatchObject({ gds: "GDS_MT", gdsProblem: null });
        for (const [one, other] of [
          ["device", "disk"],
          ["disk", "device"],
        ] as const) {
          const source = await transport.register(spec(one, from));
          const destination = await transport.register(spec(other, to));
          await source.fill({ random: 3 });
          await destination.fill({ random: 4 });
          const explained = plan(transport, source, destination);
          expect(methodOf(explained)).toBe(one === "device" ? "gds/write" : "gds/read");
          expect(explained.legs[0]?.hops).toHaveLength(1);
          const posts = standin("calls post_xfer_req");
          await moved(transport, source, destination);
          expect(standin("calls post_xfer_req")).toBeGreaterThan(posts);
          await moved(transport, source, destination, { checksum: true });
        }
      });

  test("layers arrive one after the other, and one layer alone leaves the others", async () => {
    await using made = await ends();
    const { transport, gpu, file } = made;
    const request = { source: file, destination: gpu, sourceBlocks: FROM, destinationBlocks: TO };
    const transfer = transport.transfer({ ...request, layerwise: true });
    const layers: number[] = [];
    for await (const layer of transfer.layers()) layers.push(layer);
    await transfer;
    expect(layers).toEqual([0, 1]);
    await gpu.fill({ random: 5 });
    const before = await blocksOf(gpu);
    const one = { ...request, layers: { start: 1, end: 2 } };
    expect(methodOf(transport.explain(one))).toBe("gds/read");
    await transport.transfer(one);
    const half = (CONFIG.pageSize * 512 * 2 * 2 * 2) / 2;
    for (const [index, block] of TO.entries()) {
      const found = await gpu.read(block);
      expect(found.subarray(0, half)).toEqual((before[block] as Uint8Array<ArrayBuffer>).subarray(0, half));
      expect(found.subarray(half)).toEqual((await file.read(FROM[index] ?? 0)).subarray(half));
    }
  });

  test("a second GPU is tried before its memory is used", async () => {
    await using made = await ends();
    const { transport, file } = made;
    standin("flip 1 70000");
    const far = await transport.register(spec("device", "FC", { device: 1 }));
    expect(methodOf(plan(transport, far, file))).toBe("staged/pipeline");
    expect(reasonOf(plan(transport, far, file))).toContain("device 1: the trial failed (write)");
    await far.fill({ random: 8 });
    await moved(transport, far, file);
    expect(methodOf(plan(transport, made.gpu, file))).toBe("gds/write");
    await using other = await open();
    const near = await other.register(spec("device", "FC", { device: 1 }));
    const own = await other.register(spec("disk"));
    await near.fill({ random: 9 });
    expect(methodOf(plan(other, near, own))).toBe("gds/write");
    await moved(other, near, own);
    await moved(other, own, near);
  });

  test("what NIXL refuses to know, and what does not fit, goes through host memory and says why", async () => {
    await using made = await ends();
    const { transport, gpu, file } = made;
    failNext("register_mem");
    const unknownGpu = await transport.register(spec("device"));
    failNext("register_mem");
    const unknownFile = await transport.register(spec("disk"));
    const odd: LayoutConfig = { ...CONFIG, pageSize: 1, innerDim: 24 };
    const oddGpu = await transport.register({ ...spec("device"), config: odd } as LayoutSpec);
    const oddFile = await transport.register({ ...spec("disk"), config: odd } as LayoutSpec);
    for (const [one, other, words] of [
      [unknownGpu, file, "the GPU memory is out of its reach: nixl_capi_register_mem answered -2"],
      [gpu, unknownFile, "the file is out of its reach: nixl_capi_register_mem answered -2"],
      [oddGpu, oddFile, "multiples of 4096 bytes"],
    ] as const) {
      await one.fill({ random: 11 });
      expect(reasonOf(plan(transport, one, other))).toContain(words);
      await moved(transport, one, other);
      await moved(transport, other, one);
    }
    const error = await refused(
      "NO_ROUTE",
      transport.transfer({
        source: oddGpu,
        destination: oddFile,
        sourceBlocks: [0],
        destinationBlocks: [0],
        method: "gds/write",
      }),
    );
    expect(error.message).toContain("4096");
  });

  test("a file of the caller is known by its own name, is kept, and holds what another reader finds", async () => {
    await using made = await ends();
    const path = join(FOLDER, "named");
    const named = await made.transport.register(spec("disk", "FC", { path }));
    await moved(made.transport, made.gpu, named);
    const wanted = await named.read(TO[0] ?? 0);
    await named.unregister();
    const bytes = readFileSync(path);
    const block = wanted.byteLength;
    expect(new Uint8Array(bytes.subarray((TO[0] ?? 0) * block, (TO[0] ?? 0) * block + block))).toEqual(
      wanted,
    );
    const again = await made.transport.register(spec("disk", "FC", { path, open: "existing" }));
    await moved(made.transport, again, made.gpu);
    expect(readdirSync(FOLDER).toSorted()).toEqual(
      expect.arrayContaining(["cache", "named", "named.kvferry"]),
    );
  });

  test("a file whose file system was not tried, or takes no such requests, goes through host memory and says why", async () => {
    const memory = mkdtempSync("/dev/shm/kvferry-gds-");
    const cache = process.env["KVFERRY_DISK_CACHE_DIR"];
    try {
      await using made = await ends({}, { path: join(memory, "file") });
      const { transport, gpu, file } = made;
      expect(reasonOf(plan(transport, gpu, file))).toContain("takes no requests past the page cache");
      await moved(transport, gpu, file);
      process.env["KVFERRY_DISK_CACHE_DIR"] = memory;
      await using other = await open();
      if (other.dump().gds === null) {
        console.error(`NOT TESTED, for it is not proven in memory: ${other.dump().gdsProblem}`);
        return;
      }
      const far = await other.register(spec("disk", "FC", { path: join(FOLDER, "far") }));
      const near = await other.register(spec("device"));
      await far.fill({ random: 12 });
      expect(reasonOf(plan(other, far, near))).toContain(`not on the file system of ${memory}`);
      await moved(other, far, near);
    } finally {
      process.env["KVFERRY_DISK_CACHE_DIR"] = cache;
      rmSync(memory, { recursive: true, force: true });
    }
  });

  test("NIXL forgets files and memory before they are given back", async () => {
    const live = standin("live");
    const transport = await open();
    for (const kind of ["device", "disk"] as const) {
      const before = standin("calls deregister_mem");
      // The stand-in ends the process for a file that is closed first.
      await (await transport.register(spec(kind))).unregister();
      expect(standin("calls deregister_mem")).toBe(before + 1);
    }
    await transport.register(spec("disk"));
    expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0, inDoubt: 0 });
    expect(standin("live")).toBe(live);
  });

  test("it waits for the caller's stream", async () => {
    await using made = await ends();
    const stream = answer((out) => native().kvf_cuda_test_stream(0, out));
    await moved(made.transport, made.gpu, made.file, { stream });
    native().kvf_cuda_test_stream_close(0, stream);
  });
});

describe("a transfer that fails", () => {
  for (const direction of ["write", "read"] as const)
    for (const [fault, word, settlement] of [
      ["fail create_xfer_req 1 -2", "NIXL", "never-started"],
      ["fail post_xfer_req 1 -2", "NIXL", "in-doubt"],
      ["short 1 4096 -2", "NIXL", "in-doubt"],
    ] as const)
      test(`in a ${direction} by ${fault.split(" ")[1]} (${fault}) is ${settlement} and names the file`, async () => {
        await using made = await ends({}, { path: join(FOLDER, "failing") });
        const { transport } = made;
        const [source, destination] = direction === "write" ? [made.gpu, made.file] : [made.file, made.gpu];
        const request = { source, destination, sourceBlocks: FROM, destinationBlocks: TO };
        expect(methodOf(transport.explain(request))).toBe(`gds/${direction}`);
        const before = await blocksOf(source);
        standin(fault);
        const transfer = transport.transfer(request);
        const error = await refused(word, transfer);
        expect(error.settlement).toBe(settlement);
        expect(error.message).toContain(join(FOLDER, "failing"));
        expect(await blocksOf(source)).toEqual(before);
        if (settlement === "never-started") {
          expect(destination.quarantinedBlocks()).toEqual([]);
          await moved(transport, source, destination);
          return;
        }
        expect(destination.quarantinedBlocks().map(({ block }) => block)).toEqual(TO);
        await refused("QUARANTINED", transport.transfer(request));
        await refused("IN_USE", destination.unregister());
        // Nothing else is held up.
        await transport.transfer({ ...request, destinationBlocks: [1, 2, 5, 7] });
        // An agent that is gone touches nothing.
        expect(await transport.close()).toMatchObject({ layouts: [], stuck: 0, inDoubt: 0 });
        expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "agent-closed" });
      });

  test("by a piece that NIXL calls complete and that is not is found by checksums, and marks the blocks", async () => {
    await using made = await ends();
    const { transport, gpu, file } = made;
    const request = {
      source: gpu,
      destination: file,
      sourceBlocks: FROM,
      destinationBlocks: TO,
      checksum: true,
    };
    standin("short 1 4096 0");
    const error = await refused("CHECKSUM", transport.transfer(request));
    expect(error.settlement).toBe("done");
    const back = { source: file, destination: gpu, sourceBlocks: [TO[3] ?? 0], destinationBlocks: [7] };
    expect(methodOf(transport.explain(back))).toBe("gds/read");
    const posts = standin("calls post_xfer_req");
    await refused("CHECKSUM", transport.transfer(back));
    expect(standin("calls post_xfer_req")).toBe(posts);
    await transport.transfer({ ...request, checksum: false });
    await moved(transport, gpu, file);
    await moved(transport, file, gpu);
  });

  test.each(["removed", "cut"] as const)("because the file was %s is refused by its name", async (how) => {
    const path = join(FOLDER, how);
    await using made = await ends({}, { path });
    if (how === "removed") rmSync(path);
    else truncateSync(path, 4096);
    const posts = standin("calls post_xfer_req");
    for (const [source, destination] of [
      [made.gpu, made.file],
      [made.file, made.gpu],
    ] as const) {
      const request = { source, destination, sourceBlocks: FROM, destinationBlocks: TO };
      expect(methodOf(made.transport.explain(request))).toStartWith("gds/");
      const error = await refused("IO", made.transport.transfer(request));
      expect(error.settlement).toBe("never-started");
      expect(error.message).toContain(`${path}: was ${how}`);
    }
    expect(standin("calls post_xfer_req")).toBe(posts);
  });

  test("because a byte on the disk has changed is refused before it reaches the GPU", async () => {
    const path = join(FOLDER, "checked");
    await using made = await ends({}, { path, checksums: true });
    const { transport, gpu, file } = made;
    await moved(transport, gpu, file);
    await moved(transport, file, gpu);
    const bytes = readFileSync(path);
    const at = FROM[1] ?? 0;
    bytes[at * (bytes.length / CONFIG.numBlocks) + 77] =
      (bytes[at * (bytes.length / CONFIG.numBlocks) + 77] ?? 0) ^ 1;
    writeFileSync(path, bytes);
    const before = await blocksOf(gpu);
    const request = { source: file, destination: gpu, sourceBlocks: FROM, destinationBlocks: TO };
    expect(methodOf(transport.explain(request))).toBe("gds/read");
    const error = await refused("CHECKSUM", transport.transfer(request));
    expect(error.details["blocks"]).toEqual([at]);
    expect(await blocksOf(gpu)).toEqual(before);
    // Written again it is good.
    await transport.transfer({ source: gpu, destination: file, sourceBlocks: [7], destinationBlocks: [at] });
    await moved(transport, file, gpu);
  });
});

describe("a transfer that hangs", () => {
  test("settles in doubt within its deadline and names the file; its late end frees the blocks", async () => {
    const path = join(FOLDER, "slow");
    await using made = await ends({}, { path });
    const { transport, gpu, file } = made;
    standin("block post_xfer_req");
    const request = { source: gpu, destination: file, sourceBlocks: FROM, destinationBlocks: TO };
    const transfer = transport.transfer({ ...request, deadlineMs: 50 });
    const error = await refused("TIMEOUT", transfer);
    expect(error.settlement).toBe("in-doubt");
    expect(error.message).toContain(path);
    expect(file.quarantinedBlocks().map(({ block }) => block)).toEqual(TO);
    await refused("QUARANTINED", file.write(TO[0] ?? 0, new Uint8Array(file.config.blockBytes)));
    standin("unblock post_xfer_req");
    expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
    expect(file.quarantinedBlocks()).toEqual([]);
    await moved(transport, gpu, file);
  });

  test("is cancelled for the caller's reason", async () => {
    await using made = await ends();
    const { transport, gpu, file } = made;
    standin("mode stuck");
    const posts = standin("calls post_xfer_req");
    const transfer = transport.transfer({
      source: file,
      destination: gpu,
      sourceBlocks: FROM,
      destinationBlocks: TO,
    });
    await until("it is posted", () => standin("calls post_xfer_req") > posts);
    const reason = new Error("enough");
    transfer.cancel(reason);
    expect(await transfer.catch((error: unknown) => error)).toBe(reason);
    expect(gpu.quarantinedBlocks()).toHaveLength(FROM.length);
    standin("mode inline");
    expect((await transfer.settled).proof).toBe("backend-ended");
    expect(gpu.quarantinedBlocks()).toEqual([]);
  });

  test("does not keep the transport from closing, which keeps what it may still touch", async () => {
    const { transport, gpu, file } = await ends();
    standin("block post_xfer_req");
    const blocked = standin("blocked post_xfer_req");
    const transfer = transport.transfer({
      source: gpu,
      destination: file,
      sourceBlocks: FROM,
      destinationBlocks: TO,
      deadlineMs: 60_000,
    });
    await until("the post hangs", () => standin("blocked post_xfer_req") > blocked);
    const report = await transport.close();
    expect(report.layouts.toSorted()).toEqual([gpu.name, file.name].toSorted());
    expect(report).toMatchObject({ inDoubt: 1 });
    expect(report.stuck).toBeGreaterThan(0);
    await refused("CLOSED", transfer);
    // The stand-in looks for the file by its descriptor when the copy comes late.
    standin("unblock post_xfer_req");
    await Bun.sleep(50);
  }, 30_000);
});
