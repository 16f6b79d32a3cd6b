import { closeSync } from "node:fs";
import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { Storage } from "../core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import type { NativeContext } from "../native/context.ts";
import type { MappedMemory } from "../native/memory.ts";
import { releaseMemory } from "../native/memory.ts";
import { mapNeighbourMemory, type NeighbourProcess, type NeighbourSockets } from "../native/neighbour.ts";
import { MESSAGE_WINDOW } from "./neighbour-export.ts";
import { type HostPlace, strangerReason } from "./neighbour-host.ts";
import {
  type DeviceWord,
  freshNonce,
  type ExporterWord,
  type ImporterWord,
  type LayoutWord,
  type Meeting,
  NEIGHBOUR_VERSION,
  type NeighbourName,
  notificationBytes,
  proofHolds,
  proofOf,
  readExporterWord,
  readTag,
  wordBytes,
} from "./neighbour-words.ts";
import type { SecretKey } from "./options.ts";

/** A neighbour that does not answer in this time is reached through NIXL. Milliseconds. */
export const MEETING_MILLIS = 2_000;

/** Layouts that are asked for with one message. */
const WANTED_AT_ONCE = 256;

/** Longest payload of a notification, in bytes. */
export const MAX_NOTIFICATION_BYTES: number = 16 * 2 ** 20 - 1;

/** What importing from neighbours needs from the transport. */
export interface ImporterEffects {
  readonly self: NeighbourName;
  readonly secrets: readonly SecretKey[];
  readonly place: HostPlace | null;
  /** Whether a layout is used by something that runs here. */
  readonly used: (handle: LayoutHandle) => boolean;
  /** Resolves when nothing that runs here uses a layout any more. */
  readonly idle: (handle: LayoutHandle) => Promise<void>;
  /** The neighbour is gone, or closes. */
  readonly lost: (wireName: string, reason: string) => void;
  readonly warn: (message: string) => void;
  /** The neighbour takes a layout back: nothing new may use it. */
  readonly withdrawn: (wireName: string, handle: LayoutHandle) => void;
  /** Maps an allocation of a GPU that another process opened for this one; `own`: another transport of this process. */
  readonly openDevice: (segment: DeviceWord, own: boolean) => Promise<OpenedDevice>;
  /** Pins mapped memory for this process's driver; null without one. */
  readonly pin: (memory: MappedMemory) => Promise<PinnedHere> | null;
  /** A component that was mapped is something else to this process now. */
  readonly repinned: (
    wireName: string,
    handle: LayoutHandle,
    component: string,
    mapped: MappedComponent,
  ) => void;
}

/** Mapped memory that is pinned for this process's driver. */
export interface PinnedHere {
  readonly storage: Storage;
  readonly unpin: () => Promise<void>;
}

/** An allocation of a GPU, mapped here. */
export interface OpenedDevice {
  readonly device: number;
  readonly address: number;
  readonly bytes: number;
  readonly close: () => Promise<void>;
}

