interface Away {
  /** What replaces what NIXL knows of the peer, and has not ended. */
  works: number;
  last: Promise<void>;
  /** What is to be said once all of that has ended. */
  readonly waiting: (() => void)[];
}

/** Peers that NIXL may not know for a moment, because what it knows of them is replaced: what is said to them waits. */
export class AwayPeers {
  readonly #away: Map<string, Away> = new Map();

  /** Does what makes NIXL forget a peer and know it again; one after the other for each peer. */
  async while<Result>(peer: string, work: () => Promise<Result>): Promise<Result> {
    const away = this.#away.get(peer) ?? { works: 0, last: Promise.resolve(), waiting: [] };
    this.#away.set(peer, away);
    const { promise, resolve } = Promise.withResolvers<void>();
    const before = away.last;
    away.works++;
    away.last = promise;
    try {
      await before;
      return await work();
    } finally {
      resolve();
      if (--away.works === 0) {
        this.#away.delete(peer);
        for (const say of away.waiting) say();
      }
    }
  }

  /** Says something to a peer: at once, or once it is back. What is said keeps its order. */
  say(peer: string, send: () => Promise<void>): Promise<void> {
    const away = this.#away.get(peer);
    if (away === undefined) return send();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    away.waiting.push(() => void send().then(resolve, reject));
    return promise;
  }
}
