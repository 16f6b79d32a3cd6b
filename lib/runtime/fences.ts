import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage, PackageFormat } from "../core/package.ts";
import type { Arrival, Arrivals } from "./arrival.ts";
import {
  answerBody,
  handleBody,
  importedBody,
  questionBody,
  readAnswer,
  readHandle,
  readImported,
  readQuestion,
} from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import { within, type Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import { Importers } from "./importers.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook, PeerWatcher } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import { ProcessWatch, type ProcessFacts, type ProcessIdentity } from "./process-watch.ts";

/** How long a peer that is let go is given to end what runs, and to answer. Milliseconds. */
const LEAVE_MILLIS = 300;

/** What fences work with. */
export interface FenceParts {
  readonly clock: Clock;
  readonly processes: ProcessFacts;
  readonly engine: Engine;
  readonly peers: PeerBook;
  readonly arrivals: Arrivals;
  readonly messenger: Messenger;
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
  /** Layouts that were taken back and that somebody may still touch. */
  readonly #takenBack: Set<LayoutHandle> = new Set();
  readonly #questions: Map<number, { readonly wireName: string; readonly resolve: () => void }> = new Map();
  #lastQuestion = 0;

  constructor(parts: FenceParts) {
    this.#parts = parts;
    this.#watch = new ProcessWatch(parts.processes, parts.clock);
    this.#importers = new Importers(parts.clock);
    parts.peers.watcher = this;
    parts.arrivals.onDoubt = (arrival) => this.#ask(arrival);
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
    if (peer.understandsControl)
      void messenger
        .control(peer, CONTROL.imported, importedBody({ sequence, process: processes.self }))
        .catch(() => undefined);
  }

  async leaving(peer: Peer): Promise<void> {
    const { arrivals, clock, engine, messenger } = this.#parts;
    if (!peer.understandsControl) return;
    const { wireName } = peer;
    this.#leaving.set(wireName, peer);
    arrivals.lose(wireName, "forgotten");
    const busy = engine.anyOpen(({ agent }) => agent === wireName);
    const waited = arrivals.doubtful(wireName).map((arrival) => arrival.settled);
    if (busy || waited.length > 0)
      await within(
        clock,
        LEAVE_MILLIS,
        Promise.all([engine.whenQuiet(({ agent }) => agent === wireName), ...waited]),
      );
    if (!engine.anyOpen(({ agent }) => agent === wireName))
      await within(clock, LEAVE_MILLIS, messenger.control(peer, CONTROL.released));
  }

  left(peer: Peer): void {
    const { wireName } = peer;
    this.#leaving.delete(wireName);
    this.#parts.arrivals.lose(wireName, peer.loss?.reason ?? "gone");
    for (const [question, asked] of this.#questions)
      if (asked.wireName === wireName) this.#questions.delete(question);
    const importer = this.#importers.importer(wireName);
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
    this.#importers.noteExport(handles, sequence, format);
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
    const { engine, messenger, peers } = this.#parts;
    await Promise.allSettled(
      peers.peers
        .filter((peer) => peer.understandsControl)
        .map(async (peer) => {
          if (!engine.anyOpen(({ agent }) => agent === peer.wireName))
            await messenger.control(peer, CONTROL.released);
          await messenger.control(peer, CONTROL.bye);
        }),
    );
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
      if (message === null) return;
      const importer = this.#importers.noteImport(from, message.sequence, message.process);
      for (const handle of this.#takenBack) {
        if (!this.#importers.holders(handle).includes(importer)) continue;
        this.#tell(from, CONTROL.layoutGone, handleBody(handle));
        if (importer.process !== null) this.#watchEnd(from, importer.process);
      }
    });
    messenger.onControl(CONTROL.released, (from) => {
      this.#importers.noteReleased(from);
      this.#parts.arrivals.proveQuiet(({ wireName }) => wireName === from, "acknowledged");
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
    const peer = this.#parts.peers.byWireName(wireName) ?? this.#leaving.get(wireName);
    if (peer?.understandsControl !== true) return false;
    this.#parts.messenger.control(peer, type, body).catch(() => undefined);
    return true;
  }

  #watchEnd(wireName: string, process: ProcessIdentity): void {
    if (this.#watching.has(wireName)) return;
    const { self } = this.#parts.processes;
    if (self !== null && process.bootId === self.bootId && process.processId === self.processId) return;
    this.#watching.add(wireName);
    this.#watch.whenGone(process, () => {
      this.#watching.delete(wireName);
      this.#parts.engine.agentGone(wireName);
      this.#parts.arrivals.proveQuiet((arrival) => arrival.wireName === wireName, "peer-gone");
      this.#importers.drop(wireName);
    });
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
