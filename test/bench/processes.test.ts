import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { alternate, inProcesses } from "../../bench/processes.ts";

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

test("contenders take turns, each begins as often as the others, and what warmed up is thrown away", async () => {
  const calls: string[] = [];
  const contender = (name: string) => (): number => calls.push(name);
  const taken = await alternate({ ours: contender("o"), limit: contender("l"), peer: contender("p") }, 6, 2);
  expect(calls).toHaveLength((2 + 6) * 3);
  expect(calls.slice(0, 9).join("")).toBe("olplpopol");
  // Values are the numbers of the calls: none of the first two rounds is among them, and each stands in its own list.
  expect(Object.values(taken).map((list) => list.length)).toEqual([6, 6, 6]);
  expect(
    Object.values(taken)
      .flat()
      .toSorted((a, b) => a - b),
  ).toEqual(Array.from({ length: 18 }, (_, index) => index + 7));
  for (const value of taken["limit"] ?? []) expect(calls[value - 1]).toBe("l");
});

test("without warm-up the first call counts, and asynchronous contenders are awaited", async () => {
  let calls = 0;
  const slow = async (): Promise<number> => {
    await Bun.sleep(1);
    return (calls += 1);
  };
  expect(await alternate({ ours: slow }, 1, 0)).toEqual({ ours: [1] });
  expect(calls).toBe(1);
});