/** A component of a neighbour's layout as this process reaches it. */
export interface MappedComponent {
  readonly bases: Float64Array;
  /** What the memory is to this process, where that differs from what it is to its owner. */
  readonly storage: Storage | null;
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

interface MappedLayout {
  readonly components: ReadonlyMap<string, MappedComponent>;
  /** Why components without an entry are not mapped. */
  readonly reasons: ReadonlyMap<string, string>;
  readonly segments: readonly Segment[];
}

/** A mapped segment; several layouts never share one. */
interface Segment {
  readonly memory: MappedMemory | null;
  readonly device: OpenedDevice | null;
  /** Its owner pinned it, and it may be pinned here. */
  readonly pinnable: boolean;
  /** Set once pinning began; null when it failed. */
  pinned: Promise<PinnedHere | null> | undefined;
}

interface Link {
  readonly process: NeighbourProcess;
  readonly wireName: string;
  phase: "meeting" | "ready" | "ending" | "closed";
  readonly nonce: string;
  readonly exporter: NeighbourName;
  readonly mapped: Map<LayoutHandle, MappedLayout>;
  /** Who waits for the end of the meeting, or for a layout. */
  readonly meeting: PromiseWithResolvers<void>;
  readonly wanted: Map<LayoutHandle, (found: MappedLayout | string) => void>;
  /** Packages' layouts by handle, to check what is handed over against. */
  readonly described: Map<LayoutHandle, PackageLayout>;
  /** Bytes of messages that the neighbour has not said it dealt with. */
  underWay: number;
  readonly waiting: { readonly bytes: Uint8Array<ArrayBuffer>; readonly done: PromiseWithResolvers<void> }[];
}

/**
 * The importing side: connects to the rendezvous that a package names, makes sure of who listens there, and maps what is
 * handed over. What it maps it lets go when the neighbour asks for it, goes away or is forgotten, once nothing here uses
 * it.
 */
export class NeighbourImporter {
  readonly #context: NativeContext;
  readonly #sockets: () => NeighbourSockets;
  readonly #effects: ImporterEffects;
  readonly #links: Map<string, Link> = new Map();
  readonly #byConnection: Map<number, Link> = new Map();
  /** Layouts that are being let go. */
  readonly #leaving: Set<Promise<void>> = new Set();

