// A plan that was made before is used again: it must be the one that would be made anew, or refused as that would be.
import { expect, test } from "bun:test";
import fc from "fast-check";

import { Transport } from "../../index.ts";
import type { Arrangement } from "../../lib/core/arrangement.ts";
import type { GpuFacts, PlanEnvironment } from "../../lib/core/environment.ts";
import { KvferryError } from "../../lib/core/errors.ts";
import type { LayoutRecord } from "../../lib/core/layout.ts";
import type { TransferPlan } from "../../lib/core/plan.ts";
import { planPrepared } from "../../lib/core/planner.ts";
import { preparePair, type PreparedPair, type PrepareRequest } from "../../lib/core/prepare.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import { KnownPlans } from "../../lib/runtime/known-plans.ts";
import { World } from "../core/planner-fixture.ts";

const BLOCKS = 64;
const FACTS: GpuFacts = { sms: 132, kernels: true, bulk: true, batch: true, busy: false };
const along = Uint32Array.from({ length: 32 }, (_unused, index) => index);
const apart = along.map((index) => (index * 37) % BLOCKS);
/** Two have the same ids, and so one number; the last ones have none. */
const LISTS = [along, apart, along.slice(), apart.toReversed(), along.map((id) => id + 1)] as const;
const NUMBERS: ReadonlyMap<Uint32Array, number> = new Map(
  LISTS.map((list, at) => [list, [1, 2, 1, 0, 0][at] ?? 0]),
);

interface Step {
  readonly world: number;
  readonly way: number;
  readonly forced: boolean;
  readonly prepared: boolean;
  readonly source: number;
  readonly destination: number;
  readonly facts: GpuFacts;
  readonly transport: string;
  readonly quarantined: { readonly side: number; readonly block: number } | null;
}

const FIRST: Step = {
  world: 0,
  way: 0,
  forced: false,
  prepared: false,
  source: 0,
  destination: 0,
  facts: FACTS,
  transport: "tcp",
  quarantined: null,
};

const change: fc.Arbitrary<Partial<Step>> = fc.oneof(
  fc.record({ world: fc.nat(1) }),
  fc.record({ way: fc.nat(5) }),
  fc.record({ forced: fc.boolean() }),
  fc.record({ prepared: fc.boolean() }),
  fc.record({ source: fc.nat(LISTS.length - 1) }),
  fc.record({ destination: fc.nat(LISTS.length - 1) }),
  fc.record({
    facts: fc.record({
      sms: fc.constantFrom(78, 132),
      kernels: fc.boolean(),
      bulk: fc.boolean(),
      batch: fc.boolean(),
      busy: fc.boolean(),
    }),
  }),
  fc.record({ transport: fc.constantFrom("tcp", "cma") }),
  fc.record({
    quarantined: fc.option(fc.record({ side: fc.nat(1), block: fc.constantFrom(0, 31, 37, 63) }), {
      freq: 2,
    }),
  }),
);

/** Each differs from the one before in one thing. */
const steps = fc.array(change, { minLength: 4, maxLength: 60 }).map((changes) => {
  let now = FIRST;
  return [now, ...changes.map((some) => (now = { ...now, ...some }))];
});

/** Layouts under the same handles, which are not alike. */
function worldOf(arrangement: Arrangement): {
  readonly world: World;
  readonly ways: readonly (readonly [LayoutRecord, LayoutRecord])[];
} {
  const world = new World();
  const config = { numBlocks: BLOCKS };
  const host = world.add({ config });
  const [more, gpu, far] = [
    world.add({ config, arrangement }),
    world.add({ config, arrangement, storage: { kind: "device", device: 0 } }),
    world.add({ config, arrangement, owner: 7n, reach: "nixl" }),
  ];
  return {
    world,
    ways: [
      [host, more],
      [more, host],
      [host, gpu],
      [more, gpu],
      [host, far],
      [more, far],
    ],
  };
}

