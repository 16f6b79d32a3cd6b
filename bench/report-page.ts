import { sizeOf, sizeText } from "./groups.ts";
import { machineText } from "./machine.ts";
import { escapeText, lineChart, ratioBars, short, type Bar, type Series } from "./picture.ts";
import { goalText } from "./result.ts";
import type { BenchReport, BenchResult } from "./result.ts";

/** What the rows of a family are about; the family is the id's first word. */
const FAMILIES: Readonly<Record<string, string>> = {
  F1: "Offload and onboard: scattered chunks between GPU and pinned memory",
  F2: "One block of 160 x 32 KiB, submit to await",
  F3: "8 blocks of 160 x 8 KiB, submit to await",
  F4: "Device to device on one GPU: scatter and reordering",
  F5: "Both directions at once",
  F6: "Device done to JavaScript continuing",
  F7: "Submitting scattered blocks",
  F8: "NIXL between two processes, host memory",
  F9: "Host to host, out of cache",
  F10: "Planning 100,000 scattered pairs",
  F11: "Registering, exporting, importing",
  F12: "A pinned pool of 8 GiB",
  F13: "From the first line to the first finished transfer",
  F14: "GPU to another process's GPU",
  F15: "GPU to and from a neighbour's host pool",
  F16: "Scattered GPU blocks through NIXL",
  F17: "Files",
  F18: "Notification to a neighbour",
  F19: "GPU to GPU in one process",
  F20: "Metadata packages",
};

/** One self-contained HTML page for reports: pictures, tables, machines and how to repeat. */
export function reportPage(reports: readonly BenchReport[]): string {
  const sections = reports.map((report, index) => reportSection(report, index));
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
<p>Each ratio is taken within one run on one machine: ours to the <em>limit</em>, which is what the hardware or the best hand-written C does with the same bytes. 1 is the limit and more is better; the heavy mark is the goal, the thin line the 95 % interval. GB/s are 10<sup>9</sup> bytes per second.</p>
${sections.join("\n")}
</main>
</body>
</html>
`;
}

/** The same in Markdown, without pictures. */
export function reportMarkdown(reports: readonly BenchReport[]): string {
  const parts = ["# kvferry measurements"];
  for (const report of reports) {
    parts.push(
      `## ${report.suite}`,
      machineText(report.machine).join("; "),
      `Repeat with \`bun run bench -- ${report.suite}\`.`,
    );
    const rows = report.results.map((row) => `| ${cells(row).join(" | ")} |`);
    parts.push(
      [`| ${HEADINGS.join(" | ")} |`, `| ${HEADINGS.map(() => "---").join(" | ")} |`, ...rows].join("\n"),
    );
  }
  return `${parts.join("\n\n")}\n`;
}

const HEADINGS = ["row", "ours", "limit", "to limit", "others", "95 %", "goal"] as const;

function reportSection(report: BenchReport, index: number): string {
  const families = Map.groupBy(report.results, (row) => row.id.split(".")[0] ?? row.id);
  const body = [...families].map(([family, rows]) => familySection(family, rows));
  return `<section id="s${index}">
<h2>${escapeText(report.suite)}</h2>
<p class="machine">${machineText(report.machine).map(escapeText).join("<br>")}</p>
<p>Repeat with <code>bun run bench -- ${escapeText(report.suite)}</code>.</p>
${body.join("\n")}
</section>`;
}

function familySection(family: string, rows: readonly BenchResult[]): string {
  const title = FAMILIES[family] ?? family;
  const bars = rows.filter((row) => row.ratioToLimit !== undefined).map(barOf);
  return `<h3>${escapeText(family)} ${title === family ? "" : escapeText(title)}</h3>
${charts(rows)}
${bars.length > 0 ? `<h4>Ratio to the limit</h4>${ratioBars(`${title}: ratio to the limit`, bars)}` : ""}
<div class="wide"><table><thead><tr>${HEADINGS.map((name) => `<th>${name}</th>`).join("")}</tr></thead><tbody>
${rows
  .map(
    (row) =>
      `<tr${row.met === false ? ' class="short"' : ""}>${cells(row)
        .map((cell) => `<td>${escapeText(cell)}</td>`)
        .join("")}</tr>`,
  )
  .join("\n")}
</tbody></table></div>
${rows.map((row) => (row.note === undefined ? "" : `<p class="note">${escapeText(row.id)}: ${escapeText(row.note)}</p>`)).join("")}`;
}

