import { createContext, runInContext } from "node:vm";
import { describe, expect, test } from "bun:test";

const CORE: string = `${import.meta.dir}/../../lib/core`;
const files: readonly string[] = [...new Bun.Glob("*.ts").scanSync({ cwd: CORE })].toSorted();
const nested: readonly string[] = [...new Bun.Glob("*/**").scanSync({ cwd: CORE })];

/** Runs test files in a process of their own in which bun:ffi cannot be imported; outside the repository's root, so that its preload does not run. */
function testWithoutFfi(paths: readonly string[]): { readonly code: number; readonly output: string } {
  const child = Bun.spawnSync({
    cmd: [process.execPath, "test", "--preload", `${import.meta.dir}/fixtures/no-ffi.ts`, ...paths],
    cwd: import.meta.dir,
    stdout: "pipe",
    stderr: "pipe",
  });
  return { code: child.exitCode, output: `${child.stdout.toString()}${child.stderr.toString()}` };
}

describe("lib/core stands alone", () => {
  test("no file imports anything outside lib/core", async () => {
    expect(nested).toEqual([]);
    expect(files).toContain("index.ts");
    for (const file of files) {
      const source = await Bun.file(`${CORE}/${file}`).text();
      const specifiers = [
        ...source.matchAll(/^(?:import|export)\b(?:[^;"'=(]*\bfrom)?\s*["']([^"']*)["']/gm),
        ...source.matchAll(/\bimport\s*\(\s*([^)]*)\)/g),
      ].map((match) => match[1] ?? "");
      const seen = new Bun.Transpiler({ loader: "ts" }).scanImports(source).map(({ path }) => path);
      expect(specifiers).toEqual(expect.arrayContaining(seen));
      for (const specifier of specifiers) {
        expect(`${file}: ${specifier}`).toMatch(/: \.\/[a-z0-9-]+\.ts$/);
        expect(files).toContain(specifier.slice(2));
      }
    }
  });

  test("no file touches a clock, randomness, I/O or the process", async () => {
    const transpiler = new Bun.Transpiler({ loader: "ts" });
    const effects =
      /\b(?:Bun|process|performance|crypto|console|globalThis)\.[a-zA-Z]|\bDate\b\s*[.(]|\bMath\.random\b|\b(?:fetch|require|setTimeout|setInterval|queueMicrotask)\s*\(/;
    for (const file of files) {
      const code = transpiler.transformSync(await Bun.file(`${CORE}/${file}`).text());
      expect(`${file}: ${effects.exec(code)?.[0] ?? "pure"}`).toBe(`${file}: pure`);
    }
  });

  test("it runs where there is nothing but JavaScript", async () => {
    const built = await Bun.build({ entrypoints: [`${CORE}/index.ts`], target: "browser", format: "cjs" });
    const [bundle] = built.outputs;
    if (bundle === undefined) throw new Error("nothing was bundled");
    const context = createContext({ module: { exports: {} }, exports: {} });
    runInContext(await bundle.text(), context);
    const handle: unknown = runInContext(
      `{
        const core = module.exports;
        const config = { numBlocks: 3, numLayers: 2, outerDim: 2, pageSize: 4, numHeads: 2, headDim: 8 };
        const layout = core.resolveLayout({ config, memory: { kind: "system" } });
        const bases = new Float64Array([4096]);
        const sizes = new Float64Array([layout.components[0].regionBytes]);
        const component = {
          shape: layout.components[0].shape, storage: { kind: "system" }, regionAddresses: bases, regionSizes: sizes,
          attachment: core.ownAddresses(bases), nixlDevice: 0,
        };
        const empty = core.emptyRegistry({ workerId: 3n, agentName: "a", wireName: "a", incarnation: 1 });
        core.registerLayout(empty, { ...layout, components: [component] }).layout.handle;
      }`,
      context,
    );
    expect(handle).toBe(3n + (4096n << 80n));
  });

  test("its tests pass in a process in which bun:ffi cannot be imported", () => {
    expect(testWithoutFfi(["./fixtures/uses-ffi.ts"]).output).toContain("bun:ffi is unavailable");
    const own = [...new Bun.Glob("*.test.ts").scanSync({ cwd: import.meta.dir })].filter(
      (file) => file !== "purity.test.ts",
    );
    expect(own).toContain("registry.test.ts");
    const { code, output } = testWithoutFfi(own.map((file) => `./${file}`));
    expect(output).toContain(" 0 fail");
    expect(code).toBe(0);
  }, 120_000);
});
