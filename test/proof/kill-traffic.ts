// Transfers of one case of the kill proof, in both directions, and what became of them.
import { isKvferryError, type LocalLayout, type Transport } from "../../index.ts";
import type { Random } from "../random.ts";
import { within, type Other } from "./kill-other.ts";
import { USE, type Fault } from "./kill-words.ts";

/** How late a transfer may settle after its deadline, milliseconds. */
const LATE_MILLIS = 1_000;
/** A hang is one. */
export const HANG_MILLIS = 15_000;

/** What a case writes down. */
export interface Book {
  readonly problems: string[];
  count(what: string, by?: number): void;
}

/** Bytes that are known to be where they were to go: pairs of blocks that must have the same checksum. */
interface Copied {
  readonly what: string;
  /** Whose pool has the source, and whose has the copy; null is the survivor's. */
  readonly from: Other | null;
  readonly to: Other | null;
  readonly sourceBlocks: readonly number[];
  readonly blocks: readonly number[];
}

/** A case's transfers on their way. */
export class Traffic {
  readonly #transport: Transport;
  readonly #pool: LocalLayout;
  readonly #random: Random;
  readonly #book: Book;
  readonly #fault: Fault;
  /** A link that was down earlier may have left blocks of the third process in quarantine. */
  readonly #thirdWasCut: boolean;
  readonly #ends: Promise<void>[] = [];
  readonly #copied: Copied[] = [];
  #open = 0;
  /** Destinations that no transfer of this case has yet. */
  readonly #free: {
    readonly pushed: number[];
    readonly pulled: number[];
    readonly arriving: number[];
    readonly theirs: number[];
    readonly third: number[];
    readonly fromThird: number[];
  };

  constructor(
    transport: Transport,
    pool: LocalLayout,
    random: Random,
    { fault, thirdWasCut }: { readonly fault: Fault; readonly thirdWasCut: boolean },
    book: Book,
  ) {
    this.#thirdWasCut = thirdWasCut;
    this.#transport = transport;
    this.#pool = pool;
    this.#random = random;
    this.#fault = fault;
    this.#book = book;
    const held = new Set(pool.quarantinedBlocks().map(({ block }) => block));
    const usable = (blocks: readonly number[]): number[] =>
      random.shuffled(blocks.filter((block) => !held.has(block)));
    this.#free = {
      pushed: random.shuffled(USE.other.pushedBySurvivor),
      pulled: usable(USE.survivor.pulledFromVictim),
      arriving: usable(USE.survivor.pushedByVictim),
      theirs: random.shuffled(USE.other.pulled),
      third: random.shuffled(USE.other.pushedBySurvivor),
      fromThird: usable(USE.survivor.pulledFromThird),
    };
  }

  /** Transfers whose outcome is not known yet. */
  get open(): number {
    return this.#open;
  }

  /** Begins some transfers of every kind. */
  begin(victim: Other, third: Other | null): void {
    const random = this.#random;
    for (let step = random.between(1, 3); step > 0; step--) {
      const deadlineMs = random.pick([300, 1_000, 2_500]);
      if (random.chance(0.5)) this.#push("push to the victim", victim, this.#free.pushed, deadlineMs, false);
      else this.#pull("pull from the victim", victim, this.#free.pulled, deadlineMs, false);
    }
    if (random.chance(0.6)) this.#expect(victim);
    if (random.chance(0.5)) {
      const destinationBlocks = this.#free.theirs.splice(0, random.between(1, 2));
      victim.tell({
        do: "pull",
        sourceBlocks: this.#sources(USE.survivor.sources, destinationBlocks.length),
        destinationBlocks,
        deadlineMs: 1_000,
        tag: null,
      });
    }
    if (third === null) return;
    this.#push("push to the third", third, this.#free.third, 5_000, true);
    this.#pull("pull from the third", third, this.#free.fromThird, 5_000, true);
  }

  /** Resolves when every outcome is known. */
  async ended(): Promise<void> {
    await Promise.all(this.#ends);
  }

  /** Compares the bytes of what was done. @param alive - Who still has what was pushed to it. */
  async compare(alive: readonly Other[]): Promise<void> {
    for (const { what, from, to, sourceBlocks, blocks } of this.#copied) {
      if (to !== null && !alive.includes(to)) continue;
      const expected =
        from === null
          ? await this.#pool.checksums(sourceBlocks)
          : sourceBlocks.map((block) => from.sums[block]);
      const found = to === null ? await this.#pool.checksums(blocks) : await to.checksums(blocks);
      if (found.some((sum, at) => sum !== expected[at]))
        this.#book.problems.push(`${what} was done, and its bytes are wrong`);
      this.#book.count(`compared: ${what}`);
    }
  }

  #push(what: string, other: Other, free: number[], deadlineMs: number, isThird: boolean): void {
    const destination = other.peer?.layout("pool");
    const blocks = free.splice(0, this.#random.between(1, 8));
    if (destination === undefined || blocks.length === 0) return;
    const sourceBlocks = this.#sources(USE.survivor.sources, blocks.length);
    const request = { source: this.#pool, sourceBlocks, destination, destinationBlocks: blocks, deadlineMs };
    this.#watch(what, this.#transport.transfer(request), deadlineMs, isThird, {
      what,
      from: null,
      to: other,
      sourceBlocks,
      blocks,
    });
  }

  #pull(what: string, other: Other, free: number[], deadlineMs: number, isThird: boolean): void {
    const source = other.peer?.layout("pool");
    const blocks = free.splice(0, this.#random.between(1, 6));
    if (blocks.length === 0) this.#book.count(`${what}: every block is in use or in quarantine`);
    if (source === undefined || blocks.length === 0) return;
    const sourceBlocks = this.#sources(USE.other.sources, blocks.length);
    const request = { source, sourceBlocks, destination: this.#pool, destinationBlocks: blocks, deadlineMs };
    this.#watch(what, this.#transport.transfer(request), deadlineMs, isThird, {
      what,
      from: other,
      to: null,
      sourceBlocks,
      blocks,
    });
  }

  /** The victim pushes, and says so. */
  #expect(victim: Other): void {
    const from = victim.peer;
    const blocks = this.#free.arriving.splice(0, this.#random.between(1, 6));
    if (from === undefined || blocks.length === 0) return;
    const tag = `tag ${performance.now()}`;
    const what = "push of the victim";
    const deadlineMs = this.#random.pick([300, 1_500]);
    const sourceBlocks = this.#sources(USE.other.sources, blocks.length);
    try {
      const arrival = this.#transport.expect({ layout: this.#pool, blocks, from, tag, deadlineMs });
      this.#watch(what, arrival, deadlineMs, false, { what, from: victim, to: null, sourceBlocks, blocks });
    } catch (error) {
      this.#book.count(`${what}: ${isKvferryError(error) ? error.code : "?"}`);
      return;
    }
    victim.tell({ do: "push", sourceBlocks, destinationBlocks: blocks, deadlineMs, tag });
  }

  #watch(
    what: string,
    work: PromiseLike<unknown>,
    deadlineMs: number,
    isThird: boolean,
    copied: Copied,
  ): void {
    const since = performance.now();
    this.#open++;
    const end = async (): Promise<void> => {
      const outcome = await within(
        work.then(
          () => "done",
          (error: unknown) =>
            isKvferryError(error) ? `${error.code} ${error.settlement ?? ""}` : String(error),
        ),
        HANG_MILLIS,
        `${what} hangs`,
      ).catch((error: unknown) => String(error));
      const late = performance.now() - since - deadlineMs;
      this.#open--;
      this.#book.count(`${what}: ${outcome}`);
      if (outcome === "done") this.#copied.push(copied);
      if (late > LATE_MILLIS)
        this.#book.problems.push(`${what} (${outcome}) ended ${late.toFixed(0)} ms after its deadline`);
      // A link that is down cuts off everybody who is reached by it.
      const refused = this.#thirdWasCut && outcome === "ERR_KVF_QUARANTINED never-started";
      if (isThird && this.#fault !== "link" && outcome !== "done" && !refused)
        this.#book.problems.push(`${what} was not done: ${outcome}`);
    };
    this.#ends.push(end());
  }

  /** Sources may repeat. */
  #sources(blocks: readonly number[], count: number): number[] {
    return Array.from({ length: count }, () => this.#random.pick(blocks));
  }
}
