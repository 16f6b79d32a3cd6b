import { parseArgs } from "node:util";

import type { Output } from "./output.ts";

/** Exit statuses of the command line. */
export const EXIT = {
  /** All went well. */
  ok: 0,
  /** The command ran, and what it checked does not hold. */
  failed: 1,
  /** The command line itself was wrong. */
  usage: 2,
  /** Something that the command needs is missing or could not be had; the remedy was printed. */
  unavailable: 3,
} as const;

/** An option of a command. */
export interface OptionSpec {
  readonly type: "boolean" | "string";
  /** Placeholder of the value in the help text. */
  readonly value?: string;
  readonly description: string;
}

/** A command of `kvferry`. */
export interface Command {
  readonly name: string;
  /** What it takes besides options, e.g. `FILE`. */
  readonly operands?: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** Sentences for the command's own help. */
  readonly description: string;
  readonly options: Readonly<Record<string, OptionSpec>>;
  /** Does the work and gives the exit status, one of {@link EXIT}. */
  run(parsed: ParsedArguments, output: Output): Promise<number>;
}

/** A command line, taken apart. */
export interface ParsedArguments {
  readonly operands: readonly string[];
  readonly values: Readonly<Record<string, string | boolean>>;
  /** The arguments as they were given, for commands that hand them on. */
  readonly raw: readonly string[];
}

/** A command line that cannot be understood; exit status 2. */
export class UsageError extends Error {
  override readonly name: string = "UsageError";
}

/** Options that every command has. */
export const COMMON_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  json: {
    type: "boolean",
    description: "Print one JSON object on standard output, everything else on standard error.",
  },
  help: { type: "boolean", description: "Print this text." },
};

/**
 * Takes a command's arguments apart.
 *
 * @throws UsageError for unknown options, missing values and operands that the command does not take.
 */
export function parseCommandLine(command: Command, raw: readonly string[]): ParsedArguments {
  const options = { ...command.options, ...COMMON_OPTIONS };
  try {
    const { values, positionals } = parseArgs({
      args: [...raw],
      options: Object.fromEntries(Object.entries(options).map(([name, spec]) => [name, { type: spec.type }])),
      allowPositionals: true,
      strict: true,
    });
    if (command.operands === undefined && positionals.length > 0)
      throw new UsageError(`${command.name} takes no operand, found ${JSON.stringify(positionals[0])}`);
    const given: Record<string, string | boolean> = {};
    for (const [name, value] of Object.entries(values))
      if (typeof value === "string" || typeof value === "boolean") given[name] = value;
    return { operands: positionals, values: given, raw };
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

/** The text of an option, or undefined. */
export function textOption(parsed: ParsedArguments, name: string): string | undefined {
  const value = parsed.values[name];
  return typeof value === "string" ? value : undefined;
}

/** The help text of a command. */
export function commandHelp(command: Command): string {
  const operands = command.operands === undefined ? "" : ` ${command.operands}`;
  const rows = Object.entries({ ...command.options, ...COMMON_OPTIONS }).map(
    ([name, spec]) =>
      [`--${name}${spec.value === undefined ? "" : ` ${spec.value}`}`, spec.description] as const,
  );
  const width = Math.max(...rows.map(([left]) => left.length));
  return [
    `Usage: kvferry ${command.name}${operands} [options]`,
    "",
    command.description,
    "",
    "Options:",
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
    "",
    EXIT_TEXT,
  ].join("\n");
}

/** What the exit statuses mean, for help texts. */
export const EXIT_TEXT: string = [
  "Exit status:",
  "  0  all went well",
  "  1  the command ran, and what it checked does not hold",
  "  2  the command line was wrong",
  "  3  something that is needed is missing; the remedy is printed",
].join("\n");