/** A picture for each group of rows that differ in the size at their end only. */
function charts(rows: readonly BenchResult[]): string {
  const groups = Map.groupBy(
    rows.filter((row) => sizeOf(row.id) !== null),
    (row) => row.id.slice(0, row.id.lastIndexOf(".")),
  );
  return [...groups]
    .filter(([, members]) => members.length > 1)
    .map(([name, members]) => {
      const ordered = members.toSorted((a, b) => (sizeOf(a.id) ?? 0) - (sizeOf(b.id) ?? 0));
      const line = (
        label: string,
        ours: boolean,
        pick: (row: BenchResult) => number | undefined,
      ): Series => ({
        name: label,
        ours,
        points: ordered.flatMap((row) => {
          const value = pick(row);
          return value === undefined || value <= 0 ? [] : [[sizeOf(row.id) ?? 0, value] as const];
        }),
      });
      const others = [...new Set(ordered.flatMap((row) => Object.keys(row.peers)))];
      const series = [
        line("kvferry", true, (row) => row.ours),
        line("limit", false, (row) => row.limit),
        ...others.map((other) => line(other, false, (row) => row.peers[other])),
      ].filter((candidate) => candidate.points.length > 0);
      return `<h4>${escapeText(name)}</h4>${lineChart(name, series, ordered[0]?.unit ?? "", sizeText)}`;
    })
    .join("\n");
}

function barOf(row: BenchResult): Bar {
  const goal = /ratioToLimit >= ([0-9.]+)/.exec(row.goal ?? "")?.[1];
  return {
    label: row.id,
    value: row.ratioToLimit ?? 0,
    ...(row.interval === undefined ? {} : { interval: row.interval }),
    ...(goal === undefined ? {} : { goal: Number(goal) }),
    ...(row.met === undefined ? {} : { met: row.met }),
  };
}

function cells(row: BenchResult): string[] {
  return [
    row.id,
    `${short(row.ours)} ${row.unit}`,
    row.limit === undefined ? "" : short(row.limit),
    row.ratioToLimit === undefined ? "" : short(row.ratioToLimit),
    Object.entries(row.peers)
      .map(([name, value]) => `${name} ${short(value)}`)
      .join(", "),
    row.interval === undefined ? "" : `${short(row.interval[0])} to ${short(row.interval[1])}`,
    row.goal === undefined ? "" : `${goalText(row.goal)}${row.met === false ? " (missed)" : ""}`,
  ];
}

const STYLE = `
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5a6472;--paper:#ffffff;--rule:#d8dde3;--c0:#0b63c5;--c1:#9a5b00;--c2:#1c7c4a;--c3:#8a3fa0;--c4:#b3261e;--c5:#47606e;--good:#0b63c5;--bad:#b0470d}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#a3adb9;--paper:#14171b;--rule:#333a43;--c0:#6cb2ff;--c1:#e6a94e;--c2:#6fcf97;--c3:#d39be6;--c4:#ff8a80;--c5:#9fb6c3;--good:#6cb2ff;--bad:#f0935a}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.35rem;margin:2em 0 .3em;border-top:1px solid var(--rule);padding-top:1em}h3{font-size:1.1rem;margin:1.6em 0 .3em}h4{font-size:.95rem;margin:1em 0 .2em;color:var(--soft);font-weight:600}
.machine,.note,figcaption{color:var(--soft);font-size:.88rem}figure{margin:.4em 0 1em;overflow-x:auto}svg{width:100%;min-width:560px;height:auto;display:block}
text{fill:var(--ink);font:12px system-ui,sans-serif}.tick{fill:var(--soft)}.grid{stroke:var(--rule)}.limit{stroke:var(--soft);stroke-dasharray:3 3}.goal{stroke:var(--ink);stroke-width:2.5}.whisker{stroke:var(--ink);stroke-width:1;opacity:.75}
rect.met{fill:var(--good)}rect.missed{fill:var(--bad)}.series path{fill:none;stroke-width:1.6}.series.ours path{stroke-width:3}
${[0, 1, 2, 3, 4, 5].map((index) => `.s${index} path{stroke:var(--c${index})}.s${index} circle{fill:var(--c${index})}.key.s${index}{color:var(--c${index});font-weight:600;margin-right:.9em;white-space:nowrap}.key.s${index}::before{content:"\\25CF\\00a0"}`).join("")}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;min-width:100%}th,td{text-align:left;padding:4px 8px;border-bottom:1px solid var(--rule);vertical-align:top}td:not(:nth-child(5)):not(:nth-child(7)){white-space:nowrap}tr.short td:last-child{color:var(--bad);font-weight:600}code{font-size:.9em}
@media print{body{font-size:11pt}svg{min-width:0}figure{overflow:visible}section{break-before:page}figure,tr{break-inside:avoid}.wide{overflow:visible}}
`;
