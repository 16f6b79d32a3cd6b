import type { LayoutHandle } from "../core/handle.ts";
import { isKvferryError } from "../core/errors.ts";
import { importedBody } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import type { Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import type { Messenger } from "./messenger.ts";
import type { PeerBook } from "./peer-book.ts";
import type { Peer } from "./peer.ts";
import type { ProcessFacts } from "./process-watch.ts";
import type { Reach } from "./reach.ts";

/** After how long a peer that does not answer is told once more, and the longest time between two words. Milliseconds. */
const AGAIN_MILLIS = 1_000;
const MOST_AGAIN_MILLIS = 16_000;

/** What greetings work with. */
export interface GreetingParts {
  readonly clock: Clock;
  readonly processes: Pick<ProcessFacts, "self">;
  readonly engine: Pick<Engine, "pause">;
  readonly messenger: Pick<Messenger, "control">;
  readonly peers: Pick<PeerBook, "lose">;
  /** Null without NIXL: then nothing waits for a peer's word. */
  readonly agent: object | null;
}

interface Greeting {
  readonly peer: Peer;
  /** The newest package that was imported. */
  sequence: number;
  /** What waits for the peer's answer to the introduction of that number, or to a later one. */
  waits: { readonly number: number; readonly resume: () => void }[];
  /** When the last word to it has left. */
  told: Promise<void>;
  stopTimer: () => void;
}

/**
 * Tells imported peers who imported them. Transfers with layouts that a package brings begin once the peer has said that it
 * knows, however long that takes: what it takes back without knowing may be somebody else's memory by then.
 */
export class Greetings {
  readonly #parts: GreetingParts;
  readonly #reach: Pick<Reach, "connectionInfo">;
  readonly #greetings: Map<string, Greeting> = new Map();
  #last = 0;

  constructor(parts: GreetingParts, reach: Pick<Reach, "connectionInfo">) {
    this.#parts = parts;
    this.#reach = reach;
  }

  /**
   * Tells a peer that its package of that number was imported.
   *
   * @param layouts - Those that only this package brought; null for a new peer's, which are all.
   */
  introduce(peer: Peer, sequence: number, layouts: ReadonlySet<LayoutHandle> | null): void {
    const { agent, engine } = this.#parts;
    if (agent === null) return;
    const { wireName } = peer;
    const greeting: Greeting = this.#greetings.get(wireName) ?? {
      peer,
      sequence,
      waits: [],
      told: Promise.resolve(),
      stopTimer: () => undefined,
    };
    this.#greetings.set(wireName, greeting);
    greeting.sequence = sequence;
    const number = this.#tell(greeting);
    if (layouts !== null && layouts.size === 0) return;
    greeting.waits.push({ number, resume: engine.pause(wireName, layouts) });
    this.#tellAgain(greeting, AGAIN_MILLIS);
  }

  /** Resolves when a peer was told who imported it, so that it can answer. */
  introduced(wireName: string): Promise<void> {
    return this.#greetings.get(wireName)?.told ?? Promise.resolve();
  }

  /** A peer says that it knows this importer, and has heard all that this one had said before that introduction. */
  answered(wireName: string, number: number): void {
    const greeting = this.#greetings.get(wireName);
    if (greeting === undefined) return;
    const over = greeting.waits.filter((wait) => wait.number <= number);
    greeting.waits = greeting.waits.filter((wait) => wait.number > number);
    if (greeting.waits.length === 0) greeting.stopTimer();
    for (const { resume } of over) resume();
  }

  /** The peer is let go: it is told of nothing more. */
  left(wireName: string): void {
    const greeting = this.#greetings.get(wireName);
    if (greeting === undefined) return;
    this.#greetings.delete(wireName);
    greeting.stopTimer();
    for (const { resume } of greeting.waits) resume();
  }

  /** @returns The introduction's number: an answer to an earlier one says nothing of what was imported since. */
  #tell(greeting: Greeting): number {
    const { messenger, peers, processes } = this.#parts;
    const { peer, sequence } = greeting;
    const number = ++this.#last;
    greeting.told = this.#reach
      .connectionInfo()
      .then(async (connection) => {
        // A peer that is let go is told so, and nothing after it.
        if (this.#greetings.get(peer.wireName) !== greeting) return;
        const body = importedBody({ number, sequence, process: processes.self, connection });
        await messenger.control(peer, CONTROL.imported, body);
      })
      .catch((error: unknown) => {
        // Whoever cannot be told does not know, and its memory is not touched. A transport that closes forgets everybody.
        if (isKvferryError(error, "CLOSED") || this.#greetings.get(peer.wireName) !== greeting) return;
        const reason = error instanceof Error ? error.message : String(error);
        peers.lose(peer, `it cannot be told of its import: ${reason}`);
      });
    return number;
  }

  /** What was lost on the way is said again; to a peer that is not there for long, less and less often. */
  #tellAgain(greeting: Greeting, millis: number): void {
    greeting.stopTimer();
    greeting.stopTimer = this.#parts.clock.after(millis, () => {
      this.#tell(greeting);
      this.#tellAgain(greeting, Math.min(MOST_AGAIN_MILLIS, millis * 2));
    });
  }
}
