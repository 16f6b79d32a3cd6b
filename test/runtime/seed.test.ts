// The original transport manager's own tests, by name, here over the real NIXL; then the same between two processes.
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import {
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  type LayoutHandle,
  type LayoutSpec,
} from "../../index.ts";
import { getLayout, getRemote, isRemote, localHandles, remoteHandles } from "../../lib/core/index.ts";
import { refused } from "./helpers/refusal.ts";
import { NIXL, nixlTest, openRemote } from "./helpers/transports.ts";

const STANDARD: LayoutSpec = {
  config: { numBlocks: 2, numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 8, dtypeWidthBytes: 2 },
  arrangement: "fully-contiguous",
  memory: { kind: "system" },
};

nixlTest("manager creation: the worker id is kept and there are no handles", async () => {
  await using manager = await openRemote({ workerId: 42n });
  expect(manager.workerId).toBe(42n);
  expect(manager.nixlLibrary).toBe(NIXL);
  expect([...localHandles(manager.registry)]).toEqual([]);
  expect([...remoteHandles(manager.registry)]).toEqual([]);
  expect(manager.localLayouts).toEqual([]);
  expect(manager.remoteLayouts).toEqual([]);
  expect(manager.peers).toEqual([]);
});

nixlTest("register one: the handle says who and which, and is local", async () => {
  await using manager = await openRemote({ workerId: 100n });
  const { handle } = await manager.register(STANDARD);
  expect(handleWorkerId(handle)).toBe(100n);
  expect(handleLayoutId(handle)).toBe(0);
  expect(manager.isLocal(handle)).toBe(true);
  expect(manager.isRemote(handle)).toBe(false);
  expect([...localHandles(manager.registry)]).toEqual([handle]);
});

nixlTest(
  "register several: ids rise by one in the order of the calls, also when all are asked for at once",
  async () => {
    await using manager = await openRemote({ workerId: 100n });
    const first = await manager.register(STANDARD);
    const more = await Promise.all([manager.register(STANDARD), manager.register(STANDARD)]);
    expect([first, ...more].map((layout) => handleLayoutId(layout.handle))).toEqual([0, 1, 2]);
  },
);

nixlTest(
  "export and import round trip: every layout is remote at the importer, by both accessors",
  async () => {
    await using exporter = await openRemote({ workerId: 1n });
    await using importer = await openRemote({ workerId: 2n });
    const layouts = [
      await exporter.register(STANDARD),
      await exporter.register({ ...STANDARD, name: "second" }),
    ];
    const peer = await importer.importMetadata(await exporter.exportMetadata());
    expect(peer.layouts.map((layout) => layout.handle)).toEqual(layouts.map((layout) => layout.handle));
    expect([...remoteHandles(importer.registry)]).toEqual(layouts.map((layout) => layout.handle));
    expect(importer.remoteLayouts).toHaveLength(2);
    for (const { handle } of layouts) {
      expect(isRemote(importer.registry, handle)).toBe(true);
      expect(importer.isLocal(handle)).toBe(false);
      expect(importer.layout(handle).handle).toBe(handle);
      expect(getRemote(importer.registry, handle)).toBe(getLayout(importer.registry, handle));
    }
  },
);

nixlTest("import of a duplicate is refused, and what was imported stays", async () => {
  await using exporter = await openRemote({ workerId: 1n });
  await using importer = await openRemote({ workerId: 2n });
  await exporter.register(STANDARD);
  const bytes = await exporter.exportMetadata();
  await importer.importMetadata(bytes);
  const before = importer.registry;
  const error = await refused("DUPLICATE_WORKER", importer.importMetadata(bytes));
  expect(error.details["workerId"]).toBe("1");
  expect(importer.registry).toBe(before);
});

nixlTest("handles are listed", async () => {
  await using manager = await openRemote({ workerId: 7n });
  const handles: LayoutHandle[] = [];
  for (let count = 0; count < 2; count++) handles.push((await manager.register(STANDARD)).handle);
  expect([...localHandles(manager.registry)]).toEqual(handles);
  expect(manager.localLayouts.map((layout) => layout.handle)).toEqual(handles);
  expect(new Set(handles.map(handleGeneration)).size).toBe(1);
});

describe("between two processes", () => {
  nixlTest("export and import round trip, duplicate refused, blocks moved both ways", async () => {
    const { promise: answered, resolve: answer } = Promise.withResolvers<unknown>();
    const messages: unknown[] = [];
    let next = answer;
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "fixtures", "exporter.ts")], {
      env: { ...process.env, NODE_ENV: "production" },
      stdio: ["ignore", "inherit", "inherit"],
      serialization: "advanced",
      ipc: (message) => {
        messages.push(message);
        next(message);
      },
    });
    const ask = async (question: string): Promise<unknown> => {
      const { promise, resolve } = Promise.withResolvers<unknown>();
      next = resolve;
      child.send(question);
      return await promise;
    };
    try {
      const bytes = (await answered) as Uint8Array;
      await using importer = await openRemote({ workerId: 2n });
      const own = await importer.register({ ...STANDARD, name: "own" });
      const peer = await importer.importMetadata(bytes);
      expect(peer.workerId).toBe(1n);
      expect(peer.layouts.map((layout) => layout.name)).toEqual(["first", "second"]);
      await refused("DUPLICATE_WORKER", importer.importMetadata(bytes));

      // A pull of what the other process filled, and a push of what it then hashes.
      const pulled = await importer.transfer({
        source: peer.layout("first"),
        sourceBlocks: [0, 1],
        destination: own,
        destinationBlocks: [1, 0],
      });
      expect(pulled.bytes).toBe(own.config.blockBytes * 2);
      const [first, second] = await own.checksums([1, 0]);
      expect(await ask("checksums first")).toEqual([first, second]);
      await own.fill({ random: 99 });
      await importer.transfer({
        source: own,
        sourceBlocks: [0, 1],
        destination: peer.layout("second"),
        destinationBlocks: [0, 1],
      });
      expect(await ask("checksums second")).toEqual(await own.checksums([0, 1]));
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  });
});

test("without NIXL a manager still registers and lists", async () => {
  await using manager = await openRemote({ workerId: 42n, nixl: false });
  expect(manager.nixlLibrary).toBeNull();
  const layout = await manager.register(STANDARD);
  expect([...localHandles(manager.registry)]).toEqual([layout.handle]);
});
