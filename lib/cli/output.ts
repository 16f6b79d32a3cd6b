import { isKvferryError } from "../core/errors.ts";
import { barOn } from "./bar.ts";

/** Words in colour, where the stream is a terminal and nobody asked for none. */
export interface Style {
  good(text: string): string;
  bad(text: string): string;
  warn(text: string): string;
  strong(text: string): string;
  faint(text: string): string;
}

/** Where a command writes. */
export interface Output {
  /** Whether standard output carries one JSON object and nothing else. */
  readonly json: boolean;
  readonly style: Style;
  /** A line for the reader: standard output, or standard error when JSON was asked for. */
  say(line?: string): void;
  /** Progress: always standard error. */
  note(line: string): void;
  /** How far long work is: a bar on a terminal, nothing elsewhere. */
  progress(label: string, done: number, total: number): void;
  /** The command's result; printed only when JSON was asked for. */
  emit(value: unknown): void;
}

/** An output over this process's streams. */
export function processOutput(json: boolean): Output {
  const stream = json ? process.stderr : process.stdout;
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // A reader who has seen enough (`| head`) is no failure: the process leaves quietly.
    if (error.code === "EPIPE") process.exit(0);
    throw error;
  });
  const bar = barOn(process.stderr);
  return {
    json,
    style: styleFor(stream.isTTY === true, process.env),
    say: (line = "") => {
      bar.clear();
      stream.write(`${line}\n`);
    },
    note: (line) => {
      bar.clear();
      process.stderr.write(`${line}\n`);
    },
    progress: (label, done, total) => bar.update(label, done, total),
    emit: (value) => {
      if (json) process.stdout.write(`${JSON.stringify(value, jsonValue)}\n`);
    },
  };
}

/** Colours on terminals only; NO_COLOR switches them off, whatever its value unless empty (no-color.org), and so does TERM=dumb. */
export function styleFor(
  terminal: boolean,
  environment: Readonly<Record<string, string | undefined>>,
): Style {
  const refused = (environment["NO_COLOR"] ?? "") !== "" || environment["TERM"] === "dumb";
  const paint =
    terminal && !refused
      ? (code: number) => (text: string) => `\u001b[${code}m${text}\u001b[0m`
      : () => (text: string) => text;
  return { good: paint(32), bad: paint(31), warn: paint(33), strong: paint(1), faint: paint(2) };
}

/** Lays rows out in columns, the first left, numbers right. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => (row[column] ?? "").length)));
  const numeric = header.map((_, column) => rows.every((row) => /^[-\d.,]*$/.test(row[column] ?? "")));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return numeric[column] === true ? cell.padStart(width) : cell.padEnd(width);
      })
      .join("  ")
      .trimEnd();
  return [line(header), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)];
}

/** An error as plain data for JSON output. */
export function errorData(error: unknown): Record<string, unknown> {
  if (isKvferryError(error))
    return {
      code: error.code,
      operation: error.operation,
      message: error.message,
      remedy: error.remedy,
      details: error.details,
    };
  return { message: error instanceof Error ? error.message : String(error) };
}

/** JSON has no bigint and no typed arrays: integers become decimal strings, arrays plain ones. */
function jsonValue(_key: string, value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Float64Array || value instanceof Uint32Array) return [...value];
  return value;
}
