import type { MetadataPackage } from "../core/package.ts";
import type { Clock } from "./deadlines.ts";
import { ProcessWatch, type ProcessFacts, type ProcessIdentity } from "./process-watch.ts";

/** The processes behind wire names: which are of this host, and when they end. */
export class PeerProcesses {
  readonly #facts: ProcessFacts;
  readonly #watch: ProcessWatch;
  /** Processes of imported peers of this host, by wire name. */
  readonly #processes: Map<string, ProcessIdentity> = new Map();
  /** Peers on another host: no kernel copies between their memory and this one's. */
  readonly #elsewhere: Set<string> = new Set();
  readonly #watching: Set<string> = new Set();
  readonly #gone: (wireName: string) => void;

  /** @param gone - Told when a process that is watched has ended. */
  constructor(facts: ProcessFacts, clock: Clock, gone: (wireName: string) => void) {
    this.#facts = facts;
    this.#watch = new ProcessWatch(facts, clock);
    this.#gone = gone;
  }

  /** Takes down where an imported peer runs. */
  arrived(wireName: string, { host, issuedAtMs }: MetadataPackage): void {
    if (host === null || issuedAtMs === null) return;
    const { self } = this.#facts;
    const process = this.#facts.identify(host.bootId, host.namespaces.pid, host.processId, issuedAtMs);
    if (process !== null) this.#processes.set(wireName, process);
    if (self !== null && host.bootId !== self.bootId) this.#elsewhere.add(wireName);
  }

  /** Where an imported peer of this host runs. */
  of(wireName: string): ProcessIdentity | undefined {
    return this.#processes.get(wireName);
  }

  /** Whether a peer is known to be on another host. */
  isElsewhere(wireName: string): boolean {
    return this.#elsewhere.has(wireName);
  }

  left(wireName: string): void {
    this.#processes.delete(wireName);
  }

  /** Tells when a process other than this one has ended. */
  watchEnd(wireName: string, process: ProcessIdentity): void {
    if (this.#watching.has(wireName)) return;
    const { self } = this.#facts;
    if (self !== null && process.bootId === self.bootId && process.processId === self.processId) return;
    this.#watching.add(wireName);
    this.#watch.whenGone(process, () => {
      this.#watching.delete(wireName);
      this.#gone(wireName);
    });
  }

  stop(): void {
    this.#watch.stop();
  }
}
