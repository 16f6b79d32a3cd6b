// What was found out for earlier transfers of a way is used again: it must be what would be found out anew.
import { expect, test } from "bun:test";
import fc from "fast-check";

import { choiceFor } from "../../lib/core/known-choice.ts";
import { chooseMethod } from "../../lib/core/method.ts";
import type { Hop } from "../../lib/core/plan.ts";
import { planPrepared } from "../../lib/core/planner.ts";
import { preparePair } from "../../lib/core/prepare.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import type { GpuFacts, PlanEnvironment } from "../../lib/core/environment.ts";
import type { Work } from "../../lib/core/work.ts";
import { World } from "./planner-fixture.ts";

const BLOCKS = 64;
const DEVICE = { kind: "device", device: 0 } as const;
const PINNED = { kind: "pinned" } as const;
const SYSTEM = { kind: "system" } as const;
const FACTS: GpuFacts = { sms: 132, kernels: true, bulk: true, batch: true, busy: false };

/** Source and destination ids: one after the other on either side, on both, or on none. */
const lists = fc
  .record({ first: fc.nat(BLOCKS / 2), count: fc.constantFrom(1, 2, 9, 31), stepped: fc.nat(3) })
  .map(({ first, count, stepped }) => {
    const along = Array.from({ length: count }, (_unused, index) => first + index);
    const apart = along.map((_unused, index) => (first + index * 37) % BLOCKS);
    return {
      source: stepped & 1 ? along : apart,
      destination: stepped & 2 ? along : apart,
    };
  });

const facts = fc.record<GpuFacts>({
  sms: fc.constantFrom(78, 132),
  kernels: fc.boolean(),
  bulk: fc.boolean(),
  batch: fc.boolean(),
  busy: fc.boolean(),
});

for (const [way, from, to] of [
  ["from a GPU to the host", DEVICE, PINNED],
  ["from the host to a GPU", PINNED, DEVICE],
  ["within a GPU", DEVICE, DEVICE],
  ["from pageable memory to a GPU", SYSTEM, DEVICE],
  ["within the host", SYSTEM, SYSTEM],
] as const)
  for (const arrangement of ["fully-contiguous", "layer-separate/block-second"] as const)
    test(`a copy ${way}, of ${arrangement}, runs as if nothing had been planned before it`, () => {
      const world = new World();
      const config = { numBlocks: BLOCKS, numLayers: 6 };
      const source = world.add({ config, arrangement, storage: from });
      const destination = world.add({ config, arrangement: "fully-contiguous", storage: to });
      const seen = new Set<string>();
      const ask = { source: source.handle, destination: destination.handle };
      fc.assert(
        fc.property(
          fc.array(fc.tuple(lists, facts), { minLength: 2, maxLength: 12 }),
          fc.boolean(),
          (calls, sameFacts) => {
            let now = FACTS;
            const environment: PlanEnvironment = {
              executors: ["host", "cuda"],
              processors: 2,
              gpu: () => ({ ...now }),
            };
            const kept = preparePair(world.snapshot, ask, defaultProfile, environment);
            // Each twice: the second time all that can be known is known.
            for (const [ids, then] of calls.flatMap((call) => [call, call])) {
              if (!sameFacts) now = then;
              const anew = preparePair(world.snapshot, ask, defaultProfile, environment);
              const [was, is] = [kept, anew].map((prepared) =>
                planPrepared(prepared, ids.source, ids.destination).legs.flatMap(({ hops }) =>
                  hops.map(chosen),
                ),
              );
              expect(was).toEqual(is);
              for (const hop of is ?? []) seen.add(`${hop.method} ${hop.width} ${hop.predictedMicros}`);
            }
          },
        ),
        { numRuns: 150 },
      );
      expect(seen.size).toBeGreaterThan(3);
    });

const KIB = 1024;
/** What work for a GPU may be, field by field. */
const GPU = {
  device: [0, 1],
  direction: ["in", "out", "local", "peer"],
  pageable: [false, true],
  hostRun: [0, 16 * KIB, 256 * KIB],
  boxes: [null, 1, 3],
  rows: [1, 640],
  aligned: [false, true],
  scattered: [false, true],
} as const;
/** And for the host. */
const HOST = { bytes: [KIB, KIB * KIB, 64 * KIB * KIB], descriptors: [1, 16, 1024] } as const;

/** Each differs from the one before in one field. */
function changing<Fields extends Readonly<Record<string, readonly unknown[]>>>(
  fields: Fields,
): fc.Arbitrary<{ readonly [Name in keyof Fields]: Fields[Name][number] }[]> {
  const names = Object.keys(fields);
  type Value = { readonly [Name in keyof Fields]: Fields[Name][number] };
  return fc
    .array(fc.tuple(fc.nat(names.length - 1), fc.nat()), { minLength: 2, maxLength: 40 })
    .map((steps) => {
      const now = Object.fromEntries(names.map((name) => [name, fields[name]?.[0]]));
      return steps.map(([at, pick]) => {
        const name = names[at] ?? "";
        const values = fields[name] ?? [];
        now[name] = values[pick % values.length];
        return { ...now } as Value;
      });
    });
}

const gpuWorks = changing(GPU).map((all) =>
  all.map((gpu): SomeWork => {
    const bytes = 64 * KIB * KIB;
    return { executor: "cuda", gpu: { ...gpu, row: bytes / gpu.rows }, bytes, descriptors: 7 };
  }),
);
const hostWorks = changing(HOST).map((all) => all.map((host): SomeWork => ({ executor: "host", ...host })));

type SomeWork = Pick<Work, "executor" | "gpu" | "bytes" | "descriptors">;

test("the choice for one way is that for the work at hand, whatever differs from the work before", () => {
  const world = new World();
  const layout = world.add();
  const ask = { source: world.add().handle, destination: layout.handle };
  const environment: PlanEnvironment = {
    executors: ["host", "cuda"],
    processors: 4,
    // One of them computes something else.
    gpu: (device) => ({ ...FACTS, busy: device === 1 }),
  };
  for (const works of [gpuWorks, hostWorks])
    fc.assert(
      fc.property(works, (asked) => {
        const prepared = preparePair(world.snapshot, ask, defaultProfile, environment);
        const [way] = prepared.routes;
        if (way === undefined) throw new Error("there is no way");
        for (const some of asked) {
          const work: Work = { op: "copy", sourceKind: 0, destinationKind: 0, ...some };
          expect(choiceFor(way, work, prepared)).toEqual(
            chooseMethod(work, defaultProfile, environment, undefined),
          );
        }
      }),
      { numRuns: 300 },
    );
});

test("a choice that was refused is asked for again, and so is what another request forces", () => {
  const world = new World();
  const ask = { source: world.add().handle, destination: world.add().handle };
  const environment: PlanEnvironment = { executors: ["host"], processors: 2 };
  const forced = preparePair(world.snapshot, { ...ask, method: "host/other" }, defaultProfile, environment);
  for (let count = 0; count < 2; count++) expect(() => planPrepared(forced, [0], [1])).toThrow("host/other");
  for (const method of ["host/plain", "host/nontemporal"]) {
    const prepared = preparePair(world.snapshot, { ...ask, method }, defaultProfile, environment);
    for (let count = 0; count < 2; count++)
      expect(planPrepared(prepared, [0], [1]).legs[0]?.hops[0]?.method).toBe(method);
  }
});

function chosen({ method, width, inline, predictedMicros, candidates, descriptorsAfter }: Hop): Partial<Hop> {
  return { method, width, inline, predictedMicros, candidates, descriptorsAfter };
}
