import { describe, expect, test } from "bun:test";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");

function run(program: string, words: readonly string[]): { code: number; out: string; words: string } {
  const ended = Bun.spawnSync([process.execPath, join(ROOT, program), ...words], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  return { code: ended.exitCode, out: ended.stdout.toString(), words: ended.stderr.toString() };
}

describe.each(["test/proof/main.ts", "bench/main.ts"])("%s", (program) => {
  test("help goes to standard output with status 0", () => {
    const { code, out } = run(program, ["--help"]);
    expect(code).toBe(0);
    expect(out).toStartWith("Usage: bun run");
  });

  test.each([[[]], [["no-such-name"]], [["--no-such-option"]]])(
    "%j is refused with status 2 and help",
    (words) => {
      const { code, out, words: said } = run(program, words);
      expect(code).toBe(2);
      expect(out).toBe("");
      expect(said).toContain("Usage: bun run");
    },
  );
});

test("a proof prints one JSON object with what it tried", () => {
  const { code, out } = run("test/proof/main.ts", ["planner", "--cases", "50", "--seed", "3", "--json"]);
  expect(JSON.parse(out)).toMatchObject({ name: "planner", cases: 50, failures: 0, seed: 3, findings: [] });
  expect(code).toBe(0);
});
