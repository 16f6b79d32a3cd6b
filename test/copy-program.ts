// Copy programs that tests write by hand.
import { copyProgram } from "../bench/copy-program.ts";
import type { CopyProgram } from "../lib/core/program.ts";

export { copyProgram };

/** One run of bytes from one address or offset to another. */
export function oneRun(
  source: number,
  destination: number,
  bytes: number,
  change: Partial<Pick<CopyProgram, "srcMemory" | "dstMemory" | "layers">> = {},
): CopyProgram {
  return copyProgram({
    srcBase: Float64Array.of(source),
    dstBase: Float64Array.of(destination),
    rowBytes: bytes,
    ...change,
  });
}
