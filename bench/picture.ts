// Pictures as inline SVG: colours come from the page's style sheet, so that one picture serves both themes and paper.

/** One line of a chart. */
export interface Series {
  readonly name: string;
  /** Ours is drawn thick. */
  readonly ours: boolean;
  /** In x order; both numbers are positive. */
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** One row of a bar picture. */
export interface Bar {
  readonly label: string;
  readonly value: number;
  readonly interval?: readonly [number, number];
  /** Where the goal lies, on the same scale. */
  readonly goal?: number;
  readonly met?: boolean;
}

/** Extent of pictures and their margins, in units of the picture. */
export const WIDTH = 720;
export const LEFT = 64;
export const RIGHT = 16;
/** Half of the widest word under the x axis: the last one ends with the axis. */
const TICK_ROOM = 24;
export const TOP = 16;

/**
 * Lines over logarithmic axes.
 *
 * @param tick - Writes a value of the x axis, e.g. `64 KiB`.
 */
export function lineChart(
  title: string,
  series: readonly Series[],
  unit: string,
  tick: (x: number) => string,
): string {
  const points = series.flatMap((line) => line.points);
  if (points.length === 0) return "";
  const height = 300;
  const bottom = 40;
  const xs = [...new Set(points.map(([x]) => x))].toSorted((a, b) => a - b);
  const x = logScale(Math.min(...xs), Math.max(...xs), LEFT + 12, WIDTH - RIGHT - 12);
  const [low, high] = padded(points.map(([, y]) => y));
  const y = logScale(low, high, height - bottom, TOP);
  const parts = [
    ...logTicks(low, high).map(
      (value) =>
        `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(value)}" y2="${y(value)}"/><text class="tick" x="${LEFT - 8}" y="${y(value) + 4}" text-anchor="end">${short(value)}</text>`,
    ),
    ...xs.map(
      (value) =>
        `<text class="tick" x="${x(value)}" y="${height - bottom + 18}" text-anchor="${x(value) > WIDTH - RIGHT - TICK_ROOM ? "end" : "middle"}">${escapeText(tick(value))}</text>`,
    ),
    ...series.map((line, index) => {
      const path = line.points.map(([px, py], at) => `${at === 0 ? "M" : "L"}${x(px)} ${y(py)}`).join("");
      const dots = line.points
        .map(([px, py]) => `<circle cx="${x(px)}" cy="${y(py)}" r="${line.ours ? 4 : 3}"/>`)
        .join("");
      return `<g class="series s${index % 6}${line.ours ? " ours" : ""}"><path d="${path}"/>${dots}</g>`;
    }),
    `<text class="tick" x="4" y="${TOP - 4}">${escapeText(unit)}</text>`,
  ];
  const legend = series
    .map((line, index) => `<span class="key s${index % 6}">${escapeText(line.name)}</span>`)
    .join(" ");
  return `<figure><svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeText(title)}">${parts.join("")}</svg><figcaption>${legend}</figcaption></figure>`;
}

/** Bars of ratios around 1: the limit is the line at 1, a goal is a mark, an interval is a whisker. */
export function ratioBars(title: string, bars: readonly Bar[]): string {
  if (bars.length === 0) return "";
  const left = 230;
  const step = 26;
  const height = TOP + bars.length * step + 28;
  const most =
    Math.max(
      1.1,
      ...bars.flatMap((bar) => [bar.value, bar.goal ?? 0, Math.min(bar.interval?.[1] ?? 0, bar.value * 1.5)]),
    ) * 1.02;
  const x = (value: number): number => round(left + (Math.min(value, most) / most) * (WIDTH - left - 70));
  const rows = bars.map((bar, index) => {
    const at = TOP + index * step;
    const whisker =
      bar.interval === undefined
        ? ""
        : `<line class="whisker" x1="${x(bar.interval[0])}" x2="${x(bar.interval[1])}" y1="${at + 9}" y2="${at + 9}"/>`;
    const goal =
      bar.goal === undefined
        ? ""
        : `<line class="goal" x1="${x(bar.goal)}" x2="${x(bar.goal)}" y1="${at - 1}" y2="${at + 19}"/>`;
    return `<text class="label" x="${left - 8}" y="${at + 13}" text-anchor="end">${escapeText(bar.label)}</text><rect class="${bar.met === false ? "missed" : "met"}" x="${left}" y="${at}" width="${Math.max(1, x(bar.value) - left)}" height="18" rx="2"/>${whisker}${goal}<text class="value" x="${WIDTH - 8}" y="${at + 13}" text-anchor="end">${short(bar.value)}</text>`;
  });
  const one = `<line class="limit" x1="${x(1)}" x2="${x(1)}" y1="${TOP - 6}" y2="${height - 22}"/><text class="tick" x="${x(1)}" y="${height - 8}" text-anchor="middle">1 = the limit</text>`;
  return `<figure><svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeText(title)}">${one}${rows.join("")}</svg></figure>`;
}

/** Text as it may stand in HTML. */
export function escapeText(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** Three significant digits at most. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en-US")
    : Number(value.toPrecision(3)).toString();
}

/** Places positive values on a logarithmic axis between two places of a picture. */
export function logScale(low: number, high: number, from: number, to: number): (value: number) => number {
  const span = Math.log(high) - Math.log(low);
  return (value) =>
    round(span === 0 ? (from + to) / 2 : from + ((Math.log(value) - Math.log(low)) / span) * (to - from));
}

function padded(values: readonly number[]): [number, number] {
  const low = Math.min(...values);
  const high = Math.max(...values);
  return high / low < 1.5 ? [low / 1.5, high * 1.5] : [low / 1.1, high * 1.1];
}

/** 1, 2 and 5 of each decade. */
export function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
    for (const digit of [1, 2, 5]) {
      const value = digit * 10 ** decade;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return ticks;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
