import { beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { buildCudaStandin } from "../standin/build.ts";
import { buildDriver, canSanitize, DRIVER_FOLDER, runProgram, SANITIZERS } from "./c-driver.ts";
import type { DriverEnded, Sanitizer } from "./c-driver.ts";

// The CUDA part in C, without JavaScript and without a GPU. One driver proves what is pure: how programs are cut,
// brought to slabs and expanded by the kernels' own body, against plain loops. The other runs the jobs on a stand-in
// for the driver library; the same program runs on real GPUs.

/** What a driver ended with; its last line is an object of counts. */
interface Ended extends DriverEnded {
  readonly last: Record<string, number>;
}

function build(name: string, sanitizer?: Sanitizer): Promise<string> {
  const options = sanitizer === undefined ? {} : { sanitize: SANITIZERS[sanitizer] };
  return buildDriver(`${name}.c`, sanitizer ?? "plain", { ...options, without: ["nixl"] });
}

async function run(
  program: string,
  args: readonly string[],
  environment: Record<string, string> = {},
): Promise<Ended> {
  const ended = await runProgram([program, ...args], { ASAN_OPTIONS: "detect_leaks=0", ...environment });
  const last = ended.lines.at(-1) ?? "";
  return { ...ended, last: last.startsWith("{") ? (JSON.parse(last) as Record<string, number>) : {} };
}

test("programs cut, brought to slabs and expanded by the kernels' body move the right bytes", async () => {
  const ended = await run(await build("cuda_driver"), ["300", "11"]);
  expect(ended).toMatchObject({ code: 0, said: "", last: { cases: 300, failures: 0, over: 0 } });
  // Whole blocks on the far side really become fewer and longer copies than the program has rows.
  expect(ended.last["spans"] ?? 0).toBeLessThan((ended.last["rows"] ?? 0) * 0.8);
  // Every form of a list was met.
  for (const form of ["narrow", "wide"]) expect(ended.last[form] ?? 0).toBeGreaterThan(10);
}, 120_000);

if (canSanitize("address")) {
  test("the same with every access checked", async () => {
    const ended = await run(await build("cuda_driver", "address"), ["60", "12"]);
    expect(ended).toMatchObject({ code: 0, said: "", last: { failures: 0 } });
  }, 120_000);
}

test("the compiled kernels were made from the sources beside them", () => {
  const script = join(import.meta.dir, "..", "..", "cshim", "kernels", "build.ts");
  const said = Bun.spawnSync([process.execPath, script, "--check"]).stderr.toString();
  expect(said).toStartWith("kernels: up to date");
});

const standin = join(DRIVER_FOLDER, "standin-plain", "libcuda.so.1");
beforeAll(async () => {
  await buildCudaStandin(standin);
}, 120_000);

/** Drivers by what they lack: batched copies, their later form, bulk copies. */
const drivers = [
  ["13.0 on compute capability 9.0", { KVF_STANDIN_VERSION: "13000" }, 8],
  ["12.8, the earlier form of batched copies", { KVF_STANDIN_VERSION: "12080" }, 9],
  ["12.0 on compute capability 7.5", { KVF_STANDIN_VERSION: "12000", KVF_STANDIN_ARCH: "75" }, 0],
] as const;

for (const [name, environment, batch] of drivers) {
  test(`jobs with a driver ${name}: bytes, order, events, refusals`, async () => {
    const ended = await run(await build("cuda_jobs"), [standin, "30", "3"], environment);
    expect(ended.said).toBe("");
    expect(ended).toMatchObject({ code: 0, last: { failures: 0 } });
    expect(ended.last["copies"] ?? 0).toBeGreaterThan(60);
    expect(JSON.parse(ended.lines[0] ?? "{}")).toMatchObject({ batch });
  }, 120_000);
}

test("a driver older than 12.0 is refused with what is needed", async () => {
  const ended = await run(await build("cuda_jobs"), [standin, "1", "1"], {
    KVF_STANDIN_VERSION: "11080",
  });
  expect(ended.code).toBe(2);
  expect(ended.said).toContain("CUDA 11.8; 12.0 (driver 525) or newer is needed");
}, 120_000);

test("calls that fail end their job once, never-started jobs moved nothing, stuck ones hold only themselves", async () => {
  const ended = await run(await build("cuda_jobs"), [standin, "2", "5", "inject"]);
  expect(ended.said).toBe("");
  expect(ended).toMatchObject({ code: 0, last: { failures: 0 } });
}, 120_000);

test("a fault of a kernel ends every running job in doubt, later ones are refused with the cause", async () => {
  const ended = await run(await build("cuda_jobs"), [standin, "2", "5", "fault"]);
  expect(ended.said).toBe("");
  expect(ended).toMatchObject({ code: 0, last: { failures: 0 } });
  expect(ended.lines.some((line) => line.startsWith("refused: CUDA device 0 is lost"))).toBe(true);
}, 120_000);

for (const kind of ["address", "thread"] as const) {
  if (!canSanitize(kind)) continue;
  test(`jobs under the ${kind} sanitizer`, async () => {
    const library = join(DRIVER_FOLDER, `standin-${kind}`, "libcuda.so.1");
    await buildCudaStandin(library, { sanitize: SANITIZERS[kind] });
    const program = await build("cuda_jobs", kind);
    const ended = await run(program, [library, "6", "7", "inject"]);
    expect(ended.said).toBe("");
    expect(ended).toMatchObject({ code: 0, last: { failures: 0 } });
  }, 240_000);
}
