// The CUDA tier on this machine's GPU; says loudly that it did not run where there is none. Each file of cases runs in a
// process of its own.
import { existsSync } from "node:fs";
import { describe, test } from "bun:test";
import { gdsCheck } from "../../lib/cli/doctor-gds.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { expectCases } from "../cuda/run-cases.ts";

const gpus = countGpus();
// On a machine with a GPU the real driver is meant, whatever the environment names for others.
const environment = { KVFERRY_CUDA_LIBRARY: undefined };

if (gpus === 0) {
  test.skip("NOT RUN: there is no GPU on this machine, so nothing here is shown to work on one", () =>
    undefined);
} else {
  describe("on a GPU", async () => {
    test(
      "every pair of memory kinds, arrangement, order and method",
      () => expectCases("test/cuda/matrix.cases.ts", 75, environment),
      400_000,
    );
    test(
      "lists so long that they are written while the first of them are moved",
      () => expectCases("test/cuda/long-lists.cases.ts", 17, environment),
      400_000,
    );
    test(
      "lists of ids that come again",
      () => expectCases("test/cuda/repeated-lists.cases.ts", 4, environment),
      240_000,
    );
    test(
      "the route table: every pair of memory kinds, here and at a peer",
      () => expectCases("test/cuda/routes.cases.ts", findNixl() === null ? 2 : 4, environment),
      400_000,
    );
    test(
      "order after streams and events, completion, layers",
      () => expectCases("test/cuda/completion.cases.ts", 10, environment),
      120_000,
    );
    test(
      "a device whose context is lost",
      () => expectCases("test/cuda/poison.cases.ts", 1, environment),
      120_000,
    );
    test(
      "two processes that share a GPU, as neighbours",
      () => expectCases("test/cuda/neighbours.cases.ts", 39, environment),
      240_000,
    );
    if (findNixl() === null)
      test.skip("NOT RUN: two processes over NIXL: there is no NIXL here", () => undefined);
    else
      test(
        "two processes over NIXL, GPU memory on both sides",
        () => expectCases("test/gpu/nixl.cases.ts", 31, environment),
        400_000,
      );
    // Plugins that lack something may crash: the doctor tries them in a process of its own first.
    const gds = await gdsCheck(undefined, findNixl() !== null);
    if (!gds.ok)
      test.skip(`NOT RUN: GPUDirect Storage is not proven on this machine: ${gds.found}`, () => undefined);
    else
      test(
        "GPU memory and files by GPUDirect Storage",
        () => expectCases("test/gpu/gds.cases.ts", 5, environment),
        120_000,
      );
    if (gpus < 2) test.skip("NOT RUN: two devices: this machine has one GPU", () => undefined);
    else {
      test(
        "two devices in one process",
        () => expectCases("test/cuda/devices.cases.ts", 3, environment),
        120_000,
      );
      test(
        "two processes on two GPUs, as neighbours",
        () => expectCases("test/cuda/neighbours.cases.ts", 39, { ...environment, KVF_CASES_FAR_DEVICE: "1" }),
        240_000,
      );
    }
  });
}

function countGpus(): number {
  if (!existsSync("/dev/nvidiactl") && !existsSync("/dev/nvidia0")) return 0;
  if (Bun.which("nvidia-smi") === null) return 1;
  const listed = Bun.spawnSync(["nvidia-smi", "-L"], { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
  return listed.exitCode === 0 ? listed.stdout.toString().trim().split("\n").filter(Boolean).length : 0;
}
