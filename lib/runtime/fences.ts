import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage, PackageFormat } from "../core/package.ts";
import type { NixlAgent } from "../native/agent.ts";
import type { Arrival, Arrivals } from "./arrival.ts";
import {
  answerBody,
  goneBody,
  handleBody,
  importedBody,
  MOST_GONE,
  questionBody,
  readAnswer,
  readGone,
  readHandle,
  readImported,
  readQuestion,
} from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import { within, type Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import { Importers, type Importer } from "./importers.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook, PeerWatcher } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import { ProcessWatch, type ProcessFacts, type ProcessIdentity } from "./process-watch.ts";
import type { StagingSides } from "./staging.ts";

/** How long a peer that is let go is given to end what runs, and to answer. Milliseconds. */
const LEAVE_MILLIS = 300;

/**
 * How long transfers with a new peer wait for its word that it knows this importer: memory that it takes back without
 * knowing may be somebody else's. Milliseconds.
 */
const GREETING_MILLIS = 1_000;

const NOTHING: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(0));

/** What fences work with. */
export interface FenceParts {
  readonly clock: Clock;
  readonly processes: ProcessFacts;
  /** Null without NIXL: then nobody is told anything this way. */
  readonly agent: Pick<NixlAgent, "partialMetadata" | "loadPeer" | "forgetPeer"> | null;
  /** Name of this transport's own agent. */
  readonly wireName: string;
  readonly engine: Engine;
  readonly peers: PeerBook;
  readonly arrivals: Arrivals;
  readonly messenger: Messenger;
  readonly liveness: { forget(wireName: string): void };
  /** What moves bytes here for peers; null where nothing does. */
  readonly staging: StagingSides | null;
}

/**
 * Finds out that memory is touched no more, at both ends.
 *
 * Towards peers whose layouts were imported: says so, answers when asked, and says when it is done with them. Towards
 * workers that imported this one: keeps memory until they have let it go. Where nobody can say, the end of a process is
 * the proof; where that cannot be seen either, memory and blocks are held until close.
 */
export class Fences implements PeerWatcher {
  readonly #parts: FenceParts;
  readonly #watch: ProcessWatch;
  readonly #importers: Importers;
  /** Processes of imported peers of this host, by wire name. */
  readonly #processes: Map<string, ProcessIdentity> = new Map();
  /** Peers on another host: no kernel copies between their memory and this one's. */
  readonly #elsewhere: Set<string> = new Set();
  readonly #watching: Set<string> = new Set();
  /** Peers that are about to be forgotten, and can still be told something. */
  readonly #leaving: Map<string, Peer> = new Map();
  /** Peers that were forgotten while something of theirs was touched: they are told once it is over. */
  readonly #untold: Set<string> = new Set();
  /** Layouts that were taken back and that somebody may still touch. */
  readonly #takenBack: Set<LayoutHandle> = new Set();
  readonly #questions: Map<number, { readonly wireName: string; readonly resolve: () => void }> = new Map();
  #lastQuestion = 0;
  /** Workers that NIXL knows only because they imported this one. */
  readonly #connected: Set<string> = new Set();
  readonly #introductions: Map<string, Promise<void>> = new Map();
  /** New peers that did not say yet that they know this importer, and what lets transfers with them begin. */
  readonly #greetings: Map<string, () => void> = new Map();
  readonly #greeted: WeakSet<Peer> = new WeakSet();
  /** How often a peer was told of an import and did not answer yet: the answer to an earlier one says nothing of a later one. */
  readonly #unanswered: Map<string, number> = new Map();
  #connection: Promise<Uint8Array<ArrayBuffer>> | undefined;
  #closing = false;

  constructor(parts: FenceParts) {
    this.#parts = parts;
    this.#watch = new ProcessWatch(parts.processes, parts.clock);
    this.#importers = new Importers(parts.clock);
    parts.peers.watcher = this;
    parts.arrivals.onDoubt = (arrival) => this.#ask(arrival);
    if (parts.staging !== null)
      parts.staging.server.onOverdue = (wireName) => {
        const process = this.#processes.get(wireName) ?? this.#importers.importer(wireName)?.process;
        if (process !== undefined && process !== null) this.#watchEnd(wireName, process);
      };
    this.#listen(parts.messenger);
  }

