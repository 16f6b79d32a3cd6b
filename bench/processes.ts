import { join } from "node:path";

/** How much is measured. */
export interface Effort {
  /** Processes, each with its own start. */
  readonly processes: number;
  /** Samples that each process takes of every contender, after warm-up. */
  readonly samples: number;
}

/** What the figures of one row are made of: for each process the samples of every contender, in the order they were taken. */
export type SampleSets = readonly Readonly<Record<string, readonly number[]>>[];

/** A contender: does the work once and gives one measured value (a rate or a time, as the row's unit says). */
export type Contender = () => number | Promise<number>;

/** Of the rounds before the first that counts so many are gone through again after the garbage was collected: a part, and at most. */
const AGAIN_PART = 0.1;
const MOST_AGAIN = 30;

/** A process that does not answer within this time is ended, milliseconds. */
const LIMIT_MILLISECONDS = 10 * 60_000;

/**
 * Takes samples of contenders in turn, so that what drifts meets all of them alike; every round begins with another one.
 * mitata drives the rounds: it warms up, collects garbage before the first measured round, and counts. A round is one
 * benchmark to it, whose time is ours; the samples of all contenders are kept in the order they were taken, as pairs.
 *
 * @param warmUp - Rounds that are thrown away.
 */
export async function alternate(
  contenders: Readonly<Record<string, Contender>>,
  samples: number,
  warmUp = 3,
): Promise<Record<string, number[]>> {
  // Loaded here and not above: the command line lists suites before any package is installed.
  const { measure } = await import("mitata");
  const entries = Object.entries(contenders);
  const taken: Record<string, number[]> = Object.fromEntries(entries.map(([name]) => [name, []]));
  let turns = 0;
  const round = async (keep: boolean): Promise<number> => {
    for (let turn = 0; turn < entries.length; turn += 1) {
      const [name, contender] = entries[(turn + turns) % entries.length] ?? [];
      if (name === undefined || contender === undefined) continue;
      const value = await contender();
      if (keep) taken[name]?.push(value);
    }
    turns += 1;
    return taken["ours"]?.at(-1) ?? 0;
  };
  let warm = false;
  let again = Math.min(MOST_AGAIN, Math.floor(warmUp * AGAIN_PART));
  const benchmark = {
    // mitata warms up with one call or a few, as fast as it looks to it; here their number is the caller's.
    manual: async (): Promise<number> => {
      // Collecting drops what processors and engine had at hand: what is measured in microseconds would show that.
      while (warm && again-- > 0) await round(false);
      if (warm) return await round(true);
      while (turns < warmUp) await round(false);
      return 0;
    },
    budget: "manual",
  };
  await measure(
    function* () {
      yield benchmark as unknown as () => Promise<number>; // its types know functions only
    },
    {
      // Called once, between the warm-up and the first round that counts.
      gc: () => {
        warm = true;
        Bun.gc(true);
      },
      min_samples: samples,
      max_samples: samples,
    },
  );
  return taken;
}

/**
 * Calls an exported function of a module in several new processes, one after the other.
 *
 * @param module - Absolute path of a module.
 * @param name - Its exported function `(parameters) => value`; both travel as structured clones.
 * @param environment - Variables to add.
 * @returns What the function gave in each process.
 * @throws Error with the process's words when one of them fails.
 */
export async function inProcesses<Result>(
  module: string,
  name: string,
  parameters: unknown,
  processes: number,
  environment: Readonly<Record<string, string>> = {},
): Promise<Result[]> {
  const results: Result[] = [];
  for (let count = 0; count < processes; count += 1)
    results.push(await inProcess<Result>(module, name, parameters, environment));
  return results;
}

async function inProcess<Result>(
  module: string,
  name: string,
  parameters: unknown,
  environment: Readonly<Record<string, string>>,
): Promise<Result> {
  const { promise, resolve } = Promise.withResolvers<
    { readonly value: Result } | { readonly error: string }
  >();
  const child = Bun.spawn([process.execPath, join(import.meta.dirname, "child.ts")], {
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: 2,
    stderr: "inherit",
    serialization: "advanced",
    timeout: LIMIT_MILLISECONDS,
    killSignal: "SIGKILL",
    ipc: (message: { readonly value: Result } | { readonly error: string }) => resolve(message),
    onExit: (_child, code, signal) =>
      resolve({ error: `the process ended with ${signal === null ? `status ${code}` : `signal ${signal}`}` }),
  });
  child.send({ module, name, parameters });
  const answer = await promise;
  await child.exited;
  if ("error" in answer) throw new Error(`${name} of ${module}: ${answer.error}`);
  return answer.value;
}
