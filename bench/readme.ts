// Writes the README's figures from the recorded results: `bun bench/readme.ts [--check]`.
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { machineText } from "./machine.ts";
import { figure } from "./result.ts";
import type { BenchReport } from "./result.ts";

const START = "<!-- figures: written by `bun bench/readme.ts` from bench/results; do not edit -->";
const END = "<!-- end of figures -->";

/** The figures as Markdown: a table for each recorded report, newest last. */
export function figuresMarkdown(reports: readonly BenchReport[]): string {
  if (reports.length === 0) return "No results are recorded yet.";
  const ordered = [...reports].toSorted((left, right) => left.machine.date.localeCompare(right.machine.date));
  return ordered.map(reportMarkdown).join("\n\n");
}

/**
 * Puts figures between the markers of a README.
 *
 * @throws Error when a marker is missing.
 */
export function withFigures(readme: string, figures: string): string {
  const start = readme.indexOf(START);
  const end = readme.indexOf(END);
  if (start < 0 || end < start) throw new Error("README.md has lost the markers of its figures");
  return `${readme.slice(0, start + START.length)}\n\n${figures}\n\n${readme.slice(end)}`;
}

/** The reports in a folder of JSON files; none when the folder is not there. */
export function recordedReports(folder: string): readonly BenchReport[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((file) => file.endsWith(".json"))
    .toSorted()
    .map((file) => JSON.parse(readFileSync(join(folder, file), "utf8")) as BenchReport)
    .filter((report) => Array.isArray(report.results) && typeof report.suite === "string");
}

function reportMarkdown(report: BenchReport): string {
  const rows = report.results.map((row) => {
    const [peer] = Object.entries(row.peers);
    const cells = [
      `\`${row.id}\``,
      `${figure(row.ours)} ${row.unit}`,
      row.limit === undefined ? "" : `${figure(row.limit)} (${figure(row.ratioToLimit)})`,
      peer === undefined ? "" : `${peer[0]} ${figure(peer[1])} (${figure(row.ratioToPeer)})`,
      row.goal === undefined ? "" : `${row.goal}${row.met === true ? "" : ", missed"}`,
    ];
    return `| ${cells.join(" | ")} |`;
  });
  return [
    `**${report.suite}**: ${machineText(report.machine).join("; ")}`,
    "",
    "| row | ours | limit (ratio) | other (ratio) | goal |",
    "| --- | --- | --- | --- | --- |",
    ...rows,
  ].join("\n");
}

if (import.meta.main) {
  const root = join(import.meta.dirname, "..");
  const file = join(root, "README.md");
  const old = readFileSync(file, "utf8");
  const text = withFigures(old, figuresMarkdown(recordedReports(join(root, "bench/results"))));
  if (!process.argv.includes("--check")) writeFileSync(file, text);
  else if (text !== old) {
    console.error("README.md's figures are not those of bench/results: run `bun bench/readme.ts`");
    process.exitCode = 1;
  }
}
