import { resolveLayout, type ResolvedLayout } from "../core/bundle.ts";
import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutSpec } from "../core/layout.ts";
import { registerLayout, unregisterLayout } from "../core/registry.ts";
import { provideMemory, type LayoutMemory } from "./layout-memory.ts";
import { LocalLayout, type LayoutHost, type UnregisterOptions } from "./local-layout.ts";
import type { Leases } from "./leases.ts";
import { NixlExtents, type NixlHold } from "./nixl-extents.ts";
import type { Session } from "./session.ts";
import type { TransportState } from "./state.ts";

/**
 * Registers and unregisters the layouts of this process.
 *
 * Ids follow the order of the calls, also when NIXL is slower with one layout than with the next.
 */
export class Registrar {
  readonly #session: Session;
  readonly #state: TransportState;
  readonly #leases: Leases;
  readonly #host: LayoutHost;
  /** Live layouts by id. */
  readonly #layouts: (LocalLayout | undefined)[] = [];
  readonly #extents: NixlExtents | undefined;
  readonly #holds: WeakMap<LocalLayout, NixlHold> = new WeakMap();
  #last: Promise<unknown> | undefined;
  #lastPending = 0;

  constructor(session: Session, state: TransportState, leases: Leases, host: LayoutHost) {
    this.#session = session;
    this.#state = state;
    this.#leases = leases;
    this.#host = host;
    if (session.agent !== null) this.#extents = new NixlExtents(session.agent);
  }

  /** Live layouts in id order. */
  get layouts(): LocalLayout[] {
    return this.#layouts.filter((layout) => layout !== undefined);
  }

  /** The live layout of a record's id, if it is the one of that handle. */
  find(layoutId: number, handle: LayoutHandle): LocalLayout | undefined {
    const layout = this.#layouts[layoutId];
    return layout?.record.handle === handle ? layout : undefined;
  }

  register(spec: LayoutSpec): Promise<LocalLayout> {
    let resolved: ResolvedLayout;
    let memory: LayoutMemory | Promise<LayoutMemory>;
    try {
      this.#state.demandOpen("register");
      resolved = resolveLayout(spec);
      memory = provideMemory(this.#session.providers, resolved.components, resolved);
    } catch (error) {
      return Promise.reject(error);
    }
    // Plain memory without NIXL is registered at once: nothing has to be waited for.
    if (
      !(memory instanceof Promise) &&
      this.#lastPending === 0 &&
      (this.#session.agent === null || memory.nixl.length === 0)
    ) {
      try {
        return Promise.resolve(this.#enter(resolved, memory));
      } catch (error) {
        return memory.release().then(() => Promise.reject(error));
      }
    }
    const work = this.#registerInTurn(resolved, memory, this.#last);
    this.#lastPending++;
    const done = (): void => {
      this.#lastPending--;
    };
    this.#last = work.then(done, done);
    return work;
  }

  async unregister(layout: LocalLayout, options: UnregisterOptions): Promise<void> {
    const { handle } = layout.record;
    if (this.#busy(handle)) {
      if (options.wait !== true) throw this.#inUse(layout);
      while (this.#busy(handle)) await this.#leases.idle(handle);
    }
    if (this.#layouts[layout.record.layoutId] !== layout) return;
    this.#state.snapshot = unregisterLayout(this.#state.snapshot, handle);
    this.#layouts[layout.record.layoutId] = undefined;
    this.#state.changed();
    layout.retire();
    await this.#letGo(layout);
  }

  /** Frees every layout that nothing uses; for `close`. @returns Names of those that had to be left. */
  async releaseAll(): Promise<string[]> {
    const left: string[] = [];
    for (const layout of this.layouts) {
      if (this.#busy(layout.handle)) left.push(layout.name);
      else await this.unregister(layout, { wait: true });
    }
    return left;
  }

  async #registerInTurn(
    resolved: ResolvedLayout,
    providing: LayoutMemory | Promise<LayoutMemory>,
    before: Promise<unknown> | undefined,
  ): Promise<LocalLayout> {
    const memory = await providing;
    let hold: NixlHold | undefined;
    try {
      hold = await this.#extents?.acquire(memory.nixl);
      await before;
      this.#state.demandOpen("register");
      return this.#enter(resolved, memory, hold);
    } catch (error) {
      if (hold !== undefined) await this.#extents?.release(hold).catch(() => undefined);
      await memory.release();
      throw error;
    }
  }

  #enter(resolved: ResolvedLayout, memory: LayoutMemory, hold?: NixlHold): LocalLayout {
    const components = resolved.components.map(({ shape }, index): ComponentRecord => {
      const part = memory.components[index];
      if (part === undefined)
        throw new KvferryError(
          "INVALID_CONFIG",
          "register",
          `component ${shape.name} has no memory`,
          "This is a defect: please report it.",
        );
      return {
        shape,
        storage: part.storage,
        regionAddresses: part.addresses,
        regionSizes: part.sizes,
        attachment: part.attachment,
        nixlDevice: part.nixlDevice,
      };
    });
    const entered = registerLayout(this.#state.snapshot, {
      name: resolved.name,
      tier: resolved.tier,
      access: resolved.access,
      fingerprint: resolved.fingerprint,
      components,
    });
    this.#state.snapshot = entered.snapshot;
    this.#state.changed();
    const layout = new LocalLayout(this.#host, entered.layout, memory);
    this.#layouts[entered.layout.layoutId] = layout;
    if (hold !== undefined) this.#holds.set(layout, hold);
    return layout;
  }

  async #letGo(layout: LocalLayout): Promise<void> {
    const hold = this.#holds.get(layout);
    if (hold !== undefined) await this.#extents?.release(hold);
    await layout.memory.release();
  }

  #busy(handle: LayoutHandle): boolean {
    return (
      this.#leases.uses(handle) > 0 ||
      (this.#leases.anyQuarantined && this.#leases.quarantined(handle).length > 0)
    );
  }

  #inUse(layout: LocalLayout): KvferryError {
    const uses = this.#leases.uses(layout.handle);
    const quarantined = this.#leases.quarantined(layout.handle).length;
    return new KvferryError(
      "IN_USE",
      "unregister",
      `layout ${layout.name} (${formatHandle(layout.handle)}) is in use: ${uses} transfers, ${quarantined} blocks in quarantine`,
      "Await the transfers first, or unregister with { wait: true }.",
      { name: layout.name, uses, quarantined },
    );
  }
}
