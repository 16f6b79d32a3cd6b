import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inProcesses } from "../../bench/processes.ts";

let folder = "";
let module = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvferry-bench-"));
  module = join(folder, "work.ts");
  writeFileSync(
    module,
    `export function own({ add }: { add: number }): { pid: number; sum: number } { return { pid: process.pid, sum: add + 1 }; }
     export function bad(): never { throw new Error("on purpose"); }
     export function dies(): never { process.kill(process.pid, "SIGKILL"); throw new Error("unreachable"); }`,
  );
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("each sample set comes from a process of its own", async () => {
  const results = await inProcesses<{ pid: number; sum: number }>(module, "own", { add: 41 }, 3);
  expect(results.map((result) => result.sum)).toEqual([42, 42, 42]);
  expect(new Set([process.pid, ...results.map((result) => result.pid)]).size).toBe(4);
});

test("a process that throws or dies fails the row instead of leaving it out", async () => {
  await expect(inProcesses(module, "bad", null, 2)).rejects.toThrow("on purpose");
  await expect(inProcesses(module, "dies", null, 2)).rejects.toThrow("SIGKILL");
  await expect(inProcesses(module, "absent", null, 2)).rejects.toThrow("exports no function absent");
});
