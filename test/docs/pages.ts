// The pages that people read, and what is in them.
import { readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";

export const ROOT: string = resolve(import.meta.dirname, "../..");

/** A fenced block of a page. */
export interface CodeBlock {
  /** Path of the page from the repository's root. */
  readonly page: string;
  /** Line of the fence. */
  readonly line: number;
  readonly language: string;
  /** What stands behind the language, e.g. `run`. */
  readonly words: readonly string[];
  readonly text: string;
}

/** Paths of all pages from the repository's root. */
export function pages(): readonly string[] {
  const docs = readdirSync(join(ROOT, "docs"), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".md"))
    .map((file) => `docs/${file}`);
  return ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", ...docs].toSorted();
}

/** A page's text. */
export function pageText(page: string): string {
  return readFileSync(join(ROOT, page), "utf8");
}

/** The fenced blocks of a page. */
export function codeBlocks(page: string): readonly CodeBlock[] {
  const text = pageText(page);
  return [...text.matchAll(/^```(\w*)([^\n]*)\n([^]*?)^```$/gm)].map((found) => ({
    page,
    line: text.slice(0, found.index).split("\n").length,
    language: found[1] ?? "",
    words: (found[2] ?? "").trim().split(/\s+/),
    text: found[3] ?? "",
  }));
}

/** Commands that the pages name: lines of `sh` blocks, and spans of code that begin like one; without comments. */
export function documentedCommands(): readonly string[] {
  const found = pages().flatMap((page) => {
    const lines = codeBlocks(page)
      .filter((block) => block.language === "sh")
      .flatMap((block) => block.text.split("\n"));
    const spans = [...pageText(page).matchAll(/`((?:bunx?|npx|npm) [^`\n]+)`/g)].map((span) => span[1] ?? "");
    return [...lines, ...spans].flatMap((line) => (line.split(/\s#/)[0] ?? "").split("&&"));
  });
  const commands = found.map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
  return [...new Set(commands)].toSorted();
}
