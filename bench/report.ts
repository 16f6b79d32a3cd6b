// `bun run bench -- report [FILE ...]` writes one HTML page and a Markdown file from recorded results;
// `bun run bench -- report compare BEFORE AFTER` says what changed beyond noise.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { comparisonText } from "./compare.ts";
import { recordedReports } from "./readme.ts";
import { reportMarkdown, reportPage } from "./report-page.ts";
import type { BenchReport } from "./result.ts";

/** The folder that recorded results lie in. */
const RESULTS = join(import.meta.dir, "results");

/** Where the page goes: ignored by git, made anew at any time. */
const OUT = resolve(import.meta.dir, "..", "dist");

/**
 * Writes the report, or the comparison of two files.
 *
 * @param operands - Result files; none takes everything that is recorded. `compare BEFORE AFTER` compares.
 * @returns What to tell the person who asked.
 */
export async function run(_options: unknown, operands: readonly string[] = []): Promise<string> {
  const [first, ...files] = operands;
  if (first === "compare") {
    const [before, after] = files.map(readReport);
    if (before === undefined || after === undefined)
      return "Give two result files: report compare BEFORE AFTER\n";
    return comparisonText(before, after);
  }
  const reports = operands.length > 0 ? operands.map(readReport) : recordedReports(RESULTS);
  if (reports.length === 0) return "No results are recorded: run a suite with --out first.\n";
  mkdirSync(OUT, { recursive: true });
  const page = join(OUT, "report.html");
  writeFileSync(page, reportPage(reports));
  writeFileSync(join(OUT, "report.md"), reportMarkdown(reports));
  return `${page}\n`;
}

function readReport(file: string): BenchReport {
  return JSON.parse(readFileSync(file, "utf8")) as BenchReport;
}
