// Random transfers through a transport: arrangements, orders, strides, page sizes, windows, components, token and layer
// ranges. Every byte of the memory around them is compared with what the definition says.
import { expect, test } from "bun:test";
import type { LocalLayout, Peer, RemoteLayout, Transport } from "../../index.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import { makeCase, type PlannerCase } from "../proof/planner-case.ts";
import { randomOf } from "../random.ts";
import {
  type Arena,
  expectedBytes,
  GUARD,
  makeArena,
  oracleRequest,
  selectionOf,
  specOf,
} from "./helpers/arena.ts";
import { nixlTest, openLocal, openPair, pairTest, systemSpec, until } from "./helpers/transports.ts";

const ARENA_BYTES = 2 ** 19;
const LOCAL_CASES = 250;
const NIXL_CASES = 40;
const SEED = 20_261_123;

interface Moved {
  cases: number;
  bytes: number;
  refused: number;
}

/** Cases that a transport should carry out, one after the other. */
async function tryCases(
  count: number,
  move: (given: PlannerCase, index: number) => Promise<boolean>,
): Promise<void> {
  const moved: Moved = { cases: 0, bytes: 0, refused: 0 };
  for (let index = 0; moved.cases < count; index++) {
    const given = makeCase(randomOf(SEED, index), arena.address + GUARD);
    if (given.bytes + 2 * GUARD > ARENA_BYTES) continue;
    arena.memory.set(arena.pristine);
    if (await move(given, index)) moved.cases++;
    else moved.refused++;
  }
  // Most cases are good ones: a run that refused nearly everything would prove little.
  expect(moved.refused).toBeLessThan(moved.cases);
}

const arena: Arena = makeArena(ARENA_BYTES);

async function run(
  transport: Transport,
  given: PlannerCase,
  index: number,
  source: LocalLayout | RemoteLayout,
  destination: LocalLayout | RemoteLayout,
  expected: Uint8Array,
  method?: string,
): Promise<void> {
  const request = {
    ...(method === undefined ? {} : { method }),
    source,
    destination,
    sourceBlocks: selectionOf(given, given.sourceBlocks),
    destinationBlocks: selectionOf(given, given.destinationBlocks),
    ...given.options,
  };
  const prepared = index % 2 === 1;
  const { sourceBlocks, destinationBlocks, ...rest } = request;
  const result = await (prepared
    ? transport.prepare(rest).run(sourceBlocks, destinationBlocks)
    : transport.transfer(request));
  const differs = arena.memory.findIndex((byte, at) => byte !== expected[at]);
  if (differs >= 0)
    throw new Error(
      `case ${index}: byte ${differs} is ${arena.memory[differs]}, must be ${expected[differs]}`,
    );
  expect(result.settlement).toBe("done");
}

test("a local transfer moves exactly the bytes that the definition names", async () => {
  await using transport = await openLocal();
  await tryCases(LOCAL_CASES, async (given, index) => {
    const expected = given.expected === null ? expectedBytes(arena, oracleRequest(given)) : null;
    const here = { ...given.source, remote: false };
    const source = await transport.register(specOf("source", here));
    const destination = given.sameLayout
      ? source
      : await transport.register(specOf("destination", { ...given.destination, remote: false }));
    try {
      if (expected !== null) {
        await run(transport, given, index, source, destination, expected);
        return true;
      }
      const failure = await run(transport, given, index, source, destination, arena.pristine).catch(
        (error: unknown) => error,
      );
      expect(isKvferryError(failure)).toBe(true);
      expect(arena.memory).toEqual(arena.pristine);
      return false;
    } finally {
      await source.unregister();
      await destination.unregister();
    }
  });
}, 60_000);

for (const direction of ["push", "pull"] as const) {
  pairTest(`a ${direction} moves exactly the bytes that the definition names`, (open, distance) =>
    pushOrPull(direction, open, distance),
  );
  nixlTest(
    `a ${direction} that is gathered and scattered moves exactly the bytes that the definition names`,
    () => pushOrPull(direction, openPair, "remote", "staged/slab"),
    60_000,
  );
}

async function pushOrPull(
  direction: "push" | "pull",
  open: typeof openPair,
  distance: "remote" | "neighbour",
  method?: string,
): Promise<void> {
  // Small chunks: a transfer takes many.
  await using pair = await open({ staging: { sendBytes: 8192, receiveBytes: 8192, chunkBytes: 2048 } });
  const { a, b } = pair;
  const probes = await Promise.all([a, b].map((side) => side.register(systemSpec("probe"))));
  const { b: peer } = await pair.meetBoth();
  if (method !== undefined) await heard(a, probes[0], peer);
  let leaving: Promise<void> | undefined;
  await tryCases(NIXL_CASES, async (given, index) => {
    if (given.sameLayout || given.expected !== null) return false;
    const expected = expectedBytes(arena, oracleRequest(given));
    if (expected === null) return false;
    const [mine, theirs] = direction === "push" ? ["source", "destination"] : ["destination", "source"];
    const own = await a.register(specOf("own", given[mine as "source"]));
    const handed = distance === "neighbour" ? arena : null;
    const other = await b.register(specOf("other", given[theirs as "source"], handed));
    try {
      await peer.update(await b.exportMetadata());
      await leaving;
      const remote = peer.layout("other");
      expect(remote.distance).toBe(distance);
      const [source, destination] = direction === "push" ? [own, remote] : [remote, own];
      await run(a, given, index, source, destination, expected, method);
      return true;
    } finally {
      await own.unregister();
      // The importer may still write there until it takes a package without the layout.
      leaving = other.unregister({ wait: true });
    }
  });
  await peer.forget();
  await leaving;
}

/** Resolves when the peer is known to help. */
async function heard(a: Transport, source: LocalLayout | undefined, peer: Peer): Promise<void> {
  if (source === undefined) throw new Error("no layout to ask with");
  const request = {
    source,
    destination: peer.layout("probe"),
    sourceBlocks: [0],
    destinationBlocks: [0],
    method: "staged/slab",
  };
  await until("the peer is heard", () => {
    try {
      return a.explain(request).bytes > 0;
    } catch {
      return false;
    }
  });
}
