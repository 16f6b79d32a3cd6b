import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { runCommand } from "../runtime/helpers/child.ts";
import { codeBlocks, pages, pageText, ROOT } from "./pages.ts";

const PAGES = pages();
const BLOCKS = PAGES.flatMap((page) => codeBlocks(page));
const TYPESCRIPT = BLOCKS.filter((block) => block.language === "ts");

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvferry-docs-"));
  // A project in which `kvferry` is installed.
  mkdirSync(join(folder, "node_modules"));
  symlinkSync(ROOT, join(folder, "node_modules/kvferry"));
  symlinkSync(join(ROOT, "node_modules/bun-types"), join(folder, "node_modules/bun-types"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("code on the pages", () => {
  test("every fenced block is of a kind that is checked here", () => {
    const kinds = new Set(BLOCKS.map((block) => block.language));
    // `text` is for drawings and for what programs print.
    expect([...kinds].toSorted()).toEqual(["sh", "text", "ts"]);
  });

  test("every TypeScript block passes the type checker", () => {
    expect(TYPESCRIPT.length).toBeGreaterThanOrEqual(20);
    const files = new Map(
      TYPESCRIPT.map((block, at) => [`block-${at}.ts`, `${block.page}:${block.line}`] as const),
    );
    TYPESCRIPT.forEach((block, at) => writeFileSync(join(folder, `block-${at}.ts`), block.text));
    writeFileSync(
      join(folder, "block-wrong.ts"),
      `import { Transport } from "kvferry";\nawait Transport.open({ workerId: "one" });\n`,
    );
    const options = JSON.parse(readFileSync(join(ROOT, "tsconfig.json"), "utf8"));
    options.include = ["block-*.ts"];
    options.compilerOptions.isolatedDeclarations = false;
    options.compilerOptions.declaration = false;
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(options));
    const { stdout, stderr } = Bun.spawnSync([process.execPath, "check", "--no-script"], { cwd: folder });
    const complaints = `${stdout.toString()}${stderr.toString()}`
      .split("\n")
      .filter((line) => line.startsWith("block-"));
    // One of them is wrong on purpose: silence would mean that nothing was checked.
    const wrong = complaints.filter((line) => !line.startsWith("block-wrong.ts"));
    expect(
      wrong.map((line) =>
        line.replace(/^[^(]+/, (file) => (files as ReadonlyMap<string, string>).get(file) ?? file),
      ),
    ).toEqual([]);
    expect(complaints).toHaveLength(1);
  });

  for (const block of TYPESCRIPT.filter(({ words }) => words.includes("run")))
    test(`${block.page}:${block.line} runs, and what it asserts holds`, async () => {
      const file = join(folder, `run-${block.page.replaceAll("/", "-")}-${block.line}.ts`);
      // A failed console.assert only prints: here it ends the program.
      writeFileSync(
        file,
        `console.assert = (holds) => { if (!holds) throw new Error("does not hold"); };\n${block.text}`,
      );
      const { code, signal, words } = await runCommand([process.execPath, file], {}, 30_000, folder);
      expect({ code, signal, words }).toEqual({ code: 0, signal: null, words: "" });
    });
});

describe("commands on the pages", () => {
  const scripts = Object.keys(
    (JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { scripts: Record<string, string> })
      .scripts,
  );
  const commands = commandsOf(PAGES);

  test("there are some", () => {
    expect(commands.length).toBeGreaterThan(20);
  });

  test("each `bun run` names a script or a file that is there", () => {
    const wrong = commands.flatMap(({ page, words }) => {
      const name = words[0] === "bun" && words[1] === "run" ? words[2] : undefined;
      const known =
        name === undefined || name === "COMMAND" || scripts.includes(name) || existsSync(join(ROOT, name));
      return known ? [] : [`${page}: ${words.join(" ")}`];
    });
    expect(wrong).toEqual([]);
  });

  test("each `kvferry` command and option is one that the command line has", async () => {
    const help = new Map<string, string>();
    const wrong: string[] = [];
    for (const { page, words } of commands) {
      const [name, ...rest] = kvferryArguments(words, scripts);
      if (name === undefined) continue;
      let text = help.get(name);
      if (text === undefined) {
        const { code, out } = await runCommand([
          process.execPath,
          join(ROOT, "lib/cli/main.ts"),
          name,
          "--help",
        ]);
        text = code === 0 ? out : "";
        help.set(name, text);
      }
      const unknown = rest.filter(
        (word) => word.startsWith("--") && word !== "--" && !new RegExp(`^ +${word}\\b`, "m").test(text),
      );
      if (text === "" || unknown.length > 0) wrong.push(`${page}: ${words.join(" ")}`);
    }
    expect(wrong).toEqual([]);
    expect(help.size).toBeGreaterThanOrEqual(4);
  }, 60_000);

  test("each bench and proof that is named is there", () => {
    const wrong = commands.flatMap(({ page, words }) => {
      const [, , script, dashes, name] = words;
      if (dashes !== "--" || name === undefined || /^[A-Z-]/.test(name)) return [];
      const file =
        script === "bench" ? `bench/${name}.ts` : script === "proof" ? `test/proof/${name}.ts` : null;
      return file === null || existsSync(join(ROOT, file)) ? [] : [`${page}: ${words.join(" ")}`];
    });
    expect(wrong).toEqual([]);
  });
});

test("every link to a page, a heading or a file leads somewhere", () => {
  const wrong = PAGES.flatMap((page) =>
    [...pageText(page).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)/g)].flatMap((found) => {
      const [, path = "", heading] = found;
      const target = path === "" ? page : join(dirname(page), path);
      if (!existsSync(join(ROOT, target))) return [`${page}: ${found[0]}`];
      if (heading === undefined) return [];
      return headingsOf(pageText(target)).includes(heading) ? [] : [`${page}: ${found[0]}`];
    }),
  );
  expect(wrong).toEqual([]);
});

