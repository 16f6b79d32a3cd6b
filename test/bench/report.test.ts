import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CATALOGUE, FAMILIES } from "../../bench/catalogue.ts";
import { compareReports, comparisonText } from "../../bench/compare.ts";
import { machineFacts } from "../../bench/machine.ts";
import { MITATA_FORMATS, printWithMitata } from "../../bench/mitata-output.ts";
import { recordedReports } from "../../bench/readme.ts";
import { reportMarkdown, reportPage } from "../../bench/report-page.ts";
import { summarize } from "../../bench/result.ts";
import type { BenchReport, BenchResult, RowSpec } from "../../bench/result.ts";

const ROOT = join(import.meta.dirname, "../..");
const MACHINE = machineFacts();

/** A report as a suite makes it, of samples around these values: 3 processes of 20. */
function reportOf(
  rows: readonly (RowSpec & { readonly ours: number; readonly limit?: number })[],
): BenchReport {
  const around = (value: number, shift: number): number[] =>
    Array.from({ length: 20 }, (_, index) => value * (0.95 + 0.005 * ((index + shift) % 20)));
  const results = rows.map(({ ours, limit, ...spec }): BenchResult => {
    // Processes differ, as they do.
    const sets = [0.97, 1, 1.03].map((mood) => ({
      ours: around(ours * mood, 0),
      ...(limit === undefined ? {} : { limit: around(limit, 7) }),
    }));
    return summarize(spec, sets);
  });
  return { suite: "test", machine: MACHINE, results };
}

const rate = (id: string): RowSpec => ({ id, unit: "GB/s", direction: "rate" });
const time = (id: string): RowSpec => ({ id, unit: "ms", direction: "time" });

describe("the catalogue", () => {
  test("has each row once, families that are named, and suites that are there", () => {
    expect(new Set(CATALOGUE.map(({ id }) => id)).size).toBe(CATALOGUE.length);
    expect([...new Set(CATALOGUE.map(({ id }) => id.split(".")[0] ?? ""))]).toEqual(Object.keys(FAMILIES));
    for (const { suite } of CATALOGUE) expect(existsSync(join(ROOT, "bench", `${suite}.ts`))).toBe(true);
  });
});

