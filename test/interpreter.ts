// Runs copy programs over bytes of this process, as their definition reads: what every executor must do.
import type { CopyProgram } from "../lib/core/program.ts";

/** A row that a program copies. */
export type RowVisitor = (source: number, destination: number, bytes: number) => void;

/** Visits every contiguous piece of a program, with runs that fold into the row as one piece. */
export function visitRows(program: CopyProgram, visit: RowVisitor): void {
  const { rowBytes, count, srcStride, dstStride, srcRunStride, dstRunStride } = program;
  const folds =
    program.run !== null && count.length === 0 && srcRunStride === rowBytes && dstRunStride === rowBytes;
  const loop = (source: number, destination: number, depth: number): void => {
    if (depth === count.length) {
      visit(source, destination, rowBytes);
      return;
    }
    const steps = count[depth] ?? 0;
    for (let step = 0; step < steps; step++)
      loop(source + step * (srcStride[depth] ?? 0), destination + step * (dstStride[depth] ?? 0), depth + 1);
  };
  for (let base = 0; base < program.srcBase.length; base++) {
    for (let pair = 0; pair < program.pairs; pair++) {
      const source = (program.srcBase[base] ?? Number.NaN) + (program.srcOffset[pair] ?? Number.NaN);
      const destination = (program.dstBase[base] ?? Number.NaN) + (program.dstOffset[pair] ?? Number.NaN);
      const run = program.run === null ? 1 : (program.run[pair] ?? 0);
      if (folds) visit(source, destination, run * rowBytes);
      else
        for (let index = 0; index < run; index++)
          loop(source + index * srcRunStride, destination + index * dstRunStride, 0);
    }
  }
}

/** Copies what a program says inside one array of bytes whose first byte has the address `origin`. */
export function interpret(program: CopyProgram, memory: Uint8Array, origin: number): void {
  visitRows(program, (source, destination, bytes) => {
    memory.copyWithin(destination - origin, source - origin, source - origin + bytes);
  });
}
