import type { GpuFacts, PlanEnvironment } from "../core/environment.ts";
import { sameFacts } from "../core/known-choice.ts";
import type { TransferPlan } from "../core/plan.ts";
import { planPrepared } from "../core/planner.ts";
import type { PreparedPair } from "../core/prepare.ts";
import { runningDeviceOf } from "../core/program.ts";
import type { BlockSelection } from "../core/request.ts";

/**
 * Plans for long lists of block ids.
 *
 * A plan is the same when all that it was made from is the same. The last ones are kept with that: whoever moves the same
 * blocks between the same layouts again, as engines do step after step, is given the plan that he was given before.
 */
export class KnownPlans {
  readonly #numberOf: (list: Uint32Array) => number;
  readonly #last: (Known | undefined)[] = Array.from({ length: KEPT });
  #turn = 0;

  /** @param numberOf - The number of a list: lists of one number hold the same ids. 0 for none. */
  constructor(numberOf: (list: Uint32Array) => number) {
    this.#numberOf = numberOf;
  }

  /**
   * What `planPrepared` gives.
   *
   * @throws KvferryError what `planPrepared` throws.
   */
  plan(prepared: PreparedPair, source: BlockSelection, destination: BlockSelection): TransferPlan {
    const from = source instanceof Uint32Array ? this.#numberOf(source) : 0;
    const to = destination instanceof Uint32Array ? this.#numberOf(destination) : 0;
    if (from === 0 || to === 0 || mayChange(prepared)) return planPrepared(prepared, source, destination);
    for (const known of this.#last)
      if (known?.prepared === prepared && known.from === from && known.to === to && holds(known))
        return known.plan;
    const plan = planPrepared(prepared, source, destination);
    this.#last[this.#turn] = { prepared, from, to, plan, gpus: gpusOf(plan, prepared.environment) };
    this.#turn = (this.#turn + 1) % KEPT;
    return plan;
  }
}

/** As many as lists of two transfers give. */
const KEPT = 4;

/** A plan and what it came from. */
interface Known {
  readonly prepared: PreparedPair;
  /** Numbers of its lists. */
  readonly from: number;
  readonly to: number;
  readonly gpus: readonly KnownGpu[];
  readonly plan: TransferPlan;
}

/** What was known of a GPU. */
interface KnownGpu {
  readonly device: number;
  readonly facts: GpuFacts | null;
}

/** Whether a plan depends on more than the lists and what is known of GPUs: on what becomes known of a peer or of blocks. */
function mayChange({
  routes,
  environment,
  source,
  destination,
  sourceGroups,
  destinationGroups,
}: PreparedPair): boolean {
  const { quarantined } = environment;
  return (
    routes.some(({ route }) => route.executor !== "host" && route.executor !== "cuda") ||
    (quarantined !== undefined &&
      (sourceGroups.some(({ name }) => quarantined(source.handle, name) !== null) ||
        destinationGroups.some(({ name }) => quarantined(destination.handle, name) !== null)))
  );
}

function gpusOf({ legs }: TransferPlan, { gpu }: PlanEnvironment): readonly KnownGpu[] {
  return legs.flatMap(({ hops }) =>
    hops.flatMap(({ executor, programs: [program] }) => {
      if (executor !== "cuda" || program === undefined) return [];
      const device = runningDeviceOf(program) ?? 0;
      return [{ device, facts: gpu?.(device) ?? null }];
    }),
  );
}

function holds({ gpus, prepared: { environment } }: Known): boolean {
  return gpus.every(({ device, facts }) => sameFacts(facts, environment.gpu?.(device) ?? null));
}