test("a plan for lists that came before is the one that would be made anew, whatever became of all that it depends on", () => {
  const worlds = [worldOf("fully-contiguous"), worldOf("layer-separate/block-second")];
  let again = 0;
  let refused = 0;
  fc.assert(
    fc.property(steps, (all) => {
      let now: Step | undefined;
      let asked: readonly LayoutRecord[] = [];
      const environment: PlanEnvironment = {
        executors: ["host", "cuda", "nixl"],
        processors: 2,
        gpu: () => ({ ...(now?.facts ?? FACTS) }),
        nixlTransport: () => now?.transport,
        quarantined: (layout) => {
          const quarantined = now?.quarantined ?? null;
          if (quarantined === null || layout !== asked[quarantined.side]?.handle) return null;
          return { has: (block) => block === quarantined.block };
        },
      };
      const pairs = new Map<string, PreparedPair>();
      const plans = new KnownPlans((list) => NUMBERS.get(list) ?? 0);
      const made = new Set<TransferPlan>();
      for (now of all) {
        const { world, ways } = worlds[now.world] ?? {};
        const way = ways?.[now.way];
        const [source, destination] = [LISTS[now.source], LISTS[now.destination]];
        if (world === undefined || way === undefined || source === undefined || destination === undefined)
          throw new Error("there is none");
        asked = way;
        const method = now.forced && now.way < 2 ? "host/plain" : undefined;
        const request = { source: way[0].handle, destination: way[1].handle, method };
        const key = [now.world, now.way, method].join();
        const pair =
          pairs.get(key) ??
          preparePair(
            world.snapshot,
            { ...request, ...(method === undefined ? undefined : { method }) } as PrepareRequest,
            defaultProfile,
            environment,
          );
        pairs.set(key, pair);
        const wanted = outcome(() => planPrepared(pair, source, destination));
        const by = now.prepared ? { of: pair } : { of: world.snapshot, ...request };
        const plan = outcome(() => plans.plan(by, source, destination, () => pair));
        if (wanted instanceof KvferryError || plan instanceof KvferryError) {
          expect(plan).toEqual(wanted);
          refused++;
          continue;
        }
        expect(offsetsRead(plan)).toEqual(offsetsRead(wanted));
        if (made.has(plan)) again++;
        made.add(plan);
      }
    }),
    { numRuns: 300 },
  );
  expect(again).toBeGreaterThan(200);
  expect(refused).toBeGreaterThan(200);
});

test("the same transfer moves its own bytes every time, and is refused once a layout is gone", async () => {
  await using transport = await Transport.open({ workerId: 1n, nixl: false, neighbours: false, cuda: false });
  const layout = { numBlocks: 2_000, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 8 } as const;
  const source = await transport.register({ config: layout, memory: { kind: "system" } });
  const destination = await transport.register({ config: layout, memory: { kind: "system" } });
  await source.fill({ random: 3 });
  const ids = Uint32Array.from({ length: 1_000 }, (_unused, index) => (index * 7) % 2_000);
  const request = { source, destination, sourceBlocks: ids, destinationBlocks: ids };
  for (let round = 0; round < 3; round += 1) {
    await destination.fill(0);
    await transport.transfer(request);
    for (const block of [0, 7, (999 * 7) % 2_000])
      expect(await destination.read(block)).toEqual(await source.read(block));
    expect((await destination.read(1)).every((byte) => byte === 0)).toBe(!ids.includes(1));
  }
  await destination.unregister();
  const error = await transport.transfer(request).then(
    () => null,
    (failure: unknown) => failure,
  );
  expect(error).toBeInstanceOf(KvferryError);
  expect((error as KvferryError).code).toBe("ERR_KVF_STALE_HANDLE");
});

function outcome(plan: () => TransferPlan): TransferPlan | KvferryError {
  try {
    return plan();
  } catch (error) {
    if (error instanceof KvferryError) return error;
    throw error;
  }
}

/** The plan with its offsets, which are made when they are first read. */
function offsetsRead(plan: TransferPlan): unknown {
  return {
    ...plan,
    legs: plan.legs.map(({ hops }) =>
      hops.map((hop) => ({
        ...hop,
        programs: hop.programs.map(({ srcOffset, dstOffset, ...program }) => ({
          ...program,
          srcOffset,
          dstOffset,
        })),
      })),
    ),
  };
}
