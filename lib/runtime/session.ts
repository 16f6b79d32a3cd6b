import { KvferryError } from "../core/errors.ts";
import { defaultProfile, type MachineProfile } from "../core/profile.ts";
import type { ExecutorName } from "../core/plan.ts";
import { NixlAgent } from "../native/agent.ts";
import { NativeContext } from "../native/context.ts";
import { findNixl } from "../native/find-nixl.ts";
import { openLibrary } from "../native/library.ts";
import type { Executor } from "./executor.ts";
import { hostExecutor } from "./host-executor.ts";
import { externalHostMemory, sharedMemory, systemMemory } from "./host-memory.ts";
import type { MemoryProviders } from "./layout-memory.ts";
import { nextIncarnation, wireName } from "./incarnation.ts";
import { nixlExecutor } from "./nixl-executor.ts";
import type { ResolvedOptions } from "./options.ts";

/** Threads that post transfers to NIXL: one for each direction keeps a push and a pull from waiting on each other. */
const NIXL_LANES = 2;

/** What an open transport holds of the machine. */
export interface Session {
  readonly options: ResolvedOptions;
  readonly incarnation: number;
  /** Name of this transport's agent on NIXL's wire. */
  readonly wireName: string;
  readonly context: NativeContext;
  readonly agent: NixlAgent | null;
  /** Why there is no agent; null when there is one or none was wanted. */
  readonly noNixl: KvferryError | null;
  readonly profile: MachineProfile;
  readonly executors: ReadonlyMap<ExecutorName, Executor>;
  /** Where the memory of layouts comes from, by kind. */
  readonly providers: MemoryProviders;
}

/**
 * Opens what the options ask for: the native context, and a NIXL agent with its backends where there is NIXL.
 * All or nothing.
 *
 * @throws KvferryError `UNSUPPORTED_PLATFORM`, `NO_NIXL` or `NIXL` when something that was named is not to be had.
 */
export async function openSession(options: ResolvedOptions): Promise<Session> {
  const context = NativeContext.open(openLibrary(), options.slots);
  try {
    const incarnation = nextIncarnation(Date.now());
    const wire = wireName(options.agentName, incarnation);
    const { agent, reason } = await openAgent(context, options, wire);
    const executors = new Map<ExecutorName, Executor>([["host", hostExecutor(context)]]);
    if (agent !== null) executors.set("nixl", nixlExecutor(context, agent));
    const providers: MemoryProviders = {
      system: systemMemory(context),
      external: externalHostMemory,
      shared: sharedMemory,
    };
    return {
      providers,
      options,
      incarnation,
      wireName: wire,
      context,
      agent,
      noNixl: reason,
      profile: options.profile ?? defaultProfile,
      executors,
    };
  } catch (error) {
    context.close(1000);
    throw error;
  }
}

async function openAgent(
  context: NativeContext,
  options: ResolvedOptions,
  name: string,
): Promise<{ readonly agent: NixlAgent | null; readonly reason: KvferryError | null }> {
  const wanted = options.nixl;
  if (wanted === null) return { agent: null, reason: null };
  const location = findNixl(wanted.library === null ? {} : { library: wanted.library });
  if (location === null) {
    const reason = new KvferryError(
      "NO_NIXL",
      "open",
      wanted.library === null
        ? "NIXL was not found on this machine"
        : `there is no NIXL library at ${wanted.library}`,
      "Run `kvferry setup` to fetch it, or set KVFERRY_NIXL_LIBRARY to libnixl_capi.so; local work goes on without it.",
      { library: wanted.library },
    );
    if (wanted.demanded) throw reason;
    return { agent: null, reason };
  }
  let agent: NixlAgent | undefined;
  try {
    agent = await NixlAgent.create(context, location, name, NIXL_LANES);
    for (const [backend, parameters] of wanted.backends) await agent.addBackend(backend, parameters);
    return { agent, reason: null };
  } catch (error) {
    await agent?.close().catch(() => 0);
    if (wanted.demanded || !(error instanceof KvferryError)) throw error;
    return { agent: null, reason: error };
  }
}
