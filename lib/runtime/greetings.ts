import { importedBody } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import type { Clock } from "./deadlines.ts";
import type { Engine } from "./engine.ts";
import type { Messenger } from "./messenger.ts";
import type { Peer } from "./peer.ts";
import type { ProcessFacts } from "./process-watch.ts";
import type { Reach } from "./reach.ts";

/**
 * How long transfers with a new peer wait for its word that it knows this importer: memory that it takes back without
 * knowing may be somebody else's. Milliseconds.
 */
const GREETING_MILLIS = 1_000;

/** What greetings work with. */
export interface GreetingParts {
  readonly clock: Clock;
  readonly processes: Pick<ProcessFacts, "self">;
  readonly engine: Engine;
  readonly messenger: Messenger;
  /** Null without NIXL: then nothing waits for a peer's word. */
  readonly agent: object | null;
}

/** Tells imported peers who imported them, and lets transfers with a new one begin once it has said that it knows. */
export class Greetings {
  readonly #parts: GreetingParts;
  readonly #reach: Reach;
  readonly #introductions: Map<string, Promise<void>> = new Map();
  /** New peers that did not say yet that they know this importer, and what lets transfers with them begin. */
  readonly #greetings: Map<string, () => void> = new Map();
  readonly #greeted: WeakSet<Peer> = new WeakSet();
  /** How often a peer was told of an import and did not answer yet: the answer to an earlier one says nothing of a later one. */
  readonly #unanswered: Map<string, number> = new Map();

  constructor(parts: GreetingParts, reach: Reach) {
    this.#parts = parts;
    this.#reach = reach;
  }

  /** Tells a peer that its package of that number was imported. */
  introduce(peer: Peer, sequence: number): void {
    const { messenger, processes } = this.#parts;
    const { wireName } = peer;
    const greeted = this.#greet(peer);
    this.#unanswered.set(wireName, (this.#unanswered.get(wireName) ?? 0) + 1);
    const introduced = this.#reach
      .connectionInfo()
      .then((connection) =>
        messenger.control(
          peer,
          CONTROL.imported,
          importedBody({ sequence, process: processes.self, connection }),
        ),
      )
      // Whoever cannot be told is gone.
      .catch(() => {
        this.#unanswered.delete(wireName);
        greeted();
      });
    this.#introductions.set(wireName, introduced);
  }

  /** Resolves when a peer was told who imported it, so that it can answer. */
  introduced(wireName: string): Promise<void> {
    return this.#introductions.get(wireName) ?? Promise.resolve();
  }

  /** A peer says that it knows this importer. */
  answered(wireName: string): void {
    const left = (this.#unanswered.get(wireName) ?? 0) - 1;
    if (left > 0) this.#unanswered.set(wireName, left);
    else {
      this.#unanswered.delete(wireName);
      this.#greetings.get(wireName)?.();
    }
  }

  left(wireName: string): void {
    this.#introductions.delete(wireName);
    this.#greetings.get(wireName)?.();
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
}
