import { KvferryError } from "../core/errors.ts";
import { NixlAgent } from "../native/agent.ts";
import type { NativeContext } from "../native/context.ts";
import { withVariable } from "../native/environment.ts";
import { findNixl } from "../native/find-nixl.ts";
import { loadExchange } from "./exchange.ts";
import type { NixlParts } from "./nixl-parts.ts";
import type { ResolvedOptions } from "./options.ts";

/** Threads that post transfers to NIXL: one for each direction keeps a push and a pull from waiting on each other. */
const NIXL_LANES = 2;

/** An agent with what works with it, or why there is none. */
export type OpenedNixl =
  | { readonly agent: NixlAgent; readonly overNixl: NixlParts; readonly reason: null }
  | { readonly agent: null; readonly overNixl: null; readonly reason: KvferryError | null };

/**
 * Opens the agent, with its backends.
 *
 * @returns The agent, or why there is none.
 * @throws KvferryError `NO_NIXL`, `NIXL` or `ACCESS` when NIXL was named and is not to be had.
 */
export async function openAgent(
  context: NativeContext,
  options: ResolvedOptions,
  wanted: NonNullable<ResolvedOptions["nixl"]>,
  name: string,
): Promise<OpenedNixl> {
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
    return { agent: null, overNixl: null, reason };
  }
  let agent: NixlAgent | undefined;
  try {
    // Whoever has an agent will have peers. NIXL takes longer to load, and then to start its backends, than all that works
    // with it: either happens on a thread of its own, and a part of that is loaded beside each.
    const creating = NixlAgent.create(context, location, name, NIXL_LANES);
    const parts = import("./nixl-parts.ts");
    agent = await creating;
    const [overNixl] = await Promise.all([
      parts,
      addBackends(agent, wanted.backends, options),
      loadExchange(),
    ]);
    return { agent, overNixl, reason: null };
  } catch (error) {
    await agent?.close().catch(() => 0);
    if (wanted.demanded || !(error instanceof KvferryError)) throw error;
    return { agent: null, overNixl: null, reason: error };
  }
}

async function addBackends(
  agent: NixlAgent,
  backends: NonNullable<ResolvedOptions["nixl"]>["backends"],
  options: ResolvedOptions,
): Promise<void> {
  for (const [backend, parameters] of backends)
    await addBackend(agent, backend, { ...ownWorkers(backend), ...parameters }, options);
}

/**
 * UCX over TCP writes to whatever address stands in a message, for anyone who connects: with a secret it is used only
 * where the network is trusted.
 */
async function addBackend(
  agent: NixlAgent,
  name: string,
  parameters: Readonly<Record<string, string>>,
  options: ResolvedOptions,
): Promise<void> {
  if (name !== "UCX" || options.secrets.length === 0 || options.trustedNetwork) {
    await agent.addBackend(name, parameters);
    return;
  }
  try {
    await withVariable("UCX_TLS", withoutTcp, () => agent.addBackend(name, parameters));
  } catch (cause) {
    throw new KvferryError(
      "ACCESS",
      "open",
      "UCX has no way to peers here but TCP, by which anyone who can connect may overwrite this process's memory",
      "Open the transport with trustedNetwork: true when only trusted hosts can reach this one, use hosts with RDMA, or leave NIXL out with nixl: false.",
      { backend: name },
      cause,
    );
  }
}

/** A UCX transport list as it is, but for TCP. */
export function withoutTcp(present: string | undefined): string {
  const given = present?.trim() ?? "";
  if (given === "" || given === "all") return "^tcp";
  if (given.startsWith("^")) return `${given},tcp`;
  const names = given.split(",").filter((name) => name.trim() !== "tcp");
  return names.length === 0 || names.some((name) => name.trim() === "all") ? "^tcp" : names.join(",");
}

/**
 * A UCX worker for each lane: lanes that share one take turns at its lock, spinning, and a post that copies holds it
 * for the whole copy.
 */
function ownWorkers(backend: string): Readonly<Record<string, string>> {
  return backend === "UCX" ? { num_workers: String(NIXL_LANES) } : {};
}
