#!/usr/bin/env bun
// Nothing here or in what it imports may need an installed package: on a fresh clone the commands install them first.
import { KvferryError } from "../core/errors.ts";
import type { ErrorCode } from "../core/errors.ts";
import manifest from "../../package.json" with { type: "json" };
import { benchCommand } from "./bench.ts";
import { IN_EXECUTABLE } from "./checkout.ts";
import { commandHelp, EXIT, EXIT_TEXT, parseCommandLine, UsageError } from "./command.ts";
import type { Command } from "./command.ts";
import { demoCommand } from "./demo.ts";
import { doctorCommand } from "./doctor.ts";
import { inspectCommand } from "./inspect.ts";
import { errorData, processOutput } from "./output.ts";
import { setupCommand } from "./setup.ts";

const COMMANDS: readonly Command[] = [setupCommand, doctorCommand, demoCommand, benchCommand, inspectCommand];

/** Modules that commands run in processes of their own; a single executable has no files to name. */
const PARTS: Readonly<Record<string, () => Promise<unknown>>> = {
  "demo-peer": () => import("./demo-peer.ts"),
  "doctor-probe": () => import("./doctor-probe.ts"),
  "doctor-gds-probe": () => import("./doctor-gds-probe.ts"),
};

/** Refusals that mean that something is missing; any other one says that what was looked at does not hold. */
const UNAVAILABLE: ReadonlySet<ErrorCode> = new Set([
  "ERR_KVF_NO_NIXL",
  "ERR_KVF_NO_CUDA",
  "ERR_KVF_UNSUPPORTED_PLATFORM",
  "ERR_KVF_IO",
  "ERR_KVF_OUT_OF_MEMORY",
]);

/** Runs a command line and gives its exit status. */
export async function main(commandLine: readonly string[]): Promise<number> {
  const [name, ...rest] = commandLine;
  if (name === undefined || name === "--help" || name === "-h" || name === "help") return help(rest[0]);
  if (name === "--version") {
    process.stdout.write(`${manifest.version}\n`);
    return EXIT.ok;
  }
  const part = IN_EXECUTABLE ? PARTS[name] : undefined;
  if (part !== undefined) {
    await part();
    return Number(process.exitCode ?? EXIT.ok);
  }
  const command = COMMANDS.find((one) => one.name === name);
  if (command === undefined) {
    const meant = COMMANDS.find((one) => similar(one.name, name));
    const hint = meant === undefined ? "" : `; did you mean ${meant.name}?`;
    process.stderr.write(`kvferry: unknown command ${JSON.stringify(name)}${hint}\n\n${overview()}\n`);
    return EXIT.usage;
  }
  const output = processOutput(rest.includes("--json"));
  try {
    const parsed = parseCommandLine(command, rest);
    if (parsed.values["help"] === true) {
      process.stdout.write(`${commandHelp(command)}\n`);
      return EXIT.ok;
    }
    return await command.run(parsed, output);
  } catch (error) {
    output.emit({ ok: false, error: errorData(error) });
    if (error instanceof UsageError) {
      output.note(`kvferry ${name}: ${error.message}\n\n${commandHelp(command)}`);
      return EXIT.usage;
    }
    if (!(error instanceof KvferryError)) throw error;
    output.note(`kvferry ${name}: ${error.message}\n${error.remedy} (${error.code})`);
    return UNAVAILABLE.has(error.code) ? EXIT.unavailable : EXIT.failed;
  }
}

function help(name: string | undefined): number {
  const command = COMMANDS.find((one) => one.name === name);
  process.stdout.write(`${command === undefined ? overview() : commandHelp(command)}\n`);
  return EXIT.ok;
}

function overview(): string {
  const width = Math.max(...COMMANDS.map((command) => command.name.length));
  return [
    "Usage: kvferry COMMAND [options]",
    "",
    "Moves KV-cache blocks of LLM inference between memories of one machine and between machines.",
    "",
    "Commands:",
    ...COMMANDS.map((command) => `  ${command.name.padEnd(width)}  ${command.summary}`),
    "",
    "kvferry COMMAND --help tells more about one of them; --json makes each print one JSON object; --version prints the version.",
    "",
    EXIT_TEXT,
  ].join("\n");
}

/** Whether words differ in one letter, or in the order of two. */
function similar(left: string, right: string): boolean {
  if (left.startsWith(right) || right.startsWith(left)) return right.length > 1;
  const [short, long] = left.length <= right.length ? [left, right] : [right, left];
  let start = 0;
  while (start < short.length && short[start] === long[start]) start++;
  if (short.length < long.length) return short.slice(start) === long.slice(start + 1);
  return (
    short.slice(start + 1) === long.slice(start + 1) ||
    (short[start] === long[start + 1] &&
      short[start + 1] === long[start] &&
      short.slice(start + 2) === long.slice(start + 2))
  );
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
