// A plan that was made before is used again: it must be the one that would be made anew, or refused as that would be.
import { expect, test } from "bun:test";
import fc from "fast-check";

import { Transport } from "../../index.ts";
import type { GpuFacts, PlanEnvironment } from "../../lib/core/environment.ts";
import { KvferryError } from "../../lib/core/errors.ts";
import type { TransferPlan } from "../../lib/core/plan.ts";
import { planPrepared } from "../../lib/core/planner.ts";
import { preparePair } from "../../lib/core/prepare.ts";
import { defaultProfile } from "../../lib/core/profile.ts";
import { KnownPlans } from "../../lib/runtime/known-plans.ts";
import { World } from "../core/planner-fixture.ts";

const BLOCKS = 64;
const FACTS: GpuFacts = { sms: 132, kernels: true, bulk: true, batch: true, busy: false };
const along = Uint32Array.from({ length: 32 }, (_unused, index) => index);
const apart = along.map((index) => (index * 37) % BLOCKS);
/** Lists and their numbers: two have the same ids. */
const LISTS = [along, apart, along.slice(), apart.toReversed()] as const;
const NUMBERS: ReadonlyMap<Uint32Array, number> = new Map(LISTS.map((list, index) => [list, index % 3]));

const step = fc.record({
  pair: fc.nat(2),
  source: fc.nat(LISTS.length - 1),
  destination: fc.nat(LISTS.length - 1),
  facts: fc.oneof(
    { arbitrary: fc.constant(FACTS), weight: 3 },
    fc.record<GpuFacts>({
      sms: fc.constantFrom(78, 132),
      kernels: fc.boolean(),
      bulk: fc.boolean(),
      batch: fc.boolean(),
      busy: fc.boolean(),
    }),
  ),
  transport: fc.constantFrom("tcp", "cma"),
  quarantined: fc.oneof(
    { arbitrary: fc.constant(null), weight: 4 },
    fc.record({ side: fc.nat(1), block: fc.nat(BLOCKS - 1) }),
  ),
});

test("a plan for lists that came before is the one that would be made anew, whatever became of all that it depends on", () => {
  const world = new World();
  const config = { numBlocks: BLOCKS };
  const device = { kind: "device", device: 0 } as const;
  const [host, more, gpu, far] = [
    world.add({ config }),
    world.add({ config, arrangement: "layer-separate/block-second" }),
    world.add({ config, storage: device }),
    world.add({ config, owner: 7n, reach: "nixl" }),
  ];
  const pairs = [
    [host, more],
    [host, gpu],
    [host, far],
  ] as const;
  let again = 0;
  let refused = 0;
  fc.assert(
    fc.property(fc.array(step, { minLength: 4, maxLength: 40 }), (steps) => {
      let facts = FACTS;
      let now: (typeof steps)[number] | undefined;
      const environment: PlanEnvironment = {
        executors: ["host", "cuda", "nixl"],
        processors: 2,
        gpu: () => ({ ...facts }),
        nixlTransport: () => now?.transport,
        quarantined: (layout) => {
          const quarantined = now?.quarantined ?? null;
          const [from, to] = pairs[now?.pair ?? 0] ?? [];
          if (quarantined === null || layout !== [from, to][quarantined.side]?.handle) return null;
          return { has: (block) => block === quarantined.block };
        },
      };
      const prepared = pairs.map(([from, to]) =>
        preparePair(
          world.snapshot,
          { source: from.handle, destination: to.handle },
          defaultProfile,
          environment,
        ),
      );
      const plans = new KnownPlans((list) => NUMBERS.get(list) ?? 0);
      const made = new Set<TransferPlan>();
      // Each twice: the second time all that can be known is known.
      for (now of steps.flatMap((one) => [one, one])) {
        ({ facts } = now);
        const pair = prepared[now.pair];
        const [source, destination] = [LISTS[now.source], LISTS[now.destination]];
        if (pair === undefined || source === undefined || destination === undefined) throw new Error("none");
        const wanted = outcome(() => planPrepared(pair, source, destination));
        const plan = outcome(() => plans.plan(pair, source, destination));
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
