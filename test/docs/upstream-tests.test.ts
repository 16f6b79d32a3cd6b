import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..", "..");

interface Row {
  readonly upstream: string;
  readonly file: string | null;
  readonly test: string;
  readonly remark: string;
}

function rows(): Row[] {
  const lines = readFileSync(join(ROOT, "docs", "upstream-tests.md"), "utf8").split("\n");
  return lines
    .map((line) => line.split("|").map((cell) => cell.trim()))
    .filter((cells) => cells.length === 6 && cells[1] !== "upstream" && !/^-+$/.test(cells[1] ?? ""))
    .map((cells) => {
      const here = /^`([^`]+)`(?:: (.*))?$/.exec(cells[2] ?? "");
      return {
        upstream: cells[1] ?? "",
        file: here?.[1] ?? null,
        test: here?.[2] ?? "",
        remark: cells[4] ?? "",
      };
    });
}

test("the table of upstream's tests names tests that exist, and gives a reason where there is none", () => {
  const found = rows();
  expect(found.length).toBeGreaterThan(60);
  const wrong = found.filter(({ file, test: name, remark }) => {
    if (file === null) return remark === "";
    const path = join(ROOT, file);
    return !existsSync(path) || !readFileSync(path, "utf8").includes(name);
  });
  expect(wrong).toEqual([]);
});
