import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import { within } from "./deadlines.ts";
import type { LocalLayout, UnregisterOptions } from "./local-layout.ts";
import type { Session } from "./session.ts";
import type { SharedLayouts } from "./shared-layouts.ts";
import type { TransportState } from "./state.ts";

/** How long others may take to let go of a layout before `unregister` refuses. Milliseconds. */
export const RELEASE_MILLIS = 1_000;

/**
 * Memory of layouts that are unregistered. What nobody else can touch is given back at once, the rest when nobody can
 * any more.
 */
export class GoneLayouts {
  readonly #session: Session;
  readonly #state: TransportState;
  /** Layouts whose memory somebody may still touch, and when it was given back. */
  readonly #retained: Map<LocalLayout, Promise<void>> = new Map();
  /** Knows who else may touch a layout's memory. */
  shared: SharedLayouts | undefined;

  constructor(session: Session, state: TransportState) {
    this.#session = session;
    this.#state = state;
  }

  /** Layouts whose memory somebody may still touch, as they come and go while this is gone through. */
  get retained(): IterableIterator<LocalLayout> {
    return this.#retained.keys();
  }

  /**
   * Lets go of a layout that is unregistered.
   *
   * @param adopted - Its memory is its caller's.
   * @param grace - Also waits until no package that has it can still be on its way.
   */
  async letGo(layout: LocalLayout, adopted: boolean, grace: boolean): Promise<void> {
    const { handle } = layout;
    const held = this.shared?.takeBack(handle, grace && !adopted) ?? null;
    if (held === null && (adopted || !this.heldByOthers(handle))) {
      this.shared?.freed(handle);
      await layout.memory.release();
      return;
    }
    // The layout is gone; its memory stays until nobody can touch it.
    const freed = this.#untilFree(handle, held).then(() => this.free(layout));
    this.#retained.set(layout, freed);
    freed.catch(() => undefined);
  }

  /**
   * What others own is let go only when nothing can touch it: the caller may free it once this returns.
   *
   * @throws KvferryError `IN_USE` when somebody may still touch it after the time that the options give.
   */
  async untilLetGo(layout: LocalLayout, adopted: boolean, options: UnregisterOptions): Promise<void> {
    const freed = this.#retained.get(layout);
    if (freed === undefined || !adopted || !this.#state.isOpen) return;
    const { clock, options: opened } = this.#session;
    await within(clock, options.wait === true ? opened.deadlineMillis : RELEASE_MILLIS, freed);
    if (this.#retained.has(layout)) throw this.#stillReached(layout);
  }

  /** Gives a retained layout's memory back, once. */
  async free(layout: LocalLayout): Promise<void> {
    if (!this.#retained.delete(layout)) return;
    this.shared?.freed(layout.handle);
    await layout.memory.release();
  }

  /** Somebody may touch the memory by a way that this process cannot close. */
  heldByOthers(handle: LayoutHandle): boolean {
    if ((this.#session.neighbours?.holders(handle).length ?? 0) > 0) return true;
    if (this.shared === undefined) return false;
    return this.shared.holders(handle).length > 0 || (this.#state.isOpen && this.shared.isSilent(handle));
  }

  async #untilFree(handle: LayoutHandle, first: Promise<void> | null): Promise<void> {
    // Somebody may have imported an older package meanwhile.
    for (let held = first; held !== null; held = this.shared?.takeBack(handle, false) ?? null) await held;
    if (this.heldByOthers(handle)) await NEVER;
  }

  #stillReached(layout: LocalLayout): KvferryError {
    const workers = this.shared?.holders(layout.handle) ?? [];
    return new KvferryError(
      "IN_USE",
      "unregister",
      `layout ${layout.name} (${formatHandle(layout.handle)}) lies in memory that ${workers.length} workers may still write to: ${workers.slice(0, 8).join(", ")}`,
      "Unregister with { wait: true }, and let those workers forget this one or update to a package without the layout.",
      { name: layout.name, workers: workers.slice(0, 64) },
    );
  }
}

const NEVER: Promise<void> = new Promise(() => undefined);
