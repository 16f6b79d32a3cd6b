// Memory that lies in several files: for its owner and for neighbours it is one run of addresses with one content, and it
// comes and goes as a whole.
import { describe, expect, test } from "bun:test";
import type { LayoutConfig, LayoutSpec, LocalLayout, Transport } from "../../index.ts";
import { FILE_CUT, ONE_FILE, type FileCut } from "../../lib/runtime/neighbour-memory.ts";
import { FILE_BYTES, openInFiles, SMALL_FILES } from "./helpers/in-files.ts";
import {
  type ListedMapping,
  listedMappings,
  NeighbourProcess,
  openDescriptors,
} from "./helpers/neighbour-process.ts";
import { refused } from "./helpers/refusal.ts";
import { freshWorker, nixlTest, openLocal, systemSpec, until } from "./helpers/transports.ts";

const MILLIS = 60_000;

/** Blocks of 300,000 bytes, which no file's end falls between: 11.7 MiB in all. */
const ODD: LayoutConfig = { numBlocks: 41, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 150_000 };
/** Four regions of 3.1 MB, which begin and end within files. */
const LAYERS: LayoutConfig = { numBlocks: 31, numLayers: 4, outerDim: 2, pageSize: 1, innerDim: 25_000 };
/** Bytes of a file, by the rule: 12.3 MB are five times the least, of which a fifth takes two huge pages. */
const STEP = 2 * FILE_BYTES;
const BOUNDARIES = [STEP, 2 * STEP];

const ALL = Array.from({ length: ODD.numBlocks }, (_unused, index) => index);

function openNear(cut: FileCut = SMALL_FILES): Promise<Transport> {
  return openInFiles({ workerId: freshWorker(), nixl: false, cuda: false }, cut);
}

/** The mappings of one layout: those that begin in its addresses. */
function mappingsOf(layout: LocalLayout): ListedMapping[] {
  const [{ address: low } = { address: 0 }] = layout.regions;
  const { address, size } = layout.regions.at(-1) ?? { address: 0, size: 0 };
  return listedMappings("self").filter(({ start }) => start >= low && start < address + size);
}

/** Mappings here or there of files that are mapped here. */
function sharedWith(pid: number, own: readonly ListedMapping[]): ListedMapping[] {
  return listedMappings(pid).filter(({ inode }) => own.some((mapping) => mapping.inode === inode));
}

function expectOneRun(mappings: readonly ListedMapping[], bytes: readonly number[]): void {
  expect(mappings.map((mapping) => mapping.bytes)).toEqual([...bytes]);
  for (const [index, { start }] of mappings.entries())
    expect(start - (mappings[0]?.start ?? 0)).toBe(
      bytes.slice(0, index).reduce((sum, each) => sum + each, 0),
    );
}

