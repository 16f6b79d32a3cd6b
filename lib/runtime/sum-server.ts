import { KvferryError } from "../core/errors.ts";
import type { LayoutHandle } from "../core/handle.ts";
import type { ComponentRecord, LayoutRecord } from "../core/layout.ts";
import { sumConfig, type SumShape, type SumSide } from "../core/sum-shape.ts";
import { MOST_SUMMED_BYTES } from "./comparison.ts";
import type { SendSums } from "./sum-client.ts";
import { writeSumWord, type SumWord } from "./sum-words.ts";

/** What answering peers' questions for sums needs. */
export interface SumServerParts {
  readonly send: SendSums;
  /** Whether words of peers are awaited. */
  readonly waiting: (on: boolean) => void;
  /** Throws for a handle that is not of a layout of this process. */
  readonly layout: (handle: LayoutHandle) => LayoutRecord;
  /** Throws `CHECKSUM` for blocks that are bad. */
  readonly demandGood: (layout: LayoutHandle, group: string, blocks: Uint32Array) => void;
  readonly sums: (
    layout: LayoutRecord,
    component: ComponentRecord,
    shape: SumShape,
    side: SumSide,
    count: number,
  ) => Promise<Uint8Array>;
}

/** Questions of one peer that wait at most; a peer that asks more is refused. */
const MOST_QUESTIONS = 1_024;

type Question = Extract<SumWord, { word: "ask" }>;

/**
 * Sums blocks of this process for peers that moved them. One question after the other, so that peers cannot make this
 * process hold more than one window of memory for them.
 */
export class SumServer {
  readonly #parts: SumServerParts;
  readonly #waiting: { readonly agent: string; readonly word: Question }[] = [];
  readonly #counts: Map<string, number> = new Map();
  #busy = false;

  constructor(parts: SumServerParts) {
    this.#parts = parts;
  }

  /** Questions that were not answered yet. */
  get pending(): number {
    return this.#waiting.length + (this.#busy ? 1 : 0);
  }

  /** Takes a peer's question. */
  take(agent: string, word: Extract<SumWord, { word: "ready" | "ask" }>): void {
    try {
      if (word.word === "ready") {
        const { handle } = this.#parts.layout(word.layout);
        this.#parts.demandGood(handle, word.group, word.blocks);
        this.#say(agent, { word: "sums", id: word.id, sums: new Uint8Array() });
        return;
      }
      const asked = this.#counts.get(agent) ?? 0;
      if (asked >= MOST_QUESTIONS)
        throw refusal("IN_USE", `${MOST_QUESTIONS} questions of this peer wait already`);
      this.#counts.set(agent, asked + 1);
      this.#waiting.push({ agent, word });
    } catch (error) {
      this.#refuse(agent, word.id, error);
      return;
    }
    if (!this.#busy) void this.#work();
  }

  /** The peer is gone: nobody waits for its answers. */
  lost(agent: string): void {
    const kept = this.#waiting.filter((question) => question.agent !== agent);
    this.#waiting.splice(0, this.#waiting.length, ...kept);
    this.#counts.delete(agent);
  }

  async #work(): Promise<void> {
    this.#busy = true;
    this.#parts.waiting(true);
    for (;;) {
      const question = this.#waiting.shift();
      if (question === undefined) break;
      const { agent, word } = question;
      try {
        this.#say(agent, { word: "sums", id: word.id, sums: await this.#sum(word) });
      } catch (error) {
        this.#refuse(agent, word.id, error);
      }
      const left = (this.#counts.get(agent) ?? 1) - 1;
      if (left > 0) this.#counts.set(agent, left);
      else this.#counts.delete(agent);
    }
    this.#busy = false;
    this.#parts.waiting(false);
  }

  async #sum({ layout, component, shape, side, count }: Question): Promise<Uint8Array> {
    const record = this.#parts.layout(layout);
    const found = record.components.find((one) => one.shape.name === component);
    if (found === undefined)
      throw refusal("INVALID_CONFIG", `layout ${record.name} has no component ${component}`);
    // What the shape says is checked before any memory is taken for it.
    const { blockBytes, totalBytes } = sumConfig(found.shape.config, shape, count);
    if (totalBytes > MOST_SUMMED_BYTES)
      throw refusal("INVALID_CONFIG", `${count} blocks of ${blockBytes} bytes are too many for one question`);
    return await this.#parts.sums(record, found, shape, side, count);
  }

  #refuse(agent: string, id: number, error: unknown): void {
    const [code, message] =
      error instanceof KvferryError
        ? [error.code.replace("ERR_KVF_", ""), error.message]
        : ["IO", String(error)];
    this.#say(agent, { word: "refused", id, code, message });
  }

  #say(agent: string, word: SumWord): void {
    // A peer that cannot be told waits out its deadline.
    this.#parts.send(agent, writeSumWord(word)).catch(() => undefined);
  }
}

function refusal(word: ConstructorParameters<typeof KvferryError>[0], message: string): KvferryError {
  return new KvferryError(word, "transfer", message, "Look at the layout at its owner.");
}
