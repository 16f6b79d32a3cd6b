import { KvferryError } from "../core/errors.ts";
import type { Explanation } from "../core/explain.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import type { LayoutSpec } from "../core/layout.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { isLocal, isRemote, localCount, remoteCount } from "../core/registry-queries.ts";
import type { Arrival, ExpectOptions } from "./arrival.ts";
import { closeTransport, type CloseReport } from "./closing.ts";
import { dumpTransport, type TransportDump } from "./dump.ts";
import type { TransportEvents } from "./events.ts";
import { loadedExchange, loadExchange } from "./exchange.ts";
import type { ExportOptions } from "./exporting.ts";
import type { LocalLayout } from "./local-layout.ts";
import { prometheusText, type TransportMetrics } from "./metrics.ts";
import type { Notification, NotificationOptions } from "./notifications.ts";
import { closeAtOnce, noteClosed, noteOpen, unwatch, watch } from "./open-transports.ts";
import { resolveOptions, type OpenOptions } from "./options.ts";
import type { Peer } from "./peer.ts";
import { PreparedTransfer } from "./prepared.ts";
import type { RemoteLayout } from "./remote-layout.ts";
import { openSession, type Session } from "./session.ts";
import type { PrepareRequest, TransferRequest } from "./submit.ts";
import type { Submitter } from "./submitter.ts";
import type { Transfer } from "./transfer.ts";
import { connectParts, type TransportParts } from "./transport-parts.ts";

/**
 * Moves KV-cache blocks between registered layouts, here and at peers.
 *
 * It owns its native context, its NIXL agent and the memory that it allocated, until `close`.
 */
export class Transport implements AsyncDisposable {
  readonly #session: Session;
  readonly #parts: TransportParts;
  /** Of the parts: on the way of every transfer. */
  readonly #submitter: Submitter;
  #closing: Promise<CloseReport> | undefined;

  private constructor(session: Session) {
    this.#session = session;
    this.#parts = connectParts(session);
    this.#submitter = this.#parts.submitter;
  }

