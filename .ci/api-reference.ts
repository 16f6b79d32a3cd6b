// Writes docs/api.md from the docstrings of what the package exports: `bun .ci/api-reference.ts [--check]`.
// It reads the sources as bun fmt lays them out: members of classes and interfaces are indented by two.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { declarationOf, type Declaration, type Member } from "./declarations.ts";

const ROOT: string = resolve(import.meta.dirname, "..");
const PAGE: string = join(ROOT, "docs/api.md");

const ENTRIES = [
  { name: "kvferry", file: "index.ts", about: "What an application uses." },
  {
    name: "kvferry/core",
    file: "lib/core/index.ts",
    about: "The pure part: values in, values out. It runs wherever JavaScript runs.",
  },
  {
    name: "kvferry/wire",
    file: "lib/wire/index.ts",
    about: "Metadata packages to bytes and back. Pure too.",
  },
  { name: "kvferry/plugin", file: "lib/plugin/index.ts", about: "A Bun plugin for `bun build --compile`." },
] as const;

/** A name that an entry point gives, and where it is declared. */
interface Export {
  readonly name: string;
  readonly file: string;
}

/** The whole page. */
export function apiReference(): string {
  const described = new Map<string, string>();
  const parts = [
    "# API reference",
    "Made from the docstrings by `bun .ci/api-reference.ts`; do not edit. The [guide](guide.md) explains, this page lists.",
  ];
  for (const { name, file, about } of ENTRIES) {
    parts.push(`## ${name}`, about);
    const again: string[] = [];
    for (const one of exportsOf(file)) {
      const key = `${one.file}:${one.name}`;
      if (described.has(key)) {
        again.push(`\`${one.name}\``);
        continue;
      }
      described.set(key, name);
      parts.push(describe(declared(one)));
    }
    if (again.length > 0) parts.push(`Also here, and described above: ${again.join(", ")}.`);
  }
  return `${parts.join("\n\n")}\n`;
}

function exportsOf(file: string): readonly Export[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  const found: (Export & { readonly at: number })[] = [];
  const from = (path: string): string => join(dirname(file), path);
  for (const match of text.matchAll(/^export (?:type )?\{([^}]*)\} from "([^"]+)";/gm))
    for (const word of (match[1] ?? "").split(",")) {
      const name = word.replace(/\btype\b/, "").trim();
      if (name !== "") found.push({ name, file: from(match[2] ?? ""), at: match.index });
    }
  for (const match of text.matchAll(/^export \* from "([^"]+)";/gm))
    for (const one of exportsOf(from(match[1] ?? ""))) found.push({ ...one, at: match.index });
  for (const match of text.matchAll(/^export (?:async )?(?:class|interface|type|function|const) (\w+)/gm))
    found.push({ name: match[1] ?? "", file, at: match.index });
  return found.toSorted((a, b) => a.at - b.at).map(({ name, file: where }) => ({ name, file: where }));
}

/** The declaration behind an export; a module may hand on what another one declares. */
function declared({ name, file }: Export): Declaration {
  const text = readFileSync(join(ROOT, file), "utf8");
  const found = declarationOf(text, name);
  if (found !== null) return found;
  const handedOn = [...text.matchAll(/^(?:import|export) (?:type )?\{([^}]*)\} from "(\.[^"]+)";/gm)].find(
    ([, words = ""]) => new RegExp(`\\b${name}\\b`).test(words),
  );
  if (handedOn === undefined) throw new Error(`${file} declares no ${name}`);
  return declared({ name, file: join(dirname(file), handedOn[2] ?? "") });
}

function describe(declaration: Declaration): string {
  const { kind, name, signature, doc, members } = declaration;
  const heading = kind === "const" || kind === "function" ? name : `${kind} ${name}`;
  return [
    `### ${heading}`,
    ...(signature === "" ? [] : [code(signature)]),
    ...docText(doc),
    ...(members.length === 0 ? [] : [members.map(memberLine).join("\n")]),
  ].join("\n\n");
}

function memberLine({ signature, doc }: Member): string {
  const [first = "", ...more] = docText(doc);
  const words = [first, ...more].join(" ").replaceAll("\n", " ").replaceAll(/ - /g, " ").trim();
  return `- ${code(signature.replace(/^(?:async|readonly|declare) /, ""))}${words === "" ? "" : `: ${words}`}`;
}

/** A docstring's paragraphs as Markdown; its tags as sentences. */
function docText(doc: string): readonly string[] {
  const [text = "", ...tags] = doc.split(/^@(?=\w)/m);
  const sentences = tags.map((tag) => {
    const flat = tag.replaceAll(/\s+/g, " ").trim();
    if (flat.startsWith("throws ")) return `Throws ${flat.slice(7)}`;
    if (flat.startsWith("returns ")) return `Returns: ${flat.slice(8)}`;
    const parameter = /^param (\w+) - (.*)$/.exec(flat);
    return parameter === null ? flat : `\`${parameter[1]}\`: ${parameter[2]}`;
  });
  return [
    ...text
      .trim()
      .split(/\n\s*\n/)
      .map((paragraph) => (/^\s/m.test(paragraph) ? paragraph : paragraph.replaceAll("\n", " "))),
    ...sentences,
  ]
    .filter((paragraph) => paragraph !== "")
    .map((paragraph) => paragraph.replaceAll(/\{@link ([^}]+)\}/g, "`$1`"));
}

function code(text: string): string {
  return text.includes("`") ? `\`\` ${text} \`\`` : `\`${text}\``;
}

/** The page as `bun fmt` lays it out, so that the format check, which may run beside this, has nothing to say. */
function formatted(text: string): string {
  const words = [process.execPath, "fmt", `--stdin-filepath=${PAGE}`];
  const { exitCode, stdout, stderr } = Bun.spawnSync(words, { cwd: ROOT, stdin: Buffer.from(text) });
  if (exitCode !== 0) throw new Error(`bun fmt: ${stderr.toString()}`);
  return stdout.toString();
}

if (import.meta.main) {
  const text = formatted(apiReference());
  if (!process.argv.includes("--check")) writeFileSync(PAGE, text);
  else if (!existsSync(PAGE) || readFileSync(PAGE, "utf8") !== text) {
    console.error("docs/api.md is not what the docstrings say: run `bun .ci/api-reference.ts`");
    process.exitCode = 1;
  }
}
