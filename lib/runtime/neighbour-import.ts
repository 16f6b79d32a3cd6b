import { closeSync } from "node:fs";
import type { LayoutHandle } from "../core/handle.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import type { NativeContext } from "../native/context.ts";
import type { NeighbourSockets } from "../native/neighbour.ts";
import { HeldLayouts, type HoldingEffects } from "./neighbour-held.ts";
import { type HostPlace, strangerReason } from "./neighbour-host.ts";
import {
  answerTo,
  answerWaiting,
  askFor,
  failLink,
  helloOf,
  type Link,
  MEETING_MILLIS,
  openLink,
  say,
  silent,
  within,
} from "./neighbour-link.ts";
import type { MappedComponent } from "./neighbour-mapping.ts";
import { goneNeighbour } from "./neighbour-outbox.ts";
import {
  type ExporterWord,
  type ImporterWord,
  type LayoutWord,
  type MarkWord,
  type NeighbourName,
  readExporterWord,
  readTag,
} from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";

/** Layouts that are asked for with one message. */
const WANTED_AT_ONCE = 256;

/** Layouts that are asked for before the first answers are waited for. */
const WANTED_TOGETHER: number = 4 * WANTED_AT_ONCE;

/** What importing from neighbours needs from the transport. */
export interface ImporterEffects extends HoldingEffects {
  readonly self: NeighbourName;
  readonly secrets: readonly SecretKey[];
  readonly place: HostPlace | null;
  /** The neighbour is gone, or closes. */
  readonly lost: (wireName: string, reason: string) => void;
  readonly warn: (message: string) => void;
  /** The neighbour takes a layout back: nothing new may use it. */
  readonly withdrawn: (wireName: string, handle: LayoutHandle) => void;
  /** The neighbour wrote blocks again that were bad. */
  readonly marked: (wireName: string, word: MarkWord) => void;
}

/** How a package's layouts are reached. */
export interface NeighbourAttachment {
  /** The mapped component, or why there is none, as a sentence. */
  component(layout: PackageLayout, component: PackageComponent): MappedComponent | string;
  /** The import stands: layouts that the package no longer has are let go. */
  keep(): void;
  /** The import failed: what was mapped for it is let go. */
  undo(): Promise<void>;
}

/**
 * The importing side: connects to the rendezvous that a package names, makes sure of who listens there, and maps what is
 * handed over. What it maps it lets go when the neighbour asks for it, goes away or is forgotten, once nothing here uses
 * it.
 */
export class NeighbourImporter {
  readonly #held: HeldLayouts;
  readonly #sockets: () => NeighbourSockets;
  readonly #effects: ImporterEffects;
  readonly #links: Map<string, Link> = new Map();
  readonly #byConnection: Map<number, Link> = new Map();

  constructor(context: NativeContext, sockets: () => NeighbourSockets, effects: ImporterEffects) {
    this.#held = new HeldLayouts(context, sockets, effects);
    this.#sockets = sockets;
    this.#effects = effects;
  }

