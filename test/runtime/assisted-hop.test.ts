// Between GPUs a peer's staging memory is asked for on its GPU first. A peer that has none, or whose words know no devices,
// costs one question: everything then goes through host memory, and it is not asked again.
import { expect, test } from "bun:test";
import { KvferryError } from "../../lib/core/errors.ts";
import { makeHandle } from "../../lib/core/handle.ts";
import type { Hop } from "../../lib/core/plan.ts";
import type { MappedMemory } from "../../lib/native/memory.ts";
import { assistedHop, type AssistedParts } from "../../lib/runtime/assisted-hop.ts";
import { DeviceStaging } from "../../lib/runtime/device-staging.ts";
import type { HopContext, HopOutcome } from "../../lib/runtime/executor.ts";
import { readStaging, type StagingWord } from "../../lib/runtime/staged-protocol.ts";
import { StagingClient } from "../../lib/runtime/staging-client.ts";
import { StagingPool } from "../../lib/runtime/staging-pool.ts";
import { copyProgram } from "../copy-program.ts";

const ROW_BYTES = 64;
const ROWS = 8;

/** Scattered rows of GPU 0 here and of GPU 3 at the peer. */
function hop(op: "write" | "read"): Hop {
  const [here, there] = [
    { kind: 1, device: 0 },
    { kind: 1, device: 3 },
  ] as const;
  const offsets = Float64Array.from({ length: ROWS }, (_unused, row) => row * 2 * ROW_BYTES);
  const program = copyProgram({
    srcBase: Float64Array.of(1_000_000),
    dstBase: Float64Array.of(2_000_000),
    srcOffset: offsets,
    dstOffset: offsets,
    rowBytes: ROW_BYTES,
    srcMemory: op === "write" ? here : there,
    dstMemory: op === "write" ? there : here,
  });
  return {
    executor: "staged",
    op,
    agent: "peer",
    programs: [program],
    components: ["kv"],
    bytes: program.bytes,
    descriptorsBefore: ROWS,
    descriptorsAfter: ROWS,
    method: "staged/slab",
    width: 1,
    inline: false,
    predictedMicros: 1,
    candidates: [],
  };
}

type Answer = (ask: Extract<StagingWord, { word: "ask" }>) => StagingWord;

/** A peer that answers in a fixed way, and everything that was said to it and moved here. */
function world(answer: Answer, mapping: () => Promise<MappedMemory> | MappedMemory) {
  const said: string[] = [];
  const moved: string[] = [];
  const host = {
    map: (bytes: number): MappedMemory => ({ address: 4096, bytes, files: [] }),
    release: async (): Promise<void> => undefined,
  };
  const client: StagingClient = new StagingClient(async (_agent, body) => {
    const word = readStaging(body);
    if (word === null) throw new Error("no word");
    said.push(word.word === "ask" ? `${word.operation} ${word.device ?? "host"}` : word.word);
    if (word.word === "ask") client.answer("peer", answer(word));
    if (word.word === "moved") client.answer("peer", { word: "ended", id: word.id });
  });
  const pool = (): StagingPool => new StagingPool(host, null, 4 * ROW_BYTES, 2 * ROW_BYTES);
  const parts: AssistedParts = {
    agent: null,
    pool: pool(),
    receive: pool(),
    devices: new DeviceStaging(() => ({ ...host, map: mapping }), 8 * ROW_BYTES, 4 * ROW_BYTES),
    client,
    start: (executor, _op, { srcMemory, dstMemory }, _pageable, done) => {
      moved.push(`${executor} ${srcMemory.kind}:${srcMemory.device} ${dstMemory.kind}:${dstMemory.device}`);
      done({ ok: true, cancelled: false, touched: true, inDoubt: false, bytes: 0, error: null });
      return { cancel() {}, abandon() {}, programsDone: () => 0, bytesDone: () => 0 };
    },
    waiting: () => undefined,
    progressed: () => undefined,
  };
  const handle = makeHandle(2n, 0);
  const run = (op: "write" | "read"): Promise<HopOutcome> => {
    said.length = 0;
    moved.length = 0;
    const context: HopContext = { notification: null, watch: false, source: handle, destination: handle };
    const { promise, resolve } = Promise.withResolvers<HopOutcome>();
    assistedHop(parts, hop(op), "peer", context, resolve);
    return promise;
  };
  const lent = (): number => parts.pool.lent + parts.receive.lent + (parts.devices?.lent ?? 0);
  return { run, said, moved, client, lent };
}

