// The script of the native GPU tests runs where nobody looks: that it builds what it runs is seen on every machine.
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

test("the script of the native GPU tests builds its programs, whatever parts the library has by now", async () => {
  const folder = mkdtempSync(join(tmpdir(), "kvferry-gpu-script-"));
  try {
    const script = resolve(import.meta.dir, "../gpu/native_run.sh");
    const child = Bun.spawn(["bash", script, folder], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const said = await new Response(child.stderr).text();
    expect(said).toBe("");
    expect(await child.exited).toBe(0);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, 120_000);
