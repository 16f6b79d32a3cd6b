// NIXL's own plugins for GPUDirect Storage where cuFile is missing. With cuFile they would be given memory of a stand-in for
// a GPU, of which nothing could be learnt.
import { test } from "bun:test";
import { findNixl, nixlPlugins } from "../../lib/native/find-nixl.ts";
import { probeLibrary } from "../../lib/cli/machine-facts.ts";
import { expectCases, STANDIN_PATH } from "../cuda/run-cases.ts";
import { buildCudaStandin } from "../standin/build.ts";

const nixl = findNixl();
const missing =
  nixl === null
    ? "NIXL was not found"
    : nixlPlugins(nixl.library).includes("GDS_MT")
      ? probeLibrary("libcufile.so.0", "cuFileDriverOpen").present
        ? "cuFile is here"
        : null
      : "NIXL has no plugin for it";

if (missing !== null)
  test.skip(`NOT RUN: NIXL's plugins for GPUDirect Storage without cuFile: ${missing}`, () => undefined);
else
  test("NIXL's plugins for GPUDirect Storage answer with an error where cuFile is missing, which is a reason and no error", async () => {
    await buildCudaStandin(STANDIN_PATH);
    await expectCases("test/runtime/gds-plugin.cases.ts", 1, {
      KVFERRY_CUDA_LIBRARY: STANDIN_PATH,
      CUDA_VISIBLE_DEVICES: undefined,
    });
  }, 120_000);