interface Command {
  readonly page: string;
  readonly words: readonly string[];
}

/** Commands in `sh` blocks and in spans of code that begin like one. */
function commandsOf(from: readonly string[]): readonly Command[] {
  return from.flatMap((page) => {
    const text = pageText(page);
    const lines = codeBlocks(page)
      .filter((block) => block.language === "sh")
      .flatMap((block) => block.text.split("\n"));
    const spans = [...text.matchAll(/`((?:bunx?|npx) [^`\n]+)`/g)].map((found) => found[1] ?? "");
    return [...lines, ...spans]
      .map((line) => (line.split(/\s#|&&/)[0] ?? "").trim())
      .filter((line) => line !== "" && !line.startsWith("#"))
      .map((line) => ({ page, words: withoutNpx(line.split(/\s+/)) }));
  });
}

/** `npx -y bun@1.4.5 run demo` is `bun run demo`. */
function withoutNpx(words: readonly string[]): readonly string[] {
  return words[0] === "npx" && words[2]?.startsWith("bun@") === true ? ["bun", ...words.slice(3)] : words;
}

/** What reaches kvferry's own command line, if the command is one of it. */
function kvferryArguments(words: readonly string[], scripts: readonly string[]): readonly string[] {
  if (words[0] === "bunx" && words[1] === "kvferry")
    return words.slice(2).filter((word) => word !== "COMMAND");
  const [, , name = "", dashes, ...rest] = words;
  if (words[0] !== "bun" || words[1] !== "run" || !scripts.includes(name)) return [];
  return ["setup", "doctor", "demo", "inspect"].includes(name)
    ? [name, ...(dashes === "--" ? rest : [])]
    : [];
}

/** Anchors of a page's headings, as hosts of Markdown make them. */
function headingsOf(text: string): readonly string[] {
  return [...text.matchAll(/^#+ (.+)$/gm)].map((found) =>
    (found[1] ?? "")
      .toLowerCase()
      .replaceAll(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );
}
