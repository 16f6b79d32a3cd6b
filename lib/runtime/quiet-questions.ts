import type { Arrival } from "./arrival.ts";
import type { Arrivals } from "./arrivals.ts";
import { questionBody, readAnswer } from "./control-bodies.ts";
import { CONTROL } from "./control-message.ts";
import type { Importers } from "./importers.ts";
import type { Reach } from "./reach.ts";

/** Asks peers whose pushes did not come whether they are done with the blocks. */
export class QuietQuestions {
  readonly #arrivals: Arrivals;
  readonly #importers: Importers;
  readonly #reach: Reach;
  readonly #open: Map<number, { readonly wireName: string; readonly resolve: () => void }> = new Map();
  #last = 0;

  constructor(arrivals: Arrivals, importers: Importers, reach: Reach) {
    this.#arrivals = arrivals;
    this.#importers = importers;
    this.#reach = reach;
  }

  ask(arrival: Arrival): void {
    const { wireName } = arrival;
    const prove = (): void => this.#arrivals.proveQuiet((other) => other === arrival, "acknowledged");
    if (this.#importers.hasReleased(wireName)) {
      prove();
      return;
    }
    const question = ++this.#last;
    this.#open.set(question, { wireName, resolve: prove });
    if (!this.#reach.tell(wireName, CONTROL.askQuiet, questionBody(question, arrival.layout)))
      this.#open.delete(question);
  }

  /** Takes a peer's answer. */
  answered(wireName: string, body: Uint8Array): void {
    const question = readAnswer(body);
    const asked = question === null ? undefined : this.#open.get(question);
    if (question === null || asked?.wireName !== wireName) return;
    this.#open.delete(question);
    asked.resolve();
  }

  left(wireName: string): void {
    for (const [question, asked] of this.#open) if (asked.wireName === wireName) this.#open.delete(question);
  }
}
