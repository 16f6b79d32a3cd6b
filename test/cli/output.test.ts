import { describe, expect, test } from "bun:test";
import { styleFor, table } from "../../lib/cli/output.ts";

describe("output", () => {
  test("colours only on a terminal, and never against NO_COLOR or on a dumb one", () => {
    const coloured = (terminal: boolean, environment: Record<string, string>): boolean =>
      styleFor(terminal, environment).bad("x") !== "x";
    expect(coloured(true, {})).toBe(true);
    expect(coloured(true, { NO_COLOR: "" })).toBe(true);
    expect(coloured(false, {})).toBe(false);
    expect(coloured(true, { NO_COLOR: "1" })).toBe(false);
    expect(coloured(true, { TERM: "dumb" })).toBe(false);
    expect(styleFor(true, {}).good("fine")).toBe("\u001b[32mfine\u001b[0m");
  });

  test("a table lines up words left and numbers right", () => {
    expect(
      table(
        ["name", "bytes"],
        [
          ["a", "1,024"],
          ["longer", "7"],
        ],
      ),
    ).toEqual(["name    bytes", "------  -----", "a       1,024", "longer      7"]);
  });
});
