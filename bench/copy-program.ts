// Copy programs that are written by hand.
import type { CopyProgram } from "../lib/core/program.ts";

/** A program of which only some is said: one row of one base and one pair, in host memory, unless `change` says more. */
export function copyProgram(
  change: Partial<Omit<CopyProgram, "pairs" | "rows" | "bytes">> & { readonly rowBytes: number },
): CopyProgram {
  const said = {
    srcBase: new Float64Array(1),
    dstBase: new Float64Array(1),
    srcOffset: new Float64Array(1),
    dstOffset: new Float64Array(1),
    blocks: null,
    run: null,
    srcRunStride: 0,
    dstRunStride: 0,
    count: [],
    srcStride: [],
    dstStride: [],
    srcMemory: { kind: 0, device: 0 },
    dstMemory: { kind: 0, device: 0 },
    layers: null,
    ...change,
  } as const;
  const pairs = said.srcOffset.length;
  const blocks = said.run === null ? pairs : said.run.reduce((sum, run) => sum + run, 0);
  const rows = said.srcBase.length * blocks * said.count.reduce((product, count) => product * count, 1);
  return { ...said, pairs, rows, bytes: rows * said.rowBytes };
}
