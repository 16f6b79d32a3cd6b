// Failures that only a stand-in for NIXL can bring about, in a process that has loaded it.
import { beforeAll, test } from "bun:test";
import { dirname, join } from "node:path";
import { expectCases, STANDIN_PATH } from "../cuda/run-cases.ts";
import { buildCudaStandin, buildStandin } from "../standin/build.ts";

const STANDIN: string = join(import.meta.dir, "..", "..", "cshim", "build", "standin", "libnixl_capi.so");

beforeAll(async () => {
  await buildStandin(STANDIN);
  await buildCudaStandin(STANDIN_PATH);
}, 120_000);

for (const [file, least] of [
  ["standin-steps", 12],
  ["standin-transfers", 18],
  ["standin-slab", 10],
  ["standin-checksums", 41],
  ["standin-layers", 12],
] as const)
  test(
    `${file}: what fails in NIXL leaves nothing behind and is never taken for success`,
    () => expectCases(`test/runtime/${file}.cases.ts`, least, { KVFERRY_NIXL_LIBRARY: STANDIN }),
    120_000,
  );

test("standin-gds: between GPU memory and files, by stand-ins, GPUDirect Storage is taken where it was proven and never believed", async () => {
  // A NIXL with plugins beside it, which the cases lay there.
  const library = await buildStandin(join(dirname(STANDIN), "gds", "libnixl_capi.so"));
  await expectCases("test/runtime/standin-gds.cases.ts", 31, {
    KVFERRY_NIXL_LIBRARY: library,
    KVFERRY_CUDA_LIBRARY: STANDIN_PATH,
    KVF_STANDIN_DEVICES: "2",
    CUDA_VISIBLE_DEVICES: undefined,
  });
}, 120_000);

test(
  "standin-device-slab: between GPUs, by stand-ins for NIXL and the driver, what fails leaves nothing behind either",
  () =>
    expectCases("test/runtime/standin-device-slab.cases.ts", 22, {
      KVFERRY_NIXL_LIBRARY: STANDIN,
      KVFERRY_CUDA_LIBRARY: STANDIN_PATH,
      KVF_STANDIN_DEVICES: "2",
      CUDA_VISIBLE_DEVICES: undefined,
    }),
  120_000,
);
