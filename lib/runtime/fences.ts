import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage } from "../core/package.ts";
import type { NixlAgent } from "../native/agent.ts";
import type { Arrivals } from "./arrivals.ts";
import {
  answerBody,
  handleBody,
  readHandle,
  readImported,
  readKnown,
  readQuestion,
} from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import { within, type Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import { Greetings } from "./greetings.ts";
import { Importers } from "./importers.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook, PeerWatcher } from "./peer-book.ts";
import { PeerProcesses } from "./peer-processes.ts";
import type { Peer } from "./peer.ts";
import type { ProcessFacts } from "./process-watch.ts";
import { QuietQuestions } from "./quiet-questions.ts";
import { NOTHING, Reach } from "./reach.ts";
import { SharedLayouts } from "./shared-layouts.ts";
import type { StagingSides } from "./staging.ts";

/** How long a peer that is let go is given to end what runs, and to answer. Milliseconds. */
const LEAVE_MILLIS = 300;

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
  readonly #processes: PeerProcesses;
  readonly #importers: Importers;
  readonly #questions: QuietQuestions;
  /** Who can be told things. */
  readonly reach: Reach;
  /** Says to imported peers who imported them. */
  readonly greetings: Greetings;
  /** This process's layouts that others may know of. */
  readonly shared: SharedLayouts;
  /** Peers that were forgotten while something of theirs was touched: they are told once it is over. */
  readonly #untold: Set<string> = new Set();

  constructor(parts: FenceParts) {
    const { agent, arrivals, clock } = parts;
    this.#parts = parts;
    this.#importers = new Importers(clock);
    this.#processes = new PeerProcesses(parts.processes, clock, (wireName) => this.#processGone(wireName));
    this.reach = new Reach(parts, this.#importers);
    this.greetings = new Greetings(parts, this.reach);
    this.shared = new SharedLayouts({
      clock,
      agent,
      importers: this.#importers,
      reach: this.reach,
      processes: this.#processes,
    });
    this.#questions = new QuietQuestions(arrivals, this.#importers, this.reach);
    parts.peers.watcher = this;
    arrivals.onDoubt = (arrival) => this.#questions.ask(arrival);
    const { staging } = parts;
    if (staging !== null) {
      staging.server.onOverdue = (wireName) => {
        const process = this.#processes.of(wireName) ?? this.#importers.importer(wireName)?.process;
        if (process !== undefined && process !== null) this.#processes.watchEnd(wireName, process);
      };
      // It asked while NIXL did not know it, between forgetting it and connecting with it: it is told afterwards.
      staging.onUnanswered = (wireName) => {
        if (this.#importers.importer(wireName) !== undefined) this.#untold.add(wireName);
      };
    }
    this.#listen(parts.messenger);
  }

  // ---- peers that come and go ----

  arrived(peer: Peer, metadata: MetadataPackage, brought: ReadonlySet<LayoutHandle> | null): void {
    const { wireName } = peer;
    this.#processes.arrived(wireName, metadata);
    this.reach.arrived(wireName);
    // Silence from before it was imported says nothing.
    this.#parts.liveness.forget(wireName);
    if (!peer.understandsControl) return;
    // Without NIXL there nobody can be told, and nothing is touched by it.
    if (metadata.nixlMetadata.byteLength > 0) this.greetings.introduce(peer, metadata.sequence, brought);
    // The same process again: what it could not be asked when it was lost it can be asked now.
    for (const arrival of this.#parts.arrivals.doubtful(wireName)) this.#questions.ask(arrival);
  }

  async leaving(peer: Peer): Promise<void> {
    const { arrivals, clock, messenger } = this.#parts;
    if (!peer.understandsControl) return;
    const { wireName } = peer;
    this.reach.leaving(peer);
    this.greetings.left(wireName);
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
    this.#parts.liveness.forget(wireName);
    this.reach.left(wireName);
    this.greetings.left(wireName);
    this.#parts.arrivals.lose(wireName, peer.loss?.reason ?? "gone");
    this.#questions.left(wireName);
    const importer = this.#importers.importer(wireName);
    // It may still touch this process's memory: it is told when that is taken back.
    if (importer !== undefined && peer.loss?.reason === "forgotten")
      void this.reach.connect(importer).then(() => this.#releaseLate(wireName));
    else this.#untold.delete(wireName);
    const process = this.#processes.of(wireName) ?? importer?.process ?? null;
    this.#processes.left(wireName);
    const matters =
      importer !== undefined ||
      this.#parts.engine.anyOpen(({ agent }) => agent === wireName) ||
      this.#parts.arrivals.doubtful(wireName).length > 0;
    if (matters && process !== null) this.#processes.watchEnd(wireName, process);
  }

  // ---- closing ----

  /** Says to peers that nothing of theirs is touched any more, where that is so. */
  async farewell(): Promise<void> {
    const { engine, messenger } = this.#parts;
    await Promise.allSettled(
      this.reach.stop().map(async (wireName) => {
        const open = engine.anyOpen(({ agent }) => agent === wireName);
        if (!open && (await this.#quiet(wireName))) await messenger.controlTo(wireName, CONTROL.released);
        await messenger.controlTo(wireName, CONTROL.bye);
      }),
    );
  }

  /** Whether a closed agent proves that this peer writes into this process no more: not where the kernel copies. */
  endsWithAgent(wireName: string): boolean {
    return this.#processes.isElsewhere(wireName);
  }

  close(): void {
    this.#processes.stop();
  }

  // ---- what is heard ----

  #listen(messenger: Messenger): void {
    const { engine, peers } = this.#parts;
    messenger.onControl(CONTROL.imported, (from, body) => {
      const message = readImported(body);
      if (message === null || from === this.#parts.wireName) return;
      const importer = this.#importers.noteImport(from, message);
      if (importer === null) return;
      void this.reach.connect(importer).then(() => this.shared.answer(importer, message));
    });
    messenger.onControl(CONTROL.known, (from, body) => {
      const known = readKnown(body);
      if (known === null) return;
      const peer = peers.byWireName(from);
      if (peer !== undefined) for (const handle of known.handles) peers.takeBack(peer, handle);
      if (!known.more) this.greetings.answered(from, known.number);
    });
    messenger.onControl(CONTROL.released, (from) => {
      this.#importers.noteReleased(from);
      this.reach.disconnect(from);
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
        .then(() => this.reach.tell(from, CONTROL.layoutQuiet, handleBody(handle)));
    });
    messenger.onControl(CONTROL.askQuiet, (from, body) => {
      const asked = readQuestion(body);
      if (asked === null) return;
      void engine
        .whenQuiet((task) => task.plan.destination === asked.handle)
        .then(() => this.reach.tell(from, CONTROL.quiet, answerBody(asked.question)));
    });
    messenger.onControl(CONTROL.quiet, (from, body) => this.#questions.answered(from, body));
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
    if (peers.byWireName(wireName) === undefined) this.reach.tell(wireName, CONTROL.released, NOTHING);
  }

  #processGone(wireName: string): void {
    this.#parts.engine.agentGone(wireName);
    this.#provePeerQuiet(wireName, "peer-gone");
    this.#importers.drop(wireName);
    this.reach.disconnect(wireName);
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
}
