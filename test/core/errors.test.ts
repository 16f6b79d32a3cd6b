// What is thrown at the library becomes one of its errors once, says what failed, and keeps what was thrown.
import { expect, test } from "bun:test";

import { asKvferryError, KvferryError } from "../../lib/core/errors.ts";

test("an error of the library is not wrapped again", () => {
  const error = new KvferryError("TIMEOUT", "transfer", "late", "Wait.");
  expect(asKvferryError(error, "a message could not be sent")).toBe(error);
});

for (const [what, thrown, during, message] of [
  ["an engine's error", new RangeError("too far"), undefined, "too far"],
  [
    "an engine's error in a message",
    new RangeError("too far"),
    "a message could not be sent",
    "a message could not be sent: too far",
  ],
  ["a word", "a word", undefined, "a word"],
  ["nothing", undefined, "the hop", "the hop: undefined"],
] as const)
  test(`of ${what} that was thrown users see what it says, without its class`, () => {
    const error = asKvferryError(thrown, during);
    expect([error.code, error.message, error.cause]).toEqual(["ERR_KVF_IO", message, thrown]);
  });
