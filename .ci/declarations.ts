// Finds declarations and their docstrings in sources that `bun fmt` laid out.

/** A member of a class or an interface. */
export interface Member {
  readonly signature: string;
  readonly doc: string;
}

/** An exported declaration. */
export interface Declaration {
  readonly kind: "class" | "interface" | "type" | "function" | "const";
  readonly name: string;
  /** Empty for classes and interfaces, whose members tell. */
  readonly signature: string;
  readonly doc: string;
  readonly members: readonly Member[];
}

/** The declaration of an exported name; null when the source has none. */
export function declarationOf(source: string, name: string): Declaration | null {
  const lines = source.split("\n");
  const at = lines.findIndex((line) =>
    new RegExp(`^export (?:async )?(?:class|interface|type|function\\*?|const) ${name}\\b`).test(line),
  );
  const kind = /^export (?:async )?(\w+)/.exec(lines[at] ?? "")?.[1];
  if (at < 0 || !isKind(kind)) return null;
  const doc = docAbove(lines, at);
  if (kind === "class" || kind === "interface") {
    const end = lines.indexOf("}", at);
    // The heading may take several lines.
    const body = lines.findIndex((line, index) => index >= at && line.endsWith("{"));
    return { kind, name, signature: "", doc, members: membersOf(lines.slice(body + 1, end)) };
  }
  const { text } = statementAt(lines, at, "");
  return { kind, name, signature: text.replace(/^export /, "").replace(/^const /, ""), doc, members: [] };
}

function isKind(word: string | undefined): word is Declaration["kind"] {
  return ["class", "interface", "type", "function", "const"].includes(word ?? "");
}

function membersOf(lines: readonly string[]): readonly Member[] {
  const members: Member[] = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at] ?? "";
    if (!/^ {2}[\w#[*"]/.test(line)) {
      at++;
      continue;
    }
    const { text, next } = statementAt(lines, at, "  ");
    const doc = docAbove(lines, at);
    const hidden =
      /^(?:(?:readonly |static |async |get |set |\*)*#|private |constructor|static \{)/.test(text) ||
      doc.startsWith("@internal");
    if (!hidden) members.push({ signature: text, doc });
    at = next;
  }
  return members;
}

/** The head of a statement without its body, on one line, and the line behind it. */
function statementAt(
  lines: readonly string[],
  at: number,
  indent: string,
): { readonly text: string; readonly next: number } {
  const kept: string[] = [];
  for (let index = at; index < lines.length; index++) {
    const line = lines[index] ?? "";
    kept.push(line.replace(/\s\/\/ .*$/, "").trim());
    const text = kept.join(" ");
    if (balance(text) === 0 && line.endsWith(";")) return { text: head(text), next: index + 1 };
    // An open brace at the end of a balanced head begins a body, unless it is an object type as the result.
    if (line.endsWith("{") && balance(text.slice(0, -1)) === 0 && isBody(text)) {
      const end = lines.findIndex((other, further) => further > index && other.startsWith(`${indent}}`));
      return { text: head(text.slice(0, -1)), next: (end < 0 ? lines.length : end) + 1 };
    }
    if (line.endsWith("{}") && balance(text) === 0) return { text: head(text.slice(0, -2)), next: index + 1 };
  }
  throw new Error(`a statement has no end: ${lines[at]}`);
}

function isBody(text: string): boolean {
  return !/[:=|&(,]\s*\{$/.test(text) || text.endsWith(" = {");
}

/** Without initial values, and with spaces as one would write them on one line. */
function head(text: string): string {
  const plain = text
    .replaceAll(/\s+/g, " ")
    .replaceAll(/([([]) /g, "$1")
    .replaceAll(/,? ([)\]])/g, "$1")
    .replace(/;$/, "")
    .trim();
  return plain.startsWith("type ") || plain.startsWith("export type ")
    ? plain
    : (beforeValue(plain) ?? plain).trim();
}

/** What stands before ` = ` outside of all brackets; null when there is none. */
function beforeValue(text: string): string | null {
  for (let at = text.indexOf(" = "); at >= 0; at = text.indexOf(" = ", at + 1))
    if (balance(text.slice(0, at)) === 0) return text.slice(0, at);
  return null;
}

/** Open brackets less closed ones; those in strings and arrows do not occur here in ways that matter. */
function balance(text: string): number {
  let open = 0;
  for (const letter of text.replaceAll(/=>|"[^"]*"|(?<= )(?:<<|>>|[<>]=?)(?= )/g, "")) {
    if ("([{<".includes(letter)) open++;
    if (")]}>".includes(letter)) open--;
  }
  return open;
}

/** The docstring that ends on the line above, without its stars. */
function docAbove(lines: readonly string[], at: number): string {
  let end = at - 1;
  while (/^\s*\/\//.test(lines[end] ?? "")) end--;
  if (!(lines[end] ?? "").trimEnd().endsWith("*/")) return "";
  let start = end;
  while (start > 0 && !(lines[start] ?? "").trimStart().startsWith("/**")) start--;
  return lines
    .slice(start, end + 1)
    .join("\n")
    .replace(/^\s*\/\*\*/, "")
    .replace(/\*\/\s*$/, "")
    .replaceAll(/^\s*\* ?/gm, "")
    .trim();
}
