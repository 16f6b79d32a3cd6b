import type { LayoutHandle } from "../core/handle.ts";
import type { PackageFormat } from "../core/package.ts";
import { handleBody, knownBody, MOST_GONE, type ImportedBody } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import type { Clock } from "./deadlines.ts";
import type { Importer, Importers } from "./importers.ts";
import type { PeerProcesses } from "./peer-processes.ts";
import type { Reach } from "./reach.ts";

/** What sharing layouts works with. */
export interface SharingParts {
  readonly clock: Clock;
  /** Null without NIXL. */
  readonly agent: object | null;
  readonly importers: Importers;
  readonly reach: Reach;
  readonly processes: PeerProcesses;
}

/** This process's layouts that others may know of: who may touch them, and how they are taken back. */
export class SharedLayouts {
  readonly #parts: SharingParts;
  /** Layouts that were taken back and that somebody may still touch. */
  readonly #takenBack: Set<LayoutHandle> = new Set();

  constructor(parts: SharingParts) {
    this.#parts = parts;
  }

  exported(handles: readonly LayoutHandle[], sequence: number, format: PackageFormat): void {
    // Without NIXL only neighbours touch memory here: each is known as long as it has it mapped.
    if (this.#parts.agent !== null) this.#parts.importers.noteExport(handles, sequence, format);
  }

  /** Workers that may touch a layout's memory now. */
  holders(handle: LayoutHandle): string[] {
    return this.#parts.importers.holders(handle).map(({ wireName }) => wireName);
  }

  /** Whether somebody may know of the layout who will never say that it is done with it. */
  isSilent(handle: LayoutHandle): boolean {
    return this.#parts.importers.isSilent(handle);
  }

  /**
   * Says to everybody who may touch a layout that it is taken back.
   *
   * @param grace - Also waits until no package that has it can still be on its way.
   * @returns Resolves when nobody is known who may touch it; null when that is so already.
   */
  takeBack(handle: LayoutHandle, grace: boolean): Promise<void> | null {
    const { importers } = this.#parts;
    const left = grace ? importers.graceLeft(handle) : 0;
    const holders = importers.holders(handle);
    if (left === 0 && holders.length === 0) return null;
    for (const holder of holders) this.#recall(holder, handle);
    return this.#whenFree(handle, left);
  }

  /** The layout's memory was given back. */
  freed(handle: LayoutHandle): void {
    this.#parts.importers.forget(handle);
  }

  /**
   * Answers a worker that imported a package: says that it is known, which layouts of the package are gone already, and
   * which were taken back before it imported them.
   */
  answer(importer: Importer, { number, sequence }: Pick<ImportedBody, "number" | "sequence">): void {
    const { importers, reach } = this.#parts;
    for (const handle of this.#takenBack)
      if (importers.holders(handle).includes(importer)) this.#recall(importer, handle);
    const gone = importers.goneSince(sequence);
    do {
      const handles = gone.splice(0, MOST_GONE);
      reach.tell(importer.wireName, CONTROL.known, knownBody({ number, handles, more: gone.length > 0 }));
    } while (gone.length > 0);
  }

  #recall({ wireName, process }: Importer, handle: LayoutHandle): void {
    this.#parts.reach.tell(wireName, CONTROL.layoutGone, handleBody(handle));
    if (process !== null) this.#parts.processes.watchEnd(wireName, process);
  }

  async #whenFree(handle: LayoutHandle, grace: number): Promise<void> {
    this.#takenBack.add(handle);
    try {
      if (grace > 0)
        await new Promise<void>((resolve) => {
          this.#parts.clock.after(grace, resolve);
        });
      await this.#parts.importers.whenFree(handle);
    } finally {
      this.#takenBack.delete(handle);
    }
  }
}
