// Notes which error codes the library makes while tests run, for the check that every one of them is reached.
import { appendFileSync } from "node:fs";
import { resolve } from "node:path";
import { ERROR_CODES, KvferryError } from "../lib/core/errors.ts";

/** Environment variable with the path of a file: each code that is seen goes into a line of its own. */
export const CODES_VARIABLE = "KVFERRY_CODES_SEEN" as const;

const LIBRARY: string = resolve(import.meta.dirname, "../lib");
const OWN: readonly string[] = [import.meta.path, resolve(LIBRARY, "core/errors.ts")];

/**
 * From now on every error that the library makes is noted. One that a test makes itself does not count: it proves
 * nothing about the library.
 */
export function noteCodes(file: string): void {
  const seen = new Set<string>();
  let last: KvferryError | undefined;
  const take = (): void => {
    const error = last;
    last = undefined;
    if (error === undefined || seen.has(error.code) || !madeByLibrary(error)) return;
    seen.add(error.code);
    appendFileSync(file, `${error.code}\n`);
  };
  const keep = (error: Error): void => {
    if (!(error instanceof KvferryError)) return;
    last = error;
    queueMicrotask(take);
  };
  // Stands between KvferryError and Error; it runs before the code is set, so each error is looked at a moment later.
  class NotedError extends Error {
    constructor(message?: string, options?: ErrorOptions) {
      super(message, options);
      take();
      keep(this);
    }
  }
  Object.setPrototypeOf(KvferryError, NotedError);
}

/** The codes that a file of {@link noteCodes} lacks. */
export function codesMissing(text: string): readonly string[] {
  const seen = new Set(text.split("\n"));
  return ERROR_CODES.map((word) => `ERR_KVF_${word}`).filter((code) => !seen.has(code));
}

/** Whether the first place of the stack outside this file and the error's own is one of lib/. */
function madeByLibrary(error: Error): boolean {
  const places = (error.stack ?? "").split("\n").filter((line) => /^\s+at .*\//.test(line));
  const maker = places.find((line) => !OWN.some((file) => line.includes(`${file}:`)));
  return maker?.includes(`${LIBRARY}/`) === true;
}
