import { KVF_MEM_VRAM } from "../native/symbols.ts";
import { resolveLayout, type ResolvedLayout } from "../core/bundle.ts";
import { KvferryError } from "../core/errors.ts";
import { formatHandle, type LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutSpec } from "../core/layout.ts";
import { registerLayout, unregisterLayout } from "../core/registry-local.ts";
import type { NixlRegion } from "../native/agent.ts";
import { GoneLayouts, RELEASE_MILLIS } from "./gone-layouts.ts";
import { provideMemory, type LayoutMemory } from "./layout-memory.ts";
import { LocalLayout, type LayoutHost, type UnregisterOptions } from "./local-layout.ts";
import type { Leases } from "./leases.ts";
import type { NixlExtents, NixlHold } from "./nixl-extents.ts";
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
  /** Keeps the memory of those that are unregistered as long as somebody may touch it. */
  readonly gone: GoneLayouts;
  /** Layouts over memory that their caller owns. */
  readonly #adopted: WeakSet<LocalLayout> = new WeakSet();
  /** Layouts that are gone while it is found out who may still touch their memory. */
  readonly #leaving: Map<LocalLayout, Promise<void>> = new Map();
  /** Ends waits for layouts that are in use. */
  readonly #waits: Set<(error: KvferryError) => void> = new Set();
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
    this.gone = new GoneLayouts(session, state);
    const { agent, overNixl } = session;
    if (agent !== null && overNixl !== null) this.#extents = new overNixl.NixlExtents(agent);
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
      while (this.#busy(handle)) await this.#orClosed(this.#leases.idle(handle));
    }
    if (this.#layouts[layout.record.layoutId] !== layout) {
      // Whoever else asked for it may still be finding out who is to be waited for.
      await this.#leaving.get(layout);
      return await this.gone.untilLetGo(layout, this.#adopted.has(layout), options);
    }
    const { neighbours } = this.#session;
    if (neighbours !== null && neighbours.holders(handle).length > 0) {
      const millis = options.wait === true ? Infinity : RELEASE_MILLIS;
      if (!(await this.#orClosed(neighbours.release(handle, millis)))) throw this.#held(layout);
      // What began meanwhile must end too.
      return await this.unregister(layout, options);
    }
    this.#state.snapshot = unregisterLayout(this.#state.snapshot, handle);
    this.#layouts[layout.record.layoutId] = undefined;
    this.#state.changed();
    layout.retire();
    const leaving = this.#letGo(layout, this.#state.isOpen).finally(() => this.#leaving.delete(layout));
    this.#leaving.set(layout, leaving);
    await leaving;
    await this.gone.untilLetGo(layout, this.#adopted.has(layout), options);
  }

  /** What NIXL has registered for layouts, by memory type. */
  registrations(handles: readonly LayoutHandle[]): Map<number, NixlRegion[]> {
    const wanted = new Set(handles);
    const found = new Map<number, Set<NixlRegion>>();
    for (const layout of this.layouts) {
      if (!wanted.has(layout.handle)) continue;
      for (const { memory, region } of this.#holds.get(layout) ?? [])
        found.set(memory, (found.get(memory) ?? new Set()).add(region));
    }
    return new Map([...found].map(([memory, regions]) => [memory, [...regions]]));
  }

  /** Ends every wait that nothing will end any more; for `close`. */
  endWaits(): void {
    const closed = new KvferryError(
      "CLOSED",
      "unregister",
      "the transport was closed while the layout was still in use",
      "Look at what close() had to leave.",
    );
    for (const reject of this.#waits) reject(closed);
    this.#waits.clear();
  }

  /** Tells everybody who may touch a layout that all are taken back, and waits until they have let go; for `close`. */
  async takeBackAll(): Promise<void> {
    const all = [...this.layouts, ...this.gone.retained];
    await Promise.all(all.map(({ handle }) => this.gone.shared?.takeBack(handle, false)));
  }

  /** Frees every layout that nothing uses; for `close`. @returns Names of those that had to be left. */
  async releaseAll(): Promise<string[]> {
    const left: string[] = [];
    for (const layout of this.layouts) {
      if (this.#busy(layout.handle) || this.gone.heldByOthers(layout.handle)) left.push(layout.name);
      else await this.unregister(layout, { wait: true });
    }
    for (const layout of this.gone.retained) {
      if (this.gone.heldByOthers(layout.handle)) left.push(layout.name);
      else await this.gone.free(layout);
    }
    return left;
  }

  async #orClosed<T>(promise: Promise<T>): Promise<T> {
    const { promise: closed, reject } = Promise.withResolvers<never>();
    this.#waits.add(reject);
    try {
      return await Promise.race([promise, closed]);
    } finally {
      this.#waits.delete(reject);
    }
  }

  async #registerInTurn(
    resolved: ResolvedLayout,
    providing: LayoutMemory | Promise<LayoutMemory>,
    before: Promise<unknown> | undefined,
  ): Promise<LocalLayout> {
    const memory = await providing;
    let hold: NixlHold | undefined;
    try {
      hold = await this.#extents?.acquire(this.#inReach(memory));
      await before;
      this.#state.demandOpen("register");
      return this.#enter(resolved, memory, hold);
    } catch (error) {
      if (hold !== undefined) await this.#extents?.release(hold).catch(() => undefined);
      await memory.release();
      throw error;
    }
  }

  /** What NIXL registers: GPU memory only where it may move it; else peers reach that through staging memory. */
  #inReach({ nixl }: LayoutMemory): LayoutMemory["nixl"] {
    return this.#session.options.capabilities.gpuRdma
      ? nixl
      : nixl.filter((part) => part.memory !== KVF_MEM_VRAM);
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
    if (resolved.components.some(({ memory: { kind } }) => kind === "external" || kind === "external-fd"))
      this.#adopted.add(layout);
    return layout;
  }

  async #letGo(layout: LocalLayout, grace: boolean): Promise<void> {
    const hold = this.#holds.get(layout);
    if (hold !== undefined) await this.#extents?.release(hold);
    await this.gone.letGo(layout, this.#adopted.has(layout), grace);
  }

  #busy(handle: LayoutHandle): boolean {
    return (
      this.#leases.uses(handle) > 0 ||
      (this.#leases.anyQuarantined && this.#leases.quarantined(handle).length > 0)
    );
  }

  #held(layout: LocalLayout): KvferryError {
    const processes = this.#session.neighbours?.holders(layout.handle) ?? [];
    return new KvferryError(
      "IN_USE",
      "unregister",
      `layout ${layout.name} (${formatHandle(layout.handle)}) is mapped by ${processes.map((id) => `process ${id}`).join(", ")}, which did not let go of it within ${RELEASE_MILLIS} ms`,
      "Unregister with { wait: true }, or end a process that does not answer.",
      { name: layout.name, processes },
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
