import { KvferryError } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { Arrivals } from "./arrivals.ts";
import { within } from "./deadlines.ts";
import type { Fences } from "./fences.ts";
import type { Engine } from "./engine.ts";
import type { Liveness } from "./liveness.ts";
import type { Messenger } from "./messenger.ts";
import type { NotificationQueue } from "./notifications.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import type { Registrar } from "./registrar.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/** What `close` had to leave. */
export interface CloseReport {
  /** Names of layouts whose memory may still be touched: it stays allocated. */
  readonly layouts: readonly string[];
  /** Native calls that never returned and were left to themselves. */
  readonly stuck: number;
  /** Transfers that were settled in doubt because they did not end in time. */
  readonly inDoubt: number;
  /** Bytes of staging memory that may still be touched: they stay allocated. Left out where there are none. */
  readonly stagingBytes?: number;
}

/** Everything that closes, in the order in which it must. */
export interface Closable {
  readonly session: Session;
  readonly state: TransportState;
  readonly engine: Engine;
  readonly registrar: Registrar;
  readonly peers: PeerBook;
  readonly arrivals: Arrivals;
  readonly messenger: Messenger;
  readonly liveness: Liveness<Peer>;
  readonly fences: Fences;
  readonly queue: NotificationQueue;
}

/** How long running transfers get to end by themselves, and then to stop. Milliseconds. */
const DRAIN_MILLIS = 2_000;
const STOP_MILLIS = 500;
const NATIVE_MILLIS = 2_000;

/** See `Transport.close`. */
export async function closeTransport(parts: Closable): Promise<CloseReport> {
  const { session, state, engine, registrar, peers, arrivals, messenger, liveness, fences, queue } = parts;
  state.close();
  queue.close();
  arrivals.close();
  liveness.stop();
  const { clock } = session;
  // The clock's timers do not keep the process alive: what is awaited here must.
  session.context.holdProcess(true);
  const closed = new KvferryError(
    "CLOSED",
    "close",
    "the transport was closed",
    "Await transfers before closing.",
  );
  await within(clock, DRAIN_MILLIS, engine.idle());
  if (engine.runningCount > 0) {
    engine.cancelAll(closed);
    await within(clock, STOP_MILLIS, engine.idle());
    engine.giveUpAll(closed);
  }
  // Who may still touch this process's memory is told, and given a moment to let go of it.
  await within(clock, STOP_MILLIS, registrar.takeBackAll());
  // Peers that hear it need not wait for silence to know.
  await within(clock, STOP_MILLIS, fences.farewell());
  // Both directions at once: two transports that close together wait for each other.
  await within(
    clock,
    NATIVE_MILLIS,
    Promise.all([peers.forgetAll(), session.neighbours?.closing(NATIVE_MILLIS)]),
  );
  // Until now somebody may have imported this worker.
  messenger.close();
  // An agent that is gone touches nothing: what only waited for that proof is free.
  let stuck = 0;
  for (const agent of [session.agent, session.gds])
    if (agent !== null) stuck += (await within(clock, NATIVE_MILLIS, agent.close())) ?? 1;
  if (stuck === 0) {
    engine.proveQuiet((hop) => hop === undefined || endsWithAgent(hop), "agent-closed");
    if (session.agent !== null)
      arrivals.proveQuiet(({ wireName }) => fences.endsWithAgent(wireName), "agent-closed");
  }
  const inDoubt = engine.doubtfulCount;
  const layouts = await registrar.releaseAll();
  await within(clock, NATIVE_MILLIS, session.stages.close());
  const staged = await within(
    clock,
    NATIVE_MILLIS,
    Promise.all([
      session.staging.send.close(),
      session.staging.receive.close(),
      session.staging.devices?.close() ?? 0,
    ]),
  );
  const stagingBytes = (staged ?? []).reduce((sum, bytes) => sum + bytes, 0);
  await within(clock, NATIVE_MILLIS, session.cuda.close());
  registrar.endWaits();
  engine.settleClosed();
  arrivals.settleClosed();
  fences.close();
  engine.stop();
  session.neighbours?.close();
  stuck += session.context.close(NATIVE_MILLIS);
  return { layouts, stuck, inDoubt, ...(stagingBytes > 0 ? { stagingBytes } : undefined) };
}

/** Whether an agent that is gone has let go of what a hop may touch: a device or a file that hangs knows no agent. */
function endsWithAgent({ agent, executor }: Hop): boolean {
  return agent !== null || executor === "gds";
}