describe("between two processes", () => {
  test(
    "the files follow each other at both ends, and blocks across their ends arrive whole, both ways",
    async () => {
      await using here = await openNear();
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {}, cut: SMALL_FILES });
      const pool = await here.register(systemSpec("pool", ODD));
      const files = mappingsOf(pool);
      const last = ODD.numBlocks * 300_000 - 2 * STEP;
      const sizes = [STEP, STEP, Math.ceil(last / 4096) * 4096];
      expectOneRun(files, sizes);
      await far.call({ do: "register", specs: [systemSpec("own", ODD)] });
      expect(await far.call({ do: "import", bytes: await here.exportMetadata() })).toEqual({
        pool: "neighbour",
      });
      expectOneRun(sharedWith(far.pid, files), sizes);

      await far.call({ do: "fill", layout: "own", seed: 11 });
      await far.call({ do: "transfer", move: { own: "own", peers: "pool", direction: "push", ids: ALL } });
      expect(await pool.checksums(ALL)).toEqual(
        await far.call<string[]>({ do: "sums", layout: "own", blocks: ALL }),
      );
      await pool.fill({ random: 12 });
      await far.call({ do: "transfer", move: { own: "own", peers: "pool", direction: "pull", ids: ALL } });
      expect(await far.call<string[]>({ do: "sums", layout: "own", blocks: ALL })).toEqual(
        await pool.checksums(ALL),
      );
    },
    MILLIS,
  );

  test(
    "a layout for reading is mapped for reading only, every file of it",
    async () => {
      await using here = await openNear();
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {}, cut: SMALL_FILES });
      await far.call({ do: "register", specs: [systemSpec("own", ODD)] });
      const shown = await here.register(systemSpec("shown", ODD, { access: "read" }));
      await shown.fill({ random: 3 });
      await far.call({ do: "import", bytes: await here.exportMetadata() });
      const files = mappingsOf(shown);
      expect(files.map(({ rights }) => rights)).toEqual(["rw-s", "rw-s", "rw-s"]);
      expect(sharedWith(far.pid, files).map(({ rights }) => rights)).toEqual(["r--s", "r--s", "r--s"]);
      await far.call({ do: "transfer", move: { own: "own", peers: "shown", direction: "pull", ids: ALL } });
      expect(await far.call<string[]>({ do: "sums", layout: "own", blocks: ALL })).toEqual(
        await shown.checksums(ALL),
      );
    },
    MILLIS,
  );

  test(
    "taken back, all files go at both ends, and so do their descriptors",
    async () => {
      await using here = await openNear();
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("own", ODD)] });
      const kept = await here.register(systemSpec("kept"));
      await far.call({ do: "import", bytes: await here.exportMetadata({ layouts: [kept] }) });
      const before = {
        here: listedMappings("self").length,
        there: listedMappings(far.pid).length,
        descriptors: openDescriptors("self"),
        far: openDescriptors(far.pid),
      };
      for (let round = 0; round < 3; round++) {
        const pool = await here.register(systemSpec("pool", ODD));
        const files = mappingsOf(pool);
        expect(files).toHaveLength(3);
        await far.call({ do: "update", bytes: await here.exportMetadata() });
        expect(sharedWith(far.pid, files)).toHaveLength(3);
        expect(openDescriptors("self")).toBe(before.descriptors + 3);
        await far.call({ do: "storm", move: { own: "own", peers: "pool", direction: "push", ids: ALL } });
        await pool.unregister({ wait: true });
        expect(sharedWith(far.pid, files)).toEqual([]);
        expect(listedMappings("self")).toHaveLength(before.here);
        expect(listedMappings(far.pid)).toHaveLength(before.there);
        expect(openDescriptors("self")).toBe(before.descriptors);
        expect(openDescriptors(far.pid)).toBe(before.far);
      }
    },
    MILLIS,
  );

  test(
    "an owner that is killed leaves no mapping and no descriptor at its neighbour",
    async () => {
      await using here = await openNear();
      const own = await here.register(systemSpec("own", ODD));
      const before = { mappings: listedMappings("self").length, descriptors: openDescriptors("self") };
      let more = Number.POSITIVE_INFINITY;
      for (let round = 0; round < 3; round++) {
        await using far = new NeighbourProcess();
        await far.call({ do: "open", options: {}, cut: SMALL_FILES });
        await far.call({ do: "register", specs: [systemSpec("pool", ODD)] });
        const peer = await here.importMetadata(await far.call<Uint8Array>({ do: "export" }));
        expect(listedMappings("self")).toHaveLength(before.mappings + 3);
        const running = [0, 1, 2].map(() =>
          here.transfer({
            source: own,
            destination: peer.layout("pool"),
            sourceBlocks: ALL,
            destinationBlocks: ALL,
          }),
        );
        await far.kill();
        await peer.lost;
        for (const transfer of running) {
          await transfer.catch(() => undefined);
          expect(["completed", "backend-ended", "never-started"]).toContain((await transfer.settled).proof);
        }
        await until("the mappings are gone", () => listedMappings("self").length === before.mappings);
        // The first meeting opens what all later ones use.
        await until(
          "descriptors are closed",
          () => openDescriptors("self") <= Math.min(before.descriptors + 3, more),
        );
        more = openDescriptors("self");
      }
    },
    MILLIS,
  );

  test(
    "a frozen neighbour keeps all files allocated; killed, it gives them all back",
    async () => {
      await using here = await openNear();
      const pool = await here.register(systemSpec("pool", ODD));
      await pool.fill({ random: 5 });
      const sums = await pool.checksums(ALL);
      const files = mappingsOf(pool);
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "import", bytes: await here.exportMetadata() });
      far.signal("SIGSTOP");
      await refused("IN_USE", pool.unregister());
      expect(await pool.checksums(ALL)).toEqual(sums);
      expect(mappingsOf(pool)).toEqual(files);
      const last = pool.unregister({ wait: true });
      far.signal("SIGKILL");
      await last;
      const left = listedMappings("self").filter(({ inode }) => files.some((file) => file.inode === inode));
      expect(left).toEqual([]);
    },
    MILLIS,
  );
});

