import { escapeText, LEFT, logScale, logTicks, RIGHT, short, TOP, WIDTH } from "./picture.ts";
import { SPREAD_AT } from "./result.ts";

/** How the samples of one contender are spread. */
export interface Distribution {
  readonly name: string;
  readonly ours: boolean;
  /** Values at `SPREAD_AT`, positive. */
  readonly values: readonly number[];
}

const HEIGHT = 190;
const BOTTOM = 40;

/** Shares of samples against their value, cumulative, over a logarithmic axis: how often a time is reached, and its tail. */
export function distributionChart(title: string, lines: readonly Distribution[], unit: string): string {
  const values = lines.flatMap((line) => line.values).filter((value) => value > 0);
  if (values.length === 0) return "";
  const [low, high] = bounds(values);
  const x = logScale(low, high, LEFT, WIDTH - RIGHT);
  const y = (share: number): number =>
    Math.round((HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)) * 10) / 10;
  const parts = [
    ...[0, 0.25, 0.5, 0.75, 1].map(
      (share) =>
        `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(share)}" y2="${y(share)}"/><text class="tick" x="${LEFT - 8}" y="${y(share) + 4}" text-anchor="end">${share * 100} %</text>`,
    ),
    ...thinned(logTicks(low, high), x).map(
      (value, index, all) =>
        `<line class="grid" x1="${x(value)}" x2="${x(value)}" y1="${TOP}" y2="${HEIGHT - BOTTOM}"/><text class="tick" x="${x(value)}" y="${HEIGHT - BOTTOM + 18}" text-anchor="${index === all.length - 1 ? "end" : "middle"}">${short(value)}${index === all.length - 1 ? ` ${escapeText(unit)}` : ""}</text>`,
    ),
    ...lines.map((line, index) => {
      const path = line.values
        .map((value, at) => `${at === 0 ? "M" : "L"}${x(Math.max(value, low))} ${y(SPREAD_AT[at] ?? 1)}`)
        .join("");
      return `<g class="series s${index % 6}${line.ours ? " ours" : ""}"><path d="${path}"/></g>`;
    }),
  ];
  const legend = lines
    .map((line, index) => {
      const at = (share: number): string => short(line.values[SPREAD_AT.indexOf(share)] ?? Number.NaN);
      return `<span class="key s${index % 6}">${escapeText(line.name)}: half within ${at(0.5)}, 99 % within ${at(0.99)} ${escapeText(unit)}</span>`;
    })
    .join(" ");
  return `<figure><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeText(title)}">${parts.join("")}</svg><figcaption>${legend}</figcaption></figure>`;
}

/** From a number of the axis to a number of the axis, so that both ends can be read. */
function bounds(values: readonly number[]): [low: number, high: number] {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const ticks = logTicks(least / 10, most * 10);
  const low = ticks.findLast((tick) => tick <= least) ?? least;
  const high = ticks.find((tick) => tick >= most && tick > low) ?? most;
  return [low, high];
}

/** Ticks far enough apart for their numbers; the last one stays. */
function thinned(ticks: readonly number[], x: (value: number) => number): number[] {
  const kept: number[] = [];
  for (const tick of ticks.toReversed()) {
    const right = kept.at(-1);
    if (right === undefined || x(right) - x(tick) >= (kept.length === 1 ? 70 : 44)) kept.push(tick);
  }
  return kept.toReversed();
}
