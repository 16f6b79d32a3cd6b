// Who may go when: layouts in use, views of memory that is gone, transports that close under way, processes that leave.
import { describe, expect, test } from "bun:test";
import type { LocalLayout, Transport } from "../../index.ts";
import { runFixture } from "./helpers/child.ts";
import { refused } from "./helpers/refusal.ts";
import { NIXL, nixlTest, openLocal, openPair, openRemote, SMALL, systemSpec } from "./helpers/transports.ts";

const LARGE = { ...SMALL, numBlocks: 128, pageSize: 64, innerDim: 1024 };
const ALL: Uint32Array = Uint32Array.from({ length: 128 }, (_unused, index) => index);

async function largePair(transport: Transport): Promise<{ source: LocalLayout; destination: LocalLayout }> {
  const source = await transport.register(systemSpec("source", LARGE));
  const destination = await transport.register({
    ...systemSpec("destination", LARGE),
    arrangement: "layer-separate/block-second",
  });
  return { source, destination };
}

describe("unregistering", () => {
  test("empties every view that was handed out", async () => {
    await using transport = await openLocal();
    const layout = await transport.register(systemSpec("x"));
    const views = [...layout.bytes, ...layout.bytes, layout.view(0, { offset: 16, length: 64 })];
    const part = views[0]?.subarray(4, 8);
    expect(views.every((view) => view.byteLength > 0)).toBe(true);
    await layout.unregister();
    expect(views.map((view) => view.byteLength)).toEqual([0, 0, 0]);
    expect(part?.byteLength).toBe(0);
    await layout.unregister();
    await refused("STALE_HANDLE", () => layout.bytes);
    await refused("STALE_HANDLE", () => layout.view(0, { offset: 0, length: 1 }));
  });

  test("of a layout in use is refused, or waits for the end", async () => {
    await using transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const transfer = transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL });
    const error = await refused("IN_USE", source.unregister());
    expect(error.details["uses"]).toBe(1);
    await refused("IN_USE", destination.unregister());
    await Promise.all([source.unregister({ wait: true }), source.unregister({ wait: true })]);
    expect(transfer.state).toBe("done");
    expect(transport.localLayouts).toEqual([destination]);
    await destination.unregister();
  });

  for (const work of ["fill", "checksums", "read", "write"] as const)
    test(`never takes memory away under a running ${work}`, async () => {
      await using transport = await openLocal();
      const { source } = await largePair(transport);
      const running = {
        fill: () => source.fill({ random: 1 }),
        checksums: () => source.checksums(ALL),
        read: () => source.read(0),
        write: () => source.write(0, new Uint8Array(source.config.blockBytes)),
      }[work]();
      await refused("IN_USE", source.unregister());
      await source.unregister({ wait: true });
      expect(transport.localLayouts).toHaveLength(1);
      await running;
    });

  test("at the end of a scope waits as well", async () => {
    await using transport = await openLocal();
    const { source } = await largePair(transport);
    let transfer;
    {
      await using layout = await transport.register(systemSpec("scoped", LARGE));
      transfer = transport.transfer({
        source,
        destination: layout,
        sourceBlocks: ALL,
        destinationBlocks: ALL,
      });
    }
    expect(transfer.state).toBe("done");
    expect(transport.localLayouts).toHaveLength(2);
  });
});

