// Run by `bun run check:full`: the report page and the picture of the README as a browser draws them.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { recordedReports } from "../../bench/readme.ts";
import { reportPage } from "../../bench/report-page.ts";
import { summarize } from "../../bench/result.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import { ROOT } from "./packed.ts";

const BROWSER = ["chromium", "chromium-browser", "google-chrome"].find((name) => Bun.which(name) !== null);
const REPORTS = recordedReports(join(ROOT, "bench/results"));

/** The source of `look`, which runs inside the page. */
const LOOK = readFileSync(join(import.meta.dirname, "look.js"), "utf8").replace(
  "export function",
  "function",
);

const folder = mkdtempSync(join(tmpdir(), "kvferry-page-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Widths of a phone and of a desktop, CSS pixels. */
const WIDTHS = [360, 1280] as const;

/** What a browser says of a page at one width. */
interface Look {
  readonly width: number;
  readonly scrollWidth: number;
  readonly figures: number;
  /** Figures without an extent. */
  readonly empty: number;
  /** Texts of pictures that stick out of their picture. */
  readonly cut: readonly string[];
  /** Texts of pictures that are drawn smaller than 9 CSS pixels. */
  readonly small: number;
  /** Texts whose contrast with what is behind them is below 4.5, with the contrast. */
  readonly faint: readonly string[];
  readonly background: string;
}

/** Looks at a page at each width, in a theme. */
async function looks(page: string, theme: "dark" | "light"): Promise<readonly Look[]> {
  const frames = WIDTHS.map(
    (width) =>
      `<iframe width="${width}" height="900" style="border:0" srcdoc="${page.replaceAll("&", "&amp;").replaceAll('"', "&quot;")}"></iframe>`,
  );
  const script = `${LOOK}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => look(frame.contentWindow));
  document.body.replaceChildren(JSON.stringify(found).replaceAll("<", " "));
  document.title = "looked";
});`;
  const file = join(folder, `${theme}.html`);
  writeFileSync(
    file,
    `<!doctype html><meta charset="utf-8"><body>${frames.join("")}<script>${script}</script></body>`,
  );
  const { code, out, words } = await runCommand(
    [
      BROWSER ?? "",
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      `--user-data-dir=${join(folder, `profile-${theme}`)}`,
      "--window-size=1400,1000",
      `--blink-settings=preferredColorScheme=${theme === "dark" ? 0 : 1}`,
      "--dump-dom",
      `file://${file}`,
    ],
    {},
    120_000,
  );
  const json = /<body[^>]*>(\[[^]*\])\s*<\/body>/.exec(out)?.[1];
  if (code !== 0 || json === undefined)
    throw new Error(`the browser ended with ${code}: ${words}${out.slice(0, 2_000)}`);
  return JSON.parse(json.replaceAll("&amp;", "&").replaceAll("&gt;", ">")) as Look[];
}

if (BROWSER === undefined || REPORTS.length === 0) {
  const why = BROWSER === undefined ? "no Chromium: apt-get install chromium" : "no results are recorded";
  test.skip(`NOT RUN: the report page in a browser (${why})`, () => undefined);
} else {
  // Recorded files may be older than the pictures of how times are spread: a row with one is among them.
  const timed = summarize(
    { id: "F13.start-nixl", unit: "ms", direction: "time", note: "made up for this check" },
    [1, 1.1, 1.3].map((mood) => ({
      ours: Array.from({ length: 20 }, (_, index) => mood * (10 + index)),
      limit: Array.from({ length: 20 }, (_, index) => mood * (9 + index / 2)),
    })),
  );
  const [first] = REPORTS;
  const page = reportPage([...REPORTS, ...(first === undefined ? [] : [{ ...first, results: [timed] }])]);
  describe("the report page in a browser", () => {
    for (const theme of ["light", "dark"] as const)
      test(`${theme}: nothing is wider than the window, no figure is missing or cut, all text can be read`, async () => {
        const found = await looks(page, theme);
        expect(found.map(({ width }) => width)).toEqual([...WIDTHS]);
        for (const { width, scrollWidth, figures, empty, cut, small, faint, background } of found) {
          expect({ width, over: Math.max(0, scrollWidth - width), empty, cut, small, faint }).toEqual({
            width,
            over: 0,
            empty: 0,
            cut: [],
            small: 0,
            faint: [],
          });
          expect(figures).toBe(page.match(/<figure>/g)?.length ?? 0);
          expect(figures).toBeGreaterThan(0);
          expect(background).toBe(theme === "dark" ? "rgb(20, 23, 27)" : "rgb(255, 255, 255)");
        }
      }, 180_000);

    test("a page that is too wide is told", async () => {
      const wide = page.replace(
        "<h1>",
        '<div style="width:2000px">wide</div><p style="color:#eeeeee">faint</p><h1>',
      );
      const [phone] = await looks(wide, "light");
      expect(phone?.scrollWidth).toBeGreaterThan(1_999);
      expect(phone?.faint.join()).toContain("faint");
    }, 180_000);
  });

  test("the README's picture is drawn by itself", async () => {
    const picture = readFileSync(join(ROOT, "docs/figures.svg"), "utf8");
    const shot = join(folder, "picture.png");
    const { code } = await runCommand(
      [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        `--user-data-dir=${join(folder, "profile")}`,
        `--screenshot=${shot}`,
        "--window-size=760,1420",
        `file://${ROOT}/docs/figures.svg`,
      ],
      {},
      120_000,
    );
    expect(code).toBe(0);
    expect(picture).toStartWith('<svg xmlns="http://www.w3.org/2000/svg"');
    // A picture of an error page would be a few kilobytes.
    expect(Bun.file(shot).size).toBeGreaterThan(20_000);
  }, 180_000);
}
