import { expect, test } from "bun:test";
import { join } from "node:path";
import { DEMO_CASES } from "../../lib/cli/demo-cases.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";

interface Printed {
  readonly ok: boolean;
  readonly nixl: {
    readonly version: string | null;
    readonly backend: string;
    readonly transport: string | null;
  };
  readonly pids: readonly number[];
  readonly cases: readonly {
    readonly name: string;
    readonly bytes: number;
    readonly verified: boolean;
    readonly gbps: number;
    readonly neighbourGbps: number;
    readonly ratio: number;
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
      expect(one.ratio).toBeCloseTo(one.neighbourGbps / one.gbps, 1);
    }
    expect(printed.nixl.backend).toBe("UCX");
    expect(printed.nixl.transport).not.toBeNull();
    const [first, second] = printed.pids;
    expect(first).toBe(child.pid);
    expect(second).not.toBe(first);
    expect(() => process.kill(second ?? 0, 0)).toThrow();
  },
  120_000,
);
