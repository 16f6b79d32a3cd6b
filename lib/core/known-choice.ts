import type { GpuWork } from "./gpu-work.ts";
import { type Choice, chooseMethod } from "./method.ts";
import type { PreparedPair, PreparedRoute } from "./prepare.ts";
import type { GpuFacts } from "./environment.ts";
import type { Work } from "./work.ts";

/**
 * Chooses how to run a hop by predicted time, as `chooseMethod` does.
 *
 * The last choice of each way is kept, with all that it came from: engines move blocks of one kind by one way over and
 * over, and choosing between six methods takes as long as the rest of planning.
 *
 * @throws KvferryError `NO_ROUTE` when the forced method does not exist for the hop.
 */
export function choiceFor(way: PreparedRoute, work: Work, prepared: PreparedPair): Choice {
  const { profile, environment, method } = prepared;
  const { gpu } = work;
  // Over NIXL and to files a choice also depends on what becomes known of the peer.
  if (work.executor !== "host" && gpu === undefined) return chooseMethod(work, profile, environment, method);
  const facts = gpu === undefined ? null : (environment.gpu?.(gpu.device) ?? null);
  const before = last.get(way);
  if (before !== undefined && sameWork(before.work, work) && sameFacts(before.facts, facts))
    return before.choice;
  const choice = chooseMethod(work, profile, environment, method);
  last.set(way, { work, facts, choice });
  return choice;
}

/** A choice and what it came from, beside what a prepared way says. */
interface Known {
  readonly work: Work;
  readonly facts: GpuFacts | null;
  readonly choice: Choice;
}

const last: WeakMap<PreparedRoute, Known> = new WeakMap();

function sameWork(one: Work, other: Work): boolean {
  return (
    one.bytes === other.bytes && one.descriptors === other.descriptors && sameGpuWork(one.gpu, other.gpu)
  );
}

// Which device it is says nothing but what its facts are, and rows are what the bytes are divided by.
function sameGpuWork(one: GpuWork | undefined, other: GpuWork | undefined): boolean {
  if (one === undefined || other === undefined) return one === other;
  return (
    one.direction === other.direction &&
    one.pageable === other.pageable &&
    one.hostRun === other.hostRun &&
    one.boxes === other.boxes &&
    one.rows === other.rows &&
    one.aligned === other.aligned &&
    one.scattered === other.scattered
  );
}

/** Whether all that is known of a GPU is the same. */
export function sameFacts(one: GpuFacts | null, other: GpuFacts | null): boolean {
  if (one === null || other === null) return one === other;
  return (
    one.sms === other.sms &&
    one.kernels === other.kernels &&
    one.bulk === other.bulk &&
    one.batch === other.batch &&
    one.busy === other.busy
  );
}
