import type { Clock } from "./deadlines.ts";

/** A peer whose life is watched. */
export interface WatchedPeer {
  readonly wireName: string;
}

/** What watching needs from the world; a simulation gives its own. */
export interface LivenessEffects<P extends WatchedPeer> {
  readonly clock: Clock;
  /** Peers that understand heartbeats. */
  readonly peers: () => readonly P[];
  /** Sends a heartbeat; rejects when the peer cannot be reached. */
  readonly send: (peer: P) => Promise<void>;
  readonly lost: (peer: P, reason: string) => void;
}

/** So many heartbeats in a row without a sign of life make a peer lost. */
export const MISSED_HEARTBEATS = 5;

/**
 * Notices peers that died or fell silent: each is sent a heartbeat now and then, and one that cannot be sent, or a
 * silence of {@link MISSED_HEARTBEATS} intervals after the peer was heard once, means that the peer is gone.
 *
 * A peer that never imported this worker cannot answer; it is judged by sending alone.
 */
export class Liveness<P extends WatchedPeer> {
  readonly #effects: LivenessEffects<P>;
  readonly #intervalMillis: number;
  readonly #heard: Map<string, number> = new Map();
  #stopTimer: (() => void) | undefined;
  #stopped = false;

  /** @param intervalMillis - 0 watches nobody. */
  constructor(effects: LivenessEffects<P>, intervalMillis: number) {
    this.#effects = effects;
    this.#intervalMillis = intervalMillis;
  }

  /** Begins to watch; harmless when it does already. */
  start(): void {
    if (this.#intervalMillis === 0 || this.#stopTimer !== undefined || this.#stopped) return;
    this.#stopTimer = this.#effects.clock.after(this.#intervalMillis, () => this.#beat());
  }

  /** A sign of life. */
  heard(wireName: string): void {
    if (this.#intervalMillis > 0) this.#heard.set(wireName, this.#effects.clock.now());
  }

  forget(wireName: string): void {
    this.#heard.delete(wireName);
  }

  stop(): void {
    this.#stopped = true;
    this.#stopTimer?.();
    this.#stopTimer = undefined;
  }

  #beat(): void {
    this.#stopTimer = undefined;
    if (this.#stopped) return;
    const now = this.#effects.clock.now();
    const peers = this.#effects.peers();
    for (const peer of peers) {
      const heard = this.#heard.get(peer.wireName);
      if (heard !== undefined && now - heard > this.#intervalMillis * MISSED_HEARTBEATS) {
        this.#effects.lost(peer, `silent for ${Math.round(now - heard)} ms`);
        continue;
      }
      this.#effects.send(peer).catch((error: unknown) => {
        if (!this.#stopped)
          this.#effects.lost(
            peer,
            `cannot be reached: ${error instanceof Error ? error.message : String(error)}`,
          );
      });
    }
    // Nobody to watch: the next import starts again.
    if (peers.length > 0) this.start();
  }
}
