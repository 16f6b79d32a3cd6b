// The CUDA tier on a stand-in for the driver, which executes copies and the kernels' own code in host memory: it proves
// order, choice and failure handling, and is no result of a GPU. test/gpu runs the same cases on one.
import { beforeAll, test } from "bun:test";
import { hasCommand } from "../../cshim/build.ts";
import { expectCases, STANDIN_PATH } from "../cuda/run-cases.ts";
import { buildCudaStandin } from "../standin/build.ts";

const usable = hasCommand("cc");
const environment = { KVFERRY_CUDA_LIBRARY: STANDIN_PATH, CUDA_VISIBLE_DEVICES: undefined };

if (usable) {
  beforeAll(async () => void (await buildCudaStandin(STANDIN_PATH)), 120_000);

  test(
    "every pair of memory kinds, arrangement, order and method",
    () => expectCases("test/cuda/matrix.cases.ts", 75, environment),
    300_000,
  );
  test(
    "lists so long that they are written while the first of them are moved",
    () => expectCases("test/cuda/long-lists.cases.ts", 17, environment),
    300_000,
  );
  test(
    "lists of ids that come again",
    () => expectCases("test/cuda/repeated-lists.cases.ts", 5, environment),
    120_000,
  );
  test(
    "two devices in one process",
    () => expectCases("test/cuda/devices.cases.ts", 3, { ...environment, KVF_STANDIN_DEVICES: "2" }),
    120_000,
  );
  test(
    "two processes that share a GPU, as neighbours",
    () => expectCases("test/cuda/neighbours.cases.ts", 44, { ...environment, KVF_STANDIN_IPC: "1" }),
    180_000,
  );
  for (const ipc of ["1", "2"])
    test(
      `two processes on two GPUs, as neighbours, by ${ipc === "1" ? "IPC handles" : "descriptors"}`,
      () =>
        expectCases("test/cuda/neighbours.cases.ts", 44, {
          ...environment,
          KVF_STANDIN_IPC: ipc,
          KVF_STANDIN_DEVICES: "2",
          KVF_CASES_FAR_DEVICE: "1",
        }),
      180_000,
    );
  test(
    "two processes that share a GPU whose driver gives no IPC handles, by descriptors",
    () => expectCases("test/cuda/neighbours.cases.ts", 44, { ...environment, KVF_STANDIN_IPC: "2" }),
    180_000,
  );
  test(
    "an older driver and a GPU without bulk copies or kernels",
    () =>
      expectCases("test/cuda/older.cases.ts", 2, {
        ...environment,
        KVF_STANDIN_VERSION: "12040",
        KVF_STANDIN_ARCH: "80",
      }),
    120_000,
  );
  test(
    "order after streams and events, completion, layers",
    () => expectCases("test/cuda/completion.cases.ts", 10, environment),
    120_000,
  );
  test(
    "failures and copies that never end",
    () => expectCases("test/cuda/failure.cases.ts", 8, environment),
    120_000,
  );
  test(
    "a device whose context is lost",
    () => expectCases("test/cuda/poison.cases.ts", 1, environment),
    120_000,
  );
} else {
  test.skip("NOT RUN: the stand-in for the CUDA driver needs a C compiler", () => undefined);
}
