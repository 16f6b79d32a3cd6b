import { describe, expect, test } from "bun:test";
import { join } from "node:path";

const PROGRAM = join(import.meta.dirname, "../../lib/cli/main.ts");
const COMMANDS = ["setup", "doctor", "demo", "bench", "inspect"];

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly words: string;
}

async function kvferry(
  commandLine: readonly string[],
  environment: Record<string, string> = {},
): Promise<Ended> {
  const child = Bun.spawn([process.execPath, PROGRAM, ...commandLine], {
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, words, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, words };
}

describe("the command line", () => {
  test("help names every command and every exit status, with and without a command", async () => {
    for (const words of [[], ["--help"], ["help"], ["-h"]]) {
      const { code, out } = await kvferry(words);
      expect(code).toBe(0);
      for (const name of COMMANDS) expect(out).toContain(`  ${name}`);
      expect(out).toContain("Exit status:");
    }
  });

  test.each(COMMANDS)("%s --help says what it takes and does nothing", async (name) => {
    const { code, out } = await kvferry([name, "--help"]);
    expect(code).toBe(0);
    expect(out).toStartWith(`Usage: kvferry ${name}`);
    expect(out).toContain("--json");
    expect((await kvferry(["help", name])).out).toBe(out);
  });

  test("an unknown command and an unknown option end with status 2, help and nothing on standard output", async () => {
    const command = await kvferry(["moev"]);
    expect(command).toMatchObject({ code: 2, out: "" });
    expect(command.words).toContain('unknown command "moev"');
    expect(command.words).toContain("Usage: kvferry");
    const option = await kvferry(["setup", "--wheeel", "x"]);
    expect(option).toMatchObject({ code: 2, out: "" });
    expect(option.words).toContain("Usage: kvferry setup");
    expect((await kvferry(["setup", "operand"])).code).toBe(2);
    expect((await kvferry(["inspect"])).code).toBe(2);
    expect((await kvferry(["inspect", "x", "--to", "yaml"])).code).toBe(2);
  });

  test("the version is the package's", async () => {
    const manifest: { version: string } = await Bun.file(
      join(import.meta.dirname, "../../package.json"),
    ).json();
    expect((await kvferry(["--version"])).out).toBe(`${manifest.version}\n`);
  });

  test("with --json a refusal is one object on standard output, its remedy on standard error", async () => {
    const { code, out, words } = await kvferry(["setup", "--json"], {
      KVFERRY_NIXL_LIBRARY: "/nowhere/at/all.so",
    });
    expect(code).toBe(3);
    const printed: { ok: boolean; error: { code: string; remedy: string } } = JSON.parse(out);
    expect(printed.ok).toBe(false);
    expect(printed.error.code).toBe("ERR_KVF_NO_NIXL");
    expect(words).toContain(printed.error.remedy);
  });

  test("the doctor says what is missing, what it costs and what mends it, and prints no colours into a pipe", async () => {
    const { out } = await kvferry(["doctor"], { KVFERRY_NIXL_LIBRARY: "/nowhere/at/all.so" });
    expect(out).not.toContain("\u001b");
    expect(out).toContain("without  NIXL: not found");
    expect(out).toContain("/nowhere/at/all.so");
    expect(out).toContain("authentication: by the `secret`");
    const json = await kvferry(["doctor", "--json"], { KVFERRY_NIXL_LIBRARY: "/nowhere/at/all.so" });
    const printed: {
      ok: boolean;
      checks: { name: string; ok: boolean; found: string; remedy?: string; cost?: string }[];
    } = JSON.parse(json.out);
    expect(json.code).toBe(printed.ok ? 0 : 1);
    expect(printed.checks.find((check) => check.name === "NIXL")?.ok).toBe(false);
    for (const check of printed.checks) {
      expect(check.found).not.toBe("");
      expect((check.remedy ?? "") !== "").toBe(!check.ok);
      expect((check.cost ?? "") !== "").toBe(!check.ok);
    }
  });

  test("the doctor calls a native library of another interface missing, with exit status 1", async () => {
    const { code, out } = await kvferry(["doctor", "--json"], { KVFERRY_SHIM: "/nowhere/libkvf.so" });
    expect(code).toBe(1);
    const printed: { ok: boolean; checks: { name: string; ok: boolean; required: boolean }[] } =
      JSON.parse(out);
    expect(printed.ok).toBe(false);
    expect(printed.checks.find((check) => check.name === "native library")).toMatchObject({
      ok: false,
      required: true,
    });
  });

  test("a reader that has seen enough ends it quietly", () => {
    const run = Bun.spawnSync(["sh", "-c", `"${process.execPath}" "${PROGRAM}" doctor | head -n 1`], {
      stdout: "pipe",
      stderr: "pipe",
    });
    expect(run.stdout.toString().split("\n")).toHaveLength(2);
    expect(run.stderr.toString()).toBe("");
  });
});
