// What a peer helps with: a part that fails lets no other part begin, though its chunk is free at once, and what is asked later
// does not hold up what was answered.
import { expect, test } from "bun:test";
import { makeHandle } from "../../lib/core/handle.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import { plannedHop } from "../../lib/core/staging.ts";
import type { MappedMemory } from "../../lib/native/memory.ts";
import { AssistedRun } from "../../lib/runtime/assisted-run.ts";
import { readStaging } from "../../lib/runtime/staged-protocol.ts";
import { StagingClient } from "../../lib/runtime/staging-client.ts";
import { StagingPool } from "../../lib/runtime/staging-pool.ts";
import { oneRun } from "../copy-program.ts";

const ROW_BYTES = 64;

function rowProgram(layer: number): CopyProgram {
  return oneRun(1_000_000 + layer * ROW_BYTES, 2_000_000 + layer * ROW_BYTES, ROW_BYTES);
}

function poolOf(count: number, device: number | null = null): StagingPool {
  const memory = {
    map: (bytes: number): MappedMemory => ({ address: 4096, bytes }) as MappedMemory, // no chunk is ever touched
    release: async (): Promise<void> => undefined,
  };
  return new StagingPool(memory, null, count * ROW_BYTES, ROW_BYTES, device);
}

test.each([
  ["has forgotten this worker", (client: StagingClient) => client.released("peer")],
  ["is proven gone", (client: StagingClient) => client.proven("peer")],
  [
    "refuses it in words",
    (client: StagingClient) =>
      client.answer("peer", { word: "refused", id: 1, code: "STALE_HANDLE", message: "gone" }),
  ],
])(
  "when a peer that is asked to write %s, it is asked for no other part, and no chunk is kept",
  async (...row) => {
    const [, end] = row;
    const asked: number[] = [];
    const client = new StagingClient(async (_agent, body) => {
      const word = readStaging(body);
      if (word?.word === "ask") asked.push(word.id);
    });
    const programs = [0, 1, 2, 3].map(rowProgram);
    const hop = plannedHop("nixl", "read", "peer", programs, false, defaultProfile, {
      executors: ["nixl", "host"],
    });
    const receive = poolOf(1);
    const run = new AssistedRun(
      hop,
      "peer",
      { notification: null, watch: false, source: makeHandle(2n, 0) },
      // Lanes are as many as there are chunks to send from.
      poolOf(4).source(null, null, "peer"),
      receive.source(null, null, "peer"),
      client,
      () => {
        throw new Error("nothing arrives, so nothing is copied");
      },
      () => undefined,
    );
    const outcome = run.run();
    await Bun.sleep(0);
    expect(asked).toEqual([1]);
    end(client);
    expect(await outcome).toMatchObject({ ok: false, touched: false, inDoubt: false });
    expect([asked, client.pending, receive.lent, receive.waiting]).toEqual([[1], 0, 0, 0]);
  },
);

test("between GPUs each part that a peer answers lets one more be asked for, up to twice the chunks here, until all are in place", async () => {
  const open = new Set<number>();
  let most = 0;
  const client = new StagingClient(async (_agent, body) => {
    const word = readStaging(body);
    if (word?.word === "ask") open.add(word.id);
    if (word?.word === "moved") {
      client.answer("peer", { word: "ended", id: word.id });
      open.delete(word.id);
    }
    most = Math.max(most, open.size);
  });
  const programs = Array.from({ length: 40 }, (_unused, layer) => ({
    ...rowProgram(layer),
    srcMemory: { kind: 1, device: 0 } as const,
    dstMemory: { kind: 1, device: 1 } as const,
  }));
  const hop = plannedHop("nixl", "write", "peer", programs, false, defaultProfile, {
    executors: ["nixl", "host"],
  });
  const pool = poolOf(8, 0);
  const steps: string[] = [];
  const run = new AssistedRun(
    hop,
    "peer",
    { notification: null, watch: false, destination: makeHandle(2n, 0) },
    pool.source(null, null, "peer"),
    null,
    client,
    (executor, _op, program, done) => {
      steps.push(executor);
      done({ ok: true, cancelled: false, touched: true, inDoubt: false, bytes: program.bytes, error: null });
      return { cancel() {}, abandon() {}, programsDone: () => 0, bytesDone: () => 0 };
    },
    () => undefined,
  );
  const outcome = run.run();
  await Bun.sleep(0);
  const atFirst = open.size;
  expect(atFirst).toBeLessThan(16);
  const credited = new Set<number>();
  for (let turns = 0; turns < 200 && (turns < 20 || open.size > 0); turns++) {
    // Chunks of the peer come late: a few turns pass without any.
    const id = turns < 10 ? undefined : [...open].find((one) => !credited.has(one));
    if (id !== undefined) client.answer("peer", { word: "credit", id, address: 65_536, device: 1 });
    if (id !== undefined) credited.add(id);
    await Bun.sleep(0);
  }
  expect(await outcome).toMatchObject({ ok: true, bytes: 40 * ROW_BYTES });
  expect([credited.size, steps.filter((name) => name === "nixl").length, client.pending, pool.lent]).toEqual([
    40, 40, 0, 0,
  ]);
  expect(most).toBeGreaterThan(atFirst);
  expect(most).toBeLessThanOrEqual(16);
});
