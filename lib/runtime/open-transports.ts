import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/** A transport is open from now on, until {@link noteClosed}: at exit its threads are stopped. */
export function noteOpen(session: Session, state: TransportState): void {
  openTransports.set(session, state);
}

export function noteClosed(session: Session): void {
  openTransports.delete(session);
}

/**
 * Watches over a transport that a program holds: what it leaves behind when it is dropped without `close` is said, and
 * its threads are stopped at the latest when the process exits.
 */
export function watch(transport: object, session: Session): void {
  dropped.register(transport, session.options.agentName, session);
  installExitHook();
}

/** The program closes the transport itself. */
export function unwatch(session: Session): void {
  dropped.unregister(session);
}

/** Stops a transport's threads without waiting for anything. */
export function closeAtOnce(session: Session, state: TransportState): void {
  state.close();
  session.context.close(0);
}

/** What must be stopped before the process may end. */
const openTransports: Map<Session, TransportState> = new Map();

/** Says what was left behind, and frees nothing: whoever was given a layout or a peer may still use it. */
const dropped: FinalizationRegistry<string> = new FinalizationRegistry((agentName) =>
  process.emitWarning(
    `the transport ${agentName} was dropped without close(): its memory and its threads stay until the process ends`,
    { type: "KvferryWarning", code: "KVF_LEAK" },
  ),
);

let exitHook = false;

/** At exit neither destructors nor finalizers run: native threads are stopped here, synchronously. */
function installExitHook(): void {
  if (exitHook) return;
  exitHook = true;
  process.on("exit", () => {
    for (const [session, state] of openTransports) closeAtOnce(session, state);
  });
}