describe("byte by byte", () => {
  for (const push of [true, false])
    test(`what stands on both sides of a file's end arrives there, ${push ? "pushed" : "pulled"}`, async () => {
      await using a = await openNear();
      await using b = await openNear();
      const own = await a.register(systemSpec("own", ODD));
      const theirs = await b.register(systemSpec("theirs", ODD));
      const remote = (await a.importMetadata(await b.exportMetadata())).layout("theirs");
      expect(remote.distance).toBe("neighbour");
      const [from, to] = push ? [own, theirs] : [theirs, own];
      for (const [index, at] of BOUNDARIES.entries()) {
        const source = from.view(0, { offset: at - 4, length: 8 });
        source.set([1, 2, 3, 4, 5, 6, 7, 8].map((byte) => byte + 16 * (index + 1)));
      }
      await a.transfer({
        source: push ? own : remote,
        destination: push ? remote : own,
        // The blocks that lie across the ends, and nothing else.
        sourceBlocks: BOUNDARIES.map((at) => Math.floor(at / 300_000)),
        destinationBlocks: BOUNDARIES.map((at) => Math.floor(at / 300_000)),
      });
      for (const [index, at] of BOUNDARIES.entries()) {
        const found = to.view(0, { offset: at - 5, length: 10 });
        expect([...found]).toEqual([
          0,
          ...[1, 2, 3, 4, 5, 6, 7, 8].map((byte) => byte + 16 * (index + 1)),
          0,
        ]);
      }
    });

  test("regions that begin and end within files, and memory in one file at the other end, hold the same blocks", async () => {
    for (const cut of [SMALL_FILES, ONE_FILE]) {
      await using a = await openNear();
      await using b = await openNear(cut);
      const spec = {
        ...systemSpec("layers", LAYERS),
        arrangement: "layer-separate/block-second",
      } as LayoutSpec;
      const own = await a.register(systemSpec("own", LAYERS));
      const theirs = await b.register(spec);
      expect(mappingsOf(theirs)).toHaveLength(cut === ONE_FILE ? 1 : 3);
      const remote = (await a.importMetadata(await b.exportMetadata())).layout("layers");
      expect(remote.distance).toBe("neighbour");
      const ids = Array.from({ length: LAYERS.numBlocks }, (_unused, index) => index);
      await own.fill({ random: 21 });
      await a.transfer({
        source: own,
        destination: remote,
        sourceBlocks: ids,
        destinationBlocks: ids.toReversed(),
      });
      expect(await theirs.checksums(ids.toReversed())).toEqual(await own.checksums(ids));
    }
  });
});

describe("over NIXL", () => {
  nixlTest(
    "memory in several files is registered as one, and blocks across their ends arrive whole, both ways",
    async () => {
      const open = (): Promise<Transport> =>
        openInFiles(
          { workerId: freshWorker(), nixl: { backends: { UCX: {} } }, cuda: false, neighbours: false },
          SMALL_FILES,
        );
      await using a = await open();
      await using b = await open();
      const own = await a.register(systemSpec("own", ODD));
      const theirs = await b.register(systemSpec("theirs", ODD));
      expect([mappingsOf(own).length, mappingsOf(theirs).length]).toEqual([3, 3]);
      const remote = (await a.importMetadata(await b.exportMetadata())).layout("theirs");
      expect(remote.distance).toBe("remote");
      const places = ALL.toReversed();
      await own.fill({ random: 31 });
      await a.transfer({
        source: own,
        destination: remote,
        sourceBlocks: ALL,
        destinationBlocks: places,
        method: "nixl/write",
      });
      expect(await theirs.checksums(places)).toEqual(await own.checksums(ALL));
      await theirs.fill({ random: 32 });
      await a.transfer({
        source: remote,
        destination: own,
        sourceBlocks: ALL,
        destinationBlocks: places,
        method: "nixl/read",
      });
      expect(await own.checksums(places)).toEqual(await theirs.checksums(ALL));
    },
    MILLIS,
  );
});

