import type { GpuFacts, PlanEnvironment } from "../core/environment.ts";
import type { LayoutHandle } from "../core/handle.ts";
import { sameFacts } from "../core/known-choice.ts";
import type { TransferPlan } from "../core/plan.ts";
import { planPrepared } from "../core/planner.ts";
import type { PreparedPair } from "../core/prepare.ts";
import { runningDeviceOf } from "../core/program.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import type { BlockSelection } from "../core/request.ts";

/** All that tells what is to be prepared, or what was: two that have all of it in common get the same. */
export interface Asked {
  readonly of: RegistrySnapshot | PreparedPair;
  readonly source?: LayoutHandle;
  readonly destination?: LayoutHandle;
  readonly method?: string | undefined;
}

/**
 * Plans for long lists of block ids.
 *
 * A plan is the same when all that it was made from is the same. The last ones are kept with that: whoever moves the same
 * blocks between the same layouts again, as engines do step after step, is given the plan that he was given before.
 */
export class KnownPlans {
  readonly #numberOf: (list: Uint32Array) => number;
  /** The newest first. */
  readonly #last: Known[] = [];

  /** @param numberOf - The number of a list: lists of one number hold the same ids. 0 for none. */
  constructor(numberOf: (list: Uint32Array) => number) {
    this.#numberOf = numberOf;
  }

  /**
   * What `planPrepared` gives for what is prepared.
   *
   * @param asked - Null where more than can be compared tells what is to be prepared.
   * @throws KvferryError what `prepare` and `planPrepared` throw.
   */
  plan(
    asked: Asked | null,
    source: BlockSelection,
    destination: BlockSelection,
    prepare: () => PreparedPair,
  ): TransferPlan {
    const from = source instanceof Uint32Array ? this.#numberOf(source) : 0;
    const to = destination instanceof Uint32Array ? this.#numberOf(destination) : 0;
    if (asked === null || from === 0 || to === 0) return planPrepared(prepare(), source, destination);
    for (const known of this.#last)
      if (known.from === from && known.to === to && sameAsked(known.asked, asked) && holds(known))
        return known.plan;
    const prepared = prepare();
    const plan = planPrepared(prepared, source, destination);
    // On other ways a plan also depends on what becomes known of a peer.
    if (prepared.routes.some(({ route }) => route.executor !== "host" && route.executor !== "cuda"))
      return plan;
    this.#last.unshift({ asked, from, to, prepared, plan, gpus: gpusOf(plan, prepared.environment) });
    if (this.#last.length > KEPT) this.#last.pop();
    return plan;
  }
}

/** As many as lists of two transfers give. */
const KEPT = 4;

/** A plan and what it came from. */
interface Known {
  readonly asked: Asked;
  /** Numbers of its lists. */
  readonly from: number;
  readonly to: number;
  readonly prepared: PreparedPair;
  readonly gpus: readonly KnownGpu[];
  readonly plan: TransferPlan;
}

/** What was known of a GPU. */
interface KnownGpu {
  readonly device: number;
  readonly facts: GpuFacts | null;
}

function sameAsked(one: Asked, other: Asked): boolean {
  return (
    one.of === other.of &&
    one.source === other.source &&
    one.destination === other.destination &&
    one.method === other.method
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

/** Whether nothing that a plan depends on has changed. Where blocks are in quarantine by now, their ids are looked for. */
function holds({ gpus, prepared }: Known): boolean {
  const { environment, source, destination, sourceGroups, destinationGroups } = prepared;
  const { gpu, quarantined } = environment;
  for (const { device, facts } of gpus) if (!sameFacts(facts, gpu?.(device) ?? null)) return false;
  if (quarantined === undefined) return true;
  for (const { name } of sourceGroups) if (quarantined(source.handle, name) !== null) return false;
  for (const { name } of destinationGroups) if (quarantined(destination.handle, name) !== null) return false;
  return true;
}
