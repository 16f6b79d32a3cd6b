// Tries GPUDirect Storage with the NIXL library, the plugin and the directory of the last three arguments, in a process of
// its own, for plugins that lack something have been seen to hang and to crash, and says as JSON what it found.
import { NixlAgent } from "../native/agent.ts";
import { NativeContext } from "../native/context.ts";
import { CudaDriver } from "../native/cuda.ts";
import { openLibrary } from "../native/library.ts";
import { CUDA_LIBRARY_VARIABLE } from "../native/no-cuda.ts";
import { tryGds } from "../runtime/gds-trial.ts";

/** The first device: whether the plugin works is no question of which. */
const DEVICE = 0;

/** Where it ended, with what words. */
interface Outcome {
  readonly proven: boolean;
  readonly stage: string;
  readonly found: string;
}

const [library = "", backend = "", folder = ""] = process.argv.slice(-3);

async function probe(context: NativeContext): Promise<Outcome> {
  let stage = "device";
  const held = new AsyncDisposableStack();
  await using undo = new AsyncDisposableStack();
  try {
    const driver = await CudaDriver.load(context, process.env[CUDA_LIBRARY_VARIABLE] ?? null);
    await driver.openDevice(DEVICE);
    undo.defer(() => driver.closeDevice(DEVICE));
    stage = "backend";
    const nixl = { library, source: "given", version: null } as const;
    const agent = await NixlAgent.create(context, nixl, "gds-trial", 1);
    undo.defer(() => held.disposeAsync());
    undo.defer(async () => void (await agent.close()));
    await agent.addBackend(backend, {});
    const {
      proven,
      stage: reached,
      found,
      quiet,
    } = await tryGds({ context, driver, device: DEVICE, agent, folder }, held);
    if (quiet) await held.disposeAsync();
    return { proven, stage: reached, found };
  } catch (error) {
    return { proven: false, stage, found: error instanceof Error ? error.message : String(error) };
  }
}

const context = NativeContext.open(openLibrary(), 64);
const outcome = await probe(context).finally(() => context.close(1_000));
process.stdout.write(`${JSON.stringify(outcome)}\n`);
