import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { PEER_VERSIONS, pythonClient } from "./python-peer.ts";

/**
 * Every pair of releases, each side in turn, each in processes of its own. Between 1.3 and later releases UCX's
 * CMA transport does not connect on one host, so those pairs run without it; that the plain pair fails in bounded
 * time with an error, and does not hang, is a test of its own.
 */
const withoutCma = (ours: string, theirs: string): boolean =>
  theirs.startsWith("1.3.") !== ours.startsWith("1.3.");

const missing =
  findNixl() === null
    ? "NIXL was not found"
    : PEER_VERSIONS.map(pythonClient).find((client) => "missing" in client)?.missing;

async function run(
  ours: string,
  theirs: string,
  environment: Readonly<Record<string, string>>,
): Promise<{ code: number; output: string }> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "run-exchange.ts"), ours, theirs], {
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...environment },
  });
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, output: stdout + stderr };
}

if (missing !== undefined) {
  test.skip(`NIXL releases as each other's peers (not run: ${missing})`, () => undefined);
} else {
  describe("NIXL releases as each other's peers", () => {
    for (const ours of PEER_VERSIONS) {
      for (const theirs of PEER_VERSIONS) {
        const plain = !withoutCma(ours, theirs);
        test(`${ours} here, a peer on ${theirs}${plain ? "" : ", without CMA"}`, async () => {
          const { output } = await run(ours, theirs, plain ? {} : { UCX_TLS: "^cma" });
          expect(output).toContain(`${ours} with a peer on ${theirs}: verified`);
        }, 60_000);
      }
    }

    test("1.5.1 here, a peer on 1.3.2, over CMA: an error that names the cause within the deadline, not a hang", async () => {
      const { code, output } = await run("1.5.1", "1.3.2", { KVFERRY_TEST_DEADLINE: "3000" });
      expect(code).not.toBe(0);
      expect(output).toContain("ERR_KVF_TIMEOUT");
      expect(output).toContain("no byte has ever reached the peer");
    }, 60_000);
  });
}
