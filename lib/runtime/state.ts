import type { RegistrySnapshot } from "../core/registry.ts";
import { closedError } from "../native/native-error.ts";

/** The one mutable place of a transport: the current registry snapshot and whether it is open. */
export class TransportState {
  snapshot: RegistrySnapshot;
  /** Rises with every change of this process's layouts: a metadata blob made earlier is out of date. */
  registrations = 0;
  #open = true;

  constructor(snapshot: RegistrySnapshot) {
    this.snapshot = snapshot;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  changed(): void {
    this.registrations++;
  }

  close(): void {
    this.#open = false;
  }

  /** @throws KvferryError `CLOSED`. */
  demandOpen(operation: string): void {
    if (!this.#open) throw closedError(operation);
  }
}
