import { FAMILIES } from "./catalogue.ts";
import { distributionChart } from "./distribution.ts";
import type { Distribution } from "./distribution.ts";
import { sizeOf, sizeWords } from "./groups.ts";
import { escapeText, lineChart, ratioBars, short, type Bar, type Series } from "./picture.ts";
import { goalText, SPREAD_AT } from "./result.ts";
import type { BenchResult } from "./result.ts";

/** Rows of one family as pictures, a table and notes. */
export function familySection(family: string, rows: readonly BenchResult[]): string {
  const title = FAMILIES[family] ?? "";
  const bars = rows.filter((row) => row.ratioToLimit !== undefined).map(barOf);
  return `<h3>${escapeText(family)} ${escapeText(title)}</h3>
${charts(rows)}
${distributions(rows)}
${bars.length > 0 ? `<h4>Ratio to the limit</h4>${ratioBars(`${family} ${title}: ratio to the limit`, bars)}` : ""}
${rowTable(rows)}
${notes(rows)}`;
}

/** The name of a row's contender as readers know it. */
export function contenderName(name: string): string {
  return name === "ours" ? "kvferry" : name;
}

/** A goal, and whether the row reached it. */
export function verdict(row: BenchResult): string {
  if (row.goal === undefined) return "";
  const goal = goalText(row.goal)
    .replaceAll("ratioToLimit ", "to limit ")
    .replaceAll("ratioToPeer ", "to other ");
  return `${goal.replaceAll(">=", "\u2265").replaceAll("<=", "\u2264")}${row.met === false ? ", missed" : ""}`;
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
      const series = [
        line("kvferry", true, (row) => row.ours),
        line("limit", false, (row) => row.limit),
        ...peersOf(ordered).map((peer) => line(peer, false, (row) => row.peers[peer])),
      ].filter((candidate) => candidate.points.length > 0);
      const words = sizeWords(ordered.map(({ id }) => id));
      return `<h4>${escapeText(name)}</h4>${lineChart(name, series, ordered[0]?.unit ?? "", words)}`;
    })
    .join("\n");
}

/** How times are spread; of rates the interval says all. Rows without another contender share pictures. */
function distributions(rows: readonly BenchResult[]): string {
  const timed = rows.filter(
    (row) =>
      row.direction === "time" &&
      row.samples >= 10 &&
      // A file of another version may keep other shares.
      row.spread?.["ours"]?.length === SPREAD_AT.length,
  );
  const alone = timed.filter((row) => Object.keys(row.spread ?? {}).length === 1);
  const compared = timed.filter((row) => !alone.includes(row));
  const pictures = [
    ...compared.map((row) =>
      distributionPicture(
        `${row.id}: `,
        Object.entries(row.spread ?? {}).map(([name, values]) => lineOf(contenderName(name), values, name)),
        row.unit,
      ),
    ),
    ...[...Map.groupBy(alone, (row) => row.unit)].flatMap(([unit, members]) =>
      inParts(members, COLOURS).map((part) =>
        distributionPicture(
          "",
          part.map((row) => lineOf(row.id, row.spread?.["ours"] ?? [], "ours")),
          unit,
        ),
      ),
    ),
  ];
  return pictures.join("\n");
}

/** As many lines of one picture can be told apart. */
const COLOURS = 6;

function distributionPicture(start: string, lines: readonly Distribution[], unit: string): string {
  const title = `${start}${start === "" ? "S" : "s"}hare of samples that took no longer`;
  return `<h4>${escapeText(title)}</h4>${distributionChart(title, lines, unit)}`;
}

function lineOf(name: string, values: readonly number[], contender: string): Distribution {
  return { name, ours: contender === "ours", values };
}

function inParts<Item>(items: readonly Item[], most: number): (readonly Item[])[] {
  return Array.from({ length: Math.ceil(items.length / most) }, (_, part) =>
    items.slice(part * most, (part + 1) * most),
  );
}

function rowTable(rows: readonly BenchResult[]): string {
  const peers = peersOf(rows);
  const limits = rows.some((row) => row.limit !== undefined);
  const heads = [
    "row",
    "kvferry",
    ...(limits ? ["limit", "ratio", "95 %"] : []),
    ...peers,
    ...(rows.some((row) => row.goal !== undefined) ? ["goal"] : []),
  ];
  const body = rows.map((row) => {
    const cells = [
      row.id,
      `${short(row.ours)} ${row.unit}`,
      ...(limits
        ? [
            row.limit === undefined ? "" : short(row.limit),
            row.ratioToLimit === undefined ? "" : short(row.ratioToLimit),
            row.interval === undefined || row.ratioToLimit === undefined
              ? ""
              : `${short(row.interval[0])} to ${short(row.interval[1])}`,
          ]
        : []),
      ...peers.map((peer) => (row.peers[peer] === undefined ? "" : short(row.peers[peer]))),
      ...(heads.at(-1) === "goal" ? [verdict(row)] : []),
    ];
    return `<tr${row.met === false ? ' class="short"' : ""}>${cells.map((cell) => `<td>${escapeText(cell)}</td>`).join("")}</tr>`;
  });
  return `<div class="wide"><table><thead><tr>${heads.map((head) => `<th>${escapeText(head)}</th>`).join("")}</tr></thead><tbody>
${body.join("\n")}
</tbody></table></div>`;
}

/** Each note once, with the rows that have it. */
function notes(rows: readonly BenchResult[]): string {
  const groups = Map.groupBy(rows, (row) => row.note ?? "");
  return [...groups]
    .filter(([note]) => note !== "")
    .map(([note, members]) => {
      const ids = groups.size === 1 ? "" : `${members.map(({ id }) => id).join(", ")}: `;
      return `<p class="note">${escapeText(`${ids}${note}`)}</p>`;
    })
    .join("\n");
}

function peersOf(rows: readonly BenchResult[]): string[] {
  return [...new Set(rows.flatMap((row) => Object.keys(row.peers)))];
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
