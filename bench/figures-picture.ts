// The picture of the README: rates of rows that differ in chunk size, against the limit, as a file of its own.
import { rowGroups, sizeOf, sizeText } from "./groups.ts";
import type { RowGroup } from "./groups.ts";
import { escapeText, lineChart } from "./picture.ts";
import type { BenchReport } from "./result.ts";

const STYLE = `text{fill:#1b1f24;font:12px system-ui,sans-serif}.tick{fill:#5a6472}.grid{stroke:#d8dde3}.series path{fill:none;stroke-width:1.6}.series.ours path{stroke-width:3}.title{font-weight:600}
${["#0b63c5", "#9a5b00", "#1c7c4a", "#8a3fa0", "#b3261e", "#47606e"].map((colour, index) => `.s${index} path{stroke:${colour}}.s${index} circle,text.s${index}{fill:${colour}}`).join("")}`;

const WIDTH = 720;
const CHART = 300;
const ROW = 20;

/** At most this many charts; the rest is on the report's page. */
const MOST = 4;

/** An SVG file, or nothing where no rows differ in size only. It has a paper of its own, whatever the page's. */
export function figuresPicture(reports: readonly BenchReport[]): string {
  const groups = reports
    .flatMap((report) => rowGroups(report.results))
    .filter(({ rows }) => rows.length > 2 && rows[0]?.direction === "rate")
    .slice(0, MOST);
  if (groups.length === 0) return "";
  let top = 0;
  const parts = groups.map((group) => {
    const { markup, height } = chart(group, top);
    top += height;
    return markup;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${top}" width="${WIDTH}" height="${top}"><style>${STYLE}</style><rect width="${WIDTH}" height="${top}" fill="#ffffff"/>${parts.join("")}</svg>\n`;
}

function chart({ name, rows }: RowGroup, top: number): { readonly markup: string; readonly height: number } {
  const others = [...new Set(rows.flatMap((row) => Object.keys(row.peers)))];
  const named = ["kvferry", "limit", ...others];
  const series = named
    .map((label, at) => ({
      name: label,
      ours: at === 0,
      points: rows.flatMap((row) => {
        const value = at === 0 ? row.ours : at === 1 ? row.limit : row.peers[label];
        return value === undefined || value <= 0 ? [] : [[sizeOf(row.id) ?? 0, value] as const];
      }),
    }))
    .filter(({ points }) => points.length > 0);
  const drawn =
    /<svg[^>]*>([^]*)<\/svg>/.exec(lineChart(name, series, rows[0]?.unit ?? "", sizeText))?.[1] ?? "";
  let x = 64;
  const legend = series.map(({ name: label }, at) => {
    const text = `<text class="s${at % 6}" x="${x}" y="${ROW * 2 - 4}">\u25CF ${escapeText(label)}</text>`;
    x += 28 + label.length * 7;
    return text;
  });
  const title = `<text class="title" x="64" y="${ROW - 4}">${escapeText(name)}</text>`;
  return {
    markup: `<g transform="translate(0 ${top})">${title}${legend.join("")}<g transform="translate(0 ${ROW * 2})">${drawn}</g></g>`,
    height: CHART + ROW * 2 + 8,
  };
}
