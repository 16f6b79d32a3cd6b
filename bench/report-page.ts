import { CATALOGUE, FAMILIES, notMeasured } from "./catalogue.ts";
import type { CatalogueEntry } from "./catalogue.ts";
import { machineText } from "./machine.ts";
import { escapeText, short } from "./picture.ts";
import { contenderName, familySection, verdict } from "./report-family.ts";
import { STYLE } from "./report-style.ts";
import type { BenchReport, BenchResult } from "./result.ts";

const WHAT =
  "Each ratio is taken within one run on one machine: kvferry to the <em>limit</em>, which is what the hardware or the best hand-written C does with the same bytes. 1 is the limit and more is better; the heavy mark is the goal, the thin line the 95 % interval of the ratio. GB/s are 10<sup>9</sup> bytes per second. Contenders alternate within a process; figures are medians over several processes.";

/** One self-contained HTML page for reports: pictures, tables, machines, how to repeat, and what was not measured. */
export function reportPage(reports: readonly BenchReport[]): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvferry measurements</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<h1>kvferry measurements</h1>
<p>${WHAT}</p>
${overview(reports)}
${reports.map(reportSection).join("\n")}
${missingSection(reports)}
</main>
</body>
</html>
`;
}

/** The same in Markdown, without pictures. */
export function reportMarkdown(reports: readonly BenchReport[]): string {
  const parts = ["# kvferry measurements"];
  const heads = ["row", "kvferry", "limit", "ratio", "others", "95 %", "goal"];
  for (const report of reports) {
    parts.push(
      `## ${report.suite}`,
      machineText(report.machine).join("; "),
      `Repeat with \`bun run bench -- ${report.suite}\`.`,
    );
    const rows = report.results.map((row) => `| ${markdownCells(row).join(" | ")} |`);
    parts.push([`| ${heads.join(" | ")} |`, `| ${heads.map(() => "---").join(" | ")} |`, ...rows].join("\n"));
  }
  const groups = missingGroups(reports);
  if (groups.length > 0)
    parts.push(
      "## Not measured yet",
      groups.map(({ how, ids }) => `- ${how}: ${ids.map((id) => `\`${id}\``).join(", ")}`).join("\n"),
    );
  return `${parts.join("\n\n")}\n`;
}

/** What there is of each family, with links. */
function overview(reports: readonly BenchReport[]): string {
  const rows = Object.entries(FAMILIES).map(([family, title]) => {
    const wanted = CATALOGUE.filter(({ id }) => familyOf(id) === family);
    const section = reports.findIndex(({ results }) => results.some(({ id }) => familyOf(id) === family));
    const measured = new Map(reports.flatMap(({ results }) => results.map((row) => [row.id, row] as const)));
    const judged = wanted.flatMap(({ id }) => measured.get(id) ?? []).filter(({ met }) => met !== undefined);
    const reached = judged.filter(({ met }) => met === true).length;
    const there = wanted.filter(({ id }) => measured.has(id)).length;
    const name = `${family} ${title}`;
    const link =
      section < 0 ? escapeText(name) : `<a href="#${anchor(section, family)}">${escapeText(name)}</a>`;
    const state = there === 0 ? "not measured yet" : `${there} of ${wanted.length}`;
    return `<tr${there === 0 ? ' class="absent"' : ""}><td>${link}</td><td>${state}</td><td>${there === 0 ? "" : `${reached} of ${judged.length}`}</td></tr>`;
  });
  return `<div class="wide"><table class="overview"><thead><tr><th>what</th><th>rows measured</th><th>goals reached</th></tr></thead><tbody>
${rows.join("\n")}
</tbody></table></div>`;
}

function reportSection(report: BenchReport, index: number): string {
  const families = Map.groupBy(report.results, (row) => familyOf(row.id));
  const body = [...families].map(
    ([family, rows]) => `<div id="${anchor(index, family)}">${familySection(family, rows)}</div>`,
  );
  return `<section id="s${index}">
<h2>${escapeText(report.suite)}, ${escapeText(report.machine.date.slice(0, 10))}</h2>
<p class="machine">${machineText(report.machine).map(escapeText).join("<br>")}</p>
<p>Repeat with <code>bun run bench -- ${escapeText(report.suite)}</code>.</p>
${body.join("\n")}
</section>`;
}

function missingSection(reports: readonly BenchReport[]): string {
  const groups = missingGroups(reports);
  if (groups.length === 0) return "";
  const items = groups.map(
    ({ how, ids }) =>
      `<li>${escapeText(how)}: ${ids.map((id) => `<code>${escapeText(id)}</code>`).join(" ")}</li>`,
  );
  return `<section id="missing"><h2>Not measured yet</h2><ul>${items.join("\n")}</ul></section>`;
}

/** Rows without a figure, by what it takes to measure them. */
function missingGroups(
  reports: readonly BenchReport[],
): readonly { readonly how: string; readonly ids: readonly string[] }[] {
  const measured = reports.flatMap(({ results }) => results.map(({ id }) => id));
  const groups = Map.groupBy(notMeasured(measured), howTo);
  return [...groups].map(([how, rows]) => ({ how, ids: rows.map(({ id }) => id) }));
}

function howTo({ suite, gpus }: CatalogueEntry): string {
  const machine = ["", " on a machine with a GPU", " on a machine with two GPUs"][gpus] ?? "";
  return `bun run bench -- ${suite}${machine}`;
}

function familyOf(id: string): string {
  return id.split(".")[0] ?? id;
}

function anchor(section: number, family: string): string {
  return `s${section}-${family}`;
}

function markdownCells(row: BenchResult): string[] {
  return [
    row.id,
    `${short(row.ours)} ${row.unit}`,
    row.limit === undefined ? "" : short(row.limit),
    row.ratioToLimit === undefined ? "" : short(row.ratioToLimit),
    Object.entries(row.peers)
      .map(([name, value]) => `${contenderName(name)} ${short(value)}`)
      .join(", "),
    row.interval === undefined ? "" : `${short(row.interval[0])} to ${short(row.interval[1])}`,
    verdict(row),
  ];
}
