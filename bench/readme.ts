// Writes the README's figures, docs/figures.md and docs/figures.svg from the recorded results:
// `bun bench/readme.ts [--check]`.
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { figuresPicture } from "./figures-picture.ts";
import { rowGroups } from "./groups.ts";
import type { RowGroup } from "./groups.ts";
import { machineText } from "./machine.ts";
import { figure, goalText } from "./result.ts";
import type { BenchReport, BenchResult } from "./result.ts";

const START = "<!-- figures: written by `bun bench/readme.ts` from bench/results; do not edit -->";
const END = "<!-- end of figures -->";

/** What stands where, by path from the repository's root. */
export interface FigurePages {
  readonly "README.md": string;
  readonly "docs/figures.md": string;
  readonly "docs/figures.svg": string;
}

/** The pages with the figures of these reports in them. */
export function figurePages(readme: string, reports: readonly BenchReport[]): FigurePages {
  const ordered = reports.toSorted((left, right) => left.machine.date.localeCompare(right.machine.date));
  return {
    "README.md": withFigures(readme, summaryMarkdown(ordered)),
    "docs/figures.md": figuresMarkdown(ordered),
    "docs/figures.svg": figuresPicture(ordered),
  };
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

/** A row for each group of rows that differ in size only. */
function summaryMarkdown(reports: readonly BenchReport[]): string {
  if (reports.length === 0) return "No results are recorded yet.";
  const all = reports.flatMap((report) => report.results);
  const judged = all.filter((row) => row.met !== undefined);
  const met = judged.filter((row) => row.met === true).length;
  return [
    ...(figuresPicture(reports) === "" ? [] : ["![Rates against chunk size](docs/figures.svg)"]),
    `${all.length} rows in [docs/figures.md](docs/figures.md); ${met} of the ${judged.length} that have a goal reach it.`,
    ...reports.map((report) =>
      [
        `**${report.suite}**: ${machineText(report.machine).join("; ")}`,
        markdownTable(
          ["rows", "ours", "limit", "ratio", "goals reached"],
          rowGroups(report.results).map(summaryRow),
        ),
      ].join("\n\n"),
    ),
  ].join("\n\n");
}

function summaryRow({ name, rows }: RowGroup): string[] {
  const range = (pick: (row: BenchResult) => number | undefined): string => {
    const values = rows.map(pick).filter((value) => value !== undefined);
    if (values.length === 0) return "";
    const [low, high] = [figure(Math.min(...values)), figure(Math.max(...values))];
    return low === high ? low : `${low} to ${high}`;
  };
  const judged = rows.filter((row) => row.met !== undefined);
  return [
    `\`${name}\``,
    `${range((row) => row.ours)} ${rows[0]?.unit ?? ""}`,
    range((row) => row.limit),
    range((row) => row.ratioToLimit),
    judged.length === 0 ? "" : `${judged.filter((row) => row.met === true).length} of ${judged.length}`,
  ];
}

/** Every row of every report. */
function figuresMarkdown(reports: readonly BenchReport[]): string {
  const head = [
    "# Figures",
    "Written by `bun bench/readme.ts` from `bench/results`; do not edit. Medians; ratios are ours to the limit for rates and the limit to ours for times, so that 1 is the limit and more is better.",
  ];
  const parts = reports.map((report) => {
    const rows = report.results.map((row) => {
      const [peer] = Object.entries(row.peers);
      return [
        `\`${row.id}\``,
        `${figure(row.ours)} ${row.unit}`,
        row.limit === undefined ? "" : `${figure(row.limit)} (${figure(row.ratioToLimit)})`,
        row.interval === undefined ? "" : `${figure(row.interval[0])} to ${figure(row.interval[1])}`,
        peer === undefined ? "" : `${peer[0]} ${figure(peer[1])} (${figure(row.ratioToPeer)})`,
        row.goal === undefined ? "" : `${goalText(row.goal)}${row.met === true ? "" : ", missed"}`,
      ];
    });
    return [
      `## ${report.suite}, ${report.machine.date.slice(0, 10)}`,
      `${machineText(report.machine).join("; ")}. Repeat with \`bun run bench -- ${report.suite}\`.`,
      markdownTable(["row", "ours", "limit (ratio)", "95 % of the ratio", "other (ratio)", "goal"], rows),
    ].join("\n\n");
  });
  return `${[...head, ...(parts.length === 0 ? ["No results are recorded yet."] : parts)].join("\n\n")}\n`;
}

/** A table as the formatter lays it out. */
function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((name, column) =>
    Math.max(3, name.length, ...rows.map((row) => (row[column] ?? "").length)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
  return [line(header), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}

if (import.meta.main) {
  const root = join(import.meta.dirname, "..");
  const reports = recordedReports(join(root, "bench/results"));
  for (const [path, text] of Object.entries(
    figurePages(readFileSync(join(root, "README.md"), "utf8"), reports),
  )) {
    const file = join(root, path);
    if (!process.argv.includes("--check")) writeFileSync(file, text);
    else if (!existsSync(file) || readFileSync(file, "utf8") !== text) {
      console.error(`${path} does not show what is in bench/results: run \`bun bench/readme.ts\``);
      process.exitCode = 1;
    }
  }
}
