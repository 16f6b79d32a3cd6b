// Processes that speak the neighbours' protocol by hand, to say what a good one never says. They live in the test's own
// process, so that their process id is the right one unless a test wants a wrong one.
import type { HostIdentity, MetadataPackage } from "../../../lib/core/package.ts";
import { NativeContext } from "../../../lib/native/context.ts";
import { openLibrary } from "../../../lib/native/library.ts";
import { NeighbourSockets, type NeighbourEvent } from "../../../lib/native/neighbour.ts";
import { hostPlace } from "../../../lib/runtime/neighbour-host.ts";
import {
  freshNonce,
  readTag,
  wordBytes,
  type ExporterWord,
  type ImporterWord,
} from "../../../lib/runtime/neighbour-words.ts";
import { decodePackage, encodePackage } from "../../../lib/wire/index.ts";

/** A word and the descriptors that came with it. */
export interface HeardWord {
  readonly connection: number;
  readonly word: ImporterWord | ExporterWord;
  readonly descriptors: readonly number[];
}

/** One end that speaks by hand. */
export class Impostor implements Disposable {
  readonly sockets: NeighbourSockets;
  readonly #context: NativeContext;
  readonly #events: NeighbourEvent[] = [];

  constructor() {
    this.#context = NativeContext.open(openLibrary(), 64);
    this.sockets = NeighbourSockets.open(this.#context);
  }

  /** Listens at a name of its own, or at one that it takes. */
  listen(name = `kvferry-test-${freshNonce().slice(0, 16)}`): string {
    this.sockets.listen(name);
    return name;
  }

  say(connection: number, word: ImporterWord | ExporterWord, descriptors: readonly number[] = []): boolean {
    return this.sockets.send(
      connection,
      wordBytes(word),
      descriptors.map((descriptor) => ({ descriptor, readOnly: false })),
    );
  }

  /** The next thing that happens. */
  async next(millis = 10_000): Promise<NeighbourEvent> {
    const end = performance.now() + millis;
    for (;;) {
      this.#events.push(...this.sockets.take());
      const event = this.#events.shift();
      if (event !== undefined) return event;
      if (performance.now() > end) throw new Error(`nothing happened within ${millis} ms`);
      await Bun.sleep(1);
    }
  }

  /** The next word that is said here. */
  async hears(): Promise<HeardWord> {
    for (;;) {
      const event = await this.next();
      if (event.kind !== "message") continue;
      const { connection, descriptors } = event;
      const word: ImporterWord | ExporterWord = JSON.parse(
        new TextDecoder().decode(readTag(event.bytes).body),
      );
      return { connection, word, descriptors };
    }
  }

  /** Lets an importer in, as an exporter without a secret does, and waits for what it wants. */
  async admit(): Promise<{ readonly connection: number; readonly wanted: readonly string[] }> {
    for (;;) {
      const { connection, word } = await this.hears();
      if (word.say === "hello")
        this.say(connection, { say: "welcome", nonce: freshNonce(), key: null, proof: null });
      if (word.say === "proof") {
        this.sockets.ring(connection, false);
        this.say(connection, { say: "ready" });
      }
      if (word.say === "want") return { connection, wanted: word.layouts };
    }
  }

  [Symbol.dispose](): void {
    this.sockets.close();
    this.#context.close(1_000);
  }
}

/** A package with other facts in it, as a forger without a secret makes it. */
export function forged(
  bytes: Uint8Array,
  change: (metadata: MetadataPackage) => Partial<MetadataPackage>,
): Uint8Array {
  const metadata = decodePackage(bytes);
  return encodePackage({ ...metadata, ...change(metadata) }, "kvferry");
}

/** This process, met at another rendezvous. */
export function hostAt(rendezvous: string, more: Partial<HostIdentity> = {}): HostIdentity {
  const place = hostPlace();
  if (place === null) throw new Error("this kernel does not say where its processes are");
  return { ...place, rendezvous, ...more };
}
