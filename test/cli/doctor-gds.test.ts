// The doctor's trial of GPUDirect Storage, over stand-ins for NIXL and for the CUDA driver: what it says of a plugin that works
// must rest on bytes, and each thing that is missing has its own words. No result here is about a GPU.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildCudaStandin, buildDeadlyLibrary, buildStandin } from "../standin/build.ts";

const PROGRAM = join(import.meta.dir, "../../lib/cli/main.ts");
const BUILT = join(import.meta.dir, "../../cshim/build/standin");
const CUDA = join(BUILT, "libcuda.so.1");
const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-gds-"));
const FILES = join(FOLDER, "files");
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

beforeAll(async () => {
  await Promise.all([buildStandin(join(BUILT, "libnixl_capi.so")), buildCudaStandin(CUDA)]);
}, 120_000);

/** A NIXL with these plugins beside it. */
function nixlWith(...plugins: string[]): string {
  const folder = join(FOLDER, plugins.join("-"));
  mkdirSync(join(folder, "plugins"), { recursive: true });
  copyFileSync(join(BUILT, "libnixl_capi.so"), join(folder, "libnixl_capi.so"));
  for (const plugin of plugins) writeFileSync(join(folder, "plugins", `libplugin_${plugin}.so`), "");
  return join(folder, "libnixl_capi.so");
}

interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly found: string;
  readonly remedy?: string;
}

async function gds(nixl: string, environment: Record<string, string>): Promise<Check> {
  const child = Bun.spawn([process.execPath, PROGRAM, "doctor", "--json", "--nixl", nixl], {
    env: { ...process.env, KVFERRY_DISK_CACHE_DIR: FILES, KVFERRY_CUDA_LIBRARY: CUDA, ...environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
  });
  const { checks } = JSON.parse(await new Response(child.stdout).text()) as { checks: Check[] };
  const found = checks.find(({ name }) => name === "GPUDirect Storage");
  if (found === undefined) throw new Error("the doctor did not look");
  expect((found.remedy ?? "") === "").toBe(found.ok);
  // Whatever happened, no file is left.
  expect(readdirSync(FOLDER).includes("files") ? readdirSync(FILES) : []).toEqual([]);
  return found;
}

test("bytes that come back right both ways prove it, and not more than that", async () => {
  const { ok, found } = await gds(nixlWith("UCX", "GDS", "GDS_MT"), {});
  expect(found).toMatch(/^GDS_MT: every byte was right both ways between .+ and a file in /);
  expect(found).toContain(FILES);
  expect(found).toContain("nvidia-fs");
  expect(ok).toBe(true);
});

for (const [copy, stage, of] of [
  [1, "writing", "the file"],
  [2, "reading", "device memory"],
] as const)
  test(`a byte that differs after ${stage} is no proof`, async () => {
    const { ok, found } = await gds(nixlWith("GDS"), { NIXL_STANDIN: `flip ${copy} 70000` });
    expect(ok).toBe(false);
    expect(found).toContain(`GDS: ${stage} a file failed: 1 of 1048576 bytes of ${of} differ`);
  });

test("a plugin that does not come up, one that refuses the file and one that fails half way are told apart", async () => {
  const nixl = nixlWith("GDS");
  const refused = await gds(nixl, { NIXL_STANDIN: "fail create_backend 0 -2" });
  expect(refused.found).toContain("GDS: the backend does not come up: ");
  const memory = await gds(nixl, { NIXL_STANDIN: "fail register_mem 2 -2" });
  expect(memory.found).toContain("GDS: the file or the device memory was refused: ");
  const failed = await gds(nixl, { NIXL_STANDIN: "fail post_xfer_req 2 -2" });
  expect(failed.found).toContain("GDS: reading a file failed: ");
  for (const { ok } of [refused, memory, failed]) expect(ok).toBe(false);
});

test("without a plugin or a device it says so and tries nothing", async () => {
  const plain = await gds(nixlWith("UCX", "POSIX"), {});
  expect(plain).toMatchObject({ ok: false });
  expect(plain.found).toContain("NIXL has no GDS plugin (POSIX, UCX beside ");
  const blind = await gds(nixlWith("GDS"), { KVFERRY_CUDA_LIBRARY: "/nowhere/libcuda.so.1" });
  expect(blind).toMatchObject({ ok: false });
  expect(blind.found).toStartWith("no CUDA device: ");
});

test("a trial that kills its process is no proof, and the doctor outlives it", async () => {
  const deadly = await buildDeadlyLibrary(join(FOLDER, "deadly", "libcuda.so.1"));
  const { ok, found } = await gds(nixlWith("GDS"), { KVFERRY_CUDA_LIBRARY: deadly });
  expect(ok).toBe(false);
  expect(found).toContain("GDS: the trial did not end well: it ended with SIGABRT");
});

test("a directory that cannot be written to is named", async () => {
  const file = join(FOLDER, "a-file");
  writeFileSync(file, "");
  const { ok, found } = await gds(nixlWith("GDS"), { KVFERRY_DISK_CACHE_DIR: join(file, "below") });
  expect(ok).toBe(false);
  expect(found).toContain("GDS: the file or the device memory was refused: ");
  expect(found).toContain(file);
});