describe("the report page", () => {
  const recorded = recordedReports(join(ROOT, "bench/results"));

  test("names every row of the catalogue, those without a figure as not measured", () => {
    const page = reportPage(recorded);
    const [shown = "", missing = ""] = page.split('<section id="missing">');
    const measured = new Set(recorded.flatMap(({ results }) => results.map(({ id }) => id)));
    for (const { id } of CATALOGUE) {
      const place = measured.has(id) ? shown : missing;
      expect(place).toContain(measured.has(id) ? `<td>${id}</td>` : `<code>${id}</code>`);
    }
    for (const { id } of CATALOGUE) expect(reportMarkdown(recorded)).toContain(id);
  });

  test("says that nothing was measured when nothing was", () => {
    const page = reportPage([]);
    expect(page.match(/not measured yet/g)).toHaveLength(Object.keys(FAMILIES).length);
    for (const { id } of CATALOGUE) expect(page).toContain(`<code>${id}</code>`);
  });

  test("stands alone: no script, nothing that is loaded from elsewhere", () => {
    const page = reportPage(recorded);
    expect(page).not.toMatch(/<script|<link|<img|@import|url\(|src=|https?:/);
    expect(page).toContain("prefers-color-scheme:dark");
    expect(page).toContain("@media print");
  });

  test("draws how times are spread, each contender with its half and its tail", () => {
    const page = reportPage([reportOf([{ ...time("F10.plan"), ours: 2, limit: 1 }])]);
    expect(page).toContain("F10.plan: share of samples that took no longer");
    expect(page).toContain("kvferry: half within 1.99, 99 % within ");
    expect(page).toContain("limit: half within 0.998, 99 % within 1.04 ms");
  });

  test("what a result file says is text on the page, never markup", () => {
    const row = { ...time("F10.plan"), note: "<script>alert(1)</script>" };
    const page = reportPage([reportOf([{ ...row, ours: 2 }])]);
    expect(page).not.toContain("<script>");
    expect(page).toContain("&lt;script&gt;");
  });
});

describe("the comparison of two reports", () => {
  test("tells what changed beyond noise, which way, and what did not", () => {
    const before = reportOf([
      { ...rate("a.slower"), ours: 40, limit: 50 },
      { ...rate("b.same"), ours: 40, limit: 50 },
      { ...rate("c.faster"), ours: 25, limit: 50 },
      { ...time("d.time"), ours: 10 },
      { ...time("e.gone"), ours: 10 },
    ]);
    const after = reportOf([
      { ...rate("a.slower"), ours: 30, limit: 50 },
      { ...rate("b.same"), ours: 40.1, limit: 50 },
      { ...rate("c.faster"), ours: 45, limit: 50 },
      { ...time("d.time"), ours: 5 },
      { ...time("f.new"), ours: 10 },
    ]);
    const changes = compareReports(before, after);
    expect(changes.map(({ id, certainty, figure }) => [id, certainty, figure])).toEqual([
      ["a.slower", "worse", "ratio to limit"],
      ["b.same", "within noise", "ratio to limit"],
      ["c.faster", "better", "ratio to limit"],
      ["d.time", "better", "kvferry"],
    ]);
    // A time that halved is twice as good.
    expect(changes[3]?.factor).toBeCloseTo(2, 5);
    expect(comparisonText(before, after)).toContain("3 of 4 rows changed beyond noise.");
  });

  test("a machine that got slower as a whole is no change of ratios", () => {
    const before = reportOf([{ ...rate("a"), ours: 40, limit: 50 }]);
    const after = reportOf([{ ...rate("a"), ours: 20, limit: 25 }]);
    expect(compareReports(before, after)[0]).toMatchObject({ certainty: "within noise" });
  });

  test("a file that keeps neither interval nor spread is not called equal", () => {
    const strip = (report: BenchReport): BenchReport => ({
      ...report,
      results: report.results.map(({ spread: _spread, interval: _interval, ...row }) => row),
    });
    const [before, after] = [10, 50].map((ours) => strip(reportOf([{ ...time("a"), ours }])));
    if (before === undefined || after === undefined) throw new Error("two reports");
    expect(compareReports(before, after)[0]).toMatchObject({ certainty: "cannot be told" });
  });
});

test("results print in mitata's formats, with the samples that were taken", async () => {
  const { results } = reportOf([
    { ...time("F10.plan"), ours: 2, limit: 1 },
    { ...rate("F9.host.4k"), ours: 10 },
  ]);
  const printed = new Map<string, string>();
  for (const format of MITATA_FORMATS) {
    const lines: string[] = [];
    await printWithMitata(results, format, (line) => void lines.push(line));
    printed.set(format, lines.join("\n"));
  }
  const { benchmarks } = JSON.parse(printed.get("json") ?? "") as {
    benchmarks: { alias: string; runs: { stats: { samples: number[]; p50: number } }[] }[];
  };
  const [ours, limit, host] = benchmarks.map(({ alias, runs }) => [alias, runs[0]?.stats] as const);
  expect([ours?.[0], limit?.[0], host?.[0]]).toEqual(["kvferry", "limit", "kvferry"]);
  expect(ours?.[1]?.samples).toHaveLength(60);
  expect(ours?.[1]?.p50).toBeCloseTo(1.99e6, -5);
  // 10 GB/s: a GB takes a tenth of a second.
  expect(host?.[1]?.p50).toBeCloseTo(1e8, -6);
  expect(printed.get("markdown")).toContain("| kvferry |");
  expect(printed.get("mitata")).toContain("F9.host.4k, time for 1 GB");
}, 60_000);