  constructor(context: NativeContext, sockets: () => NeighbourSockets, effects: ImporterEffects) {
    this.#context = context;
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
    for (let at = 0; at < fresh.length; at += WANTED_AT_ONCE)
      await this.#want(link, fresh.slice(at, at + WANTED_AT_ONCE), added, reasons);
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
        const named = new Set(metadata.layouts.map((layout) => layout.handle));
        for (const handle of link.mapped.keys()) if (!named.has(handle)) void this.#letGo(link, [handle]);
        this.#pinLink(link);
      },
      undo: async () => {
        if (known === link) await this.#letGo(link, added);
        else await this.detach(link.wireName);
      },
    };
  }

  /** Whether messages to a peer go through a neighbour's connection. */
  reaches(wireName: string): boolean {
    return this.#links.get(wireName)?.phase === "ready";
  }

  /**
   * Sends a user's message. Resolves when it is on its way.
   *
   * @throws KvferryError `PEER_LOST` when the neighbour is gone, `INVALID_CONFIG` for a payload that is too long.
   */
  async notify(wireName: string, payload: Uint8Array): Promise<void> {
    const link = this.#links.get(wireName);
    if (link?.phase !== "ready") throw goneNeighbour(wireName);
    if (payload.byteLength > MAX_NOTIFICATION_BYTES)
      throw new KvferryError(
        "INVALID_CONFIG",
        "notify",
        `a notification of ${payload.byteLength} bytes passes the limit of ${MAX_NOTIFICATION_BYTES}`,
        "Send a reference, and the bytes as blocks of a layout.",
        { bytes: payload.byteLength, limit: MAX_NOTIFICATION_BYTES },
      );
    const bytes = notificationBytes(payload);
    if (link.waiting.length === 0 && link.underWay < MESSAGE_WINDOW) {
      link.underWay += payload.byteLength;
      if (!this.#sockets().send(link.process.connection, bytes)) throw goneNeighbour(wireName);
      return;
    }
    const done = Promise.withResolvers<void>();
    link.waiting.push({ bytes, done });
    await done.promise;
  }

  /** Lets go of all that a peer handed over, once nothing here uses it, and ends the connection. */
  async detach(wireName: string): Promise<void> {
    const link = this.#links.get(wireName);
    if (link === undefined) return;
    this.#links.delete(wireName);
    this.#fail(link, "it was forgotten");
    if (link.phase !== "closed") link.phase = "ending";
    await this.#letGo(link, [...link.mapped.keys()]);
    if (link.phase === "ending") {
      this.#say(link, { say: "bye" });
      this.#sockets().shut(link.process.connection);
    }
    this.#byConnection.delete(link.process.connection);
    this.#sockets().forget(link.process.connection);
  }

  /** Pins, in the background, what its owners pinned; once a GPU is in use here. */
  pinAll(): void {
    for (const link of this.#links.values()) this.#pinLink(link);
  }

  /** Resolves when everything that is being let go has gone. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#leaving);
  }

  received(connection: number, bytes: Uint8Array<ArrayBuffer>, descriptors: readonly number[]): boolean {
    const link = this.#byConnection.get(connection);
    if (link === undefined) return false;
    const { kind, body } = readTag(bytes);
    const word = kind === "word" ? readExporterWord(body) : null;
    if (word?.say === "layout") {
      this.#handed(link, word, descriptors);
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
    const { host, wireName } = metadata;
    const { place, self, secrets } = this.#effects;
    if (host === null) throw new Error("The peer's package does not say on which host it is.");
    if (place === null) throw new Error("This kernel does not tell its processes where they are.");
    const stranger = strangerReason(place, host);
    if (stranger !== null) throw new Error(stranger);
    if (host.rendezvous === "") throw new Error("The peer shares its memory with no process of its host.");
    const known = this.#links.get(wireName);
    if (known?.phase === "ready") return known;
    const process = await this.#connect(host.rendezvous);
    // An abstract name is anybody's: who listens must be the very process that made the package.
    if (process.userId !== place.userId || process.processId !== host.processId) {
      this.#sockets().forget(process.connection);
      throw new Error(
        `Process ${process.processId} of user ${process.userId} listens at the peer's rendezvous instead of process ${host.processId}.`,
      );
    }
    const exporter: NeighbourName = {
      worker: metadata.workerId.toString(),
      agent: metadata.agentName,
      wire: wireName,
      incarnation: metadata.incarnation,
    };
    const link: Link = {
      process,
      wireName,
      phase: "meeting",
      nonce: freshNonce(),
      exporter,
      mapped: new Map(),
      meeting: Promise.withResolvers<void>(),
      wanted: new Map(),
      described: new Map(),
      underWay: 0,
      waiting: [],
    };
    this.#byConnection.set(process.connection, link);
    const keys = secrets.map((secret) => secret.keyId);
    this.#say(link, {
      say: "hello",
      version: NEIGHBOUR_VERSION,
      from: self,
      to: exporter,
      nonce: link.nonce,
      keys,
    });
    try {
      await within(MEETING_MILLIS, link.meeting.promise, () => new Error(silent(MEETING_MILLIS)));
    } catch (error) {
      this.#byConnection.delete(process.connection);
      this.#sockets().forget(process.connection);
      throw error;
    }
    this.#links.set(wireName, link);
    return link;
  }

  #isNear(host: HostPlace): boolean {
    const { place } = this.#effects;
    return place !== null && strangerReason(place, host) === null;
  }

  async #connect(rendezvous: string): Promise<NeighbourProcess> {
    const until = performance.now() + MEETING_MILLIS;
    for (;;) {
      let process: NeighbourProcess | null;
      try {
        process = this.#sockets().connect(rendezvous);
      } catch (error) {
        throw new Error(
          `Nobody listens at the peer's rendezvous: ${error instanceof Error ? error.message : String(error)}`,
          { cause: error },
        );
      }
      if (process !== null) return process;
      if (performance.now() > until) throw new Error(silent(MEETING_MILLIS));
      await Bun.sleep(5);
    }
  }

  #heard(link: Link, word: Exclude<ExporterWord, LayoutWord>): void {
    switch (word.say) {
      case "welcome":
        return this.#welcomed(link, word);
      case "ready":
        if (link.phase === "meeting") link.phase = "ready";
        return link.meeting.resolve();
      case "refused":
        return link.meeting.reject(new Error(word.why));
      case "no":
        for (const layout of word.layouts) this.#answered(link, BigInt(layout) as LayoutHandle, word.why);
        return undefined;
      case "release":
        return this.#release(link, BigInt(word.layout) as LayoutHandle);
      case "closing":
        return this.#effects.lost(link.wireName, "it closes");
      case "credit":
        return this.#credited(link, word.bytes);
    }
  }

  #welcomed(link: Link, word: Extract<ExporterWord, { say: "welcome" }>): void {
    const { secrets, self } = this.#effects;
    const meeting: Meeting = {
      importer: self,
      exporter: link.exporter,
      importerProcess: process.pid,
      exporterProcess: link.process.processId,
      importerNonce: link.nonce,
      exporterNonce: word.nonce,
    };
    const { key } = word;
    if (secrets.length === 0) return void this.#say(link, { say: "proof", proof: null });
    if (key === null || !proofHolds(proofOf("exporter", meeting, secrets, key), word.proof))
      return link.meeting.reject(new Error("The process at the peer's rendezvous does not know the secret."));
    this.#say(link, { say: "proof", proof: proofOf("importer", meeting, secrets, key) });
  }

  // ---- mapping ----

  async #want(
    link: Link,
    layouts: readonly PackageLayout[],
    added: LayoutHandle[],
    reasons: Map<LayoutHandle, string>,
  ): Promise<void> {
    const answers = layouts.map((layout) => {
      link.described.set(layout.handle, layout);
      return new Promise<MappedLayout | string>((resolve) => {
        if (link.phase === "ready") link.wanted.set(layout.handle, resolve);
        else resolve("The peer is gone.");
      });
    });
    this.#say(link, { say: "want", layouts: layouts.map((layout) => layout.handle.toString()) });
    await within(MEETING_MILLIS, Promise.all(answers), () => null).catch(() => {
      for (const [handle, resolve] of link.wanted) {
        link.wanted.delete(handle);
        resolve(silent(MEETING_MILLIS));
      }
    });
    for (const [index, answer] of (await Promise.all(answers)).entries()) {
      const handle = (layouts[index] as PackageLayout).handle; // one answer each
      link.described.delete(handle);
      if (typeof answer === "string") reasons.set(handle, answer);
      else added.push(handle);
    }
  }

  #handed(link: Link, word: LayoutWord, descriptors: readonly number[]): void {
    const handle = BigInt(word.layout) as LayoutHandle;
    const layout = link.described.get(handle);
    if (layout === undefined || !link.wanted.has(handle)) {
      // Nobody waits for it any more.
      for (const descriptor of descriptors) closeSync(descriptor);
      this.#say(link, { say: "released", layouts: [word.layout] });
      return;
    }
    void this.#map(link, word, layout, descriptors).then(
      (mapped) => {
        if (!link.wanted.has(handle)) return this.#unmap(link, [word.layout], mapped.segments);
        link.mapped.set(handle, mapped);
        this.#answered(link, handle, mapped);
        return undefined;
      },
      (error: unknown) => {
        this.#say(link, { say: "released", layouts: [word.layout] });
        this.#answered(
          link,
          handle,
          `What the peer handed over was refused: ${error instanceof Error ? error.message : String(error)}`,
        );
      },
    );
  }

  async #map(
    link: Link,
    word: LayoutWord,
    layout: PackageLayout,
    descriptors: readonly number[],
  ): Promise<MappedLayout> {
    const segments: Segment[] = [];
    const left = [...descriptors];
    try {
      const files = word.segments.filter((segment) => typeof segment === "number").length;
      if (files !== descriptors.length)
        throw new Error(`${descriptors.length} descriptors came for ${files} segments`);
      for (const segment of word.segments) {
        if (typeof segment === "number") {
          const descriptor = left.shift() as number; // as many as there are segments
          const readOnly = word.readOnly || layout.access === "read";
          segments.push({
            memory: mapNeighbourMemory(this.#context, descriptor, segment, readOnly),
            device: null,
            // Pinning for reading only is a feature that not every GPU has.
            pinnable: !readOnly && layout.components.some(({ storage }) => storage.kind === "pinned"),
            pinned: undefined,
          });
        } else {
          segments.push({
            memory: null,
            device: await this.#effects.openDevice(segment, link.process.processId === process.pid),
            pinnable: false,
            pinned: undefined,
          });
        }
      }
      const { components, reasons } = componentsOf(word, layout, segments);
      return { components, reasons, segments };
    } catch (error) {
      for (const descriptor of left) closeSync(descriptor);
      await this.#unmap(link, [], segments);
      throw error;
    }
  }

  #answered(link: Link, handle: LayoutHandle, answer: MappedLayout | string): void {
    const resolve = link.wanted.get(handle);
    link.wanted.delete(handle);
    resolve?.(answer);
  }

  #pinLink(link: Link): void {
    for (const [handle, layout] of link.mapped)
      if (layout.segments.some((segment) => segment.pinnable && segment.pinned === undefined))
        void this.#pin(link, handle, layout);
  }

  async #pin(link: Link, handle: LayoutHandle, layout: MappedLayout): Promise<void> {
    const pins = layout.segments.map((segment) => {
      const { memory, pinnable, device } = segment;
      if (pinnable && memory !== null) segment.pinned ??= this.#effects.pin(memory)?.catch(() => null);
      return device === null ? segment.pinned : null;
    });
    const pinned = await Promise.all(pins);
    const storage = pinned.find((found) => found !== null && found !== undefined)?.storage;
    // A component is pinned when all of the layout's files are: they are made together.
    if (
      storage === undefined ||
      pinned.some(
        (found, at) => (found === null || found === undefined) && layout.segments[at]?.device === null,
      )
    )
      return;
    if (link.phase !== "ready" || link.mapped.get(handle) !== layout) return;
    for (const [name, { bases, storage: before }] of layout.components)
      if (before?.kind === "system") this.#effects.repinned(link.wireName, handle, name, { bases, storage });
  }

  // ---- letting go ----

  #release(link: Link, handle: LayoutHandle): void {
    this.#effects.withdrawn(link.wireName, handle);
    void this.#letGo(link, [handle]);
  }

  /** Unmaps layouts, each once nothing here uses it, and tells the neighbour. */
  #letGo(link: Link, handles: readonly LayoutHandle[]): Promise<void> {
    const work = Promise.all(
      handles.map(async (handle) => {
        const mapped = link.mapped.get(handle);
        if (mapped === undefined) return;
        while (this.#effects.used(handle)) await this.#effects.idle(handle);
        // Two may have waited for it.
        if (link.mapped.get(handle) !== mapped) return;
        link.mapped.delete(handle);
        await this.#unmap(link, [handle.toString()], mapped.segments);
      }),
    ).then(() => undefined);
    this.#leaving.add(work);
    const done = (): void => void this.#leaving.delete(work);
    work.then(done, done);
    return work;
  }

  async #unmap(link: Link, released: readonly string[], segments: readonly Segment[]): Promise<void> {
    for (const { memory, device, pinned } of segments) {
      await (await pinned)?.unpin();
      if (memory !== null) await releaseMemory(this.#context, memory);
      if (device !== null) await device.close();
    }
    if (released.length > 0) this.#say(link, { say: "released", layouts: [...released] });
  }

  #ended(link: Link, reason: string): void {
    if (link.phase === "closed") return;
    const met = link.phase !== "meeting";
    link.phase = "closed";
    this.#fail(link, reason);
    this.#sockets().shut(link.process.connection);
    if (met) this.#effects.lost(link.wireName, reason);
  }

  /** Whoever waits for the neighbour is told that it does not come. */
  #fail(link: Link, reason: string): void {
    link.meeting.promise.catch(() => undefined);
    link.meeting.reject(new Error(`The peer is gone: ${reason}.`));
    for (const [handle] of link.wanted) this.#answered(link, handle, `The peer is gone: ${reason}.`);
    for (const { done } of link.waiting.splice(0)) done.reject(goneNeighbour(link.wireName));
  }

  #credited(link: Link, bytes: number): void {
    link.underWay = Math.max(0, link.underWay - bytes);
    while (link.underWay < MESSAGE_WINDOW) {
      const next = link.waiting.shift();
      if (next === undefined) return;
      link.underWay += next.bytes.byteLength - 1;
      if (this.#sockets().send(link.process.connection, next.bytes)) next.done.resolve();
      else next.done.reject(goneNeighbour(link.wireName));
    }
  }

  #say(link: Link, word: ImporterWord): boolean {
    return link.phase !== "closed" && this.#sockets().send(link.process.connection, wordBytes(word));
  }
}

