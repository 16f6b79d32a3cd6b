import type { LayoutHandle } from "../core/handle.ts";
import type { PackageFormat } from "../core/package.ts";
import type { Clock } from "./deadlines.ts";
import type { ProcessIdentity } from "./process-watch.ts";

/** A worker that imported a package of this one: it may touch the memory of the layouts that stood in it. */
export interface Importer {
  readonly wireName: string;
  /** The newest package that it has. */
  sequence: number;
  /** Where it runs; null when that is not known. */
  readonly process: ProcessIdentity | null;
  /** NIXL's blob by which it is reached; empty for none. */
  readonly connection: Uint8Array<ArrayBuffer>;
  /** Layouts that it promised not to touch any more. */
  readonly letGo: Set<LayoutHandle>;
}

/** A package may be on its way to an importer for so long after it was made. Milliseconds. */
export const IMPORT_GRACE_MILLIS = 10_000;

/** Workers that are remembered as done; the longest known go first. */
const MOST_RELEASED = 65_536;

/** Workers that may have imported this one; what more say so are not heard. */
const MOST_IMPORTERS = 16_384;

/** Layouts that were given back and of which late importers are told; the longest gone go first. */
const MOST_GONE = 65_536;

interface Exported {
  /** Lowest and highest sequence number of the packages that had the layout: some are ready before earlier ones. */
  first: number;
  last: number;
  /** When the last one was made, on the transport's clock. */
  lastAt: number;
  /** It stood in a package of a format whose importers say nothing back. */
  silent: boolean;
}

/**
 * Who may touch the memory of this process's layouts.
 *
 * One-sided writes cannot be refused by the memory's owner: memory that others may know of is given back only once
 * each of them has let it go, or its process has ended.
 */
export class Importers {
  readonly #clock: Clock;
  readonly #exports: Map<LayoutHandle, Exported> = new Map();
  readonly #importers: Map<string, Importer> = new Map();
  /** Workers that said that they are done with this one. */
  readonly #released: Set<string> = new Set();
  /** Layouts that stood in packages and were given back. */
  readonly #gone: Map<LayoutHandle, Exported> = new Map();
  readonly #waiters: Map<LayoutHandle, (() => void)[]> = new Map();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Layouts stand in a package that leaves this process. */
  noteExport(handles: readonly LayoutHandle[], sequence: number, format: PackageFormat): void {
    const silent = format !== "kvferry";
    const lastAt = this.#clock.now();
    for (const handle of handles) {
      const known = this.#exports.get(handle);
      if (known === undefined) this.#exports.set(handle, { first: sequence, last: sequence, lastAt, silent });
      else {
        known.first = Math.min(known.first, sequence);
        known.last = Math.max(known.last, sequence);
        known.lastAt = lastAt;
        known.silent ||= silent;
      }
    }
  }

  /** A worker says that it imported a package. @returns Null when too many did. */
  noteImport(
    wireName: string,
    { sequence, process, connection }: Pick<Importer, "sequence" | "process" | "connection">,
  ): Importer | null {
    const known = this.#importers.get(wireName);
    this.#released.delete(wireName);
    if (known !== undefined) {
      known.sequence = Math.max(known.sequence, sequence);
      return known;
    }
    if (this.#importers.size >= MOST_IMPORTERS) return null;
    const importer: Importer = { wireName, sequence, process, connection, letGo: new Set() };
    this.#importers.set(wireName, importer);
    return importer;
  }

  importer(wireName: string): Importer | undefined {
    return this.#importers.get(wireName);
  }

  /** A worker says that it touches a layout no more. */
  noteQuiet(wireName: string, handle: LayoutHandle): void {
    const importer = this.#importers.get(wireName);
    if (importer === undefined || !this.#exports.has(handle)) return;
    importer.letGo.add(handle);
    this.#look();
  }

  /** A worker touches nothing of this process any more: it said so, or its process has ended. */
  drop(wireName: string): void {
    if (this.#importers.delete(wireName)) this.#look();
  }

  /** A worker says that it touches nothing of this process any more. */
  noteReleased(wireName: string): void {
    const oldest = this.#released.values().next();
    if (this.#released.size >= MOST_RELEASED && oldest.done !== true) this.#released.delete(oldest.value);
    this.#released.add(wireName);
    this.drop(wireName);
  }

  /** Whether a worker said so, and did not import this one again. */
  hasReleased(wireName: string): boolean {
    return this.#released.has(wireName);
  }

  /** Workers that may touch a layout's memory. */
  holders(handle: LayoutHandle): Importer[] {
    const exported = this.#exports.get(handle);
    if (exported === undefined) return [];
    // A newer package may be on its way to any of them.
    const recent = this.graceLeft(handle) > 0;
    return [...this.#importers.values()].filter(
      (importer) => (recent || importer.sequence >= exported.first) && !importer.letGo.has(handle),
    );
  }

  /** Whether somebody who says nothing back may know of the layout. */
  isSilent(handle: LayoutHandle): boolean {
    return this.#exports.get(handle)?.silent ?? false;
  }

  /** Milliseconds for which a package with the layout may still be on its way to somebody. */
  graceLeft(handle: LayoutHandle): number {
    const exported = this.#exports.get(handle);
    return exported === undefined
      ? 0
      : Math.max(0, exported.lastAt + IMPORT_GRACE_MILLIS - this.#clock.now());
  }

  /** Resolves when no worker is known that may touch the layout. */
  whenFree(handle: LayoutHandle): Promise<void> {
    if (this.holders(handle).length === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const waiters = this.#waiters.get(handle) ?? [];
      waiters.push(resolve);
      this.#waiters.set(handle, waiters);
    });
  }

  /** Layouts of a package that were given back since it was made. */
  goneSince(sequence: number): LayoutHandle[] {
    return [...this.#gone]
      .filter(([, { first, last }]) => first <= sequence && sequence <= last)
      .map(([handle]) => handle);
  }

  /** The layout's memory was given back. */
  forget(handle: LayoutHandle): void {
    const exported = this.#exports.get(handle);
    if (exported !== undefined) this.#gone.set(handle, exported);
    const oldest = this.#gone.keys().next();
    if (this.#gone.size > MOST_GONE && oldest.done !== true) this.#gone.delete(oldest.value);
    this.#exports.delete(handle);
    for (const importer of this.#importers.values()) importer.letGo.delete(handle);
  }

  #look(): void {
    for (const [handle, waiters] of this.#waiters) {
      if (this.holders(handle).length > 0) continue;
      this.#waiters.delete(handle);
      for (const resolve of waiters) resolve();
    }
  }
}
