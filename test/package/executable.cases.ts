// Run by `bun run check:full`: one executable, alone, where there is nothing else.
import { expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Ended } from "../runtime/helpers/child.ts";
import { copyOfProject, demand, SCRATCH, TEN_LINES } from "./packed.ts";

/** The ten lines, and then a look at what they did. */
const PROGRAM = `import { native } from "kvferry:native";
${TEN_LINES.replace("await transport.transfer", "await engine.fill({ random: 7 });\nawait transport.transfer")}
const same = Buffer.compare(await engine.read(9), await pool.read(1)) === 0;
console.log(JSON.stringify({ same, platform: native.platform }));
`;

const BUILD = `import { kvferryPlugin } from "kvferry/plugin";
const { success, logs } = await Bun.build({
  entrypoints: ["./program.ts"],
  compile: { outfile: process.argv[2] },
  plugins: [kvferryPlugin()],
});
if (!success) throw new AggregateError(logs);
`;

/** Runs a file alone in an empty folder, with neither PATH nor HOME. */
async function runAlone(executable: string, name: string): Promise<Ended> {
  const folder = join(SCRATCH, name);
  mkdirSync(folder);
  copyFileSync(executable, join(folder, "app"));
  expect(readdirSync(folder)).toEqual(["app"]);
  const child = Bun.spawn([join(folder, "app")], {
    cwd: folder,
    env: { PATH: "", HOME: folder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 60_000,
    killSignal: "SIGKILL",
  });
  const [out, words] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  await child.exited;
  return { code: child.exitCode, signal: child.signalCode, out, words };
}

test("built with the plugin, it runs the ten lines in an empty directory with an empty PATH", async () => {
  const folder = await copyOfProject("with-plugin");
  writeFileSync(join(folder, "program.ts"), PROGRAM);
  writeFileSync(join(folder, "build.ts"), BUILD);
  await demand([process.execPath, "build.ts", join(folder, "app")], folder);
  const { code, out, words } = await runAlone(join(folder, "app"), "alone");
  expect({ code, words }).toEqual({ code: 0, words: "" });
  expect(JSON.parse(out)).toEqual({ same: true, platform: `${process.platform}-${process.arch}` });
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
