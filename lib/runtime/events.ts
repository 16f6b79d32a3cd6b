import type { KvferryError, Settlement } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";

/** A transfer that ended. */
export interface TransferEvent {
  readonly id: number;
  readonly route: string;
  readonly settlement: Settlement;
  readonly bytes: number;
  readonly descriptors: number;
  readonly durationMicros: number;
  /** Why it failed; null when it is done. An aborted signal's own reason stands in `cause`. */
  readonly error: KvferryError | null;
}

/** A peer that came, changed or went. */
export interface PeerEvent {
  readonly change: "imported" | "updated" | "forgotten" | "lost";
  readonly workerId: bigint;
  readonly agentName: string;
  readonly reason: string;
}

/** Blocks that went into or came out of quarantine. */
export interface QuarantineEvent {
  readonly change: "begin" | "end";
  readonly layout: LayoutHandle;
  readonly group: string;
  readonly blocks: readonly number[];
  readonly reason: string;
}

/** Something that is slow, unsafe or left behind. */
export interface WarningEvent {
  readonly code: string;
  readonly message: string;
}

/** Events of a transport by name. */
export interface TransportEvents {
  readonly transfer: TransferEvent;
  readonly peer: PeerEvent;
  readonly quarantine: QuarantineEvent;
  readonly warning: WarningEvent;
}

/** Typed listeners; a listener that throws does not disturb the transport. */
export class EventHub {
  readonly #listeners: { [Name in keyof TransportEvents]?: Set<(event: TransportEvents[Name]) => void> } = {};

  /** @returns A function that takes the listener off again. */
  on<Name extends keyof TransportEvents>(
    name: Name,
    listener: (event: TransportEvents[Name]) => void,
  ): () => void {
    const set: Set<(event: TransportEvents[Name]) => void> = this.#listeners[name] ?? new Set();
    this.#listeners[name] = set as never;
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  /** Whether anybody listens: events are not built for nobody. */
  has(name: keyof TransportEvents): boolean {
    return (this.#listeners[name]?.size ?? 0) > 0;
  }

  emit<Name extends keyof TransportEvents>(name: Name, event: TransportEvents[Name]): void {
    const set = this.#listeners[name];
    if (set === undefined) return;
    for (const listener of set) {
      try {
        listener(event);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
