import { expect, test } from "bun:test";
import { barLine, barOn } from "../../lib/cli/bar.ts";

test("a bar says how far the work is and never wraps", () => {
  expect(barLine("moving", 0, 8, 30)).toBe("moving [---------------]   0 %");
  expect(barLine("moving", 5, 8, 30)).toBe("moving [#########------]  62 %");
  expect(barLine("moving", 8, 8, 30)).toBe("moving [###############] 100 %");
  expect(barLine("moving", 0, 0, 30)).toContain("100 %");
  for (const columns of [1, 8, 20, 30, 80, 300])
    for (const done of [0, 1, 99, 100])
      expect(barLine("a label", done, 100, columns).length).toBeLessThanOrEqual(columns);
});

test("a bar is drawn on terminals only, goes away for other lines and at the end", () => {
  const written: string[] = [];
  const write = (text: string): unknown => written.push(text);
  const silent = barOn({ write });
  silent.update("x", 1, 4);
  silent.clear();
  expect(written).toEqual([]);
  const bar = barOn({ isTTY: true, columns: 30, write });
  bar.update("x", 1, 4);
  // The same line is not written twice.
  bar.update("x", 1, 4);
  bar.update("x", 2, 4);
  bar.clear();
  bar.clear();
  bar.update("x", 3, 4);
  bar.update("x", 4, 4);
  const [first = "", second = "", cleared, third = "", ended, ...more] = written;
  expect([first, third].every((line) => line.startsWith("x ["))).toBe(true);
  expect(second.startsWith("\r\u001b[2Kx [")).toBe(true);
  expect([cleared, ended]).toEqual(["\r\u001b[2K", "\r\u001b[2K"]);
  expect(more).toEqual([]);
});
