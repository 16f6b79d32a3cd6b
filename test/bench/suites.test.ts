// An installed package has the sources of the benches but not the tests: what a suite imports must be there too.
import { existsSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, test } from "bun:test";
import { WITHOUT_CLONE } from "../../bench/main.ts";

const ROOT = resolve(import.meta.dir, "..", "..");
const THERE = /^(?:index\.ts$|lib\/|bench\/)/;

describe("suites of an installed package", () => {
  test.each([...WITHOUT_CLONE])("%s imports only what the package holds", async (suite) => {
    const reached = await reachedFrom(join(ROOT, "bench", `${suite}.ts`));
    expect(reached.size).toBeGreaterThan(3);
    const absent = [...reached].map((file) => relative(ROOT, file)).filter((file) => !THERE.test(file));
    expect(absent).toEqual([]);
  });

  test("a suite that needs a clone is seen to reach beyond the package", async () => {
    const reached = await reachedFrom(join(ROOT, "bench/trust.ts"));
    expect([...reached].some((file) => relative(ROOT, file).startsWith("test/"))).toBe(true);
  });
});

/** All files that a module imports by relative paths, and those that they import. */
async function reachedFrom(module: string): Promise<ReadonlySet<string>> {
  const transpiler = new Bun.Transpiler({ loader: "ts" });
  const reached = new Set([module]);
  for (const file of reached) {
    if (!file.endsWith(".ts") || !existsSync(file)) continue;
    for (const { path } of transpiler.scanImports(await Bun.file(file).text()))
      if (path.startsWith(".")) reached.add(join(dirname(file), path));
  }
  return reached;
}
