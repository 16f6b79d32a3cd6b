import type { LayoutHandle } from "../core/handle.ts";
import type { HandedDescriptor, NeighbourProcess, NeighbourSockets } from "../native/neighbour.ts";
import { describeLayout, unshareable, type ServedLayout } from "./neighbour-describe.ts";
import type { NeighbourDevices } from "./neighbour-devices.ts";
import { type Guest, newGuest, proves, welcome } from "./neighbour-guest.ts";
import { MESSAGE_WINDOW } from "./neighbour-outbox.ts";
import {
  type ExporterWord,
  type ImporterWord,
  type MarkWord,
  type NeighbourName,
  readImporterWord,
  readTag,
  wordBytes,
} from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";

/** Word of dealt-with messages goes out once they are a quarter of the window. */
const CREDIT_STEP: number = MESSAGE_WINDOW / 4;

/** What serving neighbours needs from the transport. */
export interface ExporterEffects {
  readonly self: NeighbourName;
  readonly secrets: readonly SecretKey[];
  /** A registered layout. */
  readonly find: (handle: LayoutHandle) => ServedLayout | undefined;
  /** What opens an allocation of a GPU in another process. */
  readonly exportDevice: NeighbourDevices["export"];
  /** Takes a user's message. @returns Whether more may come. */
  readonly deliver: (from: NeighbourName, payload: Uint8Array<ArrayBuffer>) => boolean;
  /** The process of a worker that had these layouts mapped is gone: it writes no more. */
  readonly gone: (from: NeighbourName, layouts: readonly LayoutHandle[]) => void;
  /** A neighbour found blocks bad, or wrote them again. */
  readonly marked: (from: NeighbourName, word: MarkWord) => void;
  readonly warn: (message: string) => void;
}

/** Who may have a layout: everybody, or the workers that it was exported to. */
type Audience = "everybody" | Set<bigint>;

/**
 * The exporting side: proves itself to neighbours that connect, hands out the memory of layouts that were exported to
 * them, and knows who has what mapped until it is given back or the process is gone.
 */
export class NeighbourExporter {
  readonly #sockets: () => NeighbourSockets;
  readonly #effects: ExporterEffects;
  readonly #guests: Map<number, Guest> = new Map();
  readonly #audiences: Map<LayoutHandle, Audience> = new Map();
  readonly #retiring: Set<LayoutHandle> = new Set();
  #waiters: (() => void)[] = [];
  #full = false;

  constructor(sockets: () => NeighbourSockets, effects: ExporterEffects) {
    this.#sockets = sockets;
    this.#effects = effects;
  }

  /** Layouts went out in a package: their memory may be handed to whom it is meant for. */
  exported(layouts: Iterable<LayoutHandle>, audience: readonly bigint[] | null): void {
    for (const handle of layouts) {
      const known = this.#audiences.get(handle);
      if (known === "everybody") continue;
      if (audience === null) this.#audiences.set(handle, "everybody");
      else this.#audiences.set(handle, new Set([...(known ?? []), ...audience]));
    }
  }

  accepted(process: NeighbourProcess): void {
    this.#guests.set(process.connection, newGuest(process));
  }