  /**
   * Opens a transport: loads the native library, and makes a NIXL agent where NIXL is found.
   *
   * @throws KvferryError `INVALID_CONFIG` for options that are not valid, `NO_NIXL` when NIXL was named and is not
   * there, `UNSUPPORTED_PLATFORM` where the native library cannot run.
   */
  static async open(options: OpenOptions): Promise<Transport> {
    const transport = Transport.over(await openSession(resolveOptions(options, process.env)));
    watch(transport, transport.#session);
    return transport;
  }

  /** @internal A transport over a session that was opened elsewhere; a simulation gives its own. */
  static over(session: Session): Transport {
    const transport = new Transport(session);
    noteOpen(session, transport.#parts.state);
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
    return this.#parts.state.snapshot;
  }

  /** Layouts of this transport in id order. */
  get localLayouts(): LocalLayout[] {
    return this.#parts.registrar.layouts;
  }

  /** Layouts of all peers, by worker id and then layout id. */
  get remoteLayouts(): RemoteLayout[] {
    return this.#parts.peers.remoteLayouts;
  }

  /** Imported peers in worker id order. */
  get peers(): Peer[] {
    return this.#parts.peers.peers;
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
      ? this.#parts.peers.peer(BigInt(workerId))
      : undefined;
  }

  /**
   * The layout object behind a handle.
   *
   * @throws KvferryError `UNKNOWN_HANDLE` or `STALE_HANDLE`.
   */
  layout(handle: LayoutHandle): LocalLayout | RemoteLayout {
    const record = this.#parts.planning.record(handle);
    const found =
      record.owner === null
        ? this.#parts.registrar.find(record.layoutId, handle)
        : this.#parts.peers.peer(record.owner)?.layouts.find((layout) => layout.handle === handle);
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
    return isLocal(this.#parts.state.snapshot, handle);
  }

  isRemote(handle: LayoutHandle): boolean {
    return isRemote(this.#parts.state.snapshot, handle);
  }

  /**
   * Registers a layout: allocates or adopts its memory, registers it with NIXL where there is an agent, and gives it
   * a handle. Ids rise by one in the order of the calls; a refused registration uses none.
   *
   * @throws KvferryError `INVALID_CONFIG`, `OUT_OF_MEMORY`, `TOO_MANY_LAYOUTS`, `NIXL`, `NO_CUDA`.
   */
  register(spec: LayoutSpec): Promise<LocalLayout> {
    return this.#parts.registrar.register(spec);
  }

  /**
   * This worker's address, NIXL's blob and its layouts in id order, for peers to import.
   *
   * @throws KvferryError `NO_NIXL` for Dynamo's formats without an agent, `INCOMPATIBLE_LAYOUTS` for what a format
   * cannot say.
   */
  async exportMetadata(options: ExportOptions = {}): Promise<Uint8Array> {
    this.#parts.state.demandOpen("exportMetadata");
    const { exportMetadata } = loadedExchange() ?? (await loadExchange());
    return exportMetadata(this.#session, this.#parts.state, options, {
      shared: this.#parts.fences.shared,
      registrations: (handles) => this.#parts.registrar.registrations(handles),
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
    const peer = await this.#parts.peers.import(bytes);
    this.#parts.liveness.start();
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
    return this.#parts.planning.explain(request);
  }

  /**
   * Checks and plans a pair of layouts once, for many transfers between them.
   *
   * @throws KvferryError what every such transfer would reject with.
   */
  prepare(request: PrepareRequest): PreparedTransfer {
    this.#parts.state.demandOpen("prepare");
    return new PreparedTransfer(this.#parts.planning, this.#submitter, request);
  }

  /** The receiving side of a peer's push: leases the blocks and awaits the notification `tag`. */
  expect(options: ExpectOptions): Arrival {
    return this.#parts.arrivals.expect(options);
  }

  /**
   * Messages from peers, oldest first. Iterators share one queue: each message goes to one of them. Messages wait until
   * somebody reads them; senders cannot be held back over NIXL, so that above 64 MiB of unread messages new ones are
   * dropped, which the `warning` event says.
   */
  notifications(options: NotificationOptions = {}): AsyncGenerator<Notification, void, undefined> {
    this.#parts.state.demandOpen("notifications");
    return this.#parts.queue.iterate(options);
  }

  /**
   * Sends a notification without a transfer.
   *
   * @throws KvferryError `PEER_LOST` when the peer is forgotten or gone, `NO_NIXL` without an agent.
   */
  notify(peer: Peer, payload: Uint8Array | string): Promise<void> {
    return this.#parts.messenger.notify(peer, payload);
  }

  /** @returns A function that takes the listener off again. */
  on<Name extends keyof TransportEvents>(
    event: Name,
    listener: (event: TransportEvents[Name]) => void,
  ): () => void {
    return this.#parts.events.on(event, listener);
  }

  /** What was counted so far. */
  metrics(): TransportMetrics {
    return this.#parts.metrics.snapshot({
      inFlight: this.#parts.engine.runningCount,
      inDoubt: this.#parts.engine.doubtfulCount,
      quarantined: this.#parts.leases.quarantinedCount,
      localLayouts: localCount(this.#parts.state.snapshot),
      remoteLayouts: remoteCount(this.#parts.state.snapshot),
      peers: this.#parts.state.snapshot.peers.size,
    });
  }

  /** {@link Transport.metrics} as a page for Prometheus. */
  metricsText(): string {
    return prometheusText(this.metrics());
  }

  /** A snapshot for bug reports, without secrets. */
  dump(): TransportDump {
    return dumpTransport(
      this.#session,
      this.#parts.state,
      this.#parts.leases,
      this.metrics(),
      this.#parts.staging,
    );
  }

  /**
   * Stops taking work, settles or quarantines what is running, releases everything in the right order. Bounded in
   * time and idempotent.
   *
   * @returns What it had to leave: layouts whose memory may still be touched, and native calls that are stuck.
   */
  close(): Promise<CloseReport> {
    unwatch(this.#session);
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal The last chance at process exit, when nothing asynchronous runs any more. */
  closeNow(): void {
    unwatch(this.#session);
    noteClosed(this.#session);
    closeAtOnce(this.#session, this.#parts.state);
  }

  #warn(code: string, message: string): void {
    this.#parts.events.emit("warning", { code, message });
    if (code === "NO_SECRET" && !secretWarned) {
      secretWarned = true;
      process.emitWarning(message, { type: "KvferryWarning", code: "KVF_NO_SECRET" });
    }
  }

  #close(): Promise<CloseReport> {
    return closeTransport({ session: this.#session, ...this.#parts }).finally(() =>
      noteClosed(this.#session),
    );
  }
}

let secretWarned = false;
