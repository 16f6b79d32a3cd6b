import { mappedAddresses } from "../core/attachment.ts";
import { KvferryError } from "../core/errors.ts";
import type { Explanation } from "../core/explain.ts";
import { formatHandle, handleLayoutId, type LayoutHandle } from "../core/handle.ts";
import type { LayoutSpec } from "../core/layout.ts";
import { emptyRegistry, type RegistrySnapshot } from "../core/registry.ts";
import { isLocal, isRemote, localCount, remoteCount } from "../core/registry-queries.ts";
import { Arrivals, type Arrival, type ExpectOptions } from "./arrival.ts";
import { BlockIo } from "./block-io.ts";
import { closeTransport, type CloseReport } from "./closing.ts";
import { dumpTransport, type TransportDump } from "./dump.ts";
import { answerBody } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import { Engine, type EndedTransfer } from "./engine.ts";
import { EventHub, type TransportEvents } from "./events.ts";
import { exportMetadata, type ExportOptions } from "./exporting.ts";
import { Fences } from "./fences.ts";
import { Leases } from "./leases.ts";
import { listenForControl } from "./listening.ts";
import { Liveness } from "./liveness.ts";
import type { LocalLayout } from "./local-layout.ts";
import { MetricsBook, prometheusText, type TransportMetrics } from "./metrics.ts";
import { Messenger } from "./messenger.ts";
import { NotificationQueue, type Notification, type NotificationOptions } from "./notifications.ts";
import { resolveOptions, type OpenOptions } from "./options.ts";
import { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import { Planning } from "./planning.ts";
import { PreparedTransfer } from "./prepared.ts";
import { Registrar } from "./registrar.ts";
import type { RemoteLayout } from "./remote-layout.ts";
import { openSession, type Session } from "./session.ts";
import { openStaging } from "./staging.ts";
import { openSums } from "./sums.ts";
import { TransportState } from "./state.ts";
import { agentOf, type PrepareRequest, type TransferRequest } from "./submit.ts";
import { Submitter } from "./submitter.ts";
import type { Transfer } from "./transfer.ts";

/**
 * Moves KV-cache blocks between registered layouts, here and at peers.
 *
 * It owns its native context, its NIXL agent and the memory that it allocated, until `close`.
 */
export class Transport implements AsyncDisposable {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #events: EventHub = new EventHub();
  readonly #metrics: MetricsBook = new MetricsBook();
  readonly #leases: Leases = new Leases();
  readonly #engine: Engine;
  readonly #registrar: Registrar;
  readonly #peers: PeerBook;
  readonly #queue: NotificationQueue;
  readonly #messenger: Messenger;
  readonly #liveness: Liveness<Peer>;
  readonly #submitter: Submitter;
  readonly #planning: Planning;
  readonly #arrivals: Arrivals;
  readonly #fences: Fences;
  readonly #mark: ReturnType<typeof openSums>;
  #closing: Promise<CloseReport> | undefined;

  private constructor(session: Session) {
    const { options } = session;
    this.#session = session;
    this.#state = new TransportState(
      emptyRegistry({
        workerId: options.workerId,
        agentName: options.agentName,
        wireName: session.wireName,
        incarnation: session.incarnation,
      }),
    );
    this.#engine = new Engine(
      {
        clock: session.clock,
        executor: (name) => session.executors.get(name),
        fileName: (file) => session.files.get(file),
        report: (ended) => {
          this.#metrics.record(ended);
          this.#blame(ended);
          if (!this.#events.has("transfer")) return;
          const { id, plan, settlement, bytes, durationMicros, error } = ended;
          const descriptors = plan.legs.reduce(
            (sum, leg) => sum + leg.hops.reduce((inner, hop) => inner + hop.descriptorsAfter, 0),
            0,
          );
          this.#events.emit("transfer", {
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
          if (!this.#events.has("quarantine")) return;
          for (const [group, ids] of groups)
            this.#events.emit("quarantine", { change, layout, group, blocks: Array.from(ids), reason });
        },
        wallClock: () => Date.now(),
      },
      this.#leases,
    );
    session.context.onProgress = () => this.#engine.progress();
    this.#peers = new PeerBook(session, this.#state, this.#engine, this.#events);
    this.#queue = new NotificationQueue((waiting) => this.#messenger.wait(waiting));
    this.#messenger = new Messenger(session, this.#state, this.#peers, this.#queue);
    this.#messenger.onOverflow = (from) =>
      this.#events.emit("warning", {
        code: "NOTIFICATIONS",
        message: `messages of ${from} are dropped: nobody reads notifications()`,
      });
    this.#liveness = new Liveness(
      {
        clock: session.clock,
        peers: () => this.#peers.peers.filter((peer) => peer.understandsControl),
        send: (peer) => this.#messenger.control(peer, CONTROL.heartbeat, answerBody(options.heartbeatMillis)),
        lost: (peer, reason) => this.#peers.lose(peer, reason),
      },
      session.agent === null ? 0 : options.heartbeatMillis,
    );
    listenForControl(this.#messenger, this.#peers, this.#liveness, (wireName) =>
      this.#fences.reaches(wireName),
    );
    const staging = openStaging(session, this.#state, this.#messenger, this.#peers, this.#leases);
    this.#planning = new Planning(session, this.#state, this.#leases);
    this.#submitter = new Submitter(
      session,
      this.#state,
      this.#engine,
      this.#leases,
      this.#planning,
      this.#messenger,
      this.#events,
      this.#metrics,
    );
    const io = new BlockIo(
      session.context,
      this.#leases,
      (source, destination, blocks) => this.#submitter.move(source, destination, blocks),
      session.stages,
    );
    this.#registrar = new Registrar(session, this.#state, this.#leases, {
      io,
      unregister: (layout, unregisterOptions) => this.#registrar.unregister(layout, unregisterOptions),
      quarantined: (handle) => this.#leases.quarantined(handle),
    });
    session.neighbours?.serve({
      find: (handle) => {
        const layout = this.#registrar.find(handleLayoutId(handle), handle);
        return layout === undefined
          ? undefined
          : { record: layout.record, components: layout.memory.components };
      },
      deliver: (from, payload) => this.#messenger.deliverFrom(from.wire, payload),
      gone: (from) => {
        // Without NIXL nothing but its mappings could write here.
        if (session.agent === null)
          this.#arrivals.proveQuiet((arrival) => arrival.wireName === from.wire, "peer-gone");
      },
      marked: (wireName, mark) => this.#mark(wireName, mark),
      used: (handle) => this.#leases.uses(handle) > 0,
      idle: (handle) => this.#leases.idle(handle),
      lost: (wireName, reason) => {
        const peer = this.#peers.byWireName(wireName);
        if (peer !== undefined) this.#peers.lose(peer, reason);
      },
      withdrawn: (wireName, handle) => {
        const peer = this.#peers.byWireName(wireName);
        if (peer !== undefined) this.#peers.takeBack(peer, handle);
      },
      repinned: (wireName, handle, component, { bases, storage }) => {
        const peer = this.#peers.byWireName(wireName);
        if (peer !== undefined && isRemote(this.#state.snapshot, handle))
          this.#peers.reattach(peer, handle, component, mappedAddresses(bases, storage ?? undefined));
      },
      warn: (message) => this.#events.emit("warning", { code: "NEIGHBOUR", message }),
    });
    this.#arrivals = new Arrivals(
      this.#state,
      this.#leases,
      this.#queue,
      this.#messenger,
      this.#events,
      session.clock,
      session.options.deadlineMillis,
    );
    this.#fences = new Fences({
      clock: session.clock,
      processes: session.processes,
      agent: session.agent,
      wireName: session.wireName,
      engine: this.#engine,
      peers: this.#peers,
      arrivals: this.#arrivals,
      messenger: this.#messenger,
      liveness: this.#liveness,
      staging,
    });
    this.#registrar.fences = this.#fences;
    const { integrity } = this.#submitter;
    this.#arrivals.onDone = (layout, blocks) => integrity.bad.clear(layout, blocks);
    this.#mark = openSums({
      session,
      state: this.#state,
      messenger: this.#messenger,
      peers: this.#peers,
      integrity,
      arrivals: this.#arrivals,
      fences: this.#fences,
    });
  }

  /**
   * Opens a transport: loads the native library, and makes a NIXL agent where NIXL is found.
   *
   * @throws KvferryError `INVALID_CONFIG` for options that are not valid, `NO_NIXL` when NIXL was named and is not
   * there, `UNSUPPORTED_PLATFORM` where the native library cannot run.
   */
  static async open(options: OpenOptions): Promise<Transport> {
    const transport = Transport.over(await openSession(resolveOptions(options, process.env)));
    installExitHook();
    return transport;
  }

  /** @internal A transport over a session that was opened elsewhere; a simulation gives its own. */
  static over(session: Session): Transport {
    const transport = new Transport(session);
    openTransports.add(transport);
    return transport;
  }

  get workerId(): bigint {
    return this.#session.options.workerId;
  }

  /** The name that users see; the name on NIXL's wire adds an incarnation. */
  get agentName(): string {
    return this.#session.options.agentName;
  }

  /** The current immutable snapshot; `kvferry/core` has the queries over it. */
  get registry(): RegistrySnapshot {
    return this.#state.snapshot;
  }

  /** Layouts of this transport in id order. */
  get localLayouts(): LocalLayout[] {
    return this.#registrar.layouts;
  }

  /** Layouts of all peers, by worker id and then layout id. */
  get remoteLayouts(): RemoteLayout[] {
    return this.#peers.remoteLayouts;
  }

  /** Imported peers in worker id order. */
  get peers(): Peer[] {
    return this.#peers.peers;
  }

  /** Why there is no NIXL agent; null when there is one, or none was wanted. */
  get nixlProblem(): KvferryError | null {
    return this.#session.noNixl;
  }

  /** Path of the NIXL library in use, or null. */
  get nixlLibrary(): string | null {
    return this.#session.agent?.library ?? null;
  }

  /** Why there is no CUDA, as far as it was asked for; null when there is, or nobody asked yet. */
  get cudaProblem(): KvferryError | null {
    return this.#session.cuda.problem;
  }

  /** Path of the CUDA driver library in use, or null before GPU memory was first asked for. */
  get cudaLibrary(): string | null {
    return this.#session.cuda.driver?.info.library ?? null;
  }

  /** The imported peer of a worker id, or undefined. */
  peer(workerId: bigint | number): Peer | undefined {
    return typeof workerId === "bigint" || Number.isSafeInteger(workerId)
      ? this.#peers.peer(BigInt(workerId))
      : undefined;
  }

  /**
   * The layout object behind a handle.
   *
   * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE`.
   */
  layout(handle: LayoutHandle): LocalLayout | RemoteLayout {
    const record = this.#planning.record(handle);
    const found =
      record.owner === null
        ? this.#registrar.find(record.layoutId, handle)
        : this.#peers.peer(record.owner)?.layouts.find((layout) => layout.handle === handle);
    if (found === undefined) {
      throw new KvferryError(
        "STALE_HANDLE",
        "layout",
        `${formatHandle(handle)} is being taken back`,
        "Look the layout up again.",
        { handle: handle.toString() },
      );
    }
    return found;
  }

  isLocal(handle: LayoutHandle): boolean {
    return isLocal(this.#state.snapshot, handle);
  }

  isRemote(handle: LayoutHandle): boolean {
    return isRemote(this.#state.snapshot, handle);
  }

  /**
   * Registers a layout: allocates or adopts its memory, registers it with NIXL where there is an agent, and gives it
   * a handle. Ids rise by one in the order of the calls; a refused registration uses none.
   *
   * @throws KvferryError `INVALID_CONFIG`, `OUT_OF_MEMORY`, `TOO_MANY_LAYOUTS`, `NIXL`, `NO_CUDA`.
   */
  register(spec: LayoutSpec): Promise<LocalLayout> {
    return this.#registrar.register(spec);
  }

  /**
   * This worker's address, NIXL's blob and its layouts in id order, for peers to import.
   *
   * @throws KvferryError `NO_NIXL` for Dynamo's formats without an agent, `INCOMPATIBLE_LAYOUTS` for what a format
   * cannot say.
   */
  exportMetadata(options: ExportOptions = {}): Promise<Uint8Array> {
    return exportMetadata(this.#session, this.#state, options, {
      fences: this.#fences,
      registrations: (handles) => this.#registrar.registrations(handles),
      warn: (code, message) => this.#warn(code, message),
    });
  }

  /**
   * Imports a peer's metadata, in any of the three formats. All or nothing.
   *
   * @throws KvferryError `METADATA_MALFORMED`, `METADATA_UNAUTHENTICATED`, `METADATA_EXPIRED`, `DUPLICATE_WORKER`,
   * `AGENT_MISMATCH`, `NIXL`.
   */
  async importMetadata(bytes: Uint8Array): Promise<Peer> {
    const peer = await this.#peers.import(bytes);
    this.#liveness.start();
    return peer;
  }

  /** Moves blocks. Never throws: an invalid request rejects before the first byte moves. */
  transfer(request: TransferRequest): Transfer {
    return this.#submitter.transfer(request);
  }

  /**
   * What `transfer` would do, as plain data.
   *
   * @throws KvferryError what the transfer would reject with.
   */
  explain(request: TransferRequest): Explanation {
    return this.#planning.explain(request);
  }

  /**
   * Checks and plans a pair of layouts once, for many transfers between them.
   *
   * @throws KvferryError what every such transfer would reject with.
   */
  prepare(request: PrepareRequest): PreparedTransfer {
    this.#state.demandOpen("prepare");
    return new PreparedTransfer(this.#planning, this.#submitter, request);
  }

  /** The receiving side of a peer's push: leases the blocks and awaits the notification `tag`. */
  expect(options: ExpectOptions): Arrival {
    return this.#arrivals.expect(options);
  }

  /**
   * Messages from peers, oldest first. Iterators share one queue: each message goes to one of them. Messages wait until
   * somebody reads them; senders cannot be held back over NIXL, so that above 64 MiB of unread messages new ones are
   * dropped, which the `warning` event says.
   */
  notifications(options: NotificationOptions = {}): AsyncGenerator<Notification, void, undefined> {
    this.#state.demandOpen("notifications");
    return this.#queue.iterate(options);
  }

  /**
   * Sends a notification without a transfer.
   *
   * @throws KvferryError `PEER_LOST` when the peer is forgotten or gone, `NO_NIXL` without an agent.
   */
  notify(peer: Peer, payload: Uint8Array | string): Promise<void> {
    return this.#messenger.notify(peer, payload);
  }

  /** @returns A function that takes the listener off again. */
  on<Name extends keyof TransportEvents>(
    event: Name,
    listener: (event: TransportEvents[Name]) => void,
  ): () => void {
    return this.#events.on(event, listener);
  }

  /** What was counted so far. */
  metrics(): TransportMetrics {
    return this.#metrics.snapshot({
      inFlight: this.#engine.runningCount,
      inDoubt: this.#engine.doubtfulCount,
      quarantined: this.#leases.quarantinedCount,
      localLayouts: localCount(this.#state.snapshot),
      remoteLayouts: remoteCount(this.#state.snapshot),
      peers: this.#state.snapshot.peers.size,
    });
  }

  /** {@link Transport.metrics} as a page for Prometheus. */
  metricsText(): string {
    return prometheusText(this.metrics());
  }

  /** A snapshot for bug reports, without secrets. */
  dump(): TransportDump {
    return dumpTransport(this.#session, this.#state, this.#leases, this.metrics());
  }

  /**
   * Stops taking work, settles or quarantines what is running, releases everything in the right order. Bounded in
   * time and idempotent.
   *
   * @returns What it had to leave: layouts whose memory may still be touched, and native calls that are stuck.
   */
  close(): Promise<CloseReport> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal The last chance at process exit, when nothing asynchronous runs any more. */
  closeNow(): void {
    this.#state.close();
    this.#session.context.close(0);
  }

  /** A transfer that failed because its peer is gone says so of the peer too. */
  #blame(ended: EndedTransfer): void {
    if (ended.error?.code !== "ERR_KVF_PEER_LOST") return;
    const agent = agentOf(ended.plan);
    const peer = agent === null ? undefined : this.#peers.byWireName(agent);
    if (peer !== undefined)
      queueMicrotask(() => this.#peers.lose(peer, ended.error?.message ?? "a transfer failed"));
  }

  #warn(code: string, message: string): void {
    this.#events.emit("warning", { code, message });
    if (code === "NO_SECRET" && !secretWarned) {
      secretWarned = true;
      process.emitWarning(message, { type: "KvferryWarning", code: "KVF_NO_SECRET" });
    }
  }

  #close(): Promise<CloseReport> {
    return closeTransport({
      session: this.#session,
      state: this.#state,
      engine: this.#engine,
      registrar: this.#registrar,
      peers: this.#peers,
      arrivals: this.#arrivals,
      messenger: this.#messenger,
      liveness: this.#liveness,
      fences: this.#fences,
      queue: this.#queue,
    }).finally(() => openTransports.delete(this));
  }
}

const openTransports: Set<Transport> = new Set();
let exitHook = false;
let secretWarned = false;

/** At exit neither destructors nor finalizers run: native threads are stopped here, synchronously. */
function installExitHook(): void {
  if (exitHook) return;
  exitHook = true;
  process.on("exit", () => {
    for (const transport of openTransports) transport.closeNow();
  });
}