describe("closing", () => {
  test("awaits what runs, and frees everything", async () => {
    const transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const [view] = source.bytes;
    const transfers = Array.from({ length: 8 }, () =>
      transport.transfer({ source, destination, sourceBlocks: ALL, destinationBlocks: ALL }),
    );
    const filling = source.checksums(ALL).catch((error: unknown) => error);
    const report = await transport.close();
    expect(report).toEqual({ layouts: [], stuck: 0, inDoubt: 0 });
    for (const transfer of transfers) expect((await transfer).settlement).toBe("done");
    expect(view?.byteLength).toBe(0);
    const hashed = await filling;
    if (!Array.isArray(hashed)) expect(hashed).toHaveProperty("code", "ERR_KVF_CLOSED");
  });

  test("settles transfers that wait for others", async () => {
    const transport = await openLocal();
    const { source, destination } = await largePair(transport);
    const request = { source, destination, sourceBlocks: ALL, destinationBlocks: ALL };
    const first = transport.transfer(request);
    const second = transport.transfer({ ...request, after: [first] });
    await transport.close();
    expect((await first).settlement).toBe("done");
    await refused("CLOSED", second);
  });

  nixlTest(
    "with transfers, imports, registrations and waiting iterators under way leaves nothing hanging",
    async () => {
      for (let round = 0; round < 5; round++) {
        const pair = await openPair();
        const { a, b } = pair;
        const here = await a.register(systemSpec("here", LARGE));
        await b.register(systemSpec("there", LARGE));
        const peer = await pair.meet();
        const bytes = await (await openBriefly()).exportMetadata();
        const newer = await b.exportMetadata();
        const under = [
          a.transfer({
            source: here,
            destination: peer.layout("there"),
            sourceBlocks: ALL,
            destinationBlocks: ALL,
          }),
          a.register(systemSpec("late")),
          a.importMetadata(bytes),
          a.exportMetadata(),
          a.notify(peer, "x"),
          a.notifications().next(),
          a.expect({ layout: here, blocks: [0], from: peer, tag: "never" }),
          peer.update(newer),
        ];
        const outcomes = Promise.allSettled(under);
        await Bun.sleep(round);
        const report = await a.close();
        expect(report).toMatchObject({ stuck: 0, inDoubt: 0 });
        for (const outcome of await outcomes)
          if (outcome.status === "rejected")
            expect(["ERR_KVF_CLOSED", "ERR_KVF_PEER_LOST"]).toContain(
              (outcome.reason as { code: string }).code,
            );
        await b.close();
      }
    },
    30_000,
  );

  test("many transports one after the other leave neither mappings nor descriptors", async () => {
    const count = async (): Promise<number> =>
      (await Array.fromAsync(new Bun.Glob("*").scan({ cwd: "/proc/self/fd", onlyFiles: false }))).length;
    for (let round = 0; round < 5; round++) await cycle();
    const before = await count();
    for (let round = 0; round < 50; round++) await cycle();
    expect((await count()) - before).toBeLessThan(10);
  });
});

let brief: Transport | undefined;

/** A transport that lives as long as the process: somebody to import. */
async function openBriefly(): Promise<Transport> {
  brief ??= await openRemote();
  return brief;
}

async function cycle(): Promise<void> {
  const transport = await openLocal();
  const layout = await transport.register(systemSpec("x"));
  await layout.fill(1);
  await transport.close();
}

test("transports that are dropped without close are said, by name, and lose nothing that is still held", async () => {
  const { code, out, words } = await runFixture("dropped.ts", []);
  expect({ code, out }).toEqual({ code: 0, out: "said\n" });
  const named = [
    ...words.matchAll(/KVF_LEAK\] KvferryWarning: the transport dropped-(\d+) was dropped/g),
  ].map(([, id]) => Number(id));
  // The collector may keep one or the other for what still lies on a stack; what was closed is never named.
  expect(named.length).toBeGreaterThan(0);
  expect(named.filter((id) => id % 2 === 0)).toEqual([]);
  expect(new Set(named).size).toBe(named.length);
}, 60_000);

describe("a process", () => {
  const modes = [
    "natural end without close",
    "exit without close",
    "exit in mid-transfer",
    "uncaught error in mid-transfer",
    "waits for a transfer that nobody awaits",
    "leaves with a prepared transport that is idle",
    "stays while somebody waits for a message",
  ];
  for (const remote of [false, true])
    for (const mode of modes)
      (remote ? nixlTest : test)(
        `${mode}${remote ? ", with NIXL" : ""}: neither hangs nor crashes`,
        async () => {
          if (remote && NIXL === null) return;
          for (let round = 0; round < 3; round++) {
            const ended = await runFixture("leaving.ts", [mode, remote ? "nixl" : "local"]);
            const failed = mode.startsWith("uncaught");
            expect({ ...ended, words: failed ? "" : ended.words }).toMatchObject({
              code: failed ? 1 : 0,
              signal: null,
              words: "",
            });
            expect(ended.out).toContain("said");
            if (mode.startsWith("waits")) expect(ended.out).toContain("moved");
            if (mode.startsWith("stays")) expect(ended.out).toContain("message");
          }
        },
        60_000,
      );
});
