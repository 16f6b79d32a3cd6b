import { describe, expect, test } from "bun:test";
import { createContext, runInContext } from "node:vm";
import { encodePackage } from "../../lib/wire/index.ts";
import { componentOf, layoutOf, packageOf } from "./builders.ts";

const WIRE: string = `${import.meta.dir}/../../lib/wire`;
const files: readonly string[] = [...new Bun.Glob("**/*.ts").scanSync({ cwd: WIRE })].toSorted();

describe("lib/wire stands on lib/core and @msgpack/msgpack alone", () => {
  test("no file imports anything else", async () => {
    expect(files).toContain("index.ts");
    for (const file of files) {
      const source = await Bun.file(`${WIRE}/${file}`).text();
      for (const [, specifier = ""] of source.matchAll(/^(?:import|export)\b[^;]*?\bfrom\s*"([^"]*)"/gm))
        expect(`${file}: ${specifier}`).toMatch(
          /: (?:\.\/[a-z0-9-]+\.ts|\.\.\/core\/[a-z-]+\.ts|@msgpack\/msgpack)$/,
        );
      expect(`${file}: ${/\bimport\s*\(/.exec(source)?.[0] ?? "static"}`).toBe(`${file}: static`);
    }
  });

  test("no file touches a clock, randomness, I/O or the process", async () => {
    const transpiler = new Bun.Transpiler({ loader: "ts" });
    // A checksum is a value of its bytes.
    const effects =
      /\b(?:Bun(?!\.hash\.crc32\()|process|performance|crypto|console|globalThis|Buffer)\.[a-zA-Z]|\bDate\b\s*[.(]|\bMath\.random\b|\b(?:fetch|require|setTimeout|setInterval|queueMicrotask)\s*\(/;
    for (const file of files) {
      const code = transpiler.transformSync(await Bun.file(`${WIRE}/${file}`).text());
      expect(`${file}: ${effects.exec(code)?.[0] ?? "pure"}`).toBe(`${file}: pure`);
    }
  });

  test("it runs where there is nothing but JavaScript and its coder of text", async () => {
    const built = await Bun.build({ entrypoints: [`${WIRE}/index.ts`], target: "browser", format: "cjs" });
    const [bundle] = built.outputs;
    if (bundle === undefined) throw new Error("nothing was bundled");
    const bytes = encodePackage(packageOf([layoutOf(0, [componentOf()])]), "kvferry");
    const context = createContext({ module: { exports: {} }, exports: {}, TextEncoder, TextDecoder, bytes });
    runInContext(await bundle.text(), context);
    const again: unknown = runInContext(
      "module.exports.encodePackage(module.exports.decodePackage(new Uint8Array(bytes)), 'kvferry')",
      context,
    );
    expect(runInContext("typeof Bun", context)).toBe("undefined");
    expect(Buffer.from(again as Uint8Array)).toEqual(Buffer.from(bytes));
    const damaged = bytes.slice();
    damaged[40] = (damaged[40] ?? 0) ^ 1;
    Object.assign(context, { damaged });
    expect(
      () => runInContext("module.exports.decodePackage(new Uint8Array(damaged))", context) as unknown,
    ).toThrow("checksum");
  });

  test("its tests pass where bun:ffi cannot be imported", () => {
    const child = Bun.spawnSync({
      cmd: [
        process.execPath,
        "test",
        "--preload",
        `${import.meta.dir}/../core/fixtures/no-ffi.ts`,
        "./kvferry-package.test.ts",
        "./dynamo-meaning.test.ts",
        "./golden.test.ts",
        "./descriptor-json.test.ts",
      ],
      cwd: import.meta.dir,
      stdout: "pipe",
      stderr: "pipe",
    });
    const output = child.stderr.toString();
    expect(output).toMatch(/\n 0 fail\n/);
    expect(Number(/\n (\d+) pass\n/.exec(output)?.[1])).toBeGreaterThan(350);
    expect(child.exitCode).toBe(0);
  });
});
