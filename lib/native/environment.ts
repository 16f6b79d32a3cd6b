import { dlopen, CString, type Pointer } from "bun:ffi";
import { cString } from "./c-string.ts";

interface Libc {
  readonly getenv: (name: Uint8Array) => Pointer | null;
  readonly setenv: (name: Uint8Array, value: Uint8Array, overwrite: number) => number;
  readonly unsetenv: (name: Uint8Array) => number;
}

let libc: Libc | undefined;
let last: Promise<unknown> = Promise.resolve();

/**
 * Does something while a variable of the process environment has a value that C libraries see; JavaScript's
 * `process.env` is a copy that they do not. One at a time.
 *
 * @param change - From the present value (undefined: not set) to the one that is wanted.
 */
export function withVariable<T>(
  name: string,
  change: (present: string | undefined) => string,
  work: () => Promise<T>,
): Promise<T> {
  const turn = last.then(async () => {
    const { getenv, setenv, unsetenv } = openLibc();
    const found = getenv(cString(name));
    const before = found === null ? undefined : new CString(found).toString();
    setenv(cString(name), cString(change(before)), 1);
    try {
      return await work();
    } finally {
      if (before === undefined) unsetenv(cString(name));
      else setenv(cString(name), cString(before), 1);
    }
  });
  last = turn.catch(() => undefined);
  return turn;
}

function openLibc(): Libc {
  libc ??= dlopen("libc.so.6", {
    getenv: { args: ["ptr"], returns: "ptr" },
    setenv: { args: ["ptr", "ptr", "i32"], returns: "i32" },
    unsetenv: { args: ["ptr"], returns: "i32" },
  }).symbols as unknown as Libc; // as declared
  return libc;
}
