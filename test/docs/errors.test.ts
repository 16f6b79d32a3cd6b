import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ERROR_CODES } from "../../index.ts";
import { pageText, ROOT } from "./pages.ts";

describe("error codes", () => {
  test("each has one row in docs/errors.md, and no other code is there", () => {
    const rows = [...pageText("docs/errors.md").matchAll(/^\| `ERR_KVF_([A-Z_]+)` *\|/gm)].map(
      (found) => found[1] ?? "",
    );
    expect(rows.toSorted()).toEqual([...ERROR_CODES].toSorted());
  });

  test("each is demanded of something by a test", () => {
    const files = readdirSync(join(ROOT, "test"), { recursive: true, encoding: "utf8" }).filter(
      (file) =>
        /\.(?:test|cases)\.ts$/.test(file) &&
        // This page's own tests list codes without reaching them.
        !file.startsWith("docs/"),
    );
    const text = files.map((file) => readFileSync(join(ROOT, "test", file), "utf8")).join("\n");
    // A test demands a code by its whole name, or through one of the helpers that take the word.
    const unreached = ERROR_CODES.filter(
      (word) =>
        !new RegExp(`ERR_KVF_${word}\\b|\\b(?:refus(?:ed|al|alOf|e|edEverywhere))\\(\\s*"${word}"`).test(
          text,
        ),
    );
    expect(unreached).toEqual([]);
  });
});
