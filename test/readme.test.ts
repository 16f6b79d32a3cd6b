import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { figurePages, recordedReports } from "../bench/readme.ts";

const ROOT = resolve(import.meta.dirname, "..");
const README = readFileSync(join(ROOT, "README.md"), "utf8");
const BLOCKS = [...README.matchAll(/```ts\n([^]*?)```/g)].map((found) => found[1] ?? "");

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvferry-readme-"));
  // A project in which `kvferry` is installed.
  mkdirSync(join(folder, "node_modules"));
  Bun.spawnSync(["ln", "-s", ROOT, join(folder, "node_modules/kvferry")]);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function run(name: string, text: string): Promise<{ code: number; out: string; words: string }> {
  writeFileSync(join(folder, name), text);
  const child = Bun.spawn([process.execPath, name], {
    cwd: folder,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, words, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, words };
}

describe("the README", () => {
  test("its ten lines run as they stand", async () => {
    expect(BLOCKS[0]).toContain('from "kvferry"');
    expect(await run("as-it-stands.ts", BLOCKS[0] ?? "")).toMatchObject({ code: 0, words: "" });
  });

  test("its ten lines move the blocks that they name, and no others", async () => {
    const [before, after] = (BLOCKS[0] ?? "").split("await transport.transfer");
    expect(after).toBeDefined();
    const { code, out, words } = await run(
      "with-bytes.ts",
      `${before}
      await engine.fill({ random: 7 });
      await pool.fill({ constant: 9 });
      await transport.transfer${after}
      const same = [];
      for (const [from, to] of [[3, 0], [9, 1], [4, 2]])
        same.push(Buffer.compare(await engine.read(from), await pool.read(to)) === 0);
      const untouched = [];
      for (const block of [3, 4, 9, 63]) untouched.push((await pool.read(block)).every((byte) => byte === 9));
      console.log(JSON.stringify({ same, untouched }));`,
    );
    expect(words).toBe("");
    expect(code).toBe(0);
    expect(JSON.parse(out)).toEqual({ same: [true, true, true], untouched: [true, true, true, true] });
  });

  test("each of its TypeScript blocks passes the type checker", () => {
    expect(BLOCKS.length).toBeGreaterThan(1);
    for (const [index, text] of BLOCKS.entries()) writeFileSync(join(folder, `block-${index}.ts`), text);
    writeFileSync(
      join(folder, "block-wrong.ts"),
      `import { Transport } from "kvferry";\nawait Transport.open({ workerId: "one" });\n`,
    );
    const options = {
      ...JSON.parse(readFileSync(join(ROOT, "tsconfig.json"), "utf8")),
      include: ["block-*.ts"],
    };
    options.compilerOptions.types = [];
    options.compilerOptions.skipLibCheck = true;
    options.compilerOptions.isolatedDeclarations = false;
    options.compilerOptions.declaration = false;
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(options));
    const { stdout, stderr } = Bun.spawnSync([process.execPath, "check", "--no-script"], {
      cwd: folder,
    });
    const complaints = `${stdout.toString()}${stderr.toString()}`
      .split("\n")
      .filter((line) => line.startsWith("block-"));
    // One of them is wrong on purpose: silence would mean that nothing was checked.
    expect(complaints.map((line) => line.split("(")[0])).toEqual(["block-wrong.ts"]);
  });

  test("names every command and every exit status of the command line, and no other", async () => {
    const { stdout } = Bun.spawnSync([process.execPath, join(ROOT, "lib/cli/main.ts"), "--help"]);
    const commands = [...stdout.toString().matchAll(/^ {2}(\w+) {2,}\S/gm)]
      .map((found) => found[1] ?? "")
      .filter((word) => !/^\d/.test(word));
    const table = README.slice(README.indexOf("## Command line"), README.indexOf("## Limits"));
    const named = [...table.matchAll(/^\| `(\w+)/gm)].map((found) => found[1] ?? "");
    expect(named.toSorted()).toEqual(commands.toSorted());
  });

  test("its figures, their page and their picture are those of the recorded results", () => {
    const pages = figurePages(README, recordedReports(join(ROOT, "bench/results")));
    for (const [path, text] of Object.entries(pages))
      expect(readFileSync(join(ROOT, path), "utf8")).toBe(text);
  });
});
