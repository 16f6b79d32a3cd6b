import { KvferryError } from "../core/errors.ts";
import type { ExecutorName, Hop } from "../core/plan.ts";
import type { MachineProfile } from "../core/profile.ts";
import type { CopyProgram } from "../core/program.ts";
import type { PlanEnvironment } from "../core/environment.ts";
import { plannedHop } from "../core/staging.ts";
import { assistedHop } from "./assisted-hop.ts";
import type { DeviceStaging } from "./device-staging.ts";
import type { StagingClient } from "./staging-client.ts";
import type { NixlAgent } from "../native/agent.ts";
import type { Executor, HopContext, HopOutcome, RunningHop } from "./executor.ts";
import { StagedRun } from "./staged-run.ts";
import type { StagingPool } from "./staging-pool.ts";

/** What the two-hop executor needs. */
export interface StagedParts {
  readonly pool: StagingPool;
  /** Staging memory that peers' NIXL may know. */
  readonly receive: StagingPool;
  /** Staging memory on GPUs, for transfers between GPU memory that NIXL moves by itself; null where there is none. */
  readonly devices: DeviceStaging | null;
  readonly executor: (name: ExecutorName) => Executor | undefined;
  readonly profile: () => MachineProfile;
  readonly environment: PlanEnvironment;
  /** NIXL's agent, or null. */
  readonly agent: NixlAgent | null;
  /** How peers are asked for help; set once there is a transport. */
  client: StagingClient | null;
  /** Whether words of peers are awaited; set likewise. */
  waiting: (on: boolean) => void;
  /** Whether the peer of that wire name can be asked; set likewise. */
  assists: (agent: string) => boolean;
  /** Somebody watches: a program was completed. */
  readonly progressed: () => void;
}

/** Runs hops that need two, through chunks of staging memory: with the help of the peer, or without it. */
export function stagedExecutor(parts: StagedParts): Executor {
  return {
    start(hop: Hop, context: HopContext, done): RunningHop {
      const { agent } = hop;
      const ended = agent === null ? done : notifying(parts, agent, context, done);
      if (agent !== null && hop.components !== undefined) return assisted(parts, hop, agent, context, ended);
      const source =
        context.bounce ?? parts.pool.source(deviceOf(hop), agent === null ? null : parts.agent, agent);
      const run = new StagedRun(
        hop,
        context.watch,
        source,
        (name, op, program, stepEnded) =>
          startProgram(parts, name, op, name === "nixl" ? agent : null, program, source.pageable, stepEnded),
        parts.progressed,
        ended,
      );
      run.pump();
      return run;
    },
  };
}

/**
 * Starts a hop of one program.
 *
 * @param notification - What NIXL brings the peer after the data.
 */
export function startProgram(
  parts: StagedParts,
  name: ExecutorName,
  op: Hop["op"],
  agent: string | null,
  program: CopyProgram,
  pageable: boolean,
  done: (outcome: HopOutcome) => void,
  notification: Uint8Array | null = null,
): RunningHop {
  const executor = parts.executor(name);
  if (executor === undefined) throw missing(name);
  const hop = plannedHop(name, op, agent, [program], pageable, parts.profile(), parts.environment);
  return executor.start(hop, { notification, watch: false }, done);
}

function assisted(
  parts: StagedParts,
  hop: Hop,
  agent: string,
  context: HopContext,
  done: (outcome: HopOutcome) => void,
): RunningHop {
  const { client } = parts;
  if (client === null) throw missing("nixl");
  return assistedHop(
    {
      ...parts,
      client,
      start: (name, op, program, pageable, ended, notification) =>
        startProgram(parts, name, op, name === "nixl" ? agent : null, program, pageable, ended, notification),
    },
    hop,
    agent,
    context,
    done,
  );
}

/** Sends the notification after the data: the hops inside carry none. */
function notifying(
  parts: StagedParts,
  agent: string,
  { notification }: HopContext,
  done: (outcome: HopOutcome) => void,
): (outcome: HopOutcome) => void {
  return (outcome) => {
    if (!outcome.ok || notification === null || parts.agent === null) {
      done(outcome);
      return;
    }
    parts.agent.notify(agent, new Uint8Array(notification)).then(
      () => done(outcome),
      (error: unknown) =>
        done({
          ...outcome,
          ok: false,
          error: error instanceof KvferryError ? error : (outcome.error ?? missing("nixl")),
        }),
    );
  };
}

/** A GPU that takes part, or null. */
function deviceOf(hop: Hop): number | null {
  for (const { srcMemory, dstMemory } of hop.programs) {
    if (srcMemory.kind === 1) return srcMemory.device;
    if (dstMemory.kind === 1) return dstMemory.device;
  }
  return null;
}

function missing(name: ExecutorName): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `nothing here can run a ${name} hop`,
    "Run `kvferry doctor` to see what this process has.",
    { executor: name },
  );
}
