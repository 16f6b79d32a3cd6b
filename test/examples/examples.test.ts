import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { runCommand } from "../runtime/helpers/child.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const HELPERS = new Set(["children.ts"]);
const EXAMPLES = readdirSync(join(ROOT, "examples")).filter(
  (file) => file.endsWith(".ts") && !HELPERS.has(file),
);

describe("the examples", () => {
  test("are those that their page lists", () => {
    const page = readFileSync(join(ROOT, "examples/README.md"), "utf8");
    const listed = [...page.matchAll(/^\| `bun run examples\/([\w-]+\.ts)`/gm)].map(
      (found) => found[1] ?? "",
    );
    expect(listed.toSorted()).toEqual(EXAMPLES.toSorted());
  });

  for (const file of EXAMPLES)
    test(`${file} runs by itself and ends with what it verified`, async () => {
      const { code, signal, out, words } = await runCommand(
        [process.execPath, "run", `examples/${file}`],
        {},
        60_000,
        ROOT,
      );
      // Examples run without a secret, which is said once.
      const said = words.replaceAll(/^\(node:\d+\) \[KVF_NO_SECRET\].*\n|^\(Use `bun.*\n/gm, "");
      expect({ code, signal, said }).toEqual({ code: 0, signal: null, said: "" });
      expect(out.trimEnd().split("\n").at(-1)).toStartWith("verified: ");
    }, 90_000);
});