describe("how many files", () => {
  for (const [what, blocks, cut, files] of [
    ["less than twice the least", 13, SMALL_FILES, 1],
    ["twice the least", 14, SMALL_FILES, 2],
    ["more than the most", 41, { ...SMALL_FILES, most: 2 }, 2],
    ["as usual, less than 128 MiB", 447, FILE_CUT, 1],
    ["as usual, 128 MiB and more", 448, FILE_CUT, Math.min(2, FILE_CUT.most)],
  ] as const)
    test(`${what}: ${files}`, async () => {
      await using here = await openNear(cut);
      const layout = await here.register(systemSpec("pool", { ...ODD, numBlocks: blocks }));
      expect(mappingsOf(layout)).toHaveLength(files);
    });

  test("memory of a transport that shares nothing lies in none", async () => {
    await using here = await openLocal();
    const layout = await here.register(systemSpec("pool", ODD));
    expect(mappingsOf(layout)).toEqual([]);
  });

  test(
    "files leave descriptors to later layouts, and to the application",
    async () => {
      if (Bun.which("prlimit") === null) return console.error("NOT TESTED: there is no prlimit here");
      await using here = await openNear();
      await using far = new NeighbourProcess(["prlimit", "--nofile=160:160"]);
      await far.call({ do: "open", options: {}, cut: SMALL_FILES });
      const large = { ...ODD, numBlocks: 16, innerDim: FILE_BYTES / 2 };
      // A quarter of 160 for layouts of several files, then as many again for such as take one.
      for (const [name, files] of [
        ["first", 16],
        ["second", 32],
        ["third", 40],
        ["fourth", 41],
      ] as const) {
        await far.call({ do: "register", specs: [systemSpec(name, large)] });
        expect(listedMappings(far.pid)).toHaveLength(files);
      }
      const small = Array.from({ length: 42 }, (_unused, index) => systemSpec(`small ${index}`));
      await far.call({ do: "register", specs: small });
      expect(listedMappings(far.pid)).toHaveLength(80);
      const peer = await here.importMetadata(await far.call<Uint8Array>({ do: "export" }));
      const remote = peer.layouts.filter(({ distance }) => distance !== "neighbour").map(({ name }) => name);
      expect(remote).toEqual(["small 39", "small 40", "small 41"]);
      await far.call({ do: "unregister", layout: "first", wait: true });
      await far.call({ do: "unregister", layout: "second", wait: true });
      await far.call({ do: "register", specs: [systemSpec("fifth", large)] });
      // 48 were left, more than a quarter.
      expect(listedMappings(far.pid)).toHaveLength(49);
    },
    MILLIS,
  );

  test("a layout of many components lies in no more than go with one message", async () => {
    await using a = await openNear();
    await using b = await openNear();
    const components = Object.fromEntries(
      Array.from({ length: 30 }, (_unused, index) => [
        `part ${index}`,
        { config: { ...ODD, numBlocks: 120 }, memory: { kind: "system" as const } },
      ]),
    );
    const before = listedMappings("self").length;
    const many = await b.register({ name: "many", components });
    // 30 times 34 MiB: 16 files each would be 480, of which 128 go with a message.
    expect(listedMappings("self")).toHaveLength(before + 30 * 4);
    await many.components["part 29"]?.fill({ random: 29 });
    const remote = (await a.importMetadata(await b.exportMetadata())).layout("many");
    expect(remote.distance).toBe("neighbour");
    const own = await a.register({ name: "own", components });
    await a.transfer({
      source: remote,
      destination: own,
      components: ["part 29"],
      sourceBlocks: [13, 27, 119],
      destinationBlocks: [13, 27, 119],
    });
    expect(await own.components["part 29"]?.checksums([13, 27, 119])).toEqual(
      await many.components["part 29"]?.checksums([13, 27, 119]),
    );
  }, 30_000);
});
