import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { withLock } from "../../lib/cli/lock.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvferry-lock-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("several processes never hold a lock together", async () => {
  // Each reads a counter, waits, and writes it back: together they would lose counts.
  writeFileSync(join(folder, "count"), "0");
  writeFileSync(
    join(folder, "worker.ts"),
    `import { withLock } from ${JSON.stringify(join(import.meta.dirname, "../../lib/cli/lock.ts"))};
     import { readFileSync, writeFileSync } from "node:fs";
     const file = ${JSON.stringify(join(folder, "count"))};
     for (let round = 0; round < 5; round += 1)
       await withLock(${JSON.stringify(join(folder, "lock"))}, async () => {
         const count = Number(readFileSync(file, "utf8"));
         await Bun.sleep(2);
         writeFileSync(file, String(count + 1));
       });`,
  );
  const workers = Array.from({ length: 3 }, () => Bun.spawn([process.execPath, join(folder, "worker.ts")]));
  expect(await Promise.all(workers.map((worker) => worker.exited))).toEqual([0, 0, 0]);
  expect(readFileSync(join(folder, "count"), "utf8")).toBe("15");
  expect(existsSync(join(folder, "lock"))).toBe(false);
});

test("the lock of a process that died is broken", async () => {
  const dead = Bun.spawn(["true"]);
  await dead.exited;
  mkdirSync(join(folder, "lock"));
  writeFileSync(join(folder, "lock/pid"), String(dead.pid));
  expect(await withLock(join(folder, "lock"), () => "mine")).toBe("mine");
  expect(existsSync(join(folder, "lock"))).toBe(false);
});

test("the lock of a living process is waited for, and its holder named", async () => {
  mkdirSync(join(folder, "lock"));
  writeFileSync(join(folder, "lock/pid"), String(process.pid));
  const { promise, resolve } = Promise.withResolvers<number | null>();
  const waiting = withLock(join(folder, "lock"), () => "after", resolve);
  expect(await promise).toBe(process.pid);
  rmSync(join(folder, "lock"), { recursive: true });
  expect(await waiting).toBe("after");
});

test("a lock is given back when the work throws", async () => {
  await expect(withLock(join(folder, "lock"), () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(existsSync(join(folder, "lock"))).toBe(false);
});