  /** @returns Whether the connection is one of this side's. */
  received(connection: number, bytes: Uint8Array<ArrayBuffer>): boolean {
    const guest = this.#guests.get(connection);
    if (guest === undefined) return false;
    const { kind, body } = readTag(bytes);
    if (kind === "notification" && guest.phase === "ready" && guest.name !== undefined) {
      guest.owed += body.byteLength;
      this.#full = !this.#effects.deliver(guest.name, body);
      if (!this.#full && guest.owed >= CREDIT_STEP) this.#credit(guest);
      return true;
    }
    const word = kind === "word" ? readImporterWord(body) : null;
    if (word === null) {
      if (guest.phase !== "gone") this.#dismiss(guest, "what it said cannot be understood");
    } else this.#heard(guest, word);
    return true;
  }

  /** Messages can be taken again. */
  resume(): void {
    if (!this.#full) return;
    this.#full = false;
    for (const guest of this.#guests.values()) if (guest.owed > 0) this.#credit(guest);
  }

  closed(connection: number): boolean {
    const guest = this.#guests.get(connection);
    if (guest === undefined) return false;
    guest.connected = false;
    // A process that is not watched, or lives on: only its end can prove that it no longer writes.
    if (guest.held.size === 0) this.#drop(guest);
    return true;
  }

  exited(connection: number): boolean {
    const guest = this.#guests.get(connection);
    if (guest === undefined) return false;
    const held = [...guest.held];
    guest.held.clear();
    if (guest.name !== undefined && held.length > 0) this.#effects.gone(guest.name, held);
    if (!guest.connected) this.#drop(guest);
    this.#wake();
    return true;
  }

  /** Processes that have a layout mapped. */
  holders(handle: LayoutHandle): readonly number[] {
    return [...this.#guests.values()]
      .filter((guest) => guest.held.has(handle))
      .map((guest) => guest.process.processId);
  }

  /** Tells a neighbour of a layout's blocks. @returns Whether it is there. */
  mark(wireName: string, word: MarkWord): boolean {
    for (const guest of this.#guests.values())
      if (guest.phase === "ready" && guest.name?.wire === wireName && this.#say(guest, word)) return true;
    return false;
  }

  /**
   * Asks every neighbour to let go of a layout, and gives it to nobody more.
   *
   * @param millis - How long to wait; Infinity for ever.
   * @returns Whether all have let go; if not, the layout may be handed out again.
   */
  async release(handle: LayoutHandle, millis: number): Promise<boolean> {
    this.#retiring.add(handle);
    for (const guest of this.#guests.values())
      if (guest.held.has(handle)) this.#say(guest, { say: "release", layout: handle.toString() });
    const free = await this.#until(() => this.holders(handle).length === 0, millis);
    this.#retiring.delete(handle);
    if (free) this.#audiences.delete(handle);
    return free;
  }

  /** Tells every neighbour that this transport closes, and waits until nothing is mapped any more. */
  async closing(millis: number): Promise<boolean> {
    for (const guest of this.#guests.values())
      if (guest.phase === "ready") this.#say(guest, { say: "closing" });
    return await this.#until(
      () => [...this.#guests.values()].every((guest) => guest.held.size === 0),
      millis,
    );
  }

  #heard(guest: Guest, word: ImporterWord): void {
    if (guest.phase === "gone") return;
    if (word.say === "hello" && guest.phase === "new") this.#welcome(guest, word);
    else if (word.say === "proof" && guest.phase === "welcomed") this.#admit(guest, word.proof);
    else if (guest.phase !== "ready") this.#dismiss(guest, "it spoke before it was let in");
    else if (word.say === "want") this.#answer(guest, word.layouts);
    else if (word.say === "released") this.#releasedBy(guest, word.layouts.map(BigInt) as LayoutHandle[]);
    else if (word.say === "mark") this.#marked(guest, word);
    else if (word.say === "bye") {
      guest.phase = "gone";
      this.#releasedBy(guest, [...guest.held]);
      this.#sockets().shut(guest.process.connection);
    } else this.#dismiss(guest, `it said ${word.say} twice`);
  }

  /** Only who has a layout mapped can have written to it. */
  #marked(guest: Guest, word: MarkWord): void {
    const layout = BigInt(word.layout) as LayoutHandle;
    if (guest.name !== undefined && guest.held.has(layout)) this.#effects.marked(guest.name, word);
  }

  #welcome(guest: Guest, hello: Extract<ImporterWord, { say: "hello" }>): void {
    const answer = welcome(guest, hello, this.#effects.self, this.#effects.secrets);
    if (typeof answer === "string") this.#refuse(guest, answer);
    else this.#say(guest, answer);
  }

  #admit(guest: Guest, proof: string | null): void {
    if (!proves(guest, proof, this.#effects.secrets))
      return this.#refuse(guest, "it does not know the secret");
    guest.phase = "ready";
    // Before it hears that it may.
    this.#sockets().ring(guest.process.connection, false);
    this.#say(guest, { say: "ready" });
  }

  #answer(guest: Guest, layouts: readonly string[]): void {
    guest.answering = guest.answering.then(async () => {
      // Layouts that are not handed out mostly have their reason in common: one word says so of all of them.
      const refused = new Map<string, string[]>();
      for (const layout of layouts) {
        const why =
          this.#refusalOf(guest, BigInt(layout) as LayoutHandle) ?? (await this.#handOut(guest, layout));
        if (why === null) continue;
        const known = refused.get(why);
        if (known === undefined) refused.set(why, [layout]);
        else known.push(layout);
      }
      for (const [why, named] of refused) this.#say(guest, { say: "no", layouts: named, why });
    });
  }

  /** Why a layout is not handed out, where that is known at once: of memory that is not ours there may be many. */
  #refusalOf(guest: Guest, handle: LayoutHandle): string | null {
    if (this.#refusedTo(guest, handle))
      return "The peer's layout is gone, or was not exported to this worker.";
    const served = this.#effects.find(handle);
    return served === undefined ? "The peer's layout is gone." : unshareable(served);
  }

  /** @returns Why it is not handed out; null when it is, or when nobody is there to be told. */
  async #handOut(guest: Guest, layout: string): Promise<string | null> {
    const handle = BigInt(layout) as LayoutHandle;
    try {
      if (this.#refusedTo(guest, handle))
        return "The peer's layout is gone, or was not exported to this worker.";
      const served = this.#effects.find(handle);
      if (served === undefined) return "The peer's layout is gone.";
      const handed = await describeLayout(layout, served, this.#effects.exportDevice);
      if (typeof handed === "string") return handed;
      try {
        // What took its time may be too late.
        if (this.#refusedTo(guest, handle) || this.#effects.find(handle)?.record !== served.record)
          return "The peer's layout is gone.";
        if (!guest.connected || guest.phase !== "ready") return null;
        guest.held.add(handle);
        if (!this.#say(guest, handed.word, handed.descriptors)) guest.held.delete(handle);
        return null;
      } finally {
        handed.close();
      }
    } catch (error) {
      guest.held.delete(handle);
      return `The peer cannot hand it out: ${error instanceof Error ? error.message : String(error)}`;
    }
  }

  #refusedTo(guest: Guest, handle: LayoutHandle): boolean {
    if (this.#retiring.size > 0 && this.#retiring.has(handle)) return true;
    const audience = this.#audiences.get(handle);
    if (audience === undefined) return true;
    return audience !== "everybody" && !audience.has(BigInt(guest.name?.worker ?? "0"));
  }

  #releasedBy(guest: Guest, handles: readonly LayoutHandle[]): void {
    for (const handle of handles) guest.held.delete(handle);
    if (!guest.connected && guest.held.size === 0) this.#drop(guest);
    this.#wake();
  }

  #credit(guest: Guest): void {
    const bytes = guest.owed;
    guest.owed = 0;
    this.#say(guest, { say: "credit", bytes });
  }

  #refuse(guest: Guest, why: string): void {
    this.#say(guest, { say: "refused", why: `The peer refused this process: ${why}.` });
    this.#dismiss(guest, why);
  }

  #dismiss(guest: Guest, why: string): void {
    this.#effects.warn(`process ${guest.process.processId} was turned away as a neighbour: ${why}`);
    guest.phase = "gone";
    this.#sockets().shut(guest.process.connection);
  }

  #say(guest: Guest, word: ExporterWord, descriptors: readonly HandedDescriptor[] = []): boolean {
    return guest.connected && this.#sockets().send(guest.process.connection, wordBytes(word), descriptors);
  }

  #drop(guest: Guest): void {
    this.#guests.delete(guest.process.connection);
    this.#sockets().forget(guest.process.connection);
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter();
  }

  async #until(holds: () => boolean, millis: number): Promise<boolean> {
    if (holds()) return true;
    let late = false;
    const timer = setTimeout(
      () => {
        late = true;
        this.#wake();
      },
      Math.min(millis, 2 ** 31 - 1),
    );
    try {
      while (!holds()) {
        if (late && millis !== Infinity) return false;
        await new Promise<void>((resolve) => this.#waiters.push(resolve));
      }
      return true;
    } finally {
      clearTimeout(timer);
    }
  }
}
