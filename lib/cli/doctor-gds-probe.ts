// Tries GPUDirect Storage with the NIXL library, the plugin and the directory of the last three arguments, in a process of
// its own, and says as JSON what it found.
import { CUDA_LIBRARY_VARIABLE } from "../native/no-cuda.ts";
import { tryGds } from "../runtime/gds-trial.ts";

const [library = "", backend = "", folder = ""] = process.argv.slice(-3);
const trial = await tryGds({
  nixl: { library, source: "given", version: null },
  backend,
  cuda: process.env[CUDA_LIBRARY_VARIABLE] ?? null,
  folder,
});
process.stdout.write(`${JSON.stringify(trial)}\n`);