  /**
   * Maps what a package describes and its exporter hands over. Never fails: what cannot be mapped says why.
   */
  async attach(metadata: MetadataPackage): Promise<NeighbourAttachment> {
    const known = this.#links.get(metadata.wireName);
    let link: Link;
    try {
      link = await this.#linkTo(metadata);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      const { host } = metadata;
      // Of another host or container nothing else was to be expected.
      if (host !== null && host.rendezvous !== "" && this.#isNear(host))
        this.#effects.warn(`worker ${metadata.workerId} is no neighbour: ${why}`);
      return { component: () => why, keep: () => undefined, undo: async () => undefined };
    }
    const reasons = new Map<LayoutHandle, string>();
    const fresh = metadata.layouts.filter((layout) => isMappable(layout) && !link.mapped.has(layout.handle));
    const added: LayoutHandle[] = [];
    for (let at = 0; at < fresh.length; at += WANTED_TOGETHER) {
      const asked: ReturnType<typeof askFor>[] = [];
      for (let from = at; from < Math.min(at + WANTED_TOGETHER, fresh.length); from += WANTED_AT_ONCE)
        asked.push(askFor(this.#sockets, link, fresh.slice(from, from + WANTED_AT_ONCE)));
      for (const answers of await Promise.all(asked))
        for (const [handle, answer] of answers)
          if (typeof answer === "string") reasons.set(handle, answer);
          else added.push(handle);
    }
    return {
      component: (layout, component) => {
        const mapped = link.mapped.get(layout.handle);
        return (
          mapped?.components.get(component.name) ??
          mapped?.reasons.get(component.name) ??
          reasons.get(layout.handle) ??
          "The peer's memory is not mapped."
        );
      },
      keep: () => {
        const named = new Set(link.mapped.size === 0 ? [] : metadata.layouts.map((layout) => layout.handle));
        for (const [handle, mapped] of link.mapped) {
          mapped.standing = true;
          if (!named.has(handle)) void this.#held.letGo(link, [handle]);
        }
        this.#held.pin(link);
      },
      undo: async () => {
        if (known === link) await this.#held.letGo(link, added);
        else await this.detach(link.wireName);
      },
    };
  }

  /** Whether messages to a peer go through a neighbour's connection. */
  reaches(wireName: string): boolean {
    return this.#links.get(wireName)?.phase === "ready";
  }

  /** Tells a neighbour of its layout's blocks. @returns Whether it is there. */
  mark(wireName: string, word: MarkWord): boolean {
    const link = this.#links.get(wireName);
    return link?.phase === "ready" && this.#say(link, word);
  }

  /**
   * Sends a user's message. Resolves when it is on its way.
   *
   * @throws KvferryError `PEER_LOST` when the neighbour is gone, `INVALID_CONFIG` for a payload that is too long.
   */
  async notify(wireName: string, payload: Uint8Array): Promise<void> {
    const link = this.#links.get(wireName);
    if (link?.phase !== "ready") throw goneNeighbour(wireName);
    await link.outbox.post(payload);
  }

  /** Lets go of all that a peer handed over, once nothing here uses it, and ends the connection. */
  async detach(wireName: string): Promise<void> {
    const link = this.#links.get(wireName);
    if (link === undefined) return;
    this.#links.delete(wireName);
    failLink(link, "it was forgotten");
    if (link.phase !== "closed") link.phase = "ending";
    await this.#held.letGo(link, [...link.mapped.keys()]);
    if (link.phase === "ending") {
      this.#say(link, { say: "bye" });
      this.#sockets().shut(link.process.connection);
    }
    this.#byConnection.delete(link.process.connection);
    this.#sockets().forget(link.process.connection);
  }

  /** Pins, in the background, what its owners pinned; once a GPU is in use here. */
  pinAll(): void {
    for (const link of this.#links.values()) this.#held.pin(link);
  }

  /** Resolves when everything that is being let go has gone. */
  async settled(): Promise<void> {
    await this.#held.settled();
  }

  received(connection: number, bytes: Uint8Array<ArrayBuffer>, descriptors: readonly number[]): boolean {
    const link = this.#byConnection.get(connection);
    if (link === undefined) return false;
    const { kind, body } = readTag(bytes);
    const word = kind === "word" ? readExporterWord(body) : null;
    if (word?.say === "layout") {
      this.#held.take(link, word, descriptors);
      return true;
    }
    for (const descriptor of descriptors) closeSync(descriptor);
    if (word === null) this.#ended(link, "what it said cannot be understood");
    else this.#heard(link, word);
    return true;
  }

  closed(connection: number, reason: string): boolean {
    const link = this.#byConnection.get(connection);
    if (link === undefined) return false;
    this.#ended(link, reason);
    return true;
  }

  exited(connection: number): boolean {
    const link = this.#byConnection.get(connection);
    if (link === undefined) return false;
    this.#ended(link, "its process is gone");
    return true;
  }

  // ---- meeting ----

  async #linkTo(metadata: MetadataPackage): Promise<Link> {
    const { place, self, secrets } = this.#effects;
    const known = this.#links.get(metadata.wireName);
    if (known?.phase === "ready") return known;
    const link = await openLink(this.#sockets, place, metadata);
    const { connection } = link.process;
    this.#byConnection.set(connection, link);
    this.#say(link, helloOf(link, self, secrets));
    try {
      await within(MEETING_MILLIS, link.meeting.promise, () => new Error(silent(MEETING_MILLIS)));
    } catch (error) {
      this.#byConnection.delete(connection);
      this.#sockets().forget(connection);
      throw error;
    }
    this.#links.set(link.wireName, link);
    return link;
  }

  #isNear(host: HostPlace): boolean {
    const { place } = this.#effects;
    return place !== null && strangerReason(place, host) === null;
  }

  #heard(link: Link, word: Exclude<ExporterWord, LayoutWord>): void {
    switch (word.say) {
      case "welcome":
        return this.#welcomed(link, word);
      case "ready":
        if (link.phase === "meeting") {
          link.phase = "ready";
          this.#sockets().ring(link.process.connection, true);
        }
        return link.meeting.resolve();
      case "refused":
        return link.meeting.reject(new Error(word.why));
      case "no":
        for (const layout of word.layouts) answerWaiting(link, BigInt(layout) as LayoutHandle, word.why);
        return undefined;
      case "release":
        return this.#release(link, BigInt(word.layout) as LayoutHandle);
      case "closing":
        return this.#effects.lost(link.wireName, "it closes");
      case "mark":
        return this.#effects.marked(link.wireName, word);
      case "credit":
        return link.outbox.credited(word.bytes);
    }
  }

  #welcomed(link: Link, word: Extract<ExporterWord, { say: "welcome" }>): void {
    const answer = answerTo(link, word, this.#effects.self, this.#effects.secrets);
    if (answer !== null) this.#say(link, answer);
    else link.meeting.reject(new Error("The process at the peer's rendezvous does not know the secret."));
  }

  #release(link: Link, handle: LayoutHandle): void {
    this.#effects.withdrawn(link.wireName, handle);
    void this.#held.letGo(link, [handle]);
  }

  #ended(link: Link, reason: string): void {
    if (link.phase === "closed") return;
    const met = link.phase !== "meeting";
    link.phase = "closed";
    failLink(link, reason);
    this.#sockets().shut(link.process.connection);
    if (met) this.#effects.lost(link.wireName, reason);
  }

  #say(link: Link, word: ImporterWord): boolean {
    return say(this.#sockets, link, word);
  }
}

function isMappable(layout: PackageLayout): boolean {
  return !layout.stagedOnly && layout.components.some((component) => component.storage.kind !== "disk");
}