function isMappable(layout: PackageLayout): boolean {
  return !layout.stagedOnly && layout.components.some((component) => component.storage.kind !== "disk");
}

/** Checks what was handed over against the package: every region must lie in its segment with the bytes that it needs. */
function componentsOf(
  word: LayoutWord,
  layout: PackageLayout,
  segments: readonly Segment[],
): Pick<MappedLayout, "components" | "reasons"> {
  const components = new Map<string, MappedComponent>();
  const reasons = new Map<string, string>();
  for (const component of layout.components) {
    const handed = word.components.find((candidate) => candidate.name === component.name);
    if (handed === undefined || handed.regions === null) {
      reasons.set(component.name, handed?.why ?? "The peer did not hand it over.");
      continue;
    }
    const { view } = component;
    if (handed.regions.length !== view.regionCount)
      throw new Error(
        `component ${component.name} has ${view.regionCount} regions, ${handed.regions.length} came`,
      );
    const bases = new Float64Array(view.regionCount);
    const kinds = new Set<Segment["device"]>();
    for (const [index, [at, offset, size]] of handed.regions.entries()) {
      const segment = segments[at];
      const bytes = segment?.memory?.bytes ?? segment?.device?.bytes ?? 0;
      const address = segment?.memory?.address ?? segment?.device?.address ?? 0;
      if (segment === undefined || size < view.regionBytes || offset + size > bytes)
        throw new Error(
          `region ${index} of component ${component.name} (${size} bytes at ${offset}) does not lie in its segment of ${bytes} bytes`,
        );
      bases[index] = address + offset;
      kinds.add(segment.device);
    }
    components.set(component.name, { bases, storage: storageHere(component, kinds) });
  }
  return { components, reasons };
}

/** What the memory is to this process: pinned memory is pinned for its owner's driver only, and GPUs have other numbers. */
function storageHere(component: PackageComponent, kinds: ReadonlySet<OpenedDevice | null>): Storage | null {
  const devices = new Set([...kinds].map((device) => device?.device ?? -1));
  const [device = -1] = devices;
  const onDevice = component.storage.kind === "device";
  if (devices.size !== 1 || device >= 0 !== onDevice)
    throw new Error(
      `component ${component.name} is ${component.storage.kind} memory, other memory was handed over`,
    );
  if (onDevice) return { kind: "device", device };
  return component.storage.kind === "pinned" ? { kind: "system" } : null;
}

function silent(millis: number): string {
  return `The peer did not answer at its rendezvous within ${millis} ms.`;
}

function goneNeighbour(wireName: string): KvferryError {
  return new KvferryError(
    "PEER_LOST",
    "notify",
    `neighbour ${wireName} is gone`,
    "Import its metadata again once it is back.",
    { wireName },
  );
}

/** The promise's value; rejects with what `late` makes when it takes longer. Holds the process meanwhile. */
function within<T>(millis: number, promise: Promise<T>, late: () => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(late()), millis);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
