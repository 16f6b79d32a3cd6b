import { expect, test } from "bun:test";
import { join } from "node:path";
import { DEMO_CASES } from "../../lib/cli/demo-cases.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { runCommand } from "../runtime/helpers/child.ts";

interface Printed {
  readonly ok: boolean;
  readonly nixl: {
    readonly version: string | null;
    readonly backend: string;
    readonly transport: string | null;
  } | null;
  readonly pids: readonly number[];
  readonly cases: readonly {
    readonly name: string;
    readonly bytes: number;
    readonly verified: boolean;
    readonly gbps: number | null;
    readonly neighbourGbps: number;
    readonly ratio: number | null;
  }[];
}

test.skipIf(findNixl() === null)(
  "the demo moves every case between two processes, over the real NIXL and as neighbours, and leaves nobody behind",
  async () => {
    const child = Bun.spawn(
      [process.execPath, join(import.meta.dirname, "../../lib/cli/main.ts"), "demo", "--json"],
      {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      },
    );
    const [out, words, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    expect(code, words).toBe(0);
    const printed: Printed = JSON.parse(out);
    expect(printed.ok).toBe(true);
    expect(printed.cases.map((one) => one.name)).toEqual(DEMO_CASES.map((one) => one.name));
    for (const one of printed.cases) {
      expect(one.verified, one.name).toBe(true);
      expect(one.bytes).toBeGreaterThan(0);
      expect(one.gbps).toBeGreaterThan(0);
      expect(one.neighbourGbps).toBeGreaterThan(0);
      expect(one.ratio).toBeCloseTo(one.neighbourGbps / (one.gbps ?? 0), 1);
    }
    expect(printed.nixl?.backend).toBe("UCX");
    expect(printed.nixl?.transport).toBeString();
    const [first, second] = printed.pids;
    expect(first).toBe(child.pid);
    expect(second).not.toBe(first);
    expect(() => process.kill(second ?? 0, 0)).toThrow();
  },
  120_000,
);

test("with --neighbours it needs no NIXL, looks for none, and says that none was tried", async () => {
  const { code, out, words } = await runCommand(
    [process.execPath, join(import.meta.dirname, "../../lib/cli/main.ts"), "demo", "--neighbours", "--json"],
    // Nothing can be fetched and nothing is found here.
    { KVFERRY_NIXL_LIBRARY: "/nonexistent", KVFERRY_PYTHON: "/nonexistent" },
    100_000,
  );
  expect(code, words).toBe(0);
  const printed: Printed = JSON.parse(out);
  expect({ ok: printed.ok, nixl: printed.nixl }).toEqual({ ok: true, nixl: null });
  expect(printed.cases.map(({ name, verified, gbps }) => ({ name, verified, gbps }))).toEqual(
    DEMO_CASES.map(({ name }) => ({ name, verified: true, gbps: null })),
  );
}, 120_000);
