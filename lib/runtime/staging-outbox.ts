/** The most bytes of one message that holds several words: the first of many is not held up by those behind it. */
const MOST_BATCHED = 16 * 1024;
const LENGTH_BYTES = 4;

/** Sends one message; rejects when it cannot be sent. */
export type SendBody = (wireName: string, body: Uint8Array<ArrayBuffer>) => Promise<void>;

interface Batch {
  readonly words: Uint8Array[];
  bytes: number;
  readonly sent: PromiseWithResolvers<void>;
}

/** Words that are said to a peer in one go travel in one message, in their order: each message costs both ends more than a word does. */
export class StagingOutbox {
  readonly #send: SendBody;
  readonly #batches: Map<string, Batch> = new Map();

  constructor(send: SendBody) {
    this.#send = send;
  }

  /** Sends a word at the end of this turn at the latest. @returns Rejects when it could not be sent. */
  say(wireName: string, word: Uint8Array): Promise<void> {
    let batch = this.#batches.get(wireName);
    if (batch !== undefined && batch.bytes + LENGTH_BYTES + word.byteLength > MOST_BATCHED) {
      this.flush(wireName);
      batch = undefined;
    }
    if (batch === undefined) {
      const fresh: Batch = { words: [], bytes: 0, sent: Promise.withResolvers<void>() };
      batch = fresh;
      this.#batches.set(wireName, batch);
      queueMicrotask(() => {
        if (this.#batches.get(wireName) === fresh) this.flush(wireName);
      });
    }
    batch.words.push(word);
    batch.bytes += LENGTH_BYTES + word.byteLength;
    return batch.sent.promise;
  }

  /** Sends now what was said to a peer. */
  flush(wireName: string): void {
    const batch = this.#batches.get(wireName);
    if (batch === undefined) return;
    this.#batches.delete(wireName);
    this.#send(wireName, joined(batch.words, batch.bytes)).then(batch.sent.resolve, batch.sent.reject);
  }
}

/** One word as a message of its own. */
export function alone(word: Uint8Array): Uint8Array<ArrayBuffer> {
  return joined([word], LENGTH_BYTES + word.byteLength);
}

/** The words of a message; what is cut off or malformed ends it. */
export function* wordsOf(body: Uint8Array): Generator<Uint8Array, void> {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  for (let at = 0; at + LENGTH_BYTES <= body.byteLength;) {
    const end = at + LENGTH_BYTES + view.getUint32(at, true);
    if (end > body.byteLength) return;
    yield body.subarray(at + LENGTH_BYTES, end);
    at = end;
  }
}

function joined(words: readonly Uint8Array[], bytes: number): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(new ArrayBuffer(bytes));
  const view = new DataView(body.buffer);
  let at = 0;
  for (const word of words) {
    view.setUint32(at, word.byteLength, true);
    body.set(word, at + LENGTH_BYTES);
    at += LENGTH_BYTES + word.byteLength;
  }
  return body;
}