  // ---- peers that come and go ----

  arrived(peer: Peer, { sequence, host, issuedAtMs }: MetadataPackage): void {
    const { messenger, processes } = this.#parts;
    if (host !== null && issuedAtMs !== null) {
      const process = processes.identify(host.bootId, host.namespaces.pid, host.processId, issuedAtMs);
      if (process !== null) this.#processes.set(peer.wireName, process);
      if (processes.self !== null && host.bootId !== processes.self.bootId)
        this.#elsewhere.add(peer.wireName);
    }
    this.#connected.delete(peer.wireName);
    // Silence from before it was imported says nothing.
    this.#parts.liveness.forget(peer.wireName);
    if (!peer.understandsControl) return;
    const greeted = this.#greet(peer);
    this.#unanswered.set(peer.wireName, (this.#unanswered.get(peer.wireName) ?? 0) + 1);
    const introduced = this.#connectionInfo()
      .then((connection) =>
        messenger.control(
          peer,
          CONTROL.imported,
          importedBody({ sequence, process: processes.self, connection }),
        ),
      )
      // Whoever cannot be told is gone.
      .catch(() => {
        this.#unanswered.delete(peer.wireName);
        greeted();
      });
    this.#introductions.set(peer.wireName, introduced);
    // The same process again: what it could not be asked when it was lost it can be asked now.
    for (const arrival of this.#parts.arrivals.doubtful(peer.wireName)) this.#ask(arrival);
  }

  async leaving(peer: Peer): Promise<void> {
    const { arrivals, clock, messenger } = this.#parts;
    if (!peer.understandsControl) return;
    const { wireName } = peer;
    this.#leaving.set(wireName, peer);
    arrivals.lose(wireName, "forgotten");
    const settled = arrivals.doubtful(wireName).map((arrival) => arrival.settled);
    const release = (): Promise<boolean> =>
      messenger.control(peer, CONTROL.released).then(
        () => true,
        () => false,
      );
    const told = (await this.#quiet(wireName, settled)) && (await within(clock, LEAVE_MILLIS, release()));
    if (told !== true) this.#untold.add(wireName);
  }

  left(peer: Peer): void {
    const { wireName } = peer;
    this.#introductions.delete(wireName);
    this.#parts.liveness.forget(wireName);
    this.#leaving.delete(wireName);
    this.#connected.delete(wireName);
    this.#greetings.get(wireName)?.();
    this.#parts.arrivals.lose(wireName, peer.loss?.reason ?? "gone");
    for (const [question, asked] of this.#questions)
      if (asked.wireName === wireName) this.#questions.delete(question);
    const importer = this.#importers.importer(wireName);
    // It may still touch this process's memory: it is told when that is taken back.
    if (importer !== undefined && peer.loss?.reason === "forgotten")
      void this.#connect(importer).then(() => this.#releaseLate(wireName));
    else this.#untold.delete(wireName);
    const process = this.#processes.get(wireName) ?? importer?.process ?? null;
    this.#processes.delete(wireName);
    const matters =
      importer !== undefined ||
      this.#parts.engine.anyOpen(({ agent }) => agent === wireName) ||
      this.#parts.arrivals.doubtful(wireName).length > 0;
    if (matters && process !== null) this.#watchEnd(wireName, process);
  }

  // ---- this process's layouts ----

  exported(handles: readonly LayoutHandle[], sequence: number, format: PackageFormat): void {
    // Without NIXL only neighbours touch memory here: each is known as long as it has it mapped.
    if (this.#parts.agent !== null) this.#importers.noteExport(handles, sequence, format);
  }

  /** Workers that may touch a layout's memory now. */
  holders(handle: LayoutHandle): string[] {
    return this.#importers.holders(handle).map(({ wireName }) => wireName);
  }

  /** Whether somebody may know of the layout who will never say that it is done with it. */
  isSilent(handle: LayoutHandle): boolean {
    return this.#importers.isSilent(handle);
  }

  /**
   * Says to everybody who may touch a layout that it is taken back.
   *
   * @param grace - Also waits until no package that has it can still be on its way.
   * @returns Resolves when nobody is known who may touch it; null when that is so already.
   */
  takeBack(handle: LayoutHandle, grace: boolean): Promise<void> | null {
    const left = grace ? this.#importers.graceLeft(handle) : 0;
    const holders = this.#importers.holders(handle);
    if (left === 0 && holders.length === 0) return null;
    for (const { wireName, process } of holders) {
      this.#tell(wireName, CONTROL.layoutGone, handleBody(handle));
      if (process !== null) this.#watchEnd(wireName, process);
    }
    return this.#whenFree(handle, left);
  }

  /** The layout's memory was given back. */
  freed(handle: LayoutHandle): void {
    this.#importers.forget(handle);
  }

  // ---- closing ----

  /** Says to peers that nothing of theirs is touched any more, where that is so. */
  async farewell(): Promise<void> {
    this.#closing = true;
    const { engine, messenger, peers } = this.#parts;
    const known = peers.peers.filter((peer) => peer.understandsControl).map(({ wireName }) => wireName);
    await Promise.allSettled(
      [...new Set([...known, ...this.#connected])].map(async (wireName) => {
        const open = engine.anyOpen(({ agent }) => agent === wireName);
        if (!open && (await this.#quiet(wireName))) await messenger.controlTo(wireName, CONTROL.released);
        await messenger.controlTo(wireName, CONTROL.bye);
      }),
    );
  }

  /** Whether a worker can be told things: an imported peer, or one that imported this transport. */
  reaches(wireName: string): boolean {
    const peer = this.#parts.peers.byWireName(wireName) ?? this.#leaving.get(wireName);
    return peer?.understandsControl ?? this.#connected.has(wireName);
  }

  /** Resolves when a peer was told who imported it, so that it can answer. */
  introduced(wireName: string): Promise<void> {
    return this.#introductions.get(wireName) ?? Promise.resolve();
  }

  /** Makes a worker that imported this one reachable where it is not yet. @returns Whether it can be told things. */
  async reach(wireName: string): Promise<boolean> {
    const importer = this.#importers.importer(wireName);
    if (!this.reaches(wireName) && importer !== undefined) await this.#connect(importer);
    return this.reaches(wireName);
  }

  /** Whether a closed agent proves that this peer writes into this process no more: not where the kernel copies. */
  endsWithAgent(wireName: string): boolean {
    return this.#elsewhere.has(wireName);
  }

  close(): void {
    this.#watch.stop();
  }

  // ---- what is heard ----

  #listen(messenger: Messenger): void {
    const { engine, peers } = this.#parts;
    messenger.onControl(CONTROL.imported, (from, body) => {
      const message = readImported(body);
      if (message === null || from === this.#parts.wireName) return;
      const importer = this.#importers.noteImport(from, message);
      if (importer === null) return;
      void this.#connect(importer).then(() => {
        this.#remind(importer);
        this.#answer(importer, message.sequence);
      });
    });
    messenger.onControl(CONTROL.known, (from, body) => {
      const gone = readGone(body);
      if (gone === null) return;
      const peer = peers.byWireName(from);
      if (peer !== undefined) for (const handle of gone.handles) peers.takeBack(peer, handle);
      if (gone.more) return;
      const left = (this.#unanswered.get(from) ?? 0) - 1;
      if (left > 0) this.#unanswered.set(from, left);
      else {
        this.#unanswered.delete(from);
        this.#greetings.get(from)?.();
      }
    });
    messenger.onControl(CONTROL.released, (from) => {
      this.#importers.noteReleased(from);
      this.#disconnect(from);
      this.#parts.staging?.client.released(from);
      this.#provePeerQuiet(from, "acknowledged");
    });
    messenger.onControl(CONTROL.layoutQuiet, (from, body) => {
      const handle = readHandle(body);
      if (handle !== null) this.#importers.noteQuiet(from, handle);
    });
    messenger.onControl(CONTROL.layoutGone, (from, body) => {
      const handle = readHandle(body);
      const peer = peers.byWireName(from);
      if (handle === null || peer === undefined) return;
      peers.takeBack(peer, handle);
      void engine
        .whenQuiet(({ plan }) => plan.source === handle || plan.destination === handle)
        .then(() => this.#tell(from, CONTROL.layoutQuiet, handleBody(handle)));
    });
    messenger.onControl(CONTROL.askQuiet, (from, body) => {
      const asked = readQuestion(body);
      if (asked === null) return;
      void engine
        .whenQuiet((task) => task.plan.destination === asked.handle)
        .then(() => this.#tell(from, CONTROL.quiet, answerBody(asked.question)));
    });
    messenger.onControl(CONTROL.quiet, (from, body) => {
      const question = readAnswer(body);
      const asked = question === null ? undefined : this.#questions.get(question);
      if (question === null || asked?.wireName !== from) return;
      this.#questions.delete(question);
      asked.resolve();
    });
  }

  /** Lets no transfer with a new peer begin before it knows this importer. @returns Ends that. */
  #greet(peer: Peer): () => void {
    const { agent, clock, engine } = this.#parts;
    if (agent === null || this.#greeted.has(peer)) return () => undefined;
    this.#greeted.add(peer);
    const { wireName } = peer;
    const resume = engine.pause(wireName);
    const end = (): void => {
      stopTimer();
      if (this.#greetings.get(wireName) === end) this.#greetings.delete(wireName);
      resume();
    };
    const stopTimer = clock.after(GREETING_MILLIS, () => {
      // What was lost on the way is not waited for again.
      this.#unanswered.delete(wireName);
      end();
    });
    this.#greetings.get(wireName)?.();
    this.#greetings.set(wireName, end);
    return end;
  }

  /** Tells an importer that it is known, and which layouts of its package are gone already. */
  #answer({ wireName }: Importer, sequence: number): void {
    const gone = this.#importers.goneSince(sequence);
    do {
      const some = gone.splice(0, MOST_GONE);
      this.#tell(wireName, CONTROL.known, goneBody(some, gone.length > 0));
    } while (gone.length > 0);
  }

  /** Asks the peer whose push did not come whether it is done with the blocks. */
  #ask(arrival: Arrival): void {
    const { arrivals } = this.#parts;
    if (this.#importers.hasReleased(arrival.wireName)) {
      arrivals.proveQuiet((other) => other === arrival, "acknowledged");
      return;
    }
    const question = ++this.#lastQuestion;
    this.#questions.set(question, {
      wireName: arrival.wireName,
      resolve: () => arrivals.proveQuiet((other) => other === arrival, "acknowledged"),
    });
    if (!this.#tell(arrival.wireName, CONTROL.askQuiet, questionBody(question, arrival.layout)))
      this.#questions.delete(question);
  }

  /** @returns Whether the peer can be told anything. */
  #tell(wireName: string, type: number, body: Uint8Array<ArrayBuffer>): boolean {
    if (!this.reaches(wireName)) return false;
    const { messenger } = this.#parts;
    messenger.controlTo(wireName, type, body).catch(async () => {
      // A failed import of the same worker made NIXL forget it.
      const importer = this.#importers.importer(wireName);
      if (importer === undefined || !this.#connected.delete(wireName)) return;
      await this.#connect(importer);
      if (this.#connected.has(wireName))
        await messenger.controlTo(wireName, type, body).catch(() => undefined);
    });
    return true;
  }

  /** How others reach this agent, without any of its memory. */
  #connectionInfo(): Promise<Uint8Array<ArrayBuffer>> {
    const { agent } = this.#parts;
    if (agent === null) return Promise.resolve(NOTHING);
    this.#connection ??= agent.partialMetadata(0, []).catch(() => NOTHING);
    return this.#connection;
  }

  /**
   * Begins nothing more for a peer, and waits a moment for what runs.
   *
   * @param also - What is waited for as well.
   * @returns Whether nothing of the peer is touched any more, nor anything here for it.
   */
  async #quiet(wireName: string, also: readonly Promise<unknown>[] = []): Promise<boolean> {
    const { clock, engine, staging } = this.#parts;
    const open = (): boolean => engine.anyOpen(({ agent }) => agent === wireName);
    const moving = staging?.server.leave(wireName) ?? null;
    let still = moving !== null;
    const ended = moving?.then(() => {
      still = false;
    });
    if (open() || still || also.length > 0)
      await within(
        clock,
        LEAVE_MILLIS,
        Promise.all([engine.whenQuiet(({ agent }) => agent === wireName), ended, ...also]),
      );
    return !still && !open();
  }

  /** Says that nothing of a forgotten peer is touched any more, where that took longer than forgetting it. */
  async #releaseLate(wireName: string): Promise<void> {
    const { engine, peers, staging } = this.#parts;
    // Imported again meanwhile, it may be touched again.
    if (!this.#untold.delete(wireName) || peers.byWireName(wireName) !== undefined) return;
    await Promise.all([
      engine.whenQuiet(({ agent }) => agent === wireName),
      staging?.server.leave(wireName) ?? null,
    ]);
    if (peers.byWireName(wireName) === undefined) this.#tell(wireName, CONTROL.released, NOTHING);
  }

  /** Makes NIXL know a worker that imported this one and that is not imported here, so that it can be told things. */
  async #connect({ wireName, connection }: Importer): Promise<void> {
    const { agent, peers } = this.#parts;
    // An agent that closes is not made to connect anew with everybody whom it has just let go.
    if (agent === null || connection.byteLength === 0 || this.#closing) return;
    if (peers.byWireName(wireName) !== undefined || this.#connected.has(wireName)) return;
    this.#connected.add(wireName);
    await agent.loadPeer(connection, wireName).catch(() => this.#connected.delete(wireName));
  }

  /** Drops what NIXL knows of a worker that was only known for having imported this one. */
  #disconnect(wireName: string): void {
    const { agent, peers } = this.#parts;
    if (!this.#connected.delete(wireName) || agent === null) return;
    if (peers.byWireName(wireName) === undefined) agent.forgetPeer(wireName).catch(() => undefined);
  }

  /** Tells a worker of layouts that were taken back before it imported them. */
  #remind(importer: Importer): void {
    for (const handle of this.#takenBack) {
      if (!this.#importers.holders(handle).includes(importer)) continue;
      this.#tell(importer.wireName, CONTROL.layoutGone, handleBody(handle));
      if (importer.process !== null) this.#watchEnd(importer.wireName, importer.process);
    }
  }

  #watchEnd(wireName: string, process: ProcessIdentity): void {
    if (this.#watching.has(wireName)) return;
    const { self } = this.#parts.processes;
    if (self !== null && process.bootId === self.bootId && process.processId === self.processId) return;
    this.#watching.add(wireName);
    this.#watch.whenGone(process, () => {
      this.#watching.delete(wireName);
      this.#parts.engine.agentGone(wireName);
      this.#provePeerQuiet(wireName, "peer-gone");
      this.#importers.drop(wireName);
      this.#disconnect(wireName);
    });
  }

  /** A peer writes here no more: arrivals from it are over once what this process moves for it is over too. */
  #provePeerQuiet(wireName: string, proof: "acknowledged" | "peer-gone"): void {
    const { arrivals, staging } = this.#parts;
    const doubtful = new Set(arrivals.doubtful(wireName));
    const prove = (): void => arrivals.proveQuiet((arrival) => doubtful.has(arrival), proof);
    staging?.client.proven(wireName);
    const moving = staging?.server.release(wireName) ?? null;
    if (moving === null) prove();
    else void moving.then(prove);
  }

  async #whenFree(handle: LayoutHandle, grace: number): Promise<void> {
    this.#takenBack.add(handle);
    try {
      if (grace > 0)
        await new Promise<void>((resolve) => {
          this.#parts.clock.after(grace, resolve);
        });
      await this.#importers.whenFree(handle);
    } finally {
      this.#takenBack.delete(handle);
    }
  }
}
