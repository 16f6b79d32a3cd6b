import { mappedAddresses } from "../core/attachment.ts";
import { handleLayoutId } from "../core/handle.ts";
import { emptyRegistry } from "../core/registry-local.ts";
import { isRemote } from "../core/registry-queries.ts";
import { Arrivals } from "./arrivals.ts";
import { BlockIo } from "./block-io.ts";
import { answerBody } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import { Engine } from "./engine.ts";
import type { EndedTransfer } from "./task.ts";
import { EventHub } from "./events.ts";
import { Fences } from "./fences.ts";
import { Leases } from "./leases.ts";
import { listenForControl } from "./listening.ts";
import { Liveness } from "./liveness.ts";
import { MetricsBook } from "./metrics.ts";
import { Messenger } from "./messenger.ts";
import { NotificationQueue } from "./notifications.ts";
import { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import { Planning } from "./planning.ts";
import { Registrar } from "./registrar.ts";
import type { Session } from "./session.ts";
import type { StagingSides } from "./staging.ts";
import { openSums } from "./sums.ts";
import { TransportState } from "./state.ts";
import { agentOf } from "./submit.ts";
import { Submitter } from "./submitter.ts";

/** What a transport is made of. None of it refers to the `Transport` that users hold. */
export interface TransportParts {
  readonly state: TransportState;
  readonly events: EventHub;
  readonly metrics: MetricsBook;
  readonly leases: Leases;
  readonly engine: Engine;
  readonly registrar: Registrar;
  readonly peers: PeerBook;
  readonly queue: NotificationQueue;
  readonly messenger: Messenger;
  readonly liveness: Liveness<Peer>;
  readonly submitter: Submitter;
  readonly planning: Planning;
  readonly arrivals: Arrivals;
  readonly fences: Fences;
  readonly staging: StagingSides | null;
}

/** Makes the parts of a transport over a session and connects them. */
export function connectParts(session: Session): TransportParts {
  const events: EventHub = new EventHub();
  const metrics: MetricsBook = new MetricsBook();
  const leases: Leases = new Leases();
  const { options } = session;
  const state: TransportState = new TransportState(
    emptyRegistry({
      workerId: options.workerId,
      agentName: options.agentName,
      wireName: session.wireName,
      incarnation: session.incarnation,
    }),
  );
  const engine: Engine = new Engine(
    {
      clock: session.clock,
      executor: (name) => session.executors.get(name),
      fileName: (file) => session.files.get(file),
      report: (ended) => {
        metrics.record(ended);
        blame(peers, ended);
        if (!events.has("transfer")) return;
        const { id, plan, settlement, bytes, durationMicros, error } = ended;
        const descriptors = plan.legs.reduce(
          (sum, leg) => sum + leg.hops.reduce((inner, hop) => inner + hop.descriptorsAfter, 0),
          0,
        );
        events.emit("transfer", {
          id,
          route: plan.route,
          settlement,
          bytes,
          descriptors,
          durationMicros,
          error,
        });
      },
      quarantine: (change, layout, groups, reason) => {
        if (!events.has("quarantine")) return;
        for (const [group, ids] of groups)
          events.emit("quarantine", { change, layout, group, blocks: Array.from(ids), reason });
      },
      wallClock: () => Date.now(),
    },
    leases,
  );
  session.context.onProgress = () => engine.progress();
  const peers: PeerBook = new PeerBook(session, state, engine, events);
  const queue: NotificationQueue = new NotificationQueue((waiting) => messenger.wait(waiting));
  const messenger: Messenger = new Messenger(session, state, peers, queue);
  messenger.onOverflow = (from) =>
    events.emit("warning", {
      code: "NOTIFICATIONS",
      message: `messages of ${from} are dropped: nobody reads notifications()`,
    });
  const liveness: Liveness<Peer> = new Liveness(
    {
      clock: session.clock,
      peers: () => peers.peers.filter((peer) => peer.understandsControl),
      send: (peer) => messenger.control(peer, CONTROL.heartbeat, answerBody(options.heartbeatMillis)),
      lost: (peer, reason) => peers.lose(peer, reason),
    },
    session.agent === null ? 0 : options.heartbeatMillis,
  );
  listenForControl(messenger, peers, liveness, (wireName) => fences.reach.has(wireName));
  const staging = session.overNixl?.openStaging(session, state, messenger, peers, leases) ?? null;
  const planning: Planning = new Planning(session, state, leases);
  const submitter: Submitter = new Submitter(
    session,
    state,
    engine,
    leases,
    planning,
    messenger,
    events,
    metrics,
  );
  const io = new BlockIo(
    session.context,
    leases,
    (source, destination, blocks) => submitter.move(source, destination, blocks),
    session.stages,
  );
  const registrar: Registrar = new Registrar(session, state, leases, {
    io,
    unregister: (layout, unregisterOptions) => registrar.unregister(layout, unregisterOptions),
    quarantined: (handle) => leases.quarantined(handle),
  });
  session.neighbours?.serve({
    find: (handle) => {
      const layout = registrar.find(handleLayoutId(handle), handle);
      return layout === undefined
        ? undefined
        : { record: layout.record, components: layout.memory.components };
    },
    deliver: (from, payload) => messenger.deliverFrom(from.wire, payload),
    gone: (from) => {
      // Without NIXL nothing but its mappings could write here.
      if (session.agent === null)
        arrivals.proveQuiet((arrival) => arrival.wireName === from.wire, "peer-gone");
    },
    marked: (wireName, mark) => marked(wireName, mark),
    used: (handle) => leases.uses(handle) > 0,
    idle: (handle) => leases.idle(handle),
    lost: (wireName, reason) => {
      const peer = peers.byWireName(wireName);
      if (peer !== undefined) peers.lose(peer, reason);
    },
    withdrawn: (wireName, handle) => {
      const peer = peers.byWireName(wireName);
      if (peer !== undefined) peers.takeBack(peer, handle);
    },
    repinned: (wireName, handle, component, { bases, storage, via }) => {
      const peer = peers.byWireName(wireName);
      if (peer !== undefined && isRemote(state.snapshot, handle))
        peers.reattach(
          peer,
          handle,
          component,
          mappedAddresses(bases, storage ?? undefined, via ?? undefined),
        );
    },
    warn: (message) => events.emit("warning", { code: "NEIGHBOUR", message }),
  });
  const arrivals: Arrivals = new Arrivals(
    state,
    leases,
    queue,
    messenger,
    events,
    session.clock,
    session.options.deadlineMillis,
  );
  const fences: Fences = new Fences({
    clock: session.clock,
    processes: session.processes,
    agent: session.agent,
    wireName: session.wireName,
    engine: engine,
    peers: peers,
    arrivals: arrivals,
    messenger: messenger,
    liveness: liveness,
    staging,
  });
  registrar.gone.shared = fences.shared;
  const { integrity } = submitter;
  const marked: ReturnType<typeof openSums> = openSums({
    session,
    state,
    messenger,
    peers,
    integrity,
    arrivals,
    fences,
  });
  return {
    state,
    events,
    metrics,
    leases,
    engine,
    registrar,
    peers,
    queue,
    messenger,
    liveness,
    submitter,
    planning,
    arrivals,
    fences,
    staging,
  };
}

/** A transfer that failed because its peer is gone says so of the peer too. */
function blame(peers: PeerBook, ended: EndedTransfer): void {
  if (ended.error?.code !== "ERR_KVF_PEER_LOST") return;
  const agent = agentOf(ended.plan);
  const peer = agent === null ? undefined : peers.byWireName(agent);
  if (peer !== undefined) queueMicrotask(() => peers.lose(peer, ended.error?.message ?? "a transfer failed"));
}
