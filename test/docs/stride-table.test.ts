import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { arrangementView } from "../../lib/core/arrangement-view.ts";
import type { EnginePreset } from "../../lib/core/arrangement.ts";
import { ENGINE_AXES } from "../../lib/core/axes.ts";
import { resolveConfig } from "../../lib/core/config-resolve.ts";

const PAGE = join(import.meta.dir, "..", "..", "docs", "how-to", "engine-memory.md");

/** Rows of the table, each with the six cells after the preset's name. */
function rows(): Map<string, readonly string[]> {
  const found = new Map<string, readonly string[]>();
  for (const line of readFileSync(PAGE, "utf8").split("\n")) {
    const cells = line.split("|").map((cell) => cell.trim());
    const name = /^`([A-Z]+)`$/.exec(cells[1] ?? "")?.[1];
    if (name !== undefined && cells.length === 9) found.set(name, cells.slice(2, 8));
  }
  return found;
}

test("the page's stride table is what each preset does, for sizes that tell all letters apart", () => {
  const table = rows();
  expect([...table.keys()].toSorted()).toEqual(Object.keys(ENGINE_AXES).toSorted());
  for (const [preset, [regions, ...strides]] of table) {
    const mla = preset === "MLA";
    const config = resolveConfig(
      {
        numBlocks: 5,
        numLayers: 3,
        outerDim: mla ? 1 : 2,
        pageSize: 11,
        numHeads: mla ? 1 : 7,
        headDim: 13,
        dtype: "bf16",
      },
      "register",
    );
    const row = 26;
    const size: Record<string, number> = {
      B: 5,
      L: 3,
      N: 11,
      H: config.numHeads,
      O: config.outerDim,
      C: config.outerDim * row,
      row,
    };
    const meant = strides.map((cell) =>
      cell === "-"
        ? 0
        : cell.split(" ").reduce((product, letter) => product * (size[letter] ?? Number.NaN), 1),
    );
    const view = arrangementView(config, preset as EnginePreset);
    const found = [view.strideBlock, view.strideLayer, view.strideHead, view.stridePage, view.strideOuter];
    expect([preset, regions, ...found]).toEqual([
      preset,
      view.regionCount === 1 ? "one" : "per layer",
      ...meant,
    ]);
  }
});
