// Run by `bun run check:full`: one executable, alone, where there is nothing else.
import { afterAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findNixl } from "../../lib/native/find-nixl.ts";
import type { Ended } from "../runtime/helpers/child.ts";
import { BUILD, copyOfProject, demand, PROGRAM, removeScratch, SCRATCH } from "./packed.ts";

afterAll(removeScratch);

/** Runs a file alone in an empty folder, with an empty PATH and a HOME without anything. */
async function runAlone(
  executable: string,
  name: string,
  words: readonly string[] = [],
  environment: Readonly<Record<string, string>> = {},
): Promise<Ended> {
  const folder = join(SCRATCH, name);
  mkdirSync(folder);
  copyFileSync(executable, join(folder, "app"));
  expect(readdirSync(folder)).toEqual(["app"]);
  const child = Bun.spawn([join(folder, "app"), ...words], {
    cwd: folder,
    env: { PATH: "", HOME: folder, ...environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 60_000,
    killSignal: "SIGKILL",
  });
  const [out, said] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  await child.exited;
  return { code: child.exitCode, signal: child.signalCode, out, words: said };
}

test("built with the plugin, it runs the ten lines in an empty directory with an empty PATH", async () => {
  const folder = await copyOfProject("with-plugin");
  writeFileSync(join(folder, "program.ts"), PROGRAM);
  writeFileSync(join(folder, "build.ts"), BUILD);
  await demand([process.execPath, "build.ts", "./program.ts", join(folder, "app")], folder);
  const { code, out, words } = await runAlone(join(folder, "app"), "alone");
  expect({ code, words }).toEqual({ code: 0, words: "" });
  expect(JSON.parse(out)).toEqual({
    same: true,
    platform: `${process.platform}-${process.arch}`,
    kernels: true,
  });
}, 300_000);

const nixl = findNixl();
if (nixl === null) test.skip("NOT RUN: the demo in an executable (no NIXL: bun run setup)", () => undefined);
else
  test("the command line built with the plugin runs the demo, both of its processes from the one file", async () => {
    const folder = await copyOfProject("command-line");
    writeFileSync(join(folder, "build.ts"), BUILD);
    const entry = "./node_modules/kvferry/lib/cli/main.ts";
    await demand([process.execPath, "build.ts", entry, join(folder, "app")], folder);
    const environment = { KVFERRY_NIXL_LIBRARY: nixl.library };
    const { code, out } = await runAlone(join(folder, "app"), "alone-demo", ["demo", "--json"], environment);
    const report = JSON.parse(out) as { readonly ok: boolean; readonly pids: readonly number[] };
    expect({ code, ok: report.ok, processes: new Set(report.pids).size }).toEqual({
      code: 0,
      ok: true,
      processes: 2,
    });
    const doctor = await runAlone(join(folder, "app"), "alone-doctor", ["doctor", "--json"], environment);
    const { checks } = JSON.parse(doctor.out) as {
      readonly checks: readonly { readonly name: string; readonly ok: boolean }[];
    };
    expect({
      code: doctor.code,
      nixl: checks.filter(({ name }) => name === "NIXL" || name === "UCX").map(({ ok }) => ok),
    }).toEqual({ code: 0, nixl: [true, true] });
  }, 300_000);

test("built for the other processor it carries that processor's library; for macOS none", async () => {
  const folder = await copyOfProject("other-targets");
  const script = `import { kvferryPlugin } from "kvferry/plugin";
const found = [];
for (const target of ["bun-linux-x64-modern", "bun-linux-arm64", "bun-linux-x64-musl", "bun-darwin-arm64"]) {
  const loads = [];
  kvferryPlugin().setup({
    config: { entrypoints: ["./program.ts"], compile: { target } },
    onLoad: (_filter, load) => loads.push(load),
    onResolve: () => undefined,
  });
  const { contents } = await loads[1]({});
  found.push([target, /prebuilt\\/([a-z0-9-]+)\\//.exec(contents)?.[1] ?? contents.trim()]);
}
console.log(JSON.stringify(Object.fromEntries(found)));
`;
  writeFileSync(join(folder, "targets.ts"), script);
  const { out } = await demand([process.execPath, "targets.ts"], folder);
  expect(JSON.parse(out)).toEqual({
    "bun-linux-x64-modern": "linux-x64",
    "bun-linux-arm64": "linux-arm64",
    "bun-linux-x64-musl": "export const native = null;",
    "bun-darwin-arm64": "export const native = null;",
  });
}, 300_000);

test("preloaded, the plugin gives kvferry:native in a process that was not bundled", async () => {
  const folder = await copyOfProject("preload");
  writeFileSync(join(folder, "bunfig.toml"), `preload = ["kvferry/plugin"]\n`);
  writeFileSync(join(folder, "program.ts"), PROGRAM);
  const { out, words } = await demand([process.execPath, "program.ts"], folder);
  expect(words).toBe("");
  expect(JSON.parse(out)).toEqual({
    same: true,
    platform: `${process.platform}-${process.arch}`,
    kernels: true,
  });
}, 300_000);

test("built without the plugin, it says by a code what is missing and what to do", async () => {
  const folder = await copyOfProject("without-plugin");
  writeFileSync(
    join(folder, "program.ts"),
    `import { isKvferryError, Transport } from "kvferry";
const failure: unknown = await Transport.open({ workerId: 1n, nixl: false }).catch((error: unknown) => error);
console.log(isKvferryError(failure) ? JSON.stringify([failure.code, failure.remedy]) : "opened");
`,
  );
  await demand([process.execPath, "build", "--compile", "program.ts", "--outfile", "app"], folder);
  const { code, out, words } = await runAlone(join(folder, "app"), "alone-without");
  expect({ code, words }).toEqual({ code: 0, words: "" });
  const [missing, remedy] = JSON.parse(out) as [string, string];
  expect(missing).toBe("ERR_KVF_UNSUPPORTED_PLATFORM");
  expect(remedy).toContain("kvferry/plugin");
}, 300_000);
