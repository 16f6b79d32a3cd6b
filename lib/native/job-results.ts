import { KvferryError, type ErrorDetails } from "../core/errors.ts";
import { textOf } from "./c-string.ts";
import type { Completion } from "./completion.ts";
import type { NativeLibrary } from "./library.ts";
import { remedyOf } from "./native-error.ts";
import { statusWord } from "./status.ts";

/**
 * What a context's jobs leave with the native library when they end, beside their completions: bytes, or an error's text.
 *
 * A slot's next job leaves its own there, so that all of it is read only inside the handler of the one that ended.
 */
export class JobResults {
  readonly #library: NativeLibrary;
  readonly #context: number;
  readonly #text: Uint8Array = new Uint8Array(new ArrayBuffer(1024));
  readonly #out: Float64Array = new Float64Array(new ArrayBuffer(64));

  /** @param context - Its address. */
  constructor(library: NativeLibrary, context: number) {
    this.#library = library;
    this.#context = context;
  }

  /** A copy of the byte result of the slot's last job. */
  bytes(slot: number): Uint8Array<ArrayBuffer> {
    if (this.#library.kvf_slot_result(this.#context, slot, null, 0, this.#out) < 0)
      return new Uint8Array(new ArrayBuffer(0));
    const length = this.#out[0] ?? 0;
    const bytes = new Uint8Array(new ArrayBuffer(length));
    if (length > 0) this.#library.kvf_slot_result(this.#context, slot, bytes, length, this.#out);
    return bytes;
  }

  /**
   * The error for a completion that failed.
   *
   * @param open - Whether the context is still open: closing it cancels what runs on it.
   */
  failure(
    operation: string,
    { status }: Completion,
    slot: number,
    open: boolean,
    details: ErrorDetails,
  ): KvferryError {
    const text = this.#errorText(slot);
    return new KvferryError(
      open ? statusWord(status) : "CLOSED",
      operation,
      text === "" ? `${operation} failed with status ${status}` : text,
      remedyOf(status),
      { ...details, status },
    );
  }

  #errorText(slot: number): string {
    this.#text[0] = 0;
    this.#library.kvf_slot_error(this.#context, slot, this.#text, this.#text.byteLength);
    return textOf(this.#text);
  }
}
