// What ncu prints is read whatever stands around it, and each launch is counted to the move of blocks that made it.
import { describe, expect, test } from "bun:test";
import { figuresOfMoves, readFigures } from "./ncu-output.ts";
import type { Move } from "./ncu-output.ts";

const LONG = [
  "==PROF== Connected to process 12",
  '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"',
  '"0","12","bun","h","kvf_sleep","1","13","(1, 1, 1)","(1, 1, 1)","0","9.0","s","gpu__time_duration.sum","ns","2,048"',
  '"1","12","bun","h","kvf_pieces_16(kvf_kernel_program, ""x"")","1","14","(128, 1, 1)","(3, 1, 1)","0","9.0","s","gpu__time_duration.sum","ns","3,000"',
  '"2","12","bun","h","kvf_rows_16x4","1","14","(512, 1, 1)","(2,112, 1, 1)","0","9.0","s","gpu__time_duration.sum","ns","1,234,567.25"',
  '"2","12","bun","h","kvf_rows_16x4","1","14","(512, 1, 1)","(2,112, 1, 1)","0","9.0","s","dram__bytes_read.sum","byte","n/a"',
  '"10","12","bun","h","plain","1","14","(512, 1, 1)","(528, 1, 1)","0","9.0","s","gpu__time_duration.sum","ns","7"',
  '"9","12","bun","h","kvf_sleep","1","13","(1, 1, 1)","(1, 1, 1)","0","9.0","s","gpu__time_duration.sum","ns","2,048"',
  "==PROF== Disconnected from process 12",
].join("\n");

const WIDE = [
  '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","gpu__time_duration.sum","launch__registers_per_thread"',
  '"","","","","","","","","","","","ns","register/thread"',
  '"4","12","bun","h","kvf_rows_n","1","14","(512, 1, 1)","(8, 1, 1)","0","9.0","1,500","40"',
].join("\r\n");

const move = (name: string): Move => ({ name, round: 0, bytes: 64, method: "cuda/kernel", width: 4 });

describe("ncu's CSV", () => {
  test("a row for each figure: commas, quotes, other lines, and values that are none", () => {
    const figures = readFigures(LONG);
    expect(figures.map(({ launch, value }) => [launch, value])).toEqual([
      [0, 2048],
      [1, 3000],
      [2, 1234567.25],
      [10, 7],
      [9, 2048],
    ]);
    expect(figures[1]?.kernel).toBe('kvf_pieces_16(kvf_kernel_program, "x")');
    expect(figures[2]).toMatchObject({ grid: "(2,112, 1, 1)", metric: "gpu__time_duration.sum", unit: "ns" });
  });

  test("a row for each launch, its units in the first", () => {
    const launch = { launch: 4, kernel: "kvf_rows_n", grid: "(8, 1, 1)", block: "(512, 1, 1)" };
    expect(readFigures(WIDE)).toEqual([
      { ...launch, metric: "gpu__time_duration.sum", unit: "ns", value: 1500 },
      { ...launch, metric: "launch__registers_per_thread", unit: "register/thread", value: 40 },
    ]);
  });

  test("no table at all gives no figures", () => {
    expect(readFigures("==ERROR== no permission\n")).toEqual([]);
  });

  test("launches belong to the mark before them by their number, not by where their line stands", () => {
    const found = figuresOfMoves(readFigures(LONG), [move("first"), move("second")]);
    expect(found.map(({ name, launch, kernel }) => [name, launch, kernel])).toEqual([
      ["first", 0, 'kvf_pieces_16(kvf_kernel_program, "x")'],
      ["first", 1, "kvf_rows_16x4"],
      ["second", 0, "plain"],
    ]);
  });

  test("a mark too few is an error, not a wrong name", () => {
    expect(() => figuresOfMoves(readFigures(LONG), [move("only")])).toThrow("2 marks were seen for 1 moves");
  });
});