const ready = async (): Promise<MappedMemory> => ({ address: 1 << 20, bytes: 8 * ROW_BYTES, files: [] });
const credit: Answer = ({ id, device }) => ({
  word: "credit",
  id,
  address: 65_536,
  ...(device === undefined ? undefined : { device }),
});

/** As it answers whose words know no devices: chunks in host memory, and parts too large for them are refused. */
const older: Answer = ({ id, operation, program, address }) => {
  if (program.bytes > 2 * ROW_BYTES)
    return { word: "refused", id, code: "INVALID_CONFIG", message: "bytes do not fit a chunk" };
  if (operation !== "fetch") return { word: "credit", id, address: 65_536 };
  // NIXL over there knows this worker's host memory, and no GPU memory by that name.
  return address < 1 << 20
    ? { word: "ended", id }
    : { word: "refused", id, code: "NO_WAY", message: "not known" };
};
const refusing: Answer = (ask) =>
  ask.device === undefined
    ? older(ask)
    : { word: "refused", id: ask.id, code: "NO_ROUTE", message: "no staging memory on that GPU" };
/** Lends host memory whatever it is asked for. */
const lending: Answer = (ask) =>
  ask.operation === "fetch" ? refusing(ask) : { word: "credit", id: ask.id, address: 65_536 };

test("chunks on both GPUs: the device of each side's chunk stands in the words and in what is moved", async () => {
  const { run, said, moved, lent } = world(credit, ready);
  expect(await run("write")).toMatchObject({ ok: true, bytes: ROWS * ROW_BYTES });
  expect(said).toEqual(["write 3", "moved", "write 3", "moved"]);
  expect(moved).toEqual(["cuda 1:0 1:0", "nixl 1:0 1:3", "cuda 1:0 1:0", "nixl 1:0 1:3"]);
  expect(lent()).toBe(0);
});

test.each([
  ["whose words know no devices", older],
  ["that has no staging memory on its GPU", refusing],
  ["that lends host memory all the same", lending],
])("a peer %s is asked once, and nothing of it is kept", async (_name, answer) => {
  for (const op of ["write", "read"] as const) {
    const { run, said, moved, client, lent } = world(answer, ready);
    expect(await run(op)).toMatchObject({ ok: true, inDoubt: false, bytes: ROWS * ROW_BYTES });
    const asked = said.filter((word) => / \d/.test(word));
    expect(asked).toEqual([op === "write" ? "write 3" : "fetch 0"]);
    for (const step of moved) expect(step).not.toMatch(/1:\d 1:\d/);
    expect(await run(op)).toMatchObject({ ok: true });
    expect(said.filter((word) => / \d/.test(word))).toEqual([]);
    expect([client.pending, lent()]).toEqual([0, 0]);
    // A new peer of that name may have some.
    client.lost("peer");
    await run(op);
    expect(said.filter((word) => / \d/.test(word))).toHaveLength(1);
  }
});

test("without room on this GPU nobody is asked for room on another, and the next transfer does not try again", async () => {
  let tries = 0;
  const full = async (): Promise<MappedMemory> => {
    tries++;
    throw new KvferryError("OUT_OF_MEMORY", "register", "the GPU is full", "Make room.");
  };
  const { run, said, client, lent } = world(older, full);
  for (let times = 0; times < 2; times++)
    expect(await run("read")).toMatchObject({ ok: true, bytes: ROWS * ROW_BYTES });
  expect(said.filter((word) => / \d/.test(word))).toEqual([]);
  expect([tries, client.pending, lent()]).toEqual([1, 0, 0]);
});
