// What a peer helps with: a part that fails lets no other part begin, though its chunk is free at once.
import { expect, test } from "bun:test";
import { makeHandle } from "../../lib/core/handle.ts";
import { defaultProfile } from "../../lib/core/profile.ts";
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

function poolOf(count: number): StagingPool {
  const memory = {
    map: (bytes: number): MappedMemory => ({ address: 4096, bytes }) as MappedMemory, // no chunk is ever touched
    release: async (): Promise<void> => undefined,
  };
  return new StagingPool(memory, null, count * ROW_BYTES, ROW_BYTES);
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
