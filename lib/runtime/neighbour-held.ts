import { closeSync } from "node:fs";
import type { LayoutHandle } from "../core/handle.ts";
import type { NativeContext } from "../native/context.ts";
import type { NeighbourSockets } from "../native/neighbour.ts";
import { answerWaiting, type Link, say } from "./neighbour-link.ts";
import {
  isToPin,
  type MappedComponent,
  type MappedLayout,
  mapLayout,
  type MappingDevices,
  pinLayout,
  unmapSegments,
} from "./neighbour-mapping.ts";
import type { LayoutWord } from "./neighbour-words.ts";

/** What holding neighbours' layouts needs from the transport. */
export interface HoldingEffects {
  /** Whether a layout is used by something that runs here. */
  readonly used: (handle: LayoutHandle) => boolean;
  /** Resolves when nothing that runs here uses a layout any more. */
  readonly idle: (handle: LayoutHandle) => Promise<void>;
  readonly devices: MappingDevices;
  /** A component that was mapped is something else to this process now. */
  readonly repinned: (
    wireName: string,
    handle: LayoutHandle,
    component: string,
    mapped: MappedComponent,
  ) => void;
}

/** What neighbours handed over: it is mapped, pinned where its owner pinned it, and let go once nothing here uses it. */
export class HeldLayouts {
  readonly #context: NativeContext;
  readonly #sockets: () => NeighbourSockets;
  readonly #effects: HoldingEffects;
  /** Layouts that are being let go. */
  readonly #leaving: Set<Promise<void>> = new Set();

  constructor(context: NativeContext, sockets: () => NeighbourSockets, effects: HoldingEffects) {
    this.#context = context;
    this.#sockets = sockets;
    this.#effects = effects;
  }

  /** Takes a layout that the neighbour hands over, and its descriptors. */
  take(link: Link, word: LayoutWord, descriptors: readonly number[]): void {
    const handle = BigInt(word.layout) as LayoutHandle;
    const layout = link.described.get(handle);
    if (layout === undefined || !link.wanted.has(handle)) {
      // Nobody waits for it any more.
      for (const descriptor of descriptors) closeSync(descriptor);
      say(this.#sockets, link, { say: "released", layouts: [word.layout] });
      return;
    }
    const own = link.process.processId === process.pid;
    void mapLayout(this.#context, this.#effects.devices, word, layout, descriptors, own).then(
      (mapped) => {
        if (!link.wanted.has(handle)) return this.#unmap(link, [word.layout], mapped);
        link.mapped.set(handle, mapped);
        answerWaiting(link, handle, mapped);
        return undefined;
      },
      (error: unknown) => {
        say(this.#sockets, link, { say: "released", layouts: [word.layout] });
        answerWaiting(
          link,
          handle,
          `What the peer handed over was refused: ${error instanceof Error ? error.message : String(error)}`,
        );
      },
    );
  }

  /** Pins, in the background, what its owner pinned. */
  pin(link: Link): void {
    for (const [handle, layout] of link.mapped) if (isToPin(layout)) void this.#pinOne(link, handle, layout);
  }

  /** Unmaps layouts, each once nothing here uses it, and tells the neighbour. */
  letGo(link: Link, handles: readonly LayoutHandle[]): Promise<void> {
    const work = Promise.all(
      handles.map(async (handle) => {
        const mapped = link.mapped.get(handle);
        if (mapped === undefined) return;
        while (this.#effects.used(handle)) await this.#effects.idle(handle);
        // Two may have waited for it.
        if (link.mapped.get(handle) !== mapped) return;
        link.mapped.delete(handle);
        await this.#unmap(link, [handle.toString()], mapped);
      }),
    ).then(() => undefined);
    this.#leaving.add(work);
    const done = (): void => void this.#leaving.delete(work);
    work.then(done, done);
    return work;
  }

  /** Resolves when everything that is being let go has gone. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#leaving);
  }

  async #pinOne(link: Link, handle: LayoutHandle, layout: MappedLayout): Promise<void> {
    const stands = (): boolean => link.phase === "ready" && link.mapped.get(handle) === layout;
    for (const [name, pinned] of await pinLayout(layout, this.#effects.devices.pin, stands))
      this.#effects.repinned(link.wireName, handle, name, pinned);
  }

  async #unmap(link: Link, released: readonly string[], { segments }: MappedLayout): Promise<void> {
    await unmapSegments(this.#context, segments);
    say(this.#sockets, link, { say: "released", layouts: [...released] });
  }
}
